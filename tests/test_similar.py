"""Exact search finds what comparing every vector by hand finds."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ray_pipeline.dataset.schema import BATCH_TILES
from ray_pipeline.errors import SettingsError
from ray_pipeline.similar import Rule, find_similar, get_query
from ray_pipeline.store import Store
from tests.outputs import LAYOUT, STRIDE_PX, put_slide
from tests.servers.s3 import S3Server

Slides = dict[str, npt.NDArray[np.float16]]
DIM = 6


def by_hand(
    slides: Slides, query: tuple[str, int], *, k: int, exclude: str | None = None
) -> list[tuple[str, int]]:
    """(slide, tile) of the k best, compared one by one in float64; ties by slide, then tile."""
    asked = slides[query[0]][query[1]].astype(np.float64)
    ranked = []
    for slide_id, vectors in slides.items():
        for tile, vector in enumerate(vectors.astype(np.float64)):
            if vector.any() and (slide_id, tile) != query and slide_id != exclude:
                cosine = vector @ asked / np.sqrt((vector @ vector) * (asked @ asked))
                ranked.append((-round(float(cosine), 12), slide_id, tile))
    return [(slide_id, tile) for _, slide_id, tile in sorted(ranked)[:k]]


def found(output: Store, query: tuple[str, int], **rule: Any) -> list[tuple[str, int]]:
    asked = get_query(output, LAYOUT, query[0], [query[1]])
    (matches,) = find_similar(output, LAYOUT, asked, Rule(**rule)).matches
    return [(match.slide_id, match.tile) for match in matches]


@st.composite
def small_outputs(draw: st.DrawFn) -> tuple[Slides, tuple[str, int]]:
    """A few slides of few different small numbers: full of ties, equal vectors and zeros."""
    numbers = st.sampled_from([-1.0, 0.0, 0.0, 1.0, 2.0])
    slides = {
        slide_id: draw(hnp.arrays(np.float16, (draw(st.integers(0, 9)), 3), elements=numbers))
        for slide_id in ("b", "a", "c/d")
    }
    places = [
        (slide_id, int(tile))
        for slide_id, vectors in slides.items()
        for tile in np.flatnonzero(vectors.any(axis=1))
    ]
    if not places:
        slides["a"] = np.ones((1, 3), np.float16)
        places = [("a", 0)]
    return slides, draw(st.sampled_from(places))


@settings(max_examples=60)
@given(small_outputs(), st.integers(1, 12))
def test_it_finds_what_comparing_by_hand_finds(
    made: tuple[Slides, tuple[str, int]], k: int
) -> None:
    slides, query = made
    with tempfile.TemporaryDirectory() as folder:
        output = Store.open(folder)
        for slide_id, vectors in slides.items():
            put_slide(output, slide_id, vectors, row_group=4)
        assert found(output, query, k=k) == by_hand(slides, query, k=k)
        other = by_hand(slides, query, k=k, exclude=query[0])
        assert found(output, query, k=k, exclude_slides={query[0]}) == other


@pytest.fixture
def output(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "out"))


@pytest.fixture
def slides(output: Store) -> Slides:
    """Three slides of several batches and row groups, one of them in a partition's folder."""
    rng = np.random.default_rng(1)
    made = {
        name: rng.standard_normal((n, DIM)).astype(np.float16)
        for name, n in (("a", 2 * BATCH_TILES + 77), ("b", 5), ("c", BATCH_TILES))
    }
    for name, vectors in made.items():
        partitions = {"site": "north"} if name == "c" else {}
        put_slide(output, name, vectors, row_group=1500, partitions=partitions)
    return made


def test_it_finds_across_batches_row_groups_and_partitions(output: Store, slides: Slides) -> None:
    for query in (("a", 0), ("a", 2 * BATCH_TILES + 76), ("c", 1000)):
        assert found(output, query, k=50) == by_hand(slides, query, k=50)


