"""How fast similar tiles are found: streamed from Parquet, in memory by numpy, and by an index.

    python -m tests.benchmarks.similar [--quick] [--out FILE]

An output of vectors of 1,536 numbers lies in a folder, in the page cache after the first turn. The
exact search, a plain numpy pass over the same vectors already in memory, and pyarrow's bare decode
of the same files take turns; medians are taken. GB/s are of float32 vectors. An index is then built
over a part of the output, and its recall and queries/s are held against the exact search.

The vectors are made up to be as crowded as a model's: mixtures of a few directions each, with a
little noise. On vectors without any structure every index of this kind does worse.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from ray_pipeline.index import VectorIndex, build_index, measure_recall
from ray_pipeline.similar import Query, Rule, find_similar, get_query
from ray_pipeline.store import Store
from tests.benchmarks.reader_measures import Times, in_turns
from tests.benchmarks.report import finish
from tests.outputs import LAYOUT, put_slide

DIM, DIRECTIONS, MIXED, NOISE = 1536, 512, 6, 0.01
"""Numbers of a vector; directions there are, and in one vector; noise of each number."""
K = 20
WANTED = {
    "streamed_over_numpy": ">= 0.1",
    "streamed_over_decode": ">= 0.7",
    "recall_at_10": ">= 0.95",
    "recall_at_20": ">= 0.95",
    "index_over_exact": ">= 100",
}
PACKAGES = ("numpy", "pyarrow", "usearch")

Vectors = npt.NDArray[np.float32]


def main() -> None:
    """Make the outputs, measure the exact search, then the index, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small outputs, for trying it out")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--out", help="write the report here too")
    asked = parser.parse_args()
    slides, tiles, indexed = (3, 1500, 2) if asked.quick else (24, 8192, 3)
    ratios: dict[str, float] = {}
    figures: dict[str, object] = {"quick": asked.quick, "turns": asked.turns, "dim": DIM}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole, part = (Store.open(str(folder / which)) for which in ("whole", "part"))
        vectors = made_up(slides * tiles)
        for number, group in enumerate(np.split(vectors, slides)):
            put_slide(whole, f"slide-{number}", group)
            if number < indexed:
                put_slide(part, f"slide-{number}", group)
        print(f"{len(vectors)} vectors made", file=sys.stderr)
        query = get_query(whole, LAYOUT, "slide-0", [7])
        times = scanned(whole, vectors, query, turns=2 if asked.quick else asked.turns)
        gb = vectors.nbytes / 1e9
        ratios["streamed_over_numpy"] = times.ratio("streamed", "numpy")
        ratios["streamed_over_decode"] = times.ratio("streamed", "decode")
        figures |= {"gb": gb, "tiles": len(vectors), "slides": slides}
        figures["gb_per_s"] = {name: gb * rate for name, rate in times.per_s(1).items()}
        figures["bytes_per_vector_byte"] = sum(i.size_bytes for i in whole.list()) / vectors.nbytes
        del vectors
        found, told = indexed_search(part, folder / "index")
        ratios |= found
        figures["index"] = told
    finish(
        "similar", ratios=ratios, wanted=WANTED, figures=figures, packages=PACKAGES, out=asked.out
    )


def made_up(n: int) -> Vectors:
    """float32 [n, DIM], each a mixture of MIXED of DIRECTIONS, with values of half floats."""
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((DIRECTIONS, DIM)).astype(np.float32) / DIM**0.5
    vectors = rng.standard_normal((n, DIM), np.float32) * NOISE
    for _ in range(MIXED):
        share = rng.gamma(1.0, size=(n, 1)).astype(np.float32)
        vectors += share * directions[rng.integers(0, DIRECTIONS, n)]
    return vectors.astype(np.float16).astype(np.float32)


def scanned(output: Store, vectors: Vectors, query: Query, *, turns: int) -> Times:
    """Seconds of the exact search, of numpy in memory, and of the decode alone, in turns."""
    files = [Path(output.uri) / info.key for info in output.list()]

    def numpy_pass() -> None:
        cosines = vectors @ query.vectors[0] / np.sqrt(np.vecdot(vectors, vectors))
        np.argpartition(cosines, -K)[-K:]

    def decode() -> None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(decode_file, files))

    return in_turns(
        turns,
        streamed=lambda: find_similar(output, LAYOUT, query, Rule(k=K)),
        numpy=numpy_pass,
        decode=decode,
    )


def decode_file(path: Path) -> None:
    """Decode a file's vectors as pyarrow does, a row group at a time, and drop them."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            file.read_row_group(group, columns=["embedding"], use_threads=False)


def indexed_search(output: Store, folder: Path) -> tuple[dict[str, float], dict[str, object]]:
    """Ratios and figures of an index over the output."""
    started = time.perf_counter()
    facts = build_index(output, LAYOUT, folder, say=lambda _: None)
    seconds = time.perf_counter() - started
    index = VectorIndex.open(folder, output, LAYOUT)
    recall, queries = measure_recall(index, output, LAYOUT)
    query = index.query(np.asarray(index.graph.keys[:queries], np.uint64))
    rule = Rule(k=K)
    # One tile after the other: a user asks for one, and reads the whole output for it.
    one = Query(tiles=query.tiles[:1], vectors=query.vectors[:1])
    times = in_turns(
        3,
        index=lambda: index.find(query, rule),
        exact=lambda: find_similar(output, LAYOUT, one, rule),
    )
    per_s = {"index": times.per_s(len(query.tiles))["index"], "exact": times.per_s(1)["exact"]}
    ratios = {f"recall_at_{k}": share for k, share in recall.items()}
    ratios["index_over_exact"] = per_s["index"] / per_s["exact"]
    files = sum(path.stat().st_size for path in folder.iterdir())
    return ratios, {
        "vectors": facts.vectors,
        "recall_queries": queries,
        "queries_per_s": per_s,
        "built_and_measured_s": seconds,
        "bytes_per_vector": files / facts.vectors,
    }


if __name__ == "__main__":
    main()
