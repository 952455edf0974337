"""`historay index`: a graph over a recipe's vectors, which finds similar tiles in milliseconds.

usearch's HNSW (Y. Malkov, D. Yashunin, arXiv:1603.09320). It is approximate: whenever one is built,
its recall is measured against the exact search. An index is a folder on a disk:

    index.json                what it is, and the names of the other two
    vectors-<build>.usearch   the graph; a tile's key is its slide's first_key plus its `tile`
    slides-<build>.parquet    that map: slide_id, etag, first_key, and x and y of all its tiles

`index.json` is replaced last and in one step, so an index is there whole or not at all. Vectors are
streamed, but a graph is built in memory: two bytes for each of their numbers, which are half
floats, so nothing is lost, and some 300 bytes a tile. A search maps the file into memory instead,
and holds 8 bytes a tile.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from ray_pipeline.dataset.layout import Layout
from ray_pipeline.dataset.slide_files import standing_files
from ray_pipeline.dataset.vectors import read_vectors
from ray_pipeline.errors import NotFoundError, SettingsError, StaleIndexError
from ray_pipeline.similar import (
    MEMORY_BYTES,
    Match,
    Query,
    Rule,
    exact_cosines,
    find_similar,
)
from ray_pipeline.store import ObjectInfo, Store

if TYPE_CHECKING:
    from usearch.index import Index

SIDECAR = "index.json"
"""The file that makes a folder an index."""
CONNECTIVITY, EXPANSION_ADD, EXPANSION_SEARCH = 16, 128, 128
"""Neighbours of a tile in the graph; candidates held while adding, and while searching."""
EXACT_BELOW = 10_000
"""Vectors up to which all are compared: that takes milliseconds, and misses none. A graph depends
on which thread added its tile first, so it may miss one even of few."""
RECALL_QUERIES, RECALL_AT = 100, (10, 20)
"""Tiles on which recall is measured, and how many of their best are looked for."""
NAMED = 3
"""Slides that an error names."""

SLIDES = pa.schema(
    [
        ("slide_id", pa.string()),
        ("etag", pa.string()),
        ("first_key", pa.int64()),
        ("x", pa.list_(pa.int32())),
        ("y", pa.list_(pa.int32())),
    ]
)

Say = Callable[[str], None]
Keys = npt.NDArray[np.uint64]


class IndexFacts(BaseModel):
    """What `index.json` tells."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    output: str
    """URI of the output."""
    recipe_fp: str
    """The recipe whose vectors are in it."""
    metric: Literal["cos"] = "cos"
    """What is compared: cosines."""
    dim: int
    """Numbers per vector."""
    vectors: int
    """Vectors in it; those that are zero are left out."""
    slides: int
    """Slides that it covers."""
    vectors_file: str
    """The graph."""
    slides_file: str
    """The map from keys to tiles."""
    recall: dict[int, float]
    """Share of the exact k best that it finds, by k."""
    recall_queries: int
    """Tiles that this was measured on."""
    version: str
    """historay's version."""


