"""The four stages of the batch graph: plain callables from Arrow table to Arrow table.

No Ray here, so each can be tried with a table in hand. A slide's fault becomes the row's
`failure` and the row goes on; later stages pass it through untouched, so the driver hears of it.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

import pyarrow as pa

from ray_pipeline.coordinates import Coordinates, read_coordinates
from ray_pipeline.dataset.layout import Layout
from ray_pipeline.dataset.staging import Fragment, put_fragment
from ray_pipeline.encoders.spec import EncoderIdentity
from ray_pipeline.errors import DatasetError, SlideError, StoreError, WeightsError
from ray_pipeline.plan import TilePlan, plan_slide
from ray_pipeline.rows import HEADER, Failure, ShardRow, from_table, to_table
from ray_pipeline.slides.decode import HALF_JPEG
from ray_pipeline.slides.grid import TilingRule
from ray_pipeline.slides.normalise import Normaliser, NormaliseRule
from ray_pipeline.slides.slide import Slide, open_slide
from ray_pipeline.slides.tissue import TissueRule
from ray_pipeline.sources import SlideSource
from ray_pipeline.store import Store
from ray_pipeline.watching import UNWATCHED, Watch

if TYPE_CHECKING:
    from ray_pipeline.encoders.feeder import Encoded, Pending, Tiles


def slide_task(source: SlideSource, staged: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """The graph's input row for one slide; `staged` is plan_fp -> shards that are staged."""
    task = {
        "slide_id": source.slide_id,
        "uri": source.uri,
        "etag": source.etag,
        "mpp_override": source.mpp_override,
        "coords": source.coords,
        "coords_digest": source.coords_digest,
        "staged": staged,
    }
    return {"slide": json.dumps(task)}


@dataclass(frozen=True)
class SlideTasks:
    """A `slide_task` for each of `sources`, made when it is asked for: a million are half a GB."""

    sources: Sequence[SlideSource]
    """Slides to do."""
    staged: Mapping[str, Mapping[str, Sequence[int]]]
    """slide_id -> plan_fp -> staged shards."""

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> dict[str, str]:
        source = self.sources[index]
        return slide_task(source, self.staged.get(source.slide_id, {}))

    def __iter__(self) -> Iterator[dict[str, str]]:
        return (slide_task(one, self.staged.get(one.slide_id, {})) for one in self.sources)


class PlanSlide:
    """Slide rows -> per slide one header row, then one row per shard that is not staged yet.

    Reads no mutable state: which shards are staged comes in with the slide's row, so a replayed
    run of this generator yields the same rows in the same order.
    """

    def __init__(
        self,
        tiling: TilingRule,
        tissue_rule: TissueRule,
        normalise: NormaliseRule,
        max_tiles: int | None = None,
        watch: Watch = UNWATCHED,
    ) -> None:
        self.tiling, self.tissue_rule, self.normalise = tiling, tissue_rule, normalise
        self.max_tiles, self.watch = max_tiles, watch

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        for text in table.column("slide").to_pylist():
            for row in self.rows(json.loads(text)):
                yield to_table([row])

    def rows(self, task: dict[str, object]) -> Iterator[ShardRow]:
        """Header and shard rows of the slide that a decoded `slide_task` tells of."""
        slide_id, uri, etag = str(task["slide_id"]), str(task["uri"]), str(task["etag"])
        mpp_override = task["mpp_override"]
        assert mpp_override is None or isinstance(mpp_override, float)
        started = time.monotonic()
        header = ShardRow(slide_id=slide_id, shard=HEADER, uri=uri, etag=etag)
        try:
            coordinates = _coordinates(task)
            slide = open_slide(uri, slide_id=slide_id, etag=etag, mpp_override=mpp_override)
            try:
                plan = plan_slide(
                    slide,
                    self.tiling,
                    self.tissue_rule,
                    self.normalise,
                    max_tiles=self.max_tiles,
                    coordinates=coordinates,
                )
                costs = asdict(slide.counts)
            finally:
                slide.close()
        except (SlideError, StoreError) as error:
            failure = Failure.of("plan", error)
            self.watch.failed(slide_id, None, failure)
            yield header.failed(failure)
            return
        staged_by_plan = task["staged"]
        assert isinstance(staged_by_plan, dict)
        staged = [s for s in staged_by_plan.get(plan.plan_fp, []) if s < plan.n_shards]
        costs["seconds"] = time.monotonic() - started
        self.watch.done(slide_id, None, tiles=plan.n_tiles, **costs)
        yield replace(
            header,
            info={
                "n_shards": plan.n_shards,
                "n_tiles": plan.n_tiles,
                "plan_fp": plan.plan_fp,
                "staged": staged,
                "facts": plan.facts,
                **costs,
            },
        )
        skip = set(staged)
        for shard in range(plan.n_shards):
            if shard not in skip:
                yield self._shard_row(plan, shard, uri, etag, mpp_override)

    @staticmethod
    def _shard_row(
        plan: TilePlan, shard: int, uri: str, etag: str, mpp_override: float | None
    ) -> ShardRow:
        where = plan.shard(shard)
        return ShardRow(
            slide_id=plan.slide_id,
            shard=shard,
            uri=uri,
            etag=etag,
            first_tile=where.start,
            xy=plan.xy[where],
            tissue=plan.tissue[where],
            info={
                "level": plan.geometry.level,
                "reduce": plan.geometry.reduce,
                "side_px": plan.geometry.side_px,
                "tile_px": plan.tile_px,
                "mpp_override": mpp_override,
                "stain_fit": plan.stain_fit,
                "plan_fp": plan.plan_fp,
            },
        )


