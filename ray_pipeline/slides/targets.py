"""Where the pixels of a level go: strips of an overview, or tiles, resampled where they must be."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from ray_pipeline.slides.bands import Windows
from ray_pipeline.slides.reading import GLASS
from ray_pipeline.slides.resample import resample
from ray_pipeline.slides.threads import Task, Threads

MOST_ROOMS = 3
"""Parts' memory that is kept to be used again: one being filled, one on its way, one to spare."""

Pixels = npt.NDArray[np.uint8]


class Rooms:
    """Memory of tiles that were handed out, used again once nobody refers to it any more.

    The first touch of new memory costs as much as a fifth of decoding into it.
    """

    def __init__(self) -> None:
        self._rooms: list[Pixels] = []

    def take(self, shape: tuple[int, ...]) -> Pixels:
        """Memory for uint8 of `shape`, with anything in it."""
        size = math.prod(shape)
        for index in range(len(self._rooms)):
            # Arrays made of a room, and Arrow's buffers of these, refer to it: the list and
            # getrefcount's own argument are the two references that are always there.
            if sys.getrefcount(self._rooms[index]) == 2 and self._rooms[index].size >= size:
                return self._rooms[index][:size].reshape(shape)
        room = np.empty(size, np.uint8)
        self._rooms = [*self._rooms[-(MOST_ROOMS - 1) :], room]
        return room.reshape(shape)


class Strips:
    """Targets for an overview: whole rows of compressed tiles, handed out from top to bottom."""

    def __init__(self, windows: Windows) -> None:
        self._shapes = list(zip(windows.height.tolist(), windows.width.tolist(), strict=True))
        self._open: dict[int, Pixels] = {}
        self._whole: list[Pixels] = []

    def of(self, windows: Sequence[int]) -> Mapping[int, Pixels]:
        """See `Targets.of`."""
        for window in windows:
            if window not in self._open:
                self._open[window] = np.empty((*self._shapes[window], 3), np.uint8)
        return self._open

    def whole(self, windows: Sequence[int]) -> None:
        """See `Targets.whole`."""
        self._whole += [self._open.pop(window) for window in windows]

    def taken(self) -> list[Pixels]:
        """The strips that have become whole since the last call."""
        whole, self._whole = self._whole, []
        return whole


class Tiles:
    """Targets for tiles that are the level's own pixels, handed out part by part."""

    def __init__(
        self, parts: Sequence[npt.NDArray[np.int32]], tile_px: int, rooms: Rooms, windows: Windows
    ) -> None:
        self._rooms, self._shape = rooms, (tile_px, tile_px, 3)
        self._sizes = [len(part) for part in parts]
        self._starts = np.cumsum([0, *self._sizes]).tolist()
        self._part_of = np.repeat(np.arange(len(parts)), self._sizes).tolist()
        self._left = list(self._sizes)
        self._narrow = bool(len(windows.width)) and (
            min(int(windows.width.min()), int(windows.height.min())) < tile_px
        )
        self._tiles: dict[int, Pixels] = {}
        self._views: dict[int, Pixels] = {}
        self._next = 0

    def of(self, windows: Sequence[int]) -> Mapping[int, Pixels]:
        """See `Targets.of`."""
        for window in windows:
            if window not in self._views:
                self._begin(self._part_of[window])
        return self._views

    def whole(self, windows: Sequence[int]) -> None:
        """See `Targets.whole`."""
        for window in windows:
            self._left[self._part_of[window]] -= 1

    def taken(self) -> Iterator[Pixels]:
        """The next parts, as long as they are whole."""
        while self._next < len(self._sizes) and self._left[self._next] == 0:
            part = self._next
            self._next += 1
            self._settle(part)
            if part not in self._tiles:
                yield np.empty((0, *self._shape), np.uint8)
                continue
            for window in range(self._starts[part], self._starts[part + 1]):
                del self._views[window]
            yield self._tiles.pop(part)

    def _settle(self, part: int) -> None:
        """Wait for what is still under way of a part whose windows are whole."""

    def _begin(self, part: int) -> None:
        tiles = self._rooms.take((self._sizes[part], *self._shape))
        if self._narrow:
            tiles[:] = GLASS
        self._tiles[part] = tiles
        self._views.update(enumerate(tiles, self._starts[part]))


class ResampledTiles(Tiles):
    """Targets for tiles that are resampled, each as soon as its window is whole."""

    def __init__(
        self,
        parts: Sequence[npt.NDArray[np.int32]],
        tile_px: int,
        rooms: Rooms,
        windows: Windows,
        *,
        corners: npt.NDArray[np.float64],
        side_px: float,
        threads: Threads,
    ) -> None:
        super().__init__(parts, tile_px, rooms, windows)
        self._narrow = False
        self._shapes = list(zip(windows.height.tolist(), windows.width.tolist(), strict=True))
        self._corners, self._side_px, self._threads = corners.tolist(), side_px, threads
        self._open: dict[int, Pixels] = {}
        self._running: dict[int, list[Task]] = {}
        self._free: list[Pixels] = []
        self._largest = max((h * w * 3 for h, w in self._shapes), default=0)

    def of(self, windows: Sequence[int]) -> Mapping[int, Pixels]:
        """See `Targets.of`."""
        super().of(windows)
        for window in windows:
            if window not in self._open:
                room = self._free.pop() if self._free else np.empty(self._largest, np.uint8)
                height, width = self._shapes[window]
                self._open[window] = room[: height * width * 3].reshape(height, width, 3)
        return self._open

    def whole(self, windows: Sequence[int]) -> None:
        """See `Targets.whole`."""
        for window in windows:
            job = (self._open.pop(window), *self._corners[window], self._views[window])
            task = self._threads.start(partial(self._resample, *job))
            self._running.setdefault(self._part_of[window], []).append(task)
        super().whole(windows)

    def _settle(self, part: int) -> None:
        for task in self._running.pop(part, []):
            self._threads.finish(task)

    def _resample(self, seen: Pixels, left: float, top: float, into: Pixels) -> None:
        into[:] = resample(seen, left, top, self._side_px, into.shape[0])
        assert isinstance(seen.base, np.ndarray)
        self._free.append(seen.base)
