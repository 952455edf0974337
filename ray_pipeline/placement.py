"""Do the actors and task slots of a plan fit the nodes of a cluster? Pure arithmetic.

Actors hold their CPUs for good, so pools that take them all leave nothing for the tasks between
them, and the graph stands still without a word. Sums over the cluster lie when fractional CPUs
are left over on each node, so the actors are packed node by node.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ray_pipeline.errors import DoesNotFitError
from ray_pipeline.settings import JobSettings

PLAN_CPUS = 0.2
"""CPUs of one planning task."""
STAGE_CPUS = 0.1
"""CPUs of one staging actor."""
ENCODERS_PER_STAGER = 4
"""Encoding actors whose shards one staging actor takes: a GPU makes some six a second, each a few
milliseconds of work and one PUT."""
COMMIT_CPUS = 0.1
"""CPUs of one commit task."""
LEAST_ENCODER_CPUS = 0.1
"""CPUs of an encoding actor where the rest leaves no more."""
READERS_PER_GPU = 12
"""Most reading actors per GPU by default."""

RESOURCE_SHARE = 0.001
"""Of a custom resource that an encoding actor holds: it says where, not how many."""

COMMIT_BYTES = 256 << 20
"""Memory of a commit besides its vectors: one row group, Parquet's buffers, the process."""
COMMIT_SHARE = 0.8
"""Most of a node's memory that one commit declares."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """What one node offers."""

    cpus: float
    """CPUs Ray may hand out there."""
    gpus: float = 0.0
    """GPUs Ray may hand out there."""
    memory_bytes: int = 0
    """Memory Ray may hand out there, bytes; 0 when unknown."""
    resources: frozenset[str] = frozenset()
    """Names of what else it has: custom resources, and kinds of accelerators."""
    id: str = ""
    """Ray's name of it."""

    def has(self, resource: str | None) -> bool:
        """Whether it has that resource; none is everywhere."""
        return resource is None or resource in self.resources


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What one actor or task holds while it is there."""

    what: str
    """Such as `a reading actor`."""
    cpus: float
    """CPUs."""
    gpus: float = 0.0
    """GPUs."""
    resource: str | None = None
    """What a node must have to hold it."""

    def __str__(self) -> str:
        where = f", {self.resource}" if self.resource else ""
        return f"{self.what} ({self.cpus:g} CPUs, {self.gpus:g} GPUs{where})"


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How many actors of each kind, and what each holds."""

    readers: int
    """Reading actors."""
    reader_cpus: float
    """CPUs of each."""
    encoders: int
    """Encoding actors."""
    encoder_cpus: float
    """CPUs of each."""
    encoder_gpus: float
    """GPUs of each."""
    encoder_resource: str | None = None
    """What a node must have to hold one."""

    @property
    def encoder_resources(self) -> dict[str, float]:
        """What one holds besides CPUs and GPUs, as Ray wants it."""
        return {self.encoder_resource: RESOURCE_SHARE} if self.encoder_resource else {}

    @property
    def stagers(self) -> int:
        """Staging actors."""
        return _stagers(self.encoders)

    @property
    def device(self) -> str:
        """The device of the encoding actors: `cuda` or `cpu`."""
        return "cuda" if self.encoder_gpus > 0 else "cpu"

    @property
    def threads(self) -> int | None:
        """Threads of one encoder: its CPUs when it computes on them, else the library's choice.

        Rounded up: encoding is what a node without GPUs is there for, and the rest needs little.
        """
        return max(1, math.ceil(self.encoder_cpus - 1e-9)) if self.encoder_gpus == 0 else None

    @property
    def reader_threads(self) -> int:
        """Threads that decode in one reader: its CPUs."""
        return max(1, round(self.reader_cpus))

    def demands(self) -> list[Demand]:
        """Everything that must run at once, the largest first."""
        encoder = Demand(
            what="an encoding actor",
            cpus=self.encoder_cpus,
            gpus=self.encoder_gpus,
            resource=self.encoder_resource,
        )
        return [
            *[encoder] * self.encoders,
            *[Demand(what="a reading actor", cpus=self.reader_cpus)] * self.readers,
            Demand(what="a planning task", cpus=PLAN_CPUS),
            *[Demand(what="a staging actor", cpus=STAGE_CPUS)] * self.stagers,
            Demand(what="a commit task", cpus=COMMIT_CPUS),
        ]


