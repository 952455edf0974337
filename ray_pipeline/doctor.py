"""`historay doctor`: is everything there that a job needs? One finding a line, with the mend."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from ray_pipeline import cluster, pipeline
from ray_pipeline.dataset.report import versions
from ray_pipeline.dataset.start import probe_conditional
from ray_pipeline.encoders.registry import get_spec
from ray_pipeline.encoders.weights import resolve_weights
from ray_pipeline.errors import HistorayError
from ray_pipeline.placement import Placement, check_fit, choose_placement
from ray_pipeline.settings import JobSettings, load_settings
from ray_pipeline.slides.slide import slide_objects
from ray_pipeline.store import Store
from ray_pipeline.worklist import slides_of

SLOW_TO_IMPORT = "rfc3987_syntax"
"""JupyterLab brings it along. Whatever imports `ray` imports jsonschema, which then imports this:
2.2 of 3.3 s were measured, in every process of Ray."""
_UNSAID = "unsaid"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was checked."""

    what: str
    """Its name."""
    ok: bool
    """Whether a job can rely on it."""
    sentence: str
    """What was found, or what is wrong and the mend."""


def examine(config: str | None, flags: dict[str, Any]) -> list[Finding]:
    """Check everything; stores only where slides or output are said. Never raises for a finding."""
    unsaid = {"slides": [_UNSAID], "output": _UNSAID}
    return list(_findings(load_settings(config, flags, defaults=unsaid)))


def _findings(settings: JobSettings) -> Iterator[Finding]:
    listed = ", ".join(f"{name} {version}" for name, version in versions().items())
    yield Finding(what="versions", ok="not installed" not in listed, sentence=listed)
    if find_spec(SLOW_TO_IMPORT) is not None:
        found = (
            "rfc3987-syntax is installed, and makes each of Ray's processes start some two seconds "
            "later: leave it, and JupyterLab, out of the environment that jobs run in"
        )
        yield Finding(what="start", ok=True, sentence=found)
    placement = None
    try:
        cluster.connect()
        nodes = cluster.cluster_nodes()
        cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
        found = f"{len(nodes)} nodes, {cpus:g} CPUs, {gpus:g} GPUs"
        yield Finding(what="ray", ok=True, sentence=found)
        placement = choose_placement(settings, nodes)
        check_fit(placement, nodes)
        yield Finding(what="placement", ok=True, sentence=_placed(placement))
    except HistorayError as error:
        yield Finding(what="placement" if placement else "ray", ok=False, sentence=str(error))
    yield from _weights(settings, placement)
    if settings.slides != [_UNSAID]:
        yield _slides(settings)
    if settings.output != _UNSAID:
        yield _output(settings.output)


def _placed(placement: Placement) -> str:
    return f"{placement.encoders} encoders on {placement.device}, {placement.readers} readers"


def _weights(settings: JobSettings, placement: Placement | None) -> Iterator[Finding]:
    try:
        spec = get_spec(settings.model)
        source = resolve_weights(spec, settings.weights)
        meaning = "" if source.meaningful else " (made up: the vectors mean nothing)"
        found = f"{spec.name}: {source.kind} {source.location}{meaning}"
        yield Finding(what="weights", ok=True, sentence=found)
        if placement is None:
            return
        identity = pipeline.resolve_identity(settings, None, placement)
        device = placement.device
        yield Finding(
            what="encoder",
            ok=True,
            sentence=f"{identity.precision} on {device}, weights {identity.weights_digest[:12]}",
        )
    except HistorayError as error:
        yield Finding(what="weights", ok=False, sentence=str(error))


def _slides(settings: JobSettings) -> Finding:
    try:
        sources = slides_of(settings)
        unreachable = [source for source in sources if source.error is not None]
        if unreachable:
            return Finding(what="slides", ok=False, sentence=str(unreachable[0].error))
        # Who may list may still not read.
        store, (first, *_), _ = slide_objects(sources[0].uri)
        store.get_range(first.key, 0, min(1, first.size_bytes))
        size = sum(source.size_bytes for source in sources) / 1e9
        found = f"{len(sources)} slides readable, {size:.3f} GB"
        return Finding(what="slides", ok=True, sentence=found)
    except HistorayError as error:
        return Finding(what="slides", ok=False, sentence=str(error))


def _output(uri: str) -> Finding:
    try:
        output = Store.open(uri)
        conditional = probe_conditional(output, f"doctor-{secrets.token_hex(4)}")
        list(output.folders())
        how = "conditional writes" if conditional else "no conditional writes: one driver at a time"
        return Finding(what="output", ok=True, sentence=f"{output.uri} writable, {how}")
    except HistorayError as error:
        return Finding(what="output", ok=False, sentence=str(error))
