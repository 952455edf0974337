"""Ray metrics of the batch job, as Prometheus scrapes them from every node.

Ray puts `ray_` before each name and `_total` behind a counter's. Counts of work stand on the node
that did it, and repeated work counts again; those of slides stand on the driver's.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from ray.util.metrics import Counter, Gauge

STAGES = ("plan", "read", "encode", "stage", "commit")
"""Values of the label `stage`, in the order in which a tile passes them."""
_READS = {
    "gets": "Ranged GETs of slide data.",
    "bytes_fetched": "Bytes of slide data fetched.",
    "bytes_needed": "Bytes of compressed tiles that were decoded.",
    "retries": "Ranged GETs sent again after a short, broken or stalled body.",
}


@dataclass(frozen=True, kw_only=True)
class MetricSpec:
    """A metric as it is registered."""

    name: str
    """As the code says it."""
    kind: Literal["counter", "gauge"]
    """A counter only grows."""
    description: str
    """One sentence."""
    labels: tuple[str, ...] = ()
    """Labels besides `recipe`, which all have."""

    @property
    def exported(self) -> str:
        """Its name for Prometheus."""
        return f"ray_{self.name}" + ("_total" if self.kind == "counter" else "")


def _counter(name: str, description: str, *labels: str) -> MetricSpec:
    return MetricSpec(name=name, kind="counter", description=description, labels=labels)


def _gauge(name: str, description: str) -> MetricSpec:
    return MetricSpec(name=name, kind="gauge", description=description)


SLIDES = _counter("historay_slides", "Slides that came to an end: done, empty, failed.", "status")
SLIDES_LEFT = _gauge("historay_slides_left", "Slides of the run that are not at their end yet.")
FAILURES = _counter("historay_failures", "Failed slides, by stage and kind.", "stage", "kind")
TILES = _counter("historay_tiles", "Tiles that left a stage.", "stage")
STAGE_SECONDS = _counter("historay_stage_seconds", "Seconds at work on those tiles.", "stage")
READS = {
    name: _counter(f"historay_read_{name}", description, "stage")
    for name, description in _READS.items()
}
BUSY_SECONDS = _counter("historay_device_busy_seconds", "Seconds that encoders' devices computed.")
QUEUE_TILES = _gauge("historay_queue_tiles", "Tiles in an encoder that have no embedding yet.")
COMMITS = _gauge("historay_commits_in_flight", "Commits under way.")

METRICS = (
    *(SLIDES, SLIDES_LEFT, FAILURES, TILES, STAGE_SECONDS, *READS.values()),
    *(BUSY_SECONDS, QUEUE_TILES, COMMITS),
)
"""All there are."""


class JobMetrics:
    """The metrics of one recipe, in this process; made by `job_metrics`."""

    def __init__(self, recipe_fp: str) -> None:
        self._metrics: dict[str, Any] = {}
        for spec in METRICS:
            kind = Counter if spec.kind == "counter" else Gauge
            metric = kind(spec.name, spec.description, tag_keys=("recipe", *spec.labels))
            self._metrics[spec.name] = metric.set_default_tags({"recipe": recipe_fp})

    def count(self, spec: MetricSpec, value: float = 1, **labels: str) -> None:
        """Add to a counter; nothing where `value` is not above 0, which Ray refuses."""
        if value > 0:
            self._metrics[spec.name].inc(value, labels)

    def show(self, spec: MetricSpec, value: float) -> None:
        """Set a gauge."""
        self._metrics[spec.name].set(value)

    def count_reads(self, stage: str, costs: Mapping[str, Any]) -> None:
        """Add what reading has cost a stage, by the names of `ReadCounts`."""
        for name, spec in READS.items():
            self.count(spec, costs.get(name, 0), stage=stage)


def job_metrics(recipe_fp: str) -> JobMetrics:
    """This process's metrics of a recipe; Ray wants each registered once, whichever thread asks."""
    with _making:
        return _made(recipe_fp)


_making = threading.Lock()
_made = lru_cache(maxsize=16)(JobMetrics)
