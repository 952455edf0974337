"""`historay similar`: the tiles whose vectors point most nearly where a given tile's does.

Exact: every vector of the recipe is compared. Products in float32 choose what can be among the
best at all, within a bound on their rounding; those few are compared again in float64, where sums
of products of half floats are all but exact. So the answer depends neither on how tiles fall into
batches nor on the order in which files come.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ray_pipeline.dataset.layout import Layout
from ray_pipeline.dataset.slide_files import standing_files
from ray_pipeline.dataset.vectors import (
    VectorBatch,
    read_tiles,
    read_vectors,
    slide_file,
    slides_at_once,
)
from ray_pipeline.errors import SettingsError
from ray_pipeline.store import ObjectInfo, Store

MEMORY_BYTES = 512 << 20
"""Most that a search holds of the output at a time, unless told otherwise: however large it is."""
FILES_AT_ONCE = 8
"""Slides read at the same time, as far as memory allows."""
PRECISE_ROWS = 64
"""Vectors compared in float64 at a time."""
DIGITS = 12
"""Of a cosine behind the point: those beyond are rounding, and must not decide between equals."""

Vectors = npt.NDArray[np.float32]
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Query:
    """Tiles, for each of which similar ones are sought."""

    tiles: tuple[tuple[str, int], ...]
    """Slide and tile of each."""
    vectors: Vectors
    """Their vectors, float32 [len(tiles), D], none of them zero."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What is sought."""

    k: int = 20
    """Most tiles that are found for each tile of the query."""
    include_self: bool = False
    """Whether a tile of the query may be found for itself."""
    exclude_slides: Collection[str] = ()
    """Slides that are passed over."""


@dataclass(frozen=True, kw_only=True, order=True)
class Match:
    """A tile that was found. They sort as they rank: ties by slide_id, then tile."""

    distance: float = field(repr=False)
    """Minus the cosine."""
    slide_id: str
    """Its slide."""
    tile: int
    """Its index there."""
    x: int
    """Left, level-0 px."""
    y: int
    """Top, level-0 px."""

    @property
    def cosine(self) -> float:
        """Cosine of the angle between the two vectors, -1..1."""
        return -self.distance


@dataclass(kw_only=True)
class Found:
    """The best of every slide, and what it took to look at them all."""

    matches: list[list[Match]]
    """For each tile of the query, the best first."""
    slides: int = 0
    """Slides that were read."""
    tiles: int = 0
    """Vectors that were compared."""
    vector_bytes: int = 0
    """Their bytes in float32."""
    seconds: float = 0.0
    """Time it took, seconds."""


def get_query(output: Store, layout: Layout, slide_id: str, tiles: Iterable[int]) -> Query:
    """The query of some tiles of a slide.

    Raises SettingsError when the recipe has no such slide or tile, or a tile's vector is zero.
    """
    asked = tuple(dict.fromkeys(tiles))
    info = slide_file(output, layout, slide_id)
    vectors = read_tiles(output, slide_id, info, asked)
    for tile, vector in zip(asked, vectors, strict=True):
        if not vector.any():
            raise SettingsError(
                f"--tile: tile {tile} of slide '{slide_id}' has a vector of zeros, "
                "which is similar to nothing; choose another."
            )
    return Query(tiles=tuple((slide_id, tile) for tile in asked), vectors=vectors)


def find_similar(
    output: Store, layout: Layout, query: Query, rule: Rule, *, memory_bytes: int = MEMORY_BYTES
) -> Found:
    """The `rule.k` tiles of largest cosine for each tile of the query, among all of the recipe.

    Vectors of zeros are never found. Of the output never more than `memory_bytes` stand in memory,
    for no more slides are read at the same time than fit; one always is (`reading_bytes`: 65 MB for
    1,536 numbers a tile).
    Raises ObjectReplacedError for a file that is replaced while it is read.
    """
    started = time.perf_counter()
    threads = slides_at_once(memory_bytes, query.vectors.shape[1])
    found = Found(matches=[[] for _ in query.tiles])
    floors = np.full(len(query.tiles), -np.inf)
    passed = set(rule.exclude_slides)
    files = ((slide, info) for slide, info in standing_files(output, layout) if slide not in passed)

    def search(file: tuple[str, ObjectInfo]) -> _SlideSearch:
        one = _SlideSearch(query, rule, floors.copy())
        for batch in read_vectors(output, *file):
            one.see(batch)
        return one

    for one in in_order(search, files, min(threads, FILES_AT_ONCE)):
        found.slides += 1
        found.tiles += one.tiles
        found.vector_bytes += one.tiles * query.vectors[0].nbytes
        for index, matches in enumerate(one.best):
            if matches:
                best = heapq.nsmallest(rule.k, [*found.matches[index], *matches])
                found.matches[index] = best
                # Slides that are begun from now on need not look below.
                floors[index] = best[-1].cosine if len(best) == rule.k else -np.inf
    found.seconds = time.perf_counter() - started
    return found


