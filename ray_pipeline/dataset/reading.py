"""How the result is used: an output opened as a dataset, one slide at a time or all together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline.dataset.filesystem import StoreFileSystem
from ray_pipeline.dataset.layout import partitions_of_output
from ray_pipeline.dataset.recipes import StandingRecipe, find_recipe
from ray_pipeline.dataset.sampling import draw, read_rows
from ray_pipeline.dataset.schema import embeddings_schema
from ray_pipeline.dataset.slide_files import SlideFile, SlideFiles
from ray_pipeline.dataset.slides_table import read_slides
from ray_pipeline.store import Store

if TYPE_CHECKING:
    import duckdb
    import polars
    import pyarrow.dataset as ds
    import ray.data
    from pyarrow.fs import FileSystem

    from ray_pipeline.dataset.bags import SlideBags


def open_dataset(uri: str, recipe: str | None = None) -> EmbeddingDataset:
    """Open the output at `uri`: a path, or a URI of any store.

    `recipe` is a fingerprint, needed where the output holds several, whose vectors never mix.
    Raises SettingsError when it must be named or is not there, NotFoundError when there is no
    output.
    """
    output = Store.open(uri)
    return EmbeddingDataset(output=output, recipe=find_recipe(output, recipe))


@dataclass(frozen=True, kw_only=True)
class EmbeddingDataset:
    """The embeddings of one recipe. Nothing is read before it is asked for.

    `slides` and the files of all slides are listed once, when first needed: a job that goes on
    writing shows in a dataset that is opened later.
    """

    output: Store
    """The output's root."""
    recipe: StandingRecipe
    """The recipe whose vectors are read."""

    @property
    def dim(self) -> int:
        """Numbers per embedding, D."""
        return self.recipe.dim

    def slides(self) -> pa.Table:
        """One row per slide, also of failed ones: the slides table without the mean vectors.

        Right also while a job is under way, or where one died: newer records are laid over the
        table. `.to_pandas()` makes a data frame of it.
        """
        return self._slides

    def slide(self, slide_id: str) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """(coordinates int32 [n, 2], level-0 px; vectors float32 [n, D]), in order of `tile`.

        One GET, two where the output has partition columns. Raises NotFoundError, with the reason,
        for a slide without file.
        """
        return self.files.read(slide_id)

    def to_arrow(self) -> ds.Dataset:
        """All tiles as a pyarrow dataset; conditions on `slide_id` skip files unopened.

        Its columns are those of the files, `slide_id` as plain text, and the partition columns.
        `.to_table(columns=..., filter=...).to_pandas()` makes a data frame.
        """
        import pyarrow.dataset as ds  # noqa: PLC0415 (it imports pandas)

        form, system = ds.ParquetFileFormat(), self._filesystem()
        fragments = [
            form.make_fragment(self._path(file), system, partition_expression=_guarantee(file))
            for file in self.listed
        ]
        return ds.FileSystemDataset(fragments, self._schema, form, system)

    def to_polars(self) -> polars.LazyFrame:
        """All tiles as a lazy frame that reads only columns and slides that are asked for."""
        import polars  # noqa: PLC0415 (only who uses it needs it)

        return polars.scan_pyarrow_dataset(self.to_arrow())

    def to_duckdb(self, con: duckdb.DuckDBPyConnection | None = None) -> duckdb.DuckDBPyConnection:
        """`con`, or a new connection, with the views `tiles` and `slides` for SQL."""
        import duckdb  # noqa: PLC0415 (not needed to train)

        from ray_pipeline.dataset.views import SLIDES, create_tiles, set_threads  # noqa: PLC0415

        if con is None:
            con = duckdb.connect()
            set_threads(con, self.output, self.listed)
        create_tiles(con, self.files, self.listed, dim=self.dim)
        con.register(SLIDES, self._slides)
        return con

    def to_ray(self) -> ray.data.Dataset:
        """All tiles as a Ray dataset: the files' columns, as text the partition columns.

        Joins the cluster if none is joined.
        """
        import ray.data  # noqa: PLC0415 (takes seconds)

        if not self.listed:
            return ray.data.from_arrow(self._schema.empty_table())
        paths = [self._path(file) for file in self.listed]
        names, system = self.recipe.partition_by, self._filesystem()
        rows = ray.data.read_parquet(
            paths, filesystem=system, partitioning=None, include_paths=bool(names)
        )
        if not names:
            return rows
        return rows.map_batches(
            partial(_with_partitions, names=names), batch_size=None, batch_format="pyarrow"
        )

    def sample(self, n: int, *, by: str | None = None, seed: int = 0) -> pa.Table:
        """`n` tiles drawn at random, each with the same chance; all where there are fewer.

        With `by`, a column of `slides`, `n` for each of its values (`slide_id`: of each slide), and
        the column is among those that come back. Fetches the row groups of up to 4,096 tiles that
        hold them, and no others; holds what it gives back.
        """
        slides = self._slides.filter(pc.greater(self._slides["n_tiles"], 0))
        slides = slides.filter(pc.is_valid(slides["output"])).sort_by("slide_id")
        drawn = draw(slides, n, by, np.random.default_rng(seed))
        schema = pa.schema([self._schema.field(name) for name in embeddings_schema(1).names])
        tables = [schema.empty_table()]
        tables += [
            table.cast(schema) for table in read_rows(self.output, slides, drawn, schema.names)
        ]
        sample = pa.concat_tables(tables)
        if by is None or by in schema.names:
            return sample
        rows = [slide for slide in sorted(drawn) for _ in drawn[slide]]
        return sample.append_column(by, slides[by].take(pa.array(rows, pa.int64())))

    def torch_bags(
        self,
        slides: Sequence[str] | None = None,
        labels: Mapping[str, Any] | None = None,
        *,
        max_tiles: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
    ) -> SlideBags:
        """Bags for multiple instance learning, one slide each: see `SlideBags`.

        `slides` are all that have tiles unless named. `max_tiles` is the most tiles of a bag, drawn
        anew each epoch; `shuffle` draws the order. Stores other than folders need workers that are
        spawned (`multiprocessing_context="spawn"`), for their client does not survive a fork.
        """
        from ray_pipeline.dataset.bags import SlideBags  # noqa: PLC0415 (torch takes seconds)

        if slides is None:
            found = self._slides.filter(pc.greater(self._slides["n_tiles"], 0))
            slides = sorted(found["slide_id"].to_pylist())
        return SlideBags(
            self.files, slides, labels, max_tiles=max_tiles, shuffle=shuffle, seed=seed
        )

    @cached_property
    def files(self) -> SlideFiles:
        """The committed files, one at a time."""
        recipe = self.recipe
        return SlideFiles(
            output=self.output, layout=recipe.layout, partition_by=recipe.partition_by
        )

    @cached_property
    def listed(self) -> list[SlideFile]:
        """The committed files that stood when this was first asked, by slide_id; one LIST."""
        return self.files.listed()

    @cached_property
    def _slides(self) -> pa.Table:
        return read_slides(self.output, self.recipe.layout)

    @property
    def _schema(self) -> pa.Schema:
        schema = embeddings_schema(self.dim)
        schema = schema.set(0, pa.field("slide_id", pa.string(), nullable=False))
        for name in self.recipe.partition_by:
            schema = schema.append(pa.field(name, pa.string()))
        return schema

    def _filesystem(self) -> FileSystem:
        from pyarrow.fs import FSSpecHandler, LocalFileSystem, PyFileSystem  # noqa: PLC0415

        if self.output.scheme == "file":
            return LocalFileSystem()
        infos = [file.info for file in self.listed]
        return PyFileSystem(FSSpecHandler(StoreFileSystem(self.output, infos)))

    def _path(self, file: SlideFile) -> str:
        local = self.output.scheme == "file"
        return self.output.uri_of(file.info.key) if local else file.info.key


def _with_partitions(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """`names` in place of the column `path`, which tells them; made anew in Ray's workers."""
    paths = table["path"].combine_chunks().dictionary_encode()
    if isinstance(paths, pa.ChunkedArray):
        paths = paths.chunk(0)
    told = [partitions_of_output(path, names) for path in paths.dictionary.to_pylist()]
    table = table.drop_columns(["path"])
    for name in names:
        values = pa.array([values[name] for values in told], pa.string())
        table = table.append_column(name, values.take(paths.indices))
    return table


def _guarantee(file: SlideFile) -> pc.Expression:
    """What holds of every row of the file."""
    held = pc.field("slide_id") == file.slide_id
    for name, value in file.partitions.items():
        field = pc.field(name)
        held &= field.is_null() if value is None else field == value
    return held