def choose_placement(settings: JobSettings, nodes: Sequence[Node]) -> Placement:
    """Fill in what the settings leave open from what the cluster has."""
    cpus = sum(node.cpus for node in nodes)
    holders = [node for node in nodes if node.has(settings.encoder_resource)]
    gpus = sum(node.gpus for node in holders)
    encoder_gpus = settings.encoder_gpus
    if encoder_gpus is None:
        # A cluster that grows by itself may have no GPU yet.
        encoder_gpus = 1.0 if gpus >= 1 or settings.autoscaling else 0.0
    if encoder_gpus > 0:
        encoders = settings.encoders or max(1, int(gpus / encoder_gpus))
        encoder_cpus = settings.encoder_cpus or 1.0
    else:
        encoders = settings.encoders or 1
        largest = max((node.cpus for node in holders), default=1.0)
        rest = settings.reader_cpus + _tasks_cpus(encoders)
        share = math.floor(100 * (largest / encoders - rest) + 1e-6) / 100
        encoder_cpus = settings.encoder_cpus or max(LEAST_ENCODER_CPUS, share)
    spare = cpus - encoders * encoder_cpus - _tasks_cpus(encoders)
    most = READERS_PER_GPU * encoders if encoder_gpus > 0 else 2 * encoders
    readers = settings.readers or max(1, min(most, int(spare / settings.reader_cpus)))
    return Placement(
        readers=readers,
        reader_cpus=settings.reader_cpus,
        encoders=encoders,
        encoder_cpus=encoder_cpus,
        encoder_gpus=encoder_gpus,
        encoder_resource=settings.encoder_resource,
    )


def _tasks_cpus(encoders: int) -> float:
    """CPUs of what runs beside readers and encoders."""
    return PLAN_CPUS + COMMIT_CPUS + STAGE_CPUS * _stagers(encoders)


def _stagers(encoders: int) -> int:
    return math.ceil(encoders / ENCODERS_PER_STAGER)


def short_of(placement: Placement, free: Node) -> str:
    """What `free` lacks of all that must run at once, as the beginning of a sentence; or nothing.

    A sum, and of this moment: reason to tell, not to refuse.
    """
    cpus = sum(demand.cpus for demand in placement.demands())
    gpus = sum(demand.gpus for demand in placement.demands())
    if free.cpus >= cpus - 1e-9 and free.gpus >= gpus - 1e-9:
        return ""
    return (
        f"{cpus:g} CPUs and {gpus:g} GPUs are needed at once, {free.cpus:g} and {free.gpus:g} "
        "are free now"
    )


def commit_memory_bytes(n_tiles: int, dim: int, nodes: Sequence[Node]) -> int:
    """Bytes that the commit of a slide declares: twice its vectors as float16, and COMMIT_BYTES.

    Never more than any node with CPUs offers: which one has a CPU left beside the actors is not
    known, and a commit that fits nowhere would wait without a word.
    """
    wanted = 2 * n_tiles * dim * 2 + COMMIT_BYTES
    return min([wanted, *(int(COMMIT_SHARE * node.memory_bytes) for node in _takers(nodes))])


def _takers(nodes: Sequence[Node]) -> list[Node]:
    """Nodes that may be given a commit, as far as their memory is known."""
    return [node for node in nodes if node.cpus >= COMMIT_CPUS and node.memory_bytes > 0]


def check_fit(placement: Placement, nodes: Sequence[Node]) -> None:
    """Raise DoesNotFitError, with the numbers, when not everything can run at once."""
    for node in _takers(nodes):
        if COMMIT_SHARE * node.memory_bytes < COMMIT_BYTES:
            raise DoesNotFitError(
                f"a node offers {node.memory_bytes >> 20} MB of memory, and a commit takes "
                f"{int(COMMIT_BYTES / COMMIT_SHARE) >> 20} MB at least; start Ray there with more "
                "(ray start --memory), or without CPUs."
            )
    free = [(node, [node.cpus, node.gpus]) for node in nodes]
    for demand in sorted(placement.demands(), key=lambda one: (-one.gpus, -one.cpus)):
        # Work without a GPU goes to the fullest node without one first, as Ray prefers too.
        fits = [
            left
            for node, left in free
            if left[0] >= demand.cpus - 1e-9
            and left[1] >= demand.gpus - 1e-9
            and node.has(demand.resource)
        ]
        if not fits:
            raise DoesNotFitError(_no_room(demand, placement, nodes))
        best = min(fits, key=lambda left: (left[1], left[0]))
        best[0] -= demand.cpus
        best[1] -= demand.gpus


def _no_room(demand: Demand, placement: Placement, nodes: Sequence[Node]) -> str:
    if not any(node.has(demand.resource) for node in nodes):
        has = sorted({name for node in nodes for name in node.resources})
        return (
            f"no node has '{demand.resource}', which encoder_resource asks for: there are "
            f"{', '.join(has) or 'no such resources'}; ray status tells what nodes have."
        )
    need_cpus = sum(each.cpus for each in placement.demands())
    need_gpus = sum(each.gpus for each in placement.demands())
    have_cpus, have_gpus = sum(n.cpus for n in nodes), sum(n.gpus for n in nodes)
    return (
        f"no node has room for {demand}: "
        f"{placement.encoders} encoders x {placement.encoder_cpus:g} CPUs, "
        f"{placement.readers} readers x {placement.reader_cpus:g} CPUs and the tasks need "
        f"{need_cpus:g} CPUs and {need_gpus:g} GPUs at once, the cluster has {have_cpus:g} "
        f"and {have_gpus:g} on {len(nodes)} nodes; lower encoders, readers or "
        "encoder_cpus, or add nodes (autoscaling: true if it grows by itself)."
    )