class _SlideSearch:
    """The best tiles of one slide, found batch by batch."""

    def __init__(self, query: Query, rule: Rule, floors: npt.NDArray[np.float64]) -> None:
        self.best: list[list[Match]] = [[] for _ in query.tiles]
        """For each tile of the query."""
        self.tiles = 0
        """Vectors seen."""
        self._query, self._rule, self._floors = query, rule, floors
        lengths = np.linalg.norm(query.vectors.astype(np.float64), axis=1)
        self._units = (query.vectors / lengths[:, None]).astype(np.float32)
        self._rounding = rounding(query.vectors.shape[1])

    def see(self, batch: VectorBatch) -> None:
        """Compare a batch with every tile of the query."""
        self.tiles += len(batch.tile)
        lengths = np.sqrt(np.vecdot(batch.vectors, batch.vectors))
        if len(self._units) == 1:
            # BLAS would share so little work among threads, and wait for them.
            products = np.vecdot(batch.vectors, self._units)[:, None]
        else:
            products = batch.vectors @ self._units.T
        with np.errstate(divide="ignore", invalid="ignore"):
            cosines = products / lengths[:, None]
        cosines[lengths == 0] = -np.inf
        for index, column in enumerate(cosines.T):
            self._take(index, batch, self._without_self(index, batch, column))

    def _without_self(self, index: int, batch: VectorBatch, cosines: Vectors) -> Vectors:
        slide_id, tile = self._query.tiles[index]
        if not self._rule.include_self and slide_id == batch.slide_id:
            cosines[batch.tile == tile] = -np.inf
        return cosines

    def _take(self, index: int, batch: VectorBatch, cosines: Vectors) -> None:
        k, floor = self._rule.k, self._floors[index]
        if len(cosines) > k:
            floor = max(floor, np.partition(cosines, -k)[-k] - self._rounding)
        rows = np.flatnonzero((cosines >= floor - self._rounding) & (cosines > -np.inf))
        if not len(rows):
            return
        matches = [
            Match(
                distance=-float(cosine),
                slide_id=batch.slide_id,
                tile=int(batch.tile[row]),
                x=int(batch.x[row]),
                y=int(batch.y[row]),
            )
            for row, cosine in zip(
                rows, exact_cosines(batch.vectors[rows], self._query.vectors[index]), strict=True
            )
        ]
        best = heapq.nsmallest(k, [*self.best[index], *matches])
        self.best[index] = best
        if len(best) == k:
            self._floors[index] = max(self._floors[index], best[-1].cosine)


def exact_cosines(vectors: Vectors, to: Vectors) -> npt.NDArray[np.float64]:
    """Cosines of vectors float32 [n, D] to the vector `to` float32 [D], float64 [n]; none is zero.

    Row by row in one way, so that equal vectors have equal cosines wherever they stand.
    """
    asked, cosines = to.astype(np.float64), np.empty(len(vectors))
    for start in range(0, len(vectors), PRECISE_ROWS):
        rows = vectors[start : start + PRECISE_ROWS].astype(np.float64)
        squares = (rows * rows).sum(axis=1) * (asked * asked).sum()
        cosines[start : start + PRECISE_ROWS] = (rows * asked).sum(axis=1) / np.sqrt(squares)
    # Plus nought, for nought has no sign.
    return np.clip(np.round(cosines, DIGITS), -1.0, 1.0) + 0.0


def rounding(dim: int) -> float:
    """How far a cosine of float32 products may lie from the exact one.

    Twice the bound (n + 3) u of a dot product of unit vectors, u = 2**-24 (N. Higham, Accuracy and
    Stability of Numerical Algorithms, 2nd ed., section 3.1), for its length is rounded as well.
    """
    return 2 * (dim + 3) * 2.0**-24


def in_order(work: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """`work` of each item, so many at the same time, in the order of the items, none far ahead."""
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads, "similar") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) == 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
