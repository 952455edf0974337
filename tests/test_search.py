"""`historay similar` and `historay index` as a user meets them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from ray_pipeline.cli import app
from ray_pipeline.errors import SettingsError
from ray_pipeline.store import Store
from tests.commands import historay
from tests.outputs import LAYOUT, put_slide

N = 30


@pytest.fixture
def output(tmp_path: Path) -> Store:
    store = Store.open(str(tmp_path / "out"))
    for seed, name in enumerate(("a", "b, c")):
        rng = np.random.default_rng(seed)
        put_slide(store, name, rng.standard_normal((N, 8)).astype(np.float16))
    return store


def run(*args: str) -> str:
    outcome = CliRunner().invoke(app, args, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return outcome.stdout


def json_of(stdout: str) -> dict[str, Any]:
    told = json.loads(stdout.splitlines()[-1])
    assert isinstance(told, dict)
    return told


def test_table_csv_and_json_tell_the_same(output: Store) -> None:
    asked = ["similar", output.uri, "--slide", "a", "--tile", "3", "--tile", "5", "-k", "4"]
    table, rows = run(*asked), list(csv.DictReader(io.StringIO(run(*asked, "--csv"))))
    told = json_of(run(*asked, "--json"))
    assert [row["query"] for row in rows] == ["3"] * 4 + ["5"] * 4
    for line, row, match in zip(table.splitlines()[1:-1], rows, told["matches"], strict=True):
        query, cosine, tile, x, y, slide_id = line.split(maxsplit=5)
        assert (query, tile, x, y, slide_id) == (
            *(row["query"], row["tile"], row["x"], row["y"]),
            row["slide_id"],
        )
        assert float(cosine) == pytest.approx(float(row["cosine"]), abs=1e-5)
        assert {name: str(value) for name, value in match.items()} == row
    assert "60 tiles of 2 slides compared" in table.splitlines()[-1]
    assert (told["recipe_fp"], told["slides"], told["tiles"]) == (LAYOUT.recipe_fp, 2, 2 * N)


def test_the_slide_of_the_tile_can_be_passed_over(output: Store) -> None:
    asked = ["similar", output.uri, "--slide", "a", "--tile", "3", "--exclude-slide", "a"]
    rows = list(csv.DictReader(io.StringIO(run(*asked, "--csv"))))
    assert {row["slide_id"] for row in rows} == {"b, c"}
    assert len(rows) == 20


def test_an_index_answers_as_the_exact_search(output: Store, tmp_path: Path) -> None:
    folder = str(tmp_path / "index")
    built = json_of(run("index", output.uri, "--out", folder, "--json"))
    assert (built["vectors"], built["recall"]["10"]) == (2 * N, 1.0)
    asked = ["similar", output.uri, "--slide", "a", "--tile", "3", "--include-self", "--json"]
    exact, near = json_of(run(*asked)), json_of(run(*asked, "--index", folder))
    assert near["matches"] == exact["matches"]
    assert near["matches"][0]["cosine"] == 1.0
    assert near["index"] == folder


def test_what_is_wrong_is_one_sentence(output: Store) -> None:
    outcome = historay("similar", output.uri, "--slide", "z", "--tile", "0")
    assert outcome.code == 2
    assert "has no slide 'z'" in outcome.error


@pytest.mark.parametrize(
    ("args", "words"),
    [(["--recipe", "cafe"], "'cafe' is not one recipe"), (["--csv", "--json"], "exclude each")],
)
def test_flags_that_can_not_be_are_refused(output: Store, args: list[str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        run("similar", output.uri, "--slide", "a", "--tile", "0", *args)
