"""What came of one run, as figures and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.cluster.chaos.verdict import Verdict

WANTED = {
    "rows_lost": "<= 0",
    "rows_duplicate": "<= 0",
    "rows_wrong": "<= 0",
    "slides_without_one_file": "<= 0",
    "partial_reads": "<= 0",
    "files_replaced": "<= 0",
}
"""What has to be nought."""


@dataclass(kw_only=True)
class Chaos:
    """What one run was, and what came of it."""

    minutes: float
    every_s: tuple[float, float, float, float]
    """Mean pauses between two kills of workers, gateways, nodes and drivers."""
    seed: int
    verdict: Verdict
    """Of the output."""
    seconds: float = 0.0
    """From the first start of the driver to its last end."""
    killed: dict[str, int] = field(default_factory=dict)
    """How many of what."""
    faults: dict[str, int] = field(default_factory=dict)
    """Requests that met each kind of fault, and all."""
    driver: dict[str, int] = field(default_factory=dict)
    """Runs of the driver by their end."""
    failures: dict[str, int] = field(default_factory=dict)
    """Kinds of slides' failures that later runs mended."""
    looks: int = 0
    """Queries of the reader that were answered."""
    slides_read: int = 0
    """Slides in them."""
    unanswered: int = 0
    """Queries while the gateway was down."""
    partial: list[str] = field(default_factory=list)
    """What the reader saw of slides that were not whole."""
    replaced: list[str] = field(default_factory=list)
    """Files that were seen in two versions."""

    @property
    def ratios(self) -> dict[str, float]:
        """See WANTED."""
        verdict = self.verdict
        return {
            "rows_lost": verdict.rows_lost,
            "rows_duplicate": verdict.rows_duplicate,
            "rows_wrong": verdict.rows_wrong,
            "slides_without_one_file": verdict.slides_without_file + verdict.slides_with_more_files,
            "partial_reads": len(self.partial),
            "files_replaced": len(self.replaced),
        }

    @property
    def table(self) -> str:
        """For people."""
        told, faults, killed = self.verdict, dict(self.faults), dict(self.killed)
        raylets, gateways = killed.pop("raylets", 0), killed.pop("gateways", 0)
        lines = {
            "slides": f"{told.slides}, seed {self.seed}, {self.seconds:.0f} s",
            "workers killed": f"{sum(killed.values())}: {counted(killed)}",
            "raylets, gateways killed": f"{raylets}, {gateways}",
            "driver runs": counted(self.driver),
            "requests": f"{faults.pop('requests', 0)}, spoilt: {counted(faults)}",
            "slides failed, then mended": counted(self.failures) or "none",
            "queries meanwhile": f"{self.looks} over {self.slides_read} slides, "
            f"{self.unanswered} unanswered; partial slides seen: {len(self.partial)}",
            "files": f"{told.files}, replaced: {len(self.replaced)}",
            "rows expected, found": f"{told.rows_expected}, {told.rows_found}",
            "rows lost, duplicate, wrong": (
                f"{told.rows_lost}, {told.rows_duplicate}, {told.rows_wrong}"
            ),
            "vectors equal bit for bit": str(told.vectors_equal),
        }
        return "\n".join(f"{name:<28}{value}" for name, value in lines.items())


def counted(counts: Mapping[str, int]) -> str:
    """Counts in one line, for people."""
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
