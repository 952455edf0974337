"""Before anything runs: what the output's store can do, which recipe it holds, what is finished."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from sys import intern
from typing import Any

from ray_pipeline.dataset.layout import (
    Layout,
    cuts,
    folder_and_slide,
    original_name,
    output_in,
    probe_key,
)
from ray_pipeline.dataset.recipes import standing_recipe
from ray_pipeline.dataset.schema import SLIDE_COLUMNS, embeddings_schema
from ray_pipeline.dataset.slides_table import FinishedFiles
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

LISTED_FILES = 16_384
"""Files that are looked at a time: each time the listing's threads get in between."""
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
    """What an output already holds for one recipe, by three or four LISTs."""

    outputs: dict[str, str]
    """slide_id -> folder in which `slide=` and its file stand; see `key_of`."""
    staged: dict[str, dict[str, list[int]]]
    """slide_id -> plan_fp -> staged shards."""
    settled: Set[str] = frozenset()
    """Slides whose file is of the version, and of the input, that the slides table tells."""
    doubted: Set[str] = frozenset()
    """Slides whose file was to be replaced by a commit that is not through: never settled."""
    table: str = ""
    """Version of that table; empty for none."""
    done: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """slide_id -> input fingerprints it is finished for; nothing of slides that are settled."""

    def key_of(self, slide_id: str) -> str | None:
        """Key of the slide's file; None where there is none."""
        folder = self.outputs.get(slide_id)
        return None if folder is None else output_in(folder, slide_id)


def read_state(
    output: Store, layout: Layout, inputs: Iterable[tuple[str, str]] = ()
) -> OutputState:
    """List what stands, is in doubt, staged and, unless the slides table settles it, finished.

    With `inputs`, the (slide_id, input_fp) of a job's slides in order, long listings take an eighth
    of the time, nothing is kept of other slides, and where all of these are settled, no done key is
    looked at.
    """
    fingerprints = dict(inputs)
    # The job's own strings: a million ids twice more would be an eighth of a gigabyte.
    own = {slide_id: slide_id for slide_id in fingerprints}
    slide_ids, settled = list(own), set[str]()
    marks = (info.key.rpartition("/")[2] for info in output.list(layout.doubts))
    doubted = frozenset(map(original_name, marks))
    finished = FinishedFiles(output, layout) if own else None
    outputs: dict[str, str] = {}
    listed = output.list(
        layout.embeddings, cuts=cuts(layout.embeddings, slide_ids, before="slide=")
    )
    while some := list(islice(listed, LISTED_FILES)):
        rows = []
        for info in some:
            found = folder_and_slide(info.key)
            if found is None:
                continue
            folder, slide_id = found
            if own:
                if slide_id not in own:
                    continue
                slide_id = own[slide_id]
                rows.append((slide_id, fingerprints[slide_id], info.etag))
            # One string for all slides of a folder, for the same reason.
            outputs[slide_id] = intern(folder)
        if finished is not None:
            settled.update(one for one in finished.of(rows) if one not in doubted)
    done: dict[str, tuple[str, ...]] = {}
    start = len(layout.done) + 1
    if not own or len(settled) < len(own):
        for info in output.list(layout.done, cuts=cuts(layout.done, slide_ids)):
            slide, _, input_fp = info.key[start:].rpartition("/")
            slide_id = original_name(slide)
            if slide_id in settled or (own and slide_id not in own):
                continue
            slide_id = own.get(slide_id, slide_id)
            done[slide_id] = (*done.get(slide_id, ()), input_fp)
    return OutputState(
        outputs=outputs,
        staged=list_staged(output, layout),
        settled=settled,
        doubted=doubted,
        table=finished.table if finished is not None else "",
        done=done,
    )