def _coordinates(task: Mapping[str, object]) -> Coordinates | None:
    """The tiles that the slide's row names."""
    if task["coords"] is None:
        return None
    digest = str(task["coords_digest"])
    return read_coordinates(str(task["coords"]), slide_id=str(task["slide_id"]), digest=digest)


class ReadTiles:
    """Shard rows -> the same rows with pixels: uint8 [n, tile_px, tile_px, 3].

    Shards of one slide that follow each other are read in one go, so that bytes are fetched ahead
    across them. Calls may overlap, each with a slide of its own; slides stay open until another
    one takes their place. Once `stopped` says so, shards that are not read yet are left out: who
    asked for it knows, and a later run reads them.
    """

    def __init__(
        self,
        normalise: NormaliseRule,
        threads: int = 1,
        stopped: Callable[[], bool] = lambda: False,
        watch: Watch = UNWATCHED,
    ) -> None:
        self._rule, self._threads, self._stopped = normalise, threads, stopped
        self._watch = watch
        self._idle: deque[tuple[_Source, Slide]] = deque()
        HALF_JPEG.compile_after()

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        for _, run in groupby(from_table(table), key=lambda row: row.to_do and _source(row)):
            rows = list(run)
            for row in self.read(rows) if rows[0].to_do else rows:
                yield to_table([row])

    def read(self, rows: Sequence[ShardRow]) -> Iterator[ShardRow]:
        """The pixels of shards of one slide, or their failures, in their order."""
        done = 0
        while done < len(rows) and not self._stopped():
            started, slide = time.monotonic(), None
            try:
                slide = self._open(rows[done])
                before = copy(slide.counts)
                info = rows[done].info
                normalise = Normaliser(
                    self._rule,
                    slide_id=slide.slide_id,
                    icc_profile=slide.icc_profile,
                    stain_fit=info["stain_fit"],
                )
                for tiles in slide.read_parts(
                    level=info["level"],
                    reduce=info["reduce"],
                    parts=[row.xy for row in rows[done:] if row.xy is not None],
                    side_px=info["side_px"],
                    tile_px=info["tile_px"],
                ):
                    pixels = normalise(tiles)
                    costs = asdict(slide.counts.since(before))
                    costs["seconds"] = time.monotonic() - started
                    row = rows[done]
                    self._watch.done(row.slide_id, row.shard, tiles=len(pixels), **costs)
                    yield replace(row, pixels=pixels, info={**row.info, **costs})
                    done += 1
                    if self._stopped():
                        break
                    started, before = time.monotonic(), copy(slide.counts)
                self._idle.append((_source(rows[0]), slide))
            except (SlideError, StoreError) as error:
                if slide is not None:
                    slide.close()
                row, failure = rows[done], Failure.of("read", error)
                self._watch.failed(row.slide_id, row.shard, failure)
                yield row.failed(failure)
                done += 1

    def _open(self, row: ShardRow) -> Slide:
        """The row's slide, from those that no call is at work on where it is among them."""
        while self._idle:
            try:
                source, slide = self._idle.popleft()
            except IndexError:
                break  # another call took it
            if source == _source(row):
                return slide
            slide.close()
        return open_slide(
            row.uri,
            slide_id=row.slide_id,
            etag=row.etag,
            mpp_override=row.info["mpp_override"],
            threads=self._threads,
        )

    def close(self) -> None:
        """Close the slides that are open."""
        while self._idle:
            _, slide = self._idle.popleft()
            slide.close()


