"""The commands `historay similar` and `historay index`: parse, call, print."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ray_pipeline.console import AsJson
from ray_pipeline.errors import SettingsError
from ray_pipeline.store import Store

if TYPE_CHECKING:
    from ray_pipeline.similar import Match

MB = 1 << 20
COLUMNS = ("query", "slide_id", "tile", "x", "y", "cosine")
"""Of CSV and JSON; `query` is the tile for which a row was found."""
COST = ("slides", "tiles", "vector_bytes", "seconds")
"""What an exact search says of itself in JSON."""

Recipe = Annotated[
    str | None, typer.Option(help="Which recipe, where the output holds several: its beginning.")
]
MemoryMb = Annotated[
    int, typer.Option(min=1, help="Most MiB of the output that are in memory at a time.")
]


def similar(
    output: str,
    *,
    slide: Annotated[str, typer.Option(help="The slide_id of the tile in question.")],
    tile: Annotated[
        list[int], typer.Option(min=0, help="Its index there; may be said several times.")
    ],
    k: Annotated[
        int, typer.Option("-k", "--k", min=1, help="Tiles to find for each tile in question.")
    ] = 20,
    recipe: Recipe = None,
    index: Annotated[
        str | None,
        typer.Option(help="Folder of an index, which answers at once but may miss a few."),
    ] = None,
    exclude_slide: Annotated[
        list[str] | None,
        typer.Option(help="Pass over this slide: the tile's own, for tiles of other slides only."),
    ] = None,
    include_self: Annotated[
        bool, typer.Option("--include-self", help="Let a tile in question be found, too.")
    ] = False,
    memory_mb: MemoryMb = 512,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find the tiles most similar to a tile, by the cosine of their vectors.

    All vectors of the recipe are compared, streamed in bounded memory, unless an index is named.
    """
    from ray_pipeline.dataset.recipes import layout_of  # noqa: PLC0415 (pyarrow takes a while)
    from ray_pipeline.similar import Found, Rule, find_similar, get_query  # noqa: PLC0415

    if as_csv and as_json:
        raise SettingsError("--csv and --json exclude each other: choose one.")
    store = Store.open(output)
    layout = layout_of(store, recipe)
    query = get_query(store, layout, slide, tile)
    rule = Rule(k=k, include_self=include_self, exclude_slides=frozenset(exclude_slide or ()))
    if index is None:
        found = find_similar(store, layout, query, rule, memory_bytes=memory_mb * MB)
    else:
        from ray_pipeline.index import VectorIndex  # noqa: PLC0415 (usearch is an extra)

        found = Found(matches=VectorIndex.open(Path(index), store, layout).find(query, rule))
    rows = [
        _row(number, match)
        for (_, number), best in zip(query.tiles, found.matches, strict=True)
        for match in best
    ]
    if as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerows([COLUMNS, *rows])
        return
    typer.echo(_table(rows))
    if index is None:
        gb = found.vector_bytes / 1e9
        typer.echo(
            f"{found.tiles} tiles of {found.slides} slides compared: {gb:.3f} GB of vectors in "
            f"{found.seconds:.2f} s ({gb / found.seconds:.2f} GB/s)"
        )
    if as_json:
        told: dict[str, Any] = {"output": store.uri, "recipe_fp": layout.recipe_fp, "index": index}
        if index is None:
            told |= {name: getattr(found, name) for name in COST}
        told["matches"] = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
        typer.echo(json.dumps(told))


def index(
    output: str,
    *,
    out: Annotated[str, typer.Option(help="Folder of the index; one there is brought up to date.")],
    recipe: Recipe = None,
    memory_mb: MemoryMb = 512,
    as_json: AsJson = False,
) -> None:
    """Build an index for `historay similar`, or add the slides that are new since it was built.

    It is made on this machine's disk and in its memory: two bytes for each number of each vector.
    """
    from ray_pipeline.dataset.recipes import layout_of  # noqa: PLC0415 (pyarrow takes a while)
    from ray_pipeline.index import build_index  # noqa: PLC0415

    store, folder = Store.open(output), Path(out)
    layout = layout_of(store, recipe)
    facts = build_index(
        store, layout, folder, say=partial(typer.echo, err=True), memory_bytes=memory_mb * MB
    )
    shares = ", ".join(f"recall@{k} {share:.4f}" for k, share in facts.recall.items())
    typer.echo(
        f"{folder}: {facts.vectors} vectors of {facts.slides} slides, recipe {facts.recipe_fp}; "
        f"{shares} on {facts.recall_queries} tiles"
    )
    if as_json:
        typer.echo(facts.model_dump_json())


def _row(query: int, match: Match) -> tuple[int, str, int, int, int, float]:
    return query, match.slide_id, match.tile, match.x, match.y, match.cosine


def _table(rows: Sequence[tuple[int, str, int, int, int, float]]) -> str:
    """The slide last, for ids may be long; nothing is cut short."""
    lines = [f"{'query':>7} {'cosine':>8} {'tile':>7} {'x':>7} {'y':>7}  slide"]
    for query, slide_id, tile, x, y, cosine in rows:
        lines.append(f"{query:>7} {cosine:>8.5f} {tile:>7} {x:>7} {y:>7}  {slide_id}")
    return "\n".join(lines)
