"""Before anything runs: what the output's store can do, which recipe it holds, what is finished."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from sys import intern
from typing import Any

from ray_pipeline.dataset.layout import (
    Layout,
    cuts,
    original_name,
    output_in,
    probe_key,
    slide_of_output,
)
from ray_pipeline.dataset.recipes import standing_recipe
from ray_pipeline.dataset.schema import SLIDE_COLUMNS, embeddings_schema
from ray_pipeline.dataset.staging import list_staged
from ray_pipeline.errors import (
    PreconditionError,
    RecipeMismatchError,
    SettingsError,
    StoreError,
    UnreachableError,
    UnsupportedError,
)
from ray_pipeline.store import Store

PROBE_LOSSES = 4
"""Writes of the probe without an answer after which the output counts as out of reach."""


def probe_conditional(output: Store, run: str) -> bool:
    """Whether the store honours `If-None-Match: *`, learnt by writing one key twice.

    The key is this run's alone, so a refusal, whenever it comes, means that an earlier write of it
    took place, though its reply may be lost. Raises the store's error when the output can't be
    written at all.
    """
    key, written, lost = probe_key(run), 0, 0
    try:
        while written < 2:
            try:
                output.put(key, b"", if_absent=True)
            except PreconditionError:
                return True
            except UnsupportedError:
                output.put(key, b"")
                return False
            except UnreachableError:
                lost += 1
                if lost == PROBE_LOSSES:
                    raise
            else:
                written += 1
        return False
    finally:
        with suppress(StoreError):  # a probe that stays harms nobody
            output.delete([key])


def claim_recipe(
    output: Store, layout: Layout, recipe: dict[str, Any], partition_by: Sequence[str]
) -> None:
    """Write `recipe.json` once; raise RecipeMismatchError when a different one stands there."""
    # Through JSON and back, as the standing one came: tuples become lists.
    mine = json.loads(json.dumps({"recipe": recipe, "partition_by": list(partition_by)}))
    standing = standing_recipe(output, layout)
    if standing is None:
        text = json.dumps(mine, indent=1, sort_keys=True).encode()
        try:
            output.put(layout.recipe, text, if_absent=True)
        except UnsupportedError:
            output.put(layout.recipe, text)
        except (PreconditionError, UnreachableError):
            standing = standing_recipe(output, layout)  # another driver's, or ours
            if standing is None:
                raise
    if standing is None:
        return
    if standing.get("partition_by", []) != mine["partition_by"]:
        raise RecipeMismatchError(
            f"partition_by: {list(partition_by)}: {output.uri} was begun with "
            f"{standing.get('partition_by', [])}, and its folders can't change; use that, "
            "or another output."
        )
    if standing.get("recipe") != mine["recipe"]:
        raise RecipeMismatchError(
            f"{output.uri_of(layout.recipe)} holds another recipe under the same fingerprint; "
            "use another output."
        )


def check_partitions(partition_by: Sequence[str], attributes: Sequence[str]) -> None:
    """Refuse partition columns that the manifest lacks or that readers could not tell apart."""
    taken = {*embeddings_schema(1).names, "recipe", "slide"}
    for name in partition_by:
        if name in taken:
            raise SettingsError(f"partition_by: '{name}' is taken; use another column name.")
        if name not in attributes:
            known = ", ".join(attributes) or "none"
            raise SettingsError(f"partition_by: no manifest column '{name}' (there are: {known}).")
    for name in attributes:
        if name in SLIDE_COLUMNS.names:
            raise SettingsError(f"manifest column '{name}' is one of ours; give it another name.")


@dataclass(frozen=True, kw_only=True)
class OutputState:
    """What an output already holds for one recipe, by three LISTs."""

    done: dict[str, tuple[str, ...]]
    """slide_id -> input fingerprints it is finished for."""
    outputs: dict[str, str]
    """slide_id -> folder in which `slide=` and its file stand; see `key_of`."""
    staged: dict[str, dict[str, list[int]]]
    """slide_id -> plan_fp -> staged shards."""

    def key_of(self, slide_id: str) -> str | None:
        """Key of the slide's file; None where there is none."""
        folder = self.outputs.get(slide_id)
        return None if folder is None else output_in(folder, slide_id)


def read_state(output: Store, layout: Layout, slide_ids: Sequence[str] = ()) -> OutputState:
    """List what is finished, what stands and what is staged.

    With `slide_ids`, those of a job and sorted, long listings take an eighth of the time, and of
    other slides nothing is kept of what is finished and what stands.
    """
    ours = dict(zip(slide_ids, slide_ids, strict=True))

    def kept(slide_id: str) -> str | None:
        # The job's own string: a million ids twice more would be an eighth of a gigabyte.
        return ours.get(slide_id) if ours else slide_id

    done: dict[str, tuple[str, ...]] = {}
    start = len(layout.done) + 1
    for page in output.pages(layout.done, cuts=cuts(layout.done, slide_ids)):
        for info in page:
            slide, _, input_fp = info.key[start:].rpartition("/")
            if (slide_id := kept(original_name(slide))) is not None:
                others = done.get(slide_id)
                done[slide_id] = (input_fp,) if others is None else (*others, input_fp)
    outputs: dict[str, str] = {}
    by_slide = cuts(layout.embeddings, slide_ids, before="slide=")
    for page in output.pages(layout.embeddings, cuts=by_slide):
        for info in page:
            found = slide_of_output(info.key)
            if found is not None and (slide_id := kept(found)) is not None:
                # One string for all slides of a folder, for the same reason.
                outputs[slide_id] = intern(info.key.rsplit("/", 2)[0])
    return OutputState(done=done, outputs=outputs, staged=list_staged(output, layout))
