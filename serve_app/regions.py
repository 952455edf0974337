"""Tiles of a slide in object storage, read as the batch job reads them, from slides kept open."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ray_pipeline.encoders.spec import ModelSpec
from ray_pipeline.errors import ObjectReplacedError, OffSpecError
from ray_pipeline.slides.grid import ReadGeometry, TilingRule, choose_geometry
from ray_pipeline.slides.slide import Slide, open_slide
from serve_app.allowed import AllowedUris
from serve_app.errors import DeadlineError, ImageError
from serve_app.settings import RegionSettings

Key = tuple[str, float | None]
"""URI and mpp override."""


@dataclass(frozen=True, kw_only=True)
class Region:
    """Tiles of one slide, and where they come from."""

    tiles: npt.NDArray[np.uint8]
    """uint8 [n, tile_px, tile_px, 3]."""
    etag: str
    """The version of the slide."""
    level: int
    """Pyramid level that was read."""
    mpp: float
    """Microns per pixel of the tiles."""


class _Opened:
    """A slide that is kept open; `lock` is held by the thread that uses it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.slide: Slide | None = None
        self.opened_at = 0.0
        self.dropped = False


class RegionReader:
    """Reads tiles in threads of its own. A slide is used by one of them at a time."""

    def __init__(
        self, settings: RegionSettings, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings, self._clock = settings, clock
        self._allowed = AllowedUris(settings)
        self._pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="regions")
        self._kept: OrderedDict[Key, _Opened] = OrderedDict()
        self._guard = threading.Lock()

    def check(self, uri: str) -> None:
        """Raise ForbiddenUriError for a URI that may not be read."""
        self._allowed.check(uri)

    async def read(
        self,
        uri: str,
        xy: npt.NDArray[np.int32],
        spec: ModelSpec,
        *,
        mpp: float | None = None,
        mpp_override: float | None = None,
        timeout_s: float,
    ) -> Region:
        """The tiles whose left top corners are `xy` int32 [n, 2], level-0 px.

        Raises ForbiddenUriError, OffSpecError, ImageError for places outside the
        slide, DeadlineError, SlideErrors and StoreErrors.
        """
        uri = self._allowed.check(uri)
        asked = spec.mpp if mpp is None else mpp
        if abs(asked / spec.mpp - 1) > 1e-6 and not self._settings.allow_off_spec:
            raise OffSpecError(
                f"mpp {asked:g}: {spec.name} was made for {spec.mpp:g} mpp; leave mpp out, or have "
                "the operator set regions.allow_off_spec."
            )
        rule = TilingRule(tile_px=spec.tile_px, stride_px=spec.tile_px, mpp=asked)
        give_up_at = self._clock() + timeout_s
        loop = asyncio.get_running_loop()
        job = loop.run_in_executor(
            self._pool, self._read, (uri, mpp_override), xy, rule, give_up_at
        )
        try:
            async with asyncio.timeout(timeout_s):
                return await job
        except TimeoutError:
            raise DeadlineError(
                f"the slide's tiles were not read after {timeout_s:g} s: ask for fewer at a time, "
                "or try again later."
            ) from None

    def close(self) -> None:
        """Close what is open, as soon as nobody uses it."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for opened in self._kept.values():
            _drop(opened)
        self._kept.clear()

    def _read(
        self, key: Key, xy: npt.NDArray[np.int32], rule: TilingRule, give_up_at: float
    ) -> Region:
        for last_try in (False, True):
            opened = self._kept_open(key)
            if not opened.lock.acquire(timeout=max(0.0, give_up_at - self._clock())):
                raise DeadlineError("the slide was in use until time was up: try again later.")
            try:
                if opened.slide is None or self._clock() - opened.opened_at > self._settings.open_s:
                    if opened.slide is not None:
                        opened.slide.close()
                    opened.slide = None
                    opened.slide = open_slide(key[0], mpp_override=key[1])
                    opened.opened_at = self._clock()
                return _tiles(opened.slide, xy, rule)
            except ObjectReplacedError:
                # It was replaced since it was opened: the new version is what is asked for.
                if opened.slide is not None:
                    opened.slide.close()
                opened.slide = None
                if last_try:
                    raise
            finally:
                if opened.dropped and opened.slide is not None:
                    opened.slide.close()
                    opened.slide = None
                opened.lock.release()
        raise AssertionError("unreachable")

    def _kept_open(self, key: Key) -> _Opened:
        with self._guard:
            opened = self._kept.setdefault(key, _Opened())
            self._kept.move_to_end(key)
            while len(self._kept) > self._settings.open_slides:
                _, oldest = self._kept.popitem(last=False)
                _drop(oldest)
        return opened


def _drop(opened: _Opened) -> None:
    """Close now, or have the thread that uses it do so."""
    opened.dropped = True
    if opened.lock.acquire(blocking=False):
        try:
            if opened.slide is not None:
                opened.slide.close()
                opened.slide = None
        finally:
            opened.lock.release()


def _tiles(slide: Slide, xy: npt.NDArray[np.int32], rule: TilingRule) -> Region:
    geometry = choose_geometry(slide.levels, rule, slide_id=slide.slide_id)
    _check_inside(slide, xy, geometry)
    return Region(
        tiles=slide.read_tiles(
            level=geometry.level,
            xy=xy,
            side_px=geometry.side_px,
            tile_px=rule.tile_px,
            reduce=geometry.reduce,
        ),
        etag=slide.etag,
        level=geometry.level,
        mpp=geometry.mpp_achieved,
    )


def _check_inside(slide: Slide, xy: npt.NDArray[np.int32], geometry: ReadGeometry) -> None:
    """Raise ImageError for the first tile that does not lie wholly inside the slide."""
    width, height = slide.levels[0].width_px, slide.levels[0].height_px
    most = np.array([width, height]) - geometry.size_l0 + 1e-6
    outside = np.flatnonzero((xy < 0).any(axis=1) | (xy > most).any(axis=1))
    if len(outside):
        x, y = xy[outside[0]].tolist()
        raise ImageError(
            f"tiles[{outside[0]}] at x {x}, y {y} is not wholly inside the slide of "
            f"{width} x {height} px: tiles have a side of {geometry.size_l0:g} px there."
        )
