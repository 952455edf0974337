"""How a long run shows itself: a live bar on a terminal, a JSON line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ray_pipeline.logs import json_line
from ray_pipeline.settings import LogFormat

LINE_EVERY_S = 5.0
"""Seconds between two JSON lines."""


@dataclass(kw_only=True)
class Counts:
    """Where a run stands."""

    slides: int = 0
    """Slides this run has to do."""
    slides_done: int = 0
    """Committed so far."""
    slides_failed: int = 0
    """Failed so far."""
    slides_planned: int = 0
    """Slides whose tiles are known."""
    tiles: int = 0
    """Tiles staged so far."""
    tiles_planned: int = 0
    """Tiles of the planned slides."""


def seconds_left(counts: Counts, tiles_per_s: float) -> float | None:
    """Time to go at this pace, guessing unplanned slides at the mean of the planned ones."""
    if tiles_per_s <= 0 or counts.slides_planned == 0:
        return None
    expected = counts.tiles_planned * counts.slides / counts.slides_planned
    return max(0.0, (expected - counts.tiles) / tiles_per_s)


class Reporter:
    """Shows `Counts` on a stream (standard error), so that standard output stays for results."""

    def __init__(
        self,
        stream: TextIO | None = None,
        every_s: float = LINE_EVERY_S,
        *,
        log_format: LogFormat = "auto",
    ) -> None:
        self.stream = stream if stream is not None else sys.stderr
        self.every_s = every_s
        self.live = self.stream.isatty() and log_format == "auto"
        self.run: str | None = None
        """Name of the run, once it has one: it stands in every JSON line."""
        self._started = time.monotonic()
        self._last = self._started
        self._first: tuple[float, int] | None = None
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        if self.live:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[facts]}"),
            )
            console = Console(file=self.stream)
            self._bar = Progress(*columns, TimeElapsedColumn(), console=console)
            self._task = self._bar.add_task("embedding", total=None, facts="")
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def say(self, sentence: str, *, level: str = "INFO", **facts: object) -> None:
        """One line for the user, above the bar or as JSON with `facts`, such as slide_id."""
        if self._bar is not None:
            self._bar.console.print(sentence, highlight=False, markup=False)
        elif self.live:
            self.stream.write(sentence + "\n")
        else:
            self._line(sentence, level=level, **facts)

    def show(self, counts: Counts, *, final: bool = False) -> None:
        """The state of the run; throttled unless `final`."""
        now = time.monotonic()
        if not final and now - self._last < (0.2 if self._bar is not None else self.every_s):
            return
        self._last = now
        elapsed = now - self._started
        rate = self._rate(now, counts.tiles)
        left = seconds_left(counts, rate)
        if self._bar is None:
            extra = {
                "tiles_per_s": round(rate, 1),
                "elapsed_s": round(elapsed, 1),
                "left_s": None if left is None else round(left),
            }
            self._line("progress", progress=asdict(counts) | extra)
            return
        facts = (
            f"slides {counts.slides_done}/{counts.slides}"
            + (f" ({counts.slides_failed} failed)" if counts.slides_failed else "")
            + f"  tiles {counts.tiles}  {rate:.0f} tiles/s"
            + (f"  {left:.0f} s left" if left is not None else "")
        )
        ended = counts.slides_done + counts.slides_failed
        share = counts.tiles / max(
            1.0, counts.tiles_planned * counts.slides / max(1, counts.slides_planned)
        )
        complete = max(share, ended / max(1, counts.slides))
        self._bar.update(self._task, total=1.0, completed=complete, facts=facts)

    def _rate(self, now: float, tiles: int) -> float:
        """Tiles per second since the first ones came: loading the model is no part of the pace."""
        if tiles and self._first is None:
            self._first = now, tiles
        if self._first is None:
            return 0.0
        since, already = self._first
        if tiles > already and now > since:
            return (tiles - already) / (now - since)
        return tiles / (now - self._started) if now > self._started else 0.0

    def _line(self, message: str, *, level: str = "INFO", **facts: object) -> None:
        self.stream.write(json_line(message, level=level, run=self.run, **facts) + "\n")
        self.stream.flush()
