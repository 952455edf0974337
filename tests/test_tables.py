"""The statements for external tables name and type every column of the real files."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import sqlglot
from sqlglot import exp

from ray_pipeline.dataset.schema import SLIDE_COLUMNS, embeddings_schema

pytestmark = pytest.mark.readers

FOLDER = Path(__file__).resolve().parents[1] / "infra" / "tables"
SCHEMAS = {"tiles": embeddings_schema(1536), "slides": SLIDE_COLUMNS}
TYPES = {
    "athena": {
        "string": "STRING",
        "int32": "INT",
        "int64": "BIGINT",
        "float": "FLOAT",
        "double": "DOUBLE",
        "bool": "BOOLEAN",
        "vector": "ARRAY<FLOAT>",
        "map": "MAP<STRING, DOUBLE>",
    },
    "bigquery": {
        "string": "STRING",
        "int32": "INT64",
        "int64": "INT64",
        "float": "FLOAT64",
        "double": "FLOAT64",
        "bool": "BOOL",
        "vector": "ARRAY<FLOAT64>",
        "map": "STRUCT<key_value ARRAY<STRUCT<key STRING, value FLOAT64>>>",
    },
    "snowflake": {
        "string": "VARCHAR",
        "int32": "DECIMAL(10, 0)",
        "int64": "DECIMAL(19, 0)",
        "float": "DOUBLE",
        "double": "DOUBLE",
        "bool": "BOOLEAN",
        "vector": "ARRAY",
        "map": "VARIANT",
    },
}
"""What a dialect calls an Arrow type, as sqlglot spells it."""

SPELLED_BY = {"athena": "hive"}
"""Athena takes tables in Hive's words, and queries in Trino's."""


def kind_of(field: pa.Field) -> str:
    match field.type:
        case pa.DictionaryType():
            return "string"
        case pa.MapType():
            return "map"
        case pa.ListType() | pa.FixedSizeListType():
            assert field.type.value_type == pa.float32()
            return "vector"
        case _:
            return str(field.type)


@pytest.mark.parametrize("dialect", TYPES)
def test_every_column_is_named_and_typed(dialect: str) -> None:
    statements = sqlglot.parse((FOLDER / f"{dialect}.sql").read_text(), dialect=dialect)
    assert [type(statement) for statement in statements] == [exp.Create] * 2
    for statement in statements:
        assert statement is not None
        assert statement.find(exp.ExternalProperty), "an ordinary table would copy"
        name = statement.find_all(exp.Table).__next__().name
        columns = {
            column.name: exp.DataType.build(column.kind or "").sql(SPELLED_BY.get(dialect, dialect))
            for column in statement.find_all(exp.ColumnDef)
            if column.find_ancestor(exp.DataType) is None
        }
        wanted = {field.name: TYPES[dialect][kind_of(field)] for field in SCHEMAS[name]}
        assert columns == wanted
        assert list(columns) == list(wanted)


def test_snowflake_takes_each_column_from_its_own_name() -> None:
    for statement in sqlglot.parse((FOLDER / "snowflake.sql").read_text(), dialect="snowflake"):
        assert statement is not None
        for column in statement.find_all(exp.ColumnDef):
            (cast,) = column.find_all(exp.Cast)
            assert cast.to == column.kind
            assert cast.this.sql("snowflake") == f"GET_PATH(value, '{column.name}')"


@pytest.mark.parametrize("dialect", TYPES)
def test_both_tables_are_of_one_recipe(dialect: str) -> None:
    text = (FOLDER / f"{dialect}.sql").read_text()
    assert text.count("recipe=f00df00df00d/") == 2
    assert text.count("/embeddings/recipe=") == text.count("/slides/recipe=") == 1
