"""The measures of the reader's benchmark; `tests.benchmarks.reader` runs each in a process."""

from __future__ import annotations

import json
import statistics
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import openslide
import simplejpeg
import tifffile
import zarr

from ray_pipeline.plan import TilePlan, plan_slide
from ray_pipeline.slides.decode import HALF_JPEG
from ray_pipeline.slides.grid import TilingRule
from ray_pipeline.slides.half_jpeg.decoder import HalfJpeg
from ray_pipeline.slides.half_jpeg.scan import compiled
from ray_pipeline.slides.jpeg import jpeg_prefix, scan_start, without_app
from ray_pipeline.slides.slide import open_slide
from ray_pipeline.slides.tiled import TiledSlide
from ray_pipeline.slides.tissue import TissueRule
from tests.benchmarks.reader_peers import FSSPEC_SETTINGS, TiffSlideProcess
from tests.benchmarks.report import peak_gb

SHARDS_AT_ONCE = 8
"""As many shards as the batch job hands to a reader at a time."""


class Measures:
    """What all measures share: where the slides lie and how long to go on."""

    def __init__(self, bucket: Path, endpoint: str, *, quick: bool) -> None:
        self.bucket, self.endpoint = bucket, endpoint
        self.turns = 3 if quick else 9
        self.few = 24 if quick else 250

    def jpeg(self) -> dict[str, Any]:
        """0.5 mpp JPEG: ours local and remote, the bare decode, and the peers."""
        local, remote = self._open("half.tif"), self._open("s3://slides/half.tif")
        plan = planned(local)
        coded = needed_tiles(local, plan)
        kept, hot = BareDecode(coded, keep=True), BareDecode(coded, keep=False)
        read(remote, plan)
        self._counters(reset=True)
        read(self._open("s3://slides/half.tif"), plan)
        served = self._counters()
        opening = self._opening("s3://slides/half.tif")
        times = in_turns(
            self.turns,
            local=lambda: read(local, plan),
            remote=lambda: read(remote, plan),
            decode=kept,
            decode_in_cache=hot,
        )
        against = self._against_tiffslide("half.tif", remote, plan)
        per_s = times.per_s(plan.n_tiles)
        gets = served["gets"] - opening["gets"]
        fetched = served["bytes"] - opening["bytes"]
        return {
            "ratios": {
                "local_over_decode_limit": times.ratio("local", "decode"),
                "remote_over_tiffslide_best": against.pop("over_best"),
                "remote_over_local": times.ratio("remote", "local"),
                "gets_per_tile": gets / plan.n_tiles,
                "bytes_over_needed": fetched / sum(map(len, coded)),
            },
            "tiles": plan.n_tiles,
            "compressed_tiles": len(coded),
            "tiles_per_s": {
                **per_s,
                **against,
                "openslide_local": self._openslide("half.tif", plan),
                "tifffile_zarr_local": self._zarr("half.tif", plan),
            },
            "local_over_decode_in_cache": times.ratio("local", "decode_in_cache"),
            "peak_rss_mb": 1e3 * peak_gb(),
        }

    def half(self) -> dict[str, Any]:
        """0.25 mpp JPEG read at 0.5: ours with DCT 1/2, tiffslide with a resize.

        Ours as in a job's reader that has read some slides: what halves JPEGs is compiled.
        """
        remote = self._open("s3://slides/quarter.tif")
        plan = planned(remote)
        assert plan.geometry.reduce == 2
        started = time.perf_counter()
        compiled()
        compiling_s = time.perf_counter() - started
        HALF_JPEG.compile_after(0)
        against = self._against_tiffslide("quarter.tif", remote, plan)
        coded = needed_tiles(self._open("quarter.tif"), plan)
        times = in_turns(
            self.turns,
            decode=BareHalfDecode(coded, by=HALF_JPEG),
            decode_by_libjpeg=BareHalfDecode(coded, by=None),
        )
        return {
            "ratios": {"half_mpp_over_tiffslide_best": against.pop("over_best")},
            "tiles": plan.n_tiles,
            "compressed_tiles": len(coded),
            "tiles_per_s": {**against, **times.per_s(plan.n_tiles)},
            "compiling_s": compiling_s,
            "decode_over_libjpeg": times.ratio("decode", "decode_by_libjpeg"),
        }

    def open(self) -> dict[str, Any]:
        """Opening a large slide whose directories lie at its end."""
        started = time.perf_counter()
        cost = self._opening("s3://slides/large.tif")
        seconds = time.perf_counter() - started
        return {
            "ratios": {"open_requests": cost["requests"], "open_mb": cost["bytes"] / 1e6},
            "seconds": seconds,
        }

    def j2k(self) -> dict[str, Any]:
        """JPEG 2000, local, against its bare decode."""
        slide = self._open("j2k.tif")
        plan = planned(slide)
        coded = needed_tiles(slide, plan)

        def decode() -> None:
            for tile in coded:
                imagecodecs.jpeg2k_decode(tile, numthreads=1)

        times = in_turns(3, local=lambda: read(slide, plan), decode=decode)
        return {
            "ratios": {"j2k_over_decode_limit": times.ratio("local", "decode")},
            "tiles": plan.n_tiles,
            "tiles_per_s": times.per_s(plan.n_tiles),
        }

    def threads(self) -> dict[str, Any]:
        """Two decoding threads on two cores against one, beside the bare decode's own scaling."""
        one, two = (self._open("half.tif", threads=threads) for threads in (1, 2))
        plan = planned(one)
        halves = needed_tiles(one, plan)
        halves_of = [BareDecode(halves[start::2], keep=True) for start in (0, 1)]
        whole = BareDecode(halves, keep=True)
        pool = ThreadPoolExecutor(2)
        times = in_turns(
            self.turns,
            one=lambda: read(one, plan),
            two=lambda: read(two, plan),
            decode_one=whole,
            decode_two=lambda: list(pool.map(lambda decode: decode(), halves_of)),
        )
        ours, decode = times.ratio("two", "one"), times.ratio("decode_two", "decode_one")
        return {
            "ratios": {"threads_scaling_over_decode_scaling": ours / decode},
            "scaling": ours,
            "decode_scaling": decode,
            "tiles_per_s": times.per_s(plan.n_tiles),
        }

    def _open(self, name: str, *, threads: int = 1) -> TiledSlide:
        slide = open_slide(name if "://" in name else str(self.bucket / name), threads=threads)
        assert isinstance(slide, TiledSlide)
        return slide

    def _counters(self, *, reset: bool = False) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self.endpoint}/_counters", method="DELETE" if reset else "GET"
        )
        with urllib.request.urlopen(request) as reply:
            found = json.loads(reply.read() or "{}")
        assert isinstance(found, dict)
        return found

    def _opening(self, uri: str) -> dict[str, Any]:
        self._counters(reset=True)
        self._open(uri)
        return self._counters()

    def _against_tiffslide(self, name: str, remote: TiledSlide, plan: TilePlan) -> dict[str, float]:
        """tiles/s, ours and tiffslide's over s3fs by setting, in turns; `over_best`: the ratio.

        tiffslide reads the plan's first tiles, in a process of its own.
        """
        first = plan.xy[: self.few].tolist()
        side = round(plan.geometry.size_l0)
        seconds: dict[str, list[float]] = {name: [] for name in FSSPEC_SETTINGS}
        ours: list[float] = []
        theirs = TiffSlideProcess(
            self.endpoint, f"slides/{name}", first, side_l0=side, tile_px=plan.tile_px
        )
        for turn in range(self.turns + 1):
            started = time.perf_counter()
            read(remote, plan)
            if turn:
                ours.append((time.perf_counter() - started) / plan.n_tiles)
            for setting in FSSPEC_SETTINGS:
                taken = theirs.seconds(setting) / len(first)
                if turn:
                    seconds[setting].append(taken)
        theirs.close()
        times = Times({"remote_beside_tiffslide": ours, **seconds})
        per_s = times.per_s(1)
        over = [times.ratio("remote_beside_tiffslide", setting) for setting in FSSPEC_SETTINGS]
        return {
            "over_best": min(over),
            "remote_beside_tiffslide": per_s.pop("remote_beside_tiffslide"),
            **{f"tiffslide_{setting}_remote": value for setting, value in per_s.items()},
        }

    def _openslide(self, name: str, plan: TilePlan) -> float:
        with openslide.OpenSlide(self.bucket / name) as slide:
            started = time.perf_counter()
            for x, y in plan.xy[: 4 * self.few].tolist():
                np.asarray(slide.read_region((x, y), 0, (224, 224)).convert("RGB"))
            return len(plan.xy[: 4 * self.few]) / (time.perf_counter() - started)

    def _zarr(self, name: str, plan: TilePlan) -> float:
        with tifffile.TiffFile(self.bucket / name) as file:
            level = zarr.open(file.series[0].aszarr(level=0), mode="r")
            started = time.perf_counter()
            for x, y in plan.xy[: 2 * self.few].tolist():
                np.asarray(level[y : y + 224, x : x + 224])  # type: ignore[index]
            return len(plan.xy[: 2 * self.few]) / (time.perf_counter() - started)


