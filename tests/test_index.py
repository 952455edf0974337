"""An index finds nearly what the exact search finds, and says when it does not fit its output."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from ray_pipeline.dataset.layout import Layout
from ray_pipeline.errors import NotFoundError, SettingsError, StaleIndexError
from ray_pipeline.index import (
    IndexFacts,
    VectorIndex,
    build_index,
    measure_recall,
    read_facts,
)
from ray_pipeline.similar import Match, Query, Rule, find_similar, get_query
from ray_pipeline.store import Store
from tests.outputs import LAYOUT, put_slide

DIM = 16
COUNTS = {"a": 300, "b": 1, "empty": 0, "c": 500}


def some_vectors(n: int, seed: int) -> npt.NDArray[np.float16]:
    return np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float16)


@pytest.fixture
def output(tmp_path: Path) -> Store:
    store = Store.open(str(tmp_path / "out"))
    for seed, (slide_id, n) in enumerate(COUNTS.items()):
        put_slide(store, slide_id, some_vectors(n, seed))
    return store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "index"


def build(output: Store, folder: Path) -> tuple[IndexFacts, list[str]]:
    """What the index is, and what was said while it was built."""
    said: list[str] = []
    return build_index(output, LAYOUT, folder, say=said.append), said


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("query", [("a", 0), ("a", 299), ("b", 0), ("c", 123)])
def test_on_a_small_output_it_finds_all_that_the_exact_search_finds(
    output: Store, folder: Path, query: tuple[str, int]
) -> None:
    build(output, folder)
    index = VectorIndex.open(folder, output, LAYOUT)
    asked = get_query(output, LAYOUT, query[0], [query[1]])
    for rule in (
        Rule(k=10),
        Rule(k=10, include_self=True),
        Rule(k=10, exclude_slides={"c"}),
        Rule(k=10, exclude_slides={"c", "a"}),
    ):
        assert index.find(asked, rule) == find_similar(output, LAYOUT, asked, rule).matches


def test_the_graph_of_a_larger_output_finds_nearly_all(
    output: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_pipeline.index.EXACT_BELOW", 0)
    facts, _ = build(output, folder)
    assert all(share > 0.95 for share in facts.recall.values())


def test_recall_is_the_share_that_was_found(
    output: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(output, folder)
    index, find = VectorIndex.open(folder, output, LAYOUT), VectorIndex.find
    assert measure_recall(index, output, LAYOUT) == ({10: 1.0, 20: 1.0}, 100)

    def without_the_nearest(self: VectorIndex, query: Query, rule: Rule) -> list[list[Match]]:
        return [found[len(found) // 2 :] for found in find(self, query, rule)]

    monkeypatch.setattr(VectorIndex, "find", without_the_nearest)
    assert measure_recall(index, output, LAYOUT) == ({10: 0.0, 20: 0.5}, 100)


def test_its_sidecar_tells_what_it_is(output: Store, folder: Path) -> None:
    facts, _ = build(output, folder)
    told = json.loads((folder / "index.json").read_text())
    assert (told["output"], told["recipe_fp"]) == (output.uri, LAYOUT.recipe_fp)
    assert (told["metric"], told["dim"], told["vectors"], told["slides"]) == ("cos", DIM, 801, 4)
    assert set(told["recall"]) == {"10", "20"}
    assert all(share > 0.95 for share in facts.recall.values())
    assert facts.recall_queries == 100
    assert files(folder) == {"index.json", facts.vectors_file, facts.slides_file}
    assert read_facts(folder) == facts


def test_new_slides_are_added_and_no_other_is_read(output: Store, folder: Path) -> None:
    before, _ = build(output, folder)
    put_slide(output, "aa", some_vectors(50, 9))
    with pytest.raises(StaleIndexError, match=r"1 slides \(aa\) were added or changed"):
        VectorIndex.open(folder, output, LAYOUT)
    after, said = build(output, folder)
    assert [line for line in said if "tiles (" in line] == ["aa: 50 tiles (1 of 1 slides)"]
    assert after.vectors == before.vectors + 50
    assert files(folder) == {"index.json", after.vectors_file, after.slides_file}
    index = VectorIndex.open(folder, output, LAYOUT)
    for query in (("aa", 49), ("c", 499), ("a", 0)):
        asked = get_query(output, LAYOUT, query[0], [query[1]])
        exact = find_similar(output, LAYOUT, asked, Rule(k=10)).matches
        assert index.find(asked, Rule(k=10)) == exact


def test_without_new_slides_nothing_is_done(output: Store, folder: Path) -> None:
    before, _ = build(output, folder)
    assert build(output, folder) == (before, ["nothing has changed since the index was built."])


def test_after_a_slide_was_replaced_all_is_built_anew(output: Store, folder: Path) -> None:
    build(output, folder)
    put_slide(output, "a", some_vectors(200, 8))
    with pytest.raises(StaleIndexError, match=r"1 slides \(a\)"):
        VectorIndex.open(folder, output, LAYOUT)
    facts, said = build(output, folder)
    assert said[0] == "1 slides (a) have changed: the index is built anew."
    assert facts.vectors == 701
    VectorIndex.open(folder, output, LAYOUT)


def test_after_a_slide_was_removed_all_is_built_anew(output: Store, folder: Path) -> None:
    build(output, folder)
    output.delete([LAYOUT.output("c", {})])
    with pytest.raises(StaleIndexError, match=r"1 slides \(c\)"):
        VectorIndex.open(folder, output, LAYOUT)
    assert build(output, folder)[0].vectors == 301


def test_a_build_that_breaks_off_leaves_what_was_there(output: Store, folder: Path) -> None:
    facts, _ = build(output, folder)
    before = files(folder)
    put_slide(output, "new", some_vectors(5, 7))

    def break_off(line: str) -> None:
        if "measuring" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index(output, LAYOUT, folder, say=break_off)
    assert files(folder) == before
    assert read_facts(folder) == facts
    output.delete([LAYOUT.output("new", {})])
    VectorIndex.open(folder, output, LAYOUT)


def test_vectors_of_zeros_are_in_no_index(output: Store, folder: Path) -> None:
    vectors = some_vectors(20, 6)
    vectors[[0, 7]] = 0
    put_slide(output, "zeros", vectors)
    assert build(output, folder)[0].vectors == 801 + 18
    index = VectorIndex.open(folder, output, LAYOUT)
    asked = get_query(output, LAYOUT, "zeros", [8])
    rule = Rule(k=10, exclude_slides={"a", "b", "c"})
    assert index.find(asked, rule) == find_similar(output, LAYOUT, asked, rule).matches


def test_an_index_of_something_else_is_refused(output: Store, folder: Path, tmp_path: Path) -> None:
    build(output, folder)
    other = Layout("beefbeefbeef")
    put_slide(output, "a", some_vectors(3, 0), layout=other)
    copy = Store.open(str(tmp_path / "copy"))
    put_slide(copy, "a", some_vectors(3, 0))
    for store, layout in ((output, other), (copy, LAYOUT)):
        with pytest.raises(SettingsError, match="is the index of recipe f00df00df00d of"):
            VectorIndex.open(folder, store, layout)
        with pytest.raises(SettingsError, match="name another folder"):
            build_index(store, layout, folder, say=lambda _: None)


def test_a_folder_without_an_index_is_named(output: Store, folder: Path) -> None:
    with pytest.raises(NotFoundError, match="is no index: build one"):
        VectorIndex.open(folder, output, LAYOUT)
    folder.mkdir()
    (folder / "index.json").write_text('{"output": "elsewhere"}')
    with pytest.raises(SettingsError, match="delete it, and build the index again"):
        build(output, folder)


def test_an_output_without_tiles_has_no_index(tmp_path: Path, folder: Path) -> None:
    output = Store.open(str(tmp_path / "none"))
    put_slide(output, "empty", some_vectors(0, 0))
    with pytest.raises(NotFoundError, match="has no tile to index"):
        build(output, folder)
    assert not folder.exists()


def test_without_usearch_the_mend_is_told(
    output: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    with pytest.raises(SettingsError, match=r"pip install 'historay\[index\]'"):
        build(output, folder)