@dataclass(frozen=True, kw_only=True)
class VectorIndex:
    """An index that is open for searching."""

    graph: Index
    """The graph."""
    slides: pa.Table
    """Columns of SLIDES, by first_key."""

    @classmethod
    def open(cls, folder: Path, output: Store, layout: Layout) -> VectorIndex:
        """The index in `folder`, if it is one of this recipe as the output stands now.

        Raises NotFoundError, SettingsError for an index of something else, and StaleIndexError
        when slides were committed, replaced or removed since it was built.
        """
        facts = read_facts(folder)
        if facts is None:
            raise NotFoundError(f"{folder} is no index: build one with `historay index`.")
        _check_same(folder, facts, output, layout)
        index = cls(graph=_new_graph(facts.dim), slides=pq.read_table(folder / facts.slides_file))
        index.graph.view(str(folder / facts.vectors_file))
        there = dict(standing_files(output, layout))
        fresh, stale = _compared(_etags(index.slides), there)
        if other := [*fresh, *stale]:
            raise StaleIndexError(
                f"{folder} is older than {output.uri}: {len(other)} slides ({_some(other)}) were "
                f"added or changed since; run `historay index {output.uri} --out {folder}` again."
            )
        return index

    def find(self, query: Query, rule: Rule) -> list[list[Match]]:
        """For each tile of the query what `find_similar` would find, but for a few that it misses.

        Cosines are exact, for the graph keeps the vectors.
        """
        pairs = zip(query.tiles, query.vectors, strict=True)
        return [self._nearest(tile, vector, rule) for tile, vector in pairs]

    def query(self, keys: Keys) -> Query:
        """The query of the tiles that have these keys."""
        names, tiles = self._places(keys)
        return Query(
            tiles=tuple(zip(names, tiles.tolist(), strict=True)), vectors=self._vectors(keys)
        )

    def _nearest(
        self, itself: tuple[str, int], vector: npt.NDArray[np.float32], rule: Rule
    ) -> list[Match]:
        passed, count, size = set(rule.exclude_slides), rule.k + 1, len(self.graph)
        exact = size <= EXACT_BELOW
        while True:
            found = self.graph.search(vector, min(count, size), exact=exact)
            keys = np.asarray(found.keys, np.uint64)
            kept = [
                place[0] not in passed and (rule.include_self or place != itself)
                for place in zip(*self._places(keys), strict=True)
            ]
            if sum(kept) >= rule.k or count >= size:
                break
            count *= 4  # the nearest may all be of slides that are passed over
        keys = keys[kept]
        if not len(keys):
            return []
        names, tiles = self._places(keys)
        matches = [
            Match(distance=-cosine, slide_id=name, tile=tile, x=x, y=y)
            for cosine, name, tile, x, y in zip(
                exact_cosines(self._vectors(keys), vector).tolist(),
                names,
                tiles.tolist(),
                self._corners("x", keys),
                self._corners("y", keys),
                strict=True,
            )
        ]
        return sorted(matches)[: rule.k]

    def _vectors(self, keys: Keys) -> npt.NDArray[np.float32]:
        return np.asarray(self.graph.get(keys), np.float32).reshape(len(keys), -1)

    def _places(self, keys: Keys) -> tuple[list[str], npt.NDArray[np.int64]]:
        first = self.slides["first_key"].to_numpy()
        # Of slides with the same first_key only the last one has tiles.
        rows = np.searchsorted(first, keys.astype(np.int64), side="right") - 1
        return self.slides["slide_id"].take(rows).to_pylist(), keys.astype(np.int64) - first[rows]

    def _corners(self, name: str, keys: Keys) -> list[int]:
        corners: list[int] = pc.list_flatten(self.slides[name]).take(keys).to_pylist()
        return corners


def read_facts(folder: Path) -> IndexFacts | None:
    """What the index in `folder` is; None for none. Raises SettingsError for a damaged one."""
    path = folder / SIDECAR
    if not path.exists():
        return None
    try:
        facts = IndexFacts.model_validate_json(path.read_bytes())
    except ValidationError:
        facts = None
    if facts is None or not all(
        (folder / name).exists() for name in (facts.vectors_file, facts.slides_file)
    ):
        raise SettingsError(
            f"{path} is none of ours, or of another version, or the files it names are gone: "
            "delete it, and build the index again."
        )
    return facts


def build_index(
    output: Store,
    layout: Layout,
    folder: Path,
    *,
    say: Say,
    memory_bytes: int = MEMORY_BYTES,
) -> IndexFacts:
    """Build the index of a recipe in `folder`, or bring the one there up to date.

    Slides that it has are not read again; where one of them was replaced or removed, all of it is
    built anew. What stood there stands until the new one is whole. Of the output never more than
    `memory_bytes` stand in memory beside the graph. Raises SettingsError when the folder holds
    the index of something else, NotFoundError when the recipe has no tile.
    """
    graph, slides, before = None, SLIDES.empty_table(), read_facts(folder)
    files = dict(sorted(standing_files(output, layout)))
    if before is not None:
        _check_same(folder, before, output, layout)
        standing = pq.read_table(folder / before.slides_file)
        fresh, stale = _compared(_etags(standing), files)
        if stale:
            say(f"{len(stale)} slides ({_some(stale)}) have changed: the index is built anew.")
        elif not fresh:
            say("nothing has changed since the index was built.")
            return before
        else:
            graph, slides = _new_graph(before.dim), standing
            graph.load(str(folder / before.vectors_file))
            files = {slide_id: files[slide_id] for slide_id in fresh}
    next_key = len(pc.list_flatten(slides["x"]))
    graph, added = _grown(graph, output, files, first_key=next_key, say=say)
    index = VectorIndex(graph=graph, slides=pa.concat_tables([slides, added]).combine_chunks())
    say(f"{len(graph)} vectors of {index.slides.num_rows} slides are in it; measuring recall.")
    recall, queries = measure_recall(index, output, layout, memory_bytes=memory_bytes)
    build = uuid.uuid4().hex[:8]
    facts = IndexFacts(
        output=output.uri,
        recipe_fp=layout.recipe_fp,
        dim=graph.ndim,
        vectors=len(graph),
        slides=index.slides.num_rows,
        vectors_file=f"vectors-{build}.usearch",
        slides_file=f"slides-{build}.parquet",
        recall=recall,
        recall_queries=queries,
        version=version("historay"),
    )
    _write(folder, facts, index)
    if before is not None:
        for name in (before.vectors_file, before.slides_file):
            (folder / name).unlink(missing_ok=True)
    return facts


