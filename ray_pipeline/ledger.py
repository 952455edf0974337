"""The driver's bookkeeping: which slides are whole. Counters only, never pixels or vectors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ray_pipeline.plan import tiles_in_shards
from ray_pipeline.ranged_file import ReadCounts
from ray_pipeline.rows import Failure, ShardRow


@dataclass
class SlideTally:
    """What has arrived of one slide."""

    header: dict[str, Any] | None = None
    """The header row's info, once it came."""
    shards: set[int] = field(default_factory=set)
    """Distinct shards that are staged."""
    failure: Failure | None = None
    """The first failure any row told."""
    seconds: float = 0.0
    """Seconds spent on planning, reading and encoding."""
    counts: ReadCounts = field(default_factory=ReadCounts)
    """What reading the slide has cost."""
    tiles_resumed: int = 0
    """Tiles that earlier runs had staged."""

    @property
    def whole(self) -> bool:
        """Header and every shard are there."""
        return self.header is not None and len(self.shards) == self.header["n_shards"]


class Ledger:
    """Counts distinct shards per slide and says when a slide has come to its end.

    Rows may come in any order and more than once (a restarted task repeats itself).
    """

    def __init__(self, slide_ids: Iterable[str]) -> None:
        self._open: dict[str, SlideTally | None] = dict.fromkeys(slide_ids)
        self.tiles = 0
        """Tiles staged in this run."""
        self.device_s = 0.0
        """Seconds that encoders computed for them."""
        self.places = 0.0
        """Places in encoders' batches that they took, those left empty among them."""
        self.tiles_planned = 0
        """Tiles of all slides whose header came, less those staged by earlier runs."""

    def add(self, row: ShardRow) -> SlideTally | None:
        """Take one row in; returns the slide's tally when this row ended the slide."""
        if row.slide_id not in self._open:
            return None  # a repeat, or a late shard of a slide that has already failed
        tally = self._open[row.slide_id]
        if tally is None:
            tally = self._open[row.slide_id] = SlideTally()
        if row.shard in tally.shards or (row.is_header and tally.header and not row.failure):
            return None  # a repeat: it has been counted, and what it tells stands
        tally.seconds += row.info.get("seconds", 0.0)
        tally.counts.add(row.info)
        if row.failure is not None:
            tally.failure = row.failure
        elif row.is_header:
            tally.header = row.info
            tally.shards.update(row.info["staged"])
            n_tiles = row.info["n_tiles"]
            tally.tiles_resumed = tiles_in_shards(n_tiles, row.info["staged"])
            self.tiles_planned += n_tiles - tally.tiles_resumed
        else:
            tally.shards.add(row.shard)
            self.tiles += row.info["n"]
            self.device_s += row.info.get("device_s", 0.0)
            self.places += row.info.get("places", 0.0)
        if tally.failure is None and not tally.whole:
            return None
        del self._open[row.slide_id]
        return tally

    def unfinished(self) -> Iterator[tuple[str, SlideTally]]:
        """Slides that have not come to an end, with what arrived of them."""
        for slide_id, tally in self._open.items():
            yield slide_id, tally or SlideTally()
