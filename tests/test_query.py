"""`historay query`: right answers in every form, one sentence for what is wrong, and no way out."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ray_pipeline.answers import TABLE_ROWS
from ray_pipeline.dataset.reading import open_dataset
from ray_pipeline.errors import ObjectReplacedError, QueryError, SettingsError
from ray_pipeline.query import asked, run_query
from ray_pipeline.store import Store
from tests.commands import historay
from tests.dataset.outputs import DIM, RECIPE_FP, add_slide, make_output, truth
from tests.servers.ranges import RangeServer
from tests.servers.s3 import S3Server

SLIDES = {"007": 5, "a b": 300, "blank": 0}
COUNTS = "select slide_id, count(*) as tiles from tiles group by all order by all"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("query") / "out")
    make_output(uri, SLIDES)
    return uri


def answer(output: str, sql: str, form: Any = "json", out: str | None = None) -> bytes:
    sink = io.BytesIO()
    run_query(output, sql, recipe=None, form=form, out=out, stdout=sink)
    return sink.getvalue()


def rows(output: str, sql: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(answer(output, sql))
    return found


# ---------------------------------------------------------------- the command


def test_a_table_on_standard_output(out: str) -> None:
    outcome = historay("query", out, COUNTS)
    assert outcome.code == 0
    assert outcome.stderr == ""
    assert outcome.stdout == "slide_id  tiles\n007       5\na b       300\n"


def test_wrong_sql_is_one_sentence(out: str) -> None:
    outcome = historay("query", out, "select nope from tiles")
    assert outcome.code == 2
    assert outcome.error.startswith('Binder Error: Referenced column "nope" not found')
    assert outcome.stderr == f"error: {outcome.error}\n"


def test_several_recipes_ask_for_one(tmp_path: Path) -> None:
    uri = str(tmp_path / "out")
    make_output(uri, {"007": 5})
    make_output(uri, {"007": 3}, recipe_fp="c0ffeec0ffee", dim=4)
    outcome = historay("query", uri, COUNTS)
    assert outcome.code == 2
    assert "c0ffeec0ffee (toy), f00df00df00d (toy) (--recipe)" in outcome.error
    outcome = historay("query", uri, COUNTS, "--recipe", "c0ffeec0ffee", "--format", "csv")
    assert outcome.stdout == "slide_id,tiles\n007,3\n"


def test_a_store_is_asked_as_a_folder_is(s3: S3Server) -> None:
    output = make_output(f"{s3.bucket()}/out", SLIDES)
    outcome = historay("query", output.uri, COUNTS, "--format", "json", env=s3.env)
    assert json.loads(outcome.stdout) == [
        {"slide_id": "007", "tiles": 5},
        {"slide_id": "a b", "tiles": 300},
    ]


# ---------------------------------------------------------------- forms


def test_vectors_come_back_whole(out: str) -> None:
    found = rows(out, "select tile, embedding from tiles where slide_id = '007' order by tile")
    vectors = truth("007", 5)[1]
    assert [row["embedding"] for row in found] == [[float(str(v)) for v in row] for row in vectors]


@pytest.mark.parametrize(
    ("sql", "value"),
    [
        ("select 0.3::float as a", 0.3),
        ("select [0.3::float, null] as a", [0.3, None]),
        ("select null::float[] as a", None),
        ("select [0.3, 0.5]::float[2] as a union all select null limit 1", [0.3, 0.5]),
        ("select 'nan'::float as a", None),
        ("select map {'k': 1} as a", {"k": 1}),
        ("select {'s': [true]} as a", {"s": [True]}),
        ("select date '2026-01-02' as a", "2026-01-02"),
        ("select 1.5::decimal(4, 2) as a", "1.50"),
    ],
)
def test_values_are_what_json_knows(out: str, sql: str, value: Any) -> None:
    assert rows(out, sql) == [{"a": value}]


def test_csv_is_read_back(out: str) -> None:
    sql = (
        "select slide_id, 'x,\"y\"' as t, null as n, true as b, [1, 2] as l from slides order by 1"
    )
    found = list(csv.DictReader(io.StringIO(answer(out, sql, "csv").decode())))
    assert found == [
        {"slide_id": name, "t": 'x,"y"', "n": "", "b": "true", "l": "[1, 2]"}
        for name in sorted(SLIDES)
    ]


def test_nothing_found_is_an_empty_array(out: str) -> None:
    sql = "select * from tiles where slide_id = 'never'"
    assert rows(out, sql) == []
    assert answer(out, sql, "csv").decode().splitlines() == ["slide_id,tile,x,y,tissue,embedding"]


@pytest.mark.parametrize("where", ["folder", "store"])
def test_parquet_goes_where_it_is_told(out: str, tmp_path: Path, s3: S3Server, where: str) -> None:
    root = str(tmp_path) if where == "folder" else s3.bucket()
    answer(out, "select * from tiles", "parquet", f"{root}/deep/answer.parquet")
    table = pq.read_table(Store.open(root).open_file("deep/answer.parquet"))
    assert table.num_rows == 305
    assert table.schema.field("embedding").type.list_size == DIM


def test_a_table_is_cut_short(out: str) -> None:
    sql = "select tile, embedding, null as n, 'a\nb' as t from tiles where slide_id = 'a b'"
    found = run_query(out, sql, recipe=None, form="table", out=None, stdout=io.BytesIO())
    assert len(found) == 1 + TABLE_ROWS + 1
    assert set(found[-1]) == {"..."}
    assert found[1][1].endswith(f", ... {DIM}]")
    assert found[1][2:] == ("NULL", "a b")


@pytest.mark.parametrize(
    ("form", "where", "words"),
    [("table", "x.txt", "--out wants --format"), ("parquet", None, "wants --out")],
)
def test_forms_that_do_not_go_together(out: str, form: str, where: str | None, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        answer(out, COUNTS, form, where)


# ---------------------------------------------------------------- what it reaches


def test_slides_have_what_the_manifest_told(tmp_path: Path) -> None:
    uri = str(tmp_path / "out")
    make_output(uri, SLIDES, attributes={"007": {"site": "A"}, "a b": {"site": "B"}})
    sql = "select site, count(tile) as n from slides left join tiles using (slide_id) group by all"
    assert sorted(map(str, rows(uri, sql))) == sorted(
        map(
            str,
            [{"site": "A", "n": 5}, {"site": "B", "n": 300}, {"site": None, "n": 0}],
        )
    )


@pytest.fixture
def secret(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "secret.csv"
    path.write_text("a\nsecret\n")
    yield path
    assert [one.name for one in tmp_path.iterdir()] == ["secret.csv"]


@pytest.mark.parametrize(
    "sql",
    [
        "select * from '{secret}'",
        "select * from read_text('{secret}')",
        "select * from read_csv('https://127.0.0.1:9/x.csv')",
        "select * from glob('{folder}/*')",
        "select * from read_text('{out}/_state/recipe={recipe}/recipe.json')",
        "select * from secret",
        "copy tiles to '{folder}/stolen.csv'",
        "with a as (copy (select 1 as a) to '{folder}/stolen.csv') select * from a",
        "with a as (copy (select 1 as a) to '{inside}/stolen.parquet') select * from a",
        "set enable_external_access = true",
        "select 1; select 2",
        "attach '{folder}/other.db'",
        "install httpfs",
        "create table t as select 1",
        "explain analyze copy tiles to '{folder}/stolen.csv'",
        "",
        "selec 1",
        "select 1 +",
    ],
)
def test_there_is_no_way_out(out: str, secret: Path, sql: str) -> None:
    dataset = open_dataset(out)
    inside = f"{out}/embeddings/recipe={RECIPE_FP}"
    before = sorted(Path(inside).rglob("*"))
    said = sql.format(secret=secret, folder=secret.parent, out=out, recipe=RECIPE_FP, inside=inside)
    with pytest.raises(QueryError) as caught, asked(dataset, f"{said} -- tiles") as found:
        list(found.batches)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert sorted(Path(inside).rglob("*")) == before


@pytest.mark.parametrize("words", ["tiles", "slides"])
def test_the_files_it_knows_are_not_written(out: str, words: str) -> None:
    """Under the very name by which DuckDB reads them."""
    plan = rows(out, f"select * from duckdb_views() where view_name = 'tiles' -- {words} tiles")
    folder = plan[0]["sql"].partition("read_parquet('")[2].partition("**")[0]
    assert folder.startswith("historay-")
    copy = f"copy (select 1 as a) to '{folder}slide=007/embeddings.parquet'"
    with pytest.raises(QueryError):
        rows(out, f"with a as ({copy}) select * from a -- {words} tiles")
    assert rows(out, COUNTS)[0]["tiles"] == 5


def test_an_error_in_mid_answer_is_one_sentence(out: str) -> None:
    sql = "select (case when tile = 299 then 'x' else '1' end)::int from tiles order by tile"
    with pytest.raises(QueryError, match=r"^Conversion Error: Could not convert string 'x'"):
        rows(out, sql)


def test_what_the_store_says_is_told(s3: S3Server) -> None:
    output = make_output(f"{s3.bucket()}/out", {"007": 4000})
    dataset = open_dataset(output.uri)
    assert len(dataset.listed) == 1
    add_slide(output, "007", 30)
    with pytest.raises(ObjectReplacedError, match="was replaced"), asked(dataset, COUNTS) as found:
        list(found.batches)


def test_of_slides_nothing_is_read_but_their_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_output(str(tmp_path / "bucket" / "out"), SLIDES)
    with RangeServer(tmp_path) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        assert rows("s3://bucket/out", "select count(*) as n from slides") == [{"n": 3}]
        # Recipes and records are listed; recipe.json and the table are read.
        assert server.counters().gets <= 5
