"""`historay status` and `historay errors`: what an output holds, recipe by recipe."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline.dataset.layout import Layout
from ray_pipeline.dataset.slides_table import read_slides
from ray_pipeline.dataset.staging import list_staged
from ray_pipeline.store import Store


@dataclass(frozen=True, kw_only=True)
class RecipeStatus:
    """Where one recipe of an output stands."""

    recipe_fp: str
    """Fingerprint of the recipe."""
    model: str
    """The model's name."""
    meaningful: bool
    """False when its vectors come from made-up weights."""
    done: int
    """Slides with a committed file, empty ones not counted."""
    empty: int
    """Slides without tissue: committed with zero rows."""
    failed: int
    """Slides that failed and have no file."""
    source_changed: int
    """Slides whose source is not what their file was made from."""
    tiles: int
    """Rows of all committed files."""
    in_staging: int
    """Slides with staged shards that are not committed yet."""


def recipe_status(output: Store, layout: Layout) -> RecipeStatus:
    """Counts of one recipe, from the slides table and the records newer than it."""
    recipe: dict[str, Any] = json.loads(output.get(layout.recipe))["recipe"]
    slides = read_slides(output, layout)
    by_status = {
        row["values"]: row["counts"] for row in pc.value_counts(slides["status"]).to_pylist()
    }
    committed = {
        slide_id
        for slide_id, status in zip(
            slides["slide_id"].to_pylist(), slides["status"].to_pylist(), strict=True
        )
        if status in ("done", "empty")
    }
    changed = pc.sum(pc.equal(slides["error_kind"], "source-changed")).as_py()
    return RecipeStatus(
        recipe_fp=layout.recipe_fp,
        model=recipe["encoder"]["model"],
        meaningful=recipe["encoder"]["meaningful"],
        done=by_status.get("done", 0),
        empty=by_status.get("empty", 0),
        failed=by_status.get("failed", 0),
        source_changed=changed or 0,
        tiles=pc.sum(slides["n_tiles"]).as_py() or 0,
        in_staging=len(set(list_staged(output, layout)) - committed),
    )


def troubled_slides(output: Store, layout: Layout) -> list[dict[str, Any]]:
    """Every slide that failed, is empty or was skipped, with stage, error_kind and reason."""
    slides = read_slides(output, layout)
    wanted = slides.filter(
        pc.or_(pc.not_equal(slides["status"], "done"), pc.is_valid(slides["error_kind"]))
    ).sort_by("slide_id")
    columns = ["slide_id", "uri", "status", "stage", "error_kind", "reason"]
    rows: list[dict[str, Any]] = pa.table(wanted.select(columns)).to_pylist()
    for row in rows:
        row["recipe_fp"] = layout.recipe_fp
        if row["status"] == "empty" and row["reason"] is None:
            row["reason"] = "no tissue found: a file with zero rows was written."
    return rows
