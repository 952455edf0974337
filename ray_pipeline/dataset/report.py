"""The report of one run: what was done, what failed and why, and what it cost."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ray_pipeline.dataset.layout import Layout
from ray_pipeline.store import Store

VERSIONS_OF = ("historay", "ray", "torch", "timm", "tiffslide", "imagecodecs", "pyarrow", "obstore")
"""Packages whose versions a report states."""

MOST_FAILURES = 10_000
"""Failures that a report tells one by one, some 4 MB; the slides table tells all."""


@dataclass(kw_only=True)
class RunReport:
    """Figures of one run; written as `runs/<run>.json` and printed by `embed --json`."""

    run: str
    """Name of the run: UTC start time and a random suffix."""
    output: str
    """The output's root URI."""
    recipe_fp: str
    """Fingerprint of the recipe."""
    model: str
    """The model's name."""
    meaningful: bool
    """False when the weights are made up and the vectors mean nothing."""
    started_at: str
    """UTC time of the start."""
    slides: int = 0
    """Slides the settings named."""
    slides_finished_before: int = 0
    """Slides that earlier runs had finished."""
    slides_passed_over: int = 0
    """Unfinished slides that `retry` did not name."""
    slides_done: int = 0
    """Slides committed by this run, empty ones included."""
    slides_empty: int = 0
    """Slides without tissue, committed with zero rows."""
    slides_failed: int = 0
    """Slides that failed or were skipped with a reason."""
    failures: list[dict[str, str]] = field(default_factory=list)
    """One {slide_id, uri, stage, kind, reason} per failed slide, of the first MOST_FAILURES."""
    tiles: int = 0
    """Tiles read, encoded and staged by this run."""
    tiles_resumed: int = 0
    """Tiles of committed slides that earlier runs had staged."""
    seconds: float = 0.0
    """Wall seconds from start to end."""
    tiles_per_s: float = 0.0
    """tiles / seconds of streaming."""
    device_busy_share: float = 0.0
    """Of the seconds of streaming, how many each encoder's device computed, 0..1."""
    batch_fill: float = 0.0
    """Of the places in the encoders' batches, how many held a tile, 0..1."""
    gets: int = 0
    """Ranged GETs of slide data."""
    bytes_fetched: int = 0
    """Bytes of slide data fetched."""
    bytes_needed: int = 0
    """Bytes of compressed tiles among them that were decoded."""
    retries: int = 0
    """GETs sent again after a short, broken or stalled body."""
    conditional_store: bool = True
    """Whether the output's store honours conditional puts."""
    encoders_loaded: int = 0
    """Encoding actors started by this run; 0 when there was nothing to do."""
    stopped: bool = False
    """Ended early on request."""
    placement: dict[str, Any] = field(default_factory=dict)
    """Actors and what each held."""
    versions: dict[str, str] = field(default_factory=dict)
    """Package versions on the driver."""

    def add_failure(self, slide_id: str, uri: str, failure: Mapping[str, str]) -> None:
        """Count a failed slide; `failure` is its stage, kind and reason."""
        self.slides_failed += 1
        if len(self.failures) < MOST_FAILURES:
            self.failures.append({"slide_id": slide_id, "uri": uri, **failure})

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def write(self, output: Store, layout: Layout) -> None:
        """Put the report into the output."""
        output.put(layout.run(self.run), json.dumps(self.to_dict(), indent=1).encode())


def versions() -> dict[str, str]:
    """Versions of Python and the packages that shape a result."""
    found = {"python": platform.python_version()}
    for name in VERSIONS_OF:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