class Times:
    """Seconds of works that were measured in turns."""

    def __init__(self, seconds: dict[str, list[float]]) -> None:
        self._seconds = seconds

    def per_s(self, count: int) -> dict[str, float]:
        """`count` things each second, by the median turn of each work."""
        return {name: count / statistics.median(s) for name, s in self._seconds.items()}

    def ratio(self, ours: str, theirs: str) -> float:
        """How many times as fast `ours` is: the median over turns, for both met the same noise."""
        pairs = zip(self._seconds[ours], self._seconds[theirs], strict=True)
        return statistics.median(their / our for our, their in pairs)


class BareDecode:
    """The JPEG decode of exactly these compressed tiles, headers ready and bytes in memory.

    With `keep` into memory for a shard of tiles, as whoever hands out pixels must; without, each
    over the last one, in the processor's cache. At its fastest, which is at odd addresses: at
    others libjpeg-turbo may write past the cache.
    """

    def __init__(self, coded: Sequence[bytes], *, keep: bool) -> None:
        rooms = 256 if keep else 1
        self._rooms = np.zeros(rooms * 256 * 256 * 3 + 1, np.uint8)[1:].reshape(rooms, -1)
        prefix = jpeg_prefix(b"", ycbcr=True)
        self._coded = [prefix + without_app(tile) for tile in coded]

    def __call__(self) -> None:
        rooms = len(self._rooms)
        for index, tile in enumerate(self._coded):
            simplejpeg.decode_jpeg(tile, buffer=self._rooms[index % rooms])


