"""Iceberg: a table over the committed files where they lie; nothing is copied.

The catalogue is a SQLite file and the table's metadata lies beside it. The files carry no field
ids, so the table has a name mapping, which `add_files` makes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ray_pipeline.errors import HistorayError, SettingsError, StoreError
from ray_pipeline.exports.extra import needing
from ray_pipeline.exports.source import Committed, SlideFile
from ray_pipeline.store import Store

NAMESPACE = "historay"
"""Of all tables."""
CATALOG = "catalog.db"
"""The SQLite file below the export's root."""


class IcebergTable:
    """The table `historay.recipe_<fp>` of the catalogue `<out>/catalog.db`."""

    slides_at_once = 128
    """Slides of one snapshot: past 200 ids a filter no longer tells which files it is about."""

    def __init__(self, output: Store, recipe_fp: str, root: Store) -> None:
        if root.scheme != "file":
            raise SettingsError(
                f"out: {root.uri}: the Iceberg catalogue is a SQLite file: name a local folder "
                "(the slides' files stay where they are)."
            )
        if output.scheme not in ("file", "s3", "gs"):
            raise SettingsError(f"{output.uri}: Iceberg knows files on s3://, gs:// or here only.")
        with needing("--to iceberg"):
            from pyiceberg.catalog.sql import SqlCatalog  # noqa: PLC0415 (an extra)
            from pyiceberg.exceptions import NoSuchTableError  # noqa: PLC0415
            from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415
        # It tells of every file anew that a dictionary is read as text.
        logging.getLogger("pyiceberg.io.pyarrow").setLevel(logging.ERROR)
        self._errors: tuple[type[Exception], ...] = (SQLAlchemyError, OSError, ValueError)
        self._output, self._name = output, f"{NAMESPACE}.recipe_{recipe_fp}"
        folder = Path(root.uri)
        folder.mkdir(parents=True, exist_ok=True)
        where = {
            "uri": f"sqlite:///{folder / CATALOG}",
            "warehouse": f"file://{folder / 'warehouse'}",
        }
        self._catalog = SqlCatalog("historay", **where, **_s3_properties())
        self._catalog.create_namespace_if_not_exists(NAMESPACE)
        try:
            self._table: Any = self._catalog.load_table(self._name)
        except NoSuchTableError:
            self._table = None

    def holds(self, slides: Sequence[Committed]) -> set[str]:
        """Of these slides, the ids whose files the table has."""
        if self._table is None:
            return set()
        paths = set(self._table.inspect.files().column("file_path").to_pylist())
        return {slide.slide_id for slide in slides if self._path(slide) in paths}

    def put(
        self, slides: Sequence[Committed], earlier: set[str]
    ) -> Iterator[tuple[Committed, int | HistorayError]]:
        """Add the slides' files in one snapshot; (slide, rows or why not) of each.

        The `earlier` ones of them, whose files were replaced since, are dropped and added anew in
        the same commit: what the table knew of them was the old file's.
        """
        ends = dict[str, int | HistorayError]()
        for slide in slides:
            try:
                with SlideFile(self._output, slide) as file:
                    ends[slide.slide_id] = file.n_tiles
                    if self._table is None:
                        self._create(file.dim)
            except HistorayError as error:
                ends[slide.slide_id] = error
        good = [slide for slide in slides if not isinstance(ends[slide.slide_id], Exception)]
        if good:
            self._commit(good, [one.slide_id for one in good if one.slide_id in earlier])
        for slide in slides:
            yield slide, ends[slide.slide_id]

    def _commit(self, slides: Sequence[Committed], earlier: list[str]) -> None:
        from pyiceberg import expressions  # noqa: PLC0415

        is_in: Any = expressions.In  # its types tell of the validated model only
        try:
            with self._table.transaction() as transaction:
                if earlier:
                    transaction.delete(is_in("slide_id", earlier))
                transaction.add_files(
                    [self._path(slide) for slide in slides], check_duplicate_files=False
                )
        except self._errors as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise StoreError(
                f"{self._name}: the table could not take the files: {reason}."
            ) from None

    def _create(self, dim: int) -> None:
        from pyiceberg.schema import Schema  # noqa: PLC0415
        from pyiceberg.types import (  # noqa: PLC0415
            FloatType,
            IntegerType,
            ListType,
            NestedField,
            StringType,
        )

        vector = ListType(element_id=7, element_type=FloatType(), element_required=True)
        columns = (
            *(("slide_id", StringType()), ("tile", IntegerType()), ("x", IntegerType())),
            *(("y", IntegerType()), ("tissue", FloatType()), ("embedding", vector)),
        )
        schema = Schema(
            *(
                NestedField(number, name, kind, required=True)
                for number, (name, kind) in enumerate(columns, start=1)
            )
        )
        properties = {
            # Whole ids as bounds: they tell that all rows of a file are one slide's.
            "write.metadata.metrics.column.slide_id": "full",
            "historay.output": self._output.uri,
            "historay.dim": str(dim),
        }
        self._table = self._catalog.create_table(self._name, schema, properties=properties)

    def _path(self, slide: Committed) -> str:
        uri = self._output.uri_of(slide.key)
        return f"file://{uri}" if self._output.scheme == "file" else uri


def _s3_properties() -> dict[str, str]:
    """What pyiceberg's client does not take from the environment by itself; none of it is kept."""
    said = {
        "s3.endpoint": os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
        "s3.region": os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
    }
    return {name: value for name, value in said.items() if value}