def test_a_match_tells_cosine_and_corner(output: Store, slides: Slides) -> None:
    query = get_query(output, LAYOUT, "b", [3])
    result = find_similar(output, LAYOUT, query, Rule(k=3, include_self=True))
    itself, second, _ = result.matches[0]
    assert (itself.slide_id, itself.tile, itself.cosine) == ("b", 3, 1.0)
    assert (itself.x, itself.y) == (3 * STRIDE_PX, 6 * STRIDE_PX)
    mine = slides[second.slide_id][second.tile].astype(np.float64)
    asked = slides["b"][3].astype(np.float64)
    cosine = mine @ asked / np.linalg.norm(mine) / np.linalg.norm(asked)
    assert second.cosine == pytest.approx(cosine, abs=1e-12)
    assert (result.slides, result.tiles) == (3, sum(map(len, slides.values())))
    assert result.vector_bytes == result.tiles * DIM * 4


def test_several_tiles_are_sought_in_one_pass(output: Store, slides: Slides) -> None:
    query = get_query(output, LAYOUT, "a", [7, 1500, 7])
    result = find_similar(output, LAYOUT, query, Rule(k=9))
    assert query.tiles == (("a", 7), ("a", 1500))
    for place, matches in zip(query.tiles, result.matches, strict=True):
        assert [(m.slide_id, m.tile) for m in matches] == by_hand(slides, place, k=9)
    assert result.tiles == sum(map(len, slides.values()))


def test_little_memory_changes_nothing(output: Store, slides: Slides) -> None:
    query = get_query(output, LAYOUT, "a", [7])
    little = find_similar(output, LAYOUT, query, Rule(k=9), memory_bytes=1)
    assert little.matches == find_similar(output, LAYOUT, query, Rule(k=9)).matches


def test_equal_vectors_rank_by_slide_and_tile_wherever_they_stand(output: Store) -> None:
    rng = np.random.default_rng(2)
    one = rng.standard_normal(1536).astype(np.float16)
    for name in ("b", "a"):
        vectors = rng.standard_normal((1200, 1536)).astype(np.float16)
        vectors[[3, 700, 1023, 1024, 1199]] = one
        put_slide(output, name, vectors)
    expected = [(name, tile) for name in ("a", "b") for tile in (3, 700, 1023, 1024, 1199)]
    expected.remove(("a", 700))
    assert found(output, ("a", 700), k=9) == expected


@pytest.mark.parametrize(
    ("slide_id", "tile", "words"),
    [
        ("nobody", 0, "has no slide 'nobody'"),
        ("a", 9999, "slide 'a' has no tile 9999"),
        ("zeros", 1, "has a vector of zeros"),
    ],
)
def test_what_can_not_be_asked_for_is_named(
    output: Store, slides: Slides, slide_id: str, tile: int, words: str
) -> None:
    put_slide(output, "zeros", np.eye(3, DIM) * np.array([[1], [0], [1]]))
    with pytest.raises(SettingsError, match=words):
        get_query(output, LAYOUT, slide_id, [tile])


def test_it_reads_from_s3(s3: S3Server) -> None:
    output = Store.open(f"{s3.bucket()}/out")
    rng = np.random.default_rng(3)
    slides = {name: rng.standard_normal((40, DIM)).astype(np.float16) for name in ("x", "y z")}
    for name, vectors in slides.items():
        put_slide(output, name, vectors, row_group=16)
    assert found(output, ("y z", 39), k=10) == by_hand(slides, ("y z", 39), k=10)


MEASURED = """
import sys
from pathlib import Path
from ray_pipeline.cli import app
app(["similar", *sys.argv[1:]], standalone_mode=False)
status = Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


def peak_kib(output: Store, memory_mb: int) -> int:
    """Peak of the resident memory of a search in a process of its own, KiB."""
    asked = ["--slide", "slide-0", "--tile", "0", "--memory-mb", str(memory_mb)]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, output.uri, *asked],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("memory_mb", [128, 192])
def test_memory_stays_within_its_bound_however_large_the_output(
    tmp_path: Path, memory_mb: int
) -> None:
    """Enough for one slide, and for two at the same time."""
    vectors = np.random.default_rng(0).standard_normal((4096, 1536), np.float32)
    small, large = (Store.open(str(tmp_path / name)) for name in ("small", "large"))
    put_slide(small, "slide-0", vectors[:8])
    data = large.get(put_slide(large, "slide-0", vectors))
    for number in range(1, 40):
        large.put(LAYOUT.output(f"slide-{number}", {}), data)
    assert sum(info.size_bytes for info in large.list()) > 2 * memory_mb * 2**20
    assert peak_kib(large, memory_mb) - peak_kib(small, memory_mb) < memory_mb * 2**10