class BareHalfDecode:
    """The decode of exactly these compressed tiles at half size, ours or libjpeg-turbo's."""

    def __init__(self, coded: Sequence[bytes], *, by: HalfJpeg | None) -> None:
        self._room, self._by = np.zeros(128 * 128 * 3 + 1, np.uint8)[1:], by
        prefix = jpeg_prefix(b"", ycbcr=True)
        self._coded = [prefix + without_app(tile) for tile in coded]
        self._head = self._coded[0][: scan_start(self._coded[0])]
        self._scans = [memoryview(tile)[len(self._head) :] for tile in self._coded]

    def __call__(self) -> None:
        if self._by is None:
            for tile in self._coded:
                simplejpeg.decode_jpeg(tile, buffer=self._room, min_height=128, min_width=128)
            return
        for scan in self._scans:
            assert self._by.decode(self._head, scan, self._room) is not None


def planned(slide: TiledSlide) -> TilePlan:
    """The tiles that a job would read of the slide at 0.5 mpp."""
    return plan_slide(slide, TilingRule(mpp=0.5), TissueRule())


def read(slide: TiledSlide, plan: TilePlan) -> None:
    """Read all tiles of a plan as the batch job does."""
    geometry = plan.geometry
    for first in range(0, plan.n_shards, SHARDS_AT_ONCE):
        shards = range(first, min(first + SHARDS_AT_ONCE, plan.n_shards))
        for tiles in slide.read_parts(
            level=geometry.level,
            reduce=geometry.reduce,
            parts=[plan.xy[plan.shard(shard)] for shard in shards],
            side_px=geometry.side_px,
            tile_px=plan.tile_px,
        ):
            assert tiles.shape[1:] == (plan.tile_px, plan.tile_px, 3)


def needed_tiles(slide: TiledSlide, plan: TilePlan) -> list[bytes]:
    """The compressed tiles under the plan's tiles, each once, in the file's order."""
    level = plan.geometry.level
    table = slide.tables[level]
    under = slide.compressed_tiles(level=level, xy=plan.xy, side_px=plan.tile_px)
    with Path(slide.uri).open("rb") as file:
        return [_piece(file, table.offsets[i], table.counts[i]) for i in under.tolist()]


def _piece(file: Any, offset: np.int64, count: np.int64) -> bytes:
    file.seek(int(offset))
    return bytes(file.read(int(count)))


def in_turns(turns: int, **works: Callable[[], object]) -> Times:
    """Seconds of each, run in turns after one turn to warm up."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(turns + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if turn:
                times[name].append(time.perf_counter() - started)
    return Times(times)


if __name__ == "__main__":
    _, chosen, folder, server, short = sys.argv
    measures = Measures(Path(folder), server, quick=bool(int(short)))
    print(json.dumps(getattr(measures, chosen)()))