_Source = tuple[str, str, object]


def _source(row: ShardRow) -> _Source:
    return row.uri, row.etag, row.info.get("mpp_override")


class EncodeTiles:
    """Rows with pixels -> the same rows with embeddings: float16 [n, D].

    The tiles of all shards in a call, and of calls on several threads, fill batches together.
    """

    def __init__(
        self,
        identity: EncoderIdentity,
        weights: str | None,
        *,
        device: str = "auto",
        batch_size: int | None = None,
        threads: int | None = None,
        compile: bool = False,  # noqa: A002 - what everyone calls it
        watch: Watch = UNWATCHED,
    ) -> None:
        # torch and timm take many seconds to import: only encoding actors pay for them.
        from ray_pipeline.encoders.encoder import Encoder  # noqa: PLC0415
        from ray_pipeline.encoders.registry import get_spec  # noqa: PLC0415
        from ray_pipeline.encoders.weights import resolve_weights  # noqa: PLC0415

        spec = get_spec(identity.model)
        self.encoder = Encoder(
            spec,
            resolve_weights(spec, weights),
            device=device,
            precision=identity.precision,
            batch_size=batch_size,
            threads=threads,
            compile=compile,
        )
        if self.encoder.identity != identity:
            raise WeightsError(
                f"{identity.model}: this node loaded another encoder than the one that was probed "
                f"({self.encoder.identity} against {identity}): use the same weights and versions "
                "on every node."
            )
        self._watch, self._queued, self._counting = watch, 0, threading.Lock()

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = list(from_table(table))
        pending = [
            self._submit(row.pixels) if row.to_do and row.pixels is not None else None
            for row in rows
        ]
        return to_table(
            row if asked is None else self._encoded(row, asked.result())
            for row, asked in zip(rows, pending, strict=True)
        )

    def _submit(self, pixels: Tiles) -> Pending:
        self._count_queued(len(pixels))
        return self.encoder.submit(pixels)

    def _count_queued(self, change: int) -> None:
        with self._counting:
            self._queued += change
            self._watch.queued(self._queued)

    def _encoded(self, row: ShardRow, encoded: Encoded) -> ShardRow:
        tiles, device_s = len(encoded.vectors), encoded.device_s
        self._count_queued(-tiles)
        self._watch.done(row.slide_id, row.shard, tiles=tiles, seconds=device_s, device_s=device_s)
        info = {
            **row.info,
            "dim": encoded.vectors.shape[1],
            "device_s": device_s,
            "places": encoded.places,
            "seconds": row.info["seconds"] + device_s,
        }
        return replace(row, pixels=None, embedding=encoded.vectors, info=info)


class StageShard:
    """Rows with embeddings -> the same rows without arrays, once their fragments are staged."""

    def __init__(self, output: Store, recipe_fp: str, watch: Watch = UNWATCHED) -> None:
        self.output, self.layout, self.watch = output, Layout(recipe_fp), watch

    def __call__(self, table: pa.Table) -> pa.Table:
        return to_table(self.stage(row) if row.to_do else row for row in from_table(table))

    def stage(self, row: ShardRow) -> ShardRow:
        """Put one fragment; the row that remains has no arrays."""
        assert row.embedding is not None
        assert row.xy is not None
        assert row.tissue is not None
        tiles, started = len(row.embedding), time.monotonic()
        try:
            put_fragment(
                self.output,
                self.layout,
                Fragment(
                    slide_id=row.slide_id,
                    plan_fp=row.info["plan_fp"],
                    shard=row.shard,
                    first_tile=row.first_tile,
                    xy=row.xy,
                    tissue=row.tissue,
                    embedding=row.embedding,
                ),
            )
        except (DatasetError, StoreError) as error:
            failure = Failure.of("stage", error)
            self.watch.failed(row.slide_id, row.shard, failure)
            return row.failed(failure)
        seconds = time.monotonic() - started
        self.watch.done(row.slide_id, row.shard, tiles=tiles, seconds=seconds)
        info = {**row.info, "n": tiles}
        return replace(row, xy=None, tissue=None, embedding=None, info=info)
