"""The commands over an output, and for other tools: parse, call, print."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated, Literal

import typer

from ray_pipeline.answers import Form
from ray_pipeline.console import EXIT_SOME_FAILED, AsJson, Cells, aligned, say
from ray_pipeline.progress import Reporter
from ray_pipeline.store import Store


def status(output: str, as_json: AsJson = False) -> None:
    """Show what an output holds: slides done, empty and failed, tiles, for each recipe."""
    from ray_pipeline.dataset.recipes import recipe_layouts  # noqa: PLC0415
    from ray_pipeline.status import recipe_status  # noqa: PLC0415

    store = Store.open(output)
    found = [recipe_status(store, layout) for layout in recipe_layouts(store)]
    rows: list[Cells] = [
        ("recipe", "model", "done", "empty", "failed", "changed", "staged", "tiles")
    ]
    for item in found:
        counts = (
            item.done,
            item.empty,
            item.failed,
            item.source_changed,
            item.in_staging,
            item.tiles,
        )
        model = item.model if item.meaningful else f"{item.model} (made-up weights)"
        rows.append((item.recipe_fp, model, *map(str, counts)))
    say(aligned(rows))
    if as_json:
        say(json.dumps({"output": store.uri, "recipes": [asdict(item) for item in found]}))


def errors(output: str, as_json: AsJson = False) -> None:
    """List every slide that failed, is empty or was skipped, with stage, kind and reason."""
    from ray_pipeline.dataset.recipes import recipe_layouts  # noqa: PLC0415
    from ray_pipeline.status import troubled_slides  # noqa: PLC0415

    store = Store.open(output)
    rows = [row for layout in recipe_layouts(store) for row in troubled_slides(store, layout)]
    for row in rows:
        say(
            f"{row['slide_id']}: {row['status']}, {row['stage'] or '-'}, {row['error_kind'] or '-'}"
        )
        say(f"    {row['reason']}")
    if not rows:
        say("no slide failed, is empty or was skipped.")
    if as_json:
        say(json.dumps({"output": store.uri, "slides": rows}))


def query(
    output: str,
    sql: Annotated[str, typer.Argument(help="A SELECT over `tiles` and `slides`; - reads it.")],
    recipe: Annotated[
        str | None,
        typer.Option(help="Fingerprint of the recipe, or its beginning, where several are."),
    ] = None,
    form: Annotated[
        Form, typer.Option("--format", help="table shows the first 100 rows; the rest write all.")
    ] = "table",
    out: Annotated[
        str | None, typer.Option(help="Where it goes: a path or a store URI; parquet needs it.")
    ] = None,
) -> None:
    """Ask an output in DuckDB's SQL: the tables are `tiles`, one row a tile, and `slides`."""
    from ray_pipeline.query import run_query  # noqa: PLC0415

    sql = sys.stdin.read() if sql == "-" else sql
    rows = run_query(output, sql, recipe=recipe, form=form, out=out, stdout=sys.stdout.buffer)
    if rows:
        say(aligned(rows))


def export(
    output: str,
    to: Annotated[
        Literal["h5", "h5ad", "geojson", "iceberg", "lance"],
        typer.Option(help="Format: h5 is TRIDENT's and CLAM's, geojson QuPath's."),
    ],
    out: Annotated[str, typer.Option(help="Where it goes: a folder or a prefix of its own.")],
    *,
    slides: Annotated[
        list[str] | None, typer.Option(help="A slide's id; may be said often; default: all.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Fingerprint of the recipe, or its beginning, where several are."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write slides anew that are there already.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write committed slides for other tools: HDF5, AnnData, GeoJSON, Iceberg or Lance.

    The same command again adds what is new or was replaced since.
    """
    from ray_pipeline.exports.run import export_slides  # noqa: PLC0415

    with Reporter() as reporter:
        report = export_slides(
            Store.open(output),
            out,
            to,
            recipe_fp=recipe,
            slide_ids=slides or (),
            overwrite=overwrite,
            watch=reporter.show,
        )
    say(
        f"{report.slides_exported} slides exported ({report.tiles} tiles), "
        f"{report.slides_current} there already, {len(report.failures)} failed; "
        f"recipe {report.recipe_fp} in {report.out}"
    )
    for failure in report.failures:
        say(f"  {failure['slide_id']}: {failure['kind']}: {failure['reason']}")
    if as_json:
        say(json.dumps(asdict(report)))
    raise typer.Exit(EXIT_SOME_FAILED if report.failures else 0)


def import_coords(
    src: Annotated[str, typer.Argument(help="Folder or prefix of TRIDENT's or CLAM's .h5 files.")],
    out: Annotated[str, typer.Option(help="Where the coordinates go: a folder or a prefix.")],
    slides: Annotated[
        list[str] | None,
        typer.Option(help="Slides, as for embed: a manifest of those with coordinates is written."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Take over tiles that TRIDENT or CLAM cut: embed then reads these instead of its own."""
    from ray_pipeline.exports import coords  # noqa: PLC0415

    report = coords.import_coords(src, out, slides or ())
    say(
        f"{report.files - len(report.failures)} of {report.files} files imported: {report.tiles} "
        f"tiles; left out: {report.repeated} repeated, {report.past_the_edge} past the edge"
    )
    if report.manifest:
        say(f"manifest: {report.manifest} ({report.slides_without} slides have no coordinates)")
    for failure in report.failures:
        say(f"  {failure['file']}: {failure['kind']}: {failure['reason']}")
    if as_json:
        say(json.dumps(asdict(report)))
    raise typer.Exit(EXIT_SOME_FAILED if report.failures else 0)