def measure_recall(
    index: VectorIndex, output: Store, layout: Layout, *, memory_bytes: int = MEMORY_BYTES
) -> tuple[dict[int, float], int]:
    """Share of the exact k best that the index finds, by k, and the number of tiles asked for.

    A tile as near as the exact k-th counts as found: which of equals is named says nothing.
    """
    keys = np.asarray(index.graph.keys[:], np.uint64)
    chosen = np.random.default_rng(0).choice(keys, min(RECALL_QUERIES, len(keys)), replace=False)
    query, rule = index.query(chosen), Rule(k=max(RECALL_AT))
    exact = find_similar(output, layout, query, rule, memory_bytes=memory_bytes).matches
    near = index.find(query, rule)
    recall = {}
    for k in RECALL_AT:
        shares = [
            sum(match.distance <= best[:k][-1].distance for match in found[:k]) / len(best[:k])
            for best, found in zip(exact, near, strict=True)
            if best
        ]
        recall[k] = float(np.mean(shares)) if shares else 1.0
    return recall, len(chosen)


def _grown(
    graph: Index | None,
    output: Store,
    files: Mapping[str, ObjectInfo],
    *,
    first_key: int,
    say: Say,
) -> tuple[Index, pa.Table]:
    """The graph with the vectors of `files` in it, from `first_key` on, and the rows of `files`."""
    rows = []
    for number, (slide_id, info) in enumerate(files.items(), 1):
        x, y = [np.empty(0, np.int32)], [np.empty(0, np.int32)]
        for batch in read_vectors(output, slide_id, info):
            graph = graph if graph is not None else _new_graph(batch.vectors.shape[1])
            # Nothing is similar to a vector of zeros.
            some = batch.vectors.any(axis=1)
            graph.add((first_key + batch.tile[some]).astype(np.uint64), batch.vectors[some])
            x.append(batch.x)
            y.append(batch.y)
        values = (slide_id, info.etag, first_key, np.concatenate(x), np.concatenate(y))
        rows.append(dict(zip(SLIDES.names, values, strict=True)))
        n_tiles = sum(map(len, x))
        first_key += n_tiles
        say(f"{slide_id}: {n_tiles} tiles ({number} of {len(files)} slides)")
    if graph is None or not len(graph):
        raise NotFoundError(f"{output.uri} has no tile to index; embed some slides first.")
    return graph, pa.Table.from_pylist(rows, SLIDES)


def _write(folder: Path, facts: IndexFacts, index: VectorIndex) -> None:
    """Write the files under names of their own, and then the sidecar that makes them the index."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=folder) as name:
        building = Path(name)
        index.graph.save(str(building / facts.vectors_file))
        pq.write_table(index.slides, building / facts.slides_file, compression="zstd")
        (building / SIDECAR).write_text(facts.model_dump_json(indent=2) + "\n")
        for file in (facts.vectors_file, facts.slides_file, SIDECAR):
            (building / file).replace(folder / file)


def _new_graph(dim: int) -> Index:
    try:
        from usearch.index import Index  # noqa: PLC0415 (an extra)
    except ImportError:
        raise SettingsError("an index needs usearch: pip install 'historay[index]'.") from None
    return Index(
        ndim=dim,
        metric="cos",
        dtype="f16",
        connectivity=CONNECTIVITY,
        expansion_add=EXPANSION_ADD,
        expansion_search=EXPANSION_SEARCH,
    )


def _check_same(folder: Path, facts: IndexFacts, output: Store, layout: Layout) -> None:
    if (facts.output, facts.recipe_fp) != (output.uri, layout.recipe_fp):
        raise SettingsError(
            f"{folder} is the index of recipe {facts.recipe_fp} of {facts.output}, not of recipe "
            f"{layout.recipe_fp} of {output.uri}: name another folder."
        )


def _etags(slides: pa.Table) -> dict[str, str]:
    return dict(zip(slides["slide_id"].to_pylist(), slides["etag"].to_pylist(), strict=True))


def _compared(
    known: Mapping[str, str], files: Mapping[str, ObjectInfo]
) -> tuple[list[str], list[str]]:
    """Slides that an index of `known` versions lacks, and those of which it has another version."""
    fresh = sorted(files.keys() - known.keys())
    stale = [
        slide_id
        for slide_id, etag in sorted(known.items())
        if slide_id not in files or files[slide_id].etag != etag
    ]
    return fresh, stale


def _some(slide_ids: Sequence[str]) -> str:
    more = ", ..." if len(slide_ids) > NAMED else ""
    return ", ".join(slide_ids[:NAMED]) + more
