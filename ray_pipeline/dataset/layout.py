"""Where everything lies in an output. One function per kind of object; no I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from ray_pipeline.errors import LongNameError

EMBEDDINGS_FILE = "embeddings.parquet"
"""Name of a slide's one file."""
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
"""Folder value of an absent partition value, as Hive and its readers spell it."""
REPLACED = "replaced"
"""What stands among a slide's done keys once one of them may be of a file that is no more."""

LONG_LIST, LIST_PARTS = 20_000, 16
"""Slides past which a listing is cut into so many parts."""
LONGEST_NAME_BYTES = 200
"""Most bytes of a folder's name: local file systems end at 255, and endings are still to come."""


_FILE_BELOW = f"/{EMBEDDINGS_FILE}"
PLAIN_NAME = re.compile(r"[\w~-][\w.~-]*", re.ASCII)
"""Names that percent-encoding leaves as they are."""


def folder_name(value: str) -> str:
    """`value` percent-encoded so that it is one path segment and never `.` or `..`."""
    if PLAIN_NAME.fullmatch(value):
        return value
    encoded = quote(value, safe="")
    return encoded if encoded.strip(".") else encoded.replace(".", "%2E")


def check_name(slide_id: str, what: str, value: str) -> None:
    """Raise LongNameError when no folder can be named after `value`, the slide's `what`."""
    length = len(folder_name(value))
    if length > LONGEST_NAME_BYTES:
        raise LongNameError(
            f"{slide_id}: its {what} is {length} bytes long when percent-encoded, past the "
            f"{LONGEST_NAME_BYTES} of a folder's name; give it a shorter one in a manifest."
        )


def original_name(segment: str) -> str:
    """The value that `folder_name` encoded."""
    return unquote(segment) if "%" in segment else segment


def cuts(folder: str, slide_ids: Sequence[str], *, before: str = "") -> list[str]:
    """Keys that cut the listing of `folder` into parts of about one size, if these are its slides.

    `slide_ids` are sorted. `before` is what stands before a slide's name there. None for few
    slides: see `Store.list`.
    """
    if len(slide_ids) < LONG_LIST:
        return []
    step = len(slide_ids) // LIST_PARTS
    return [f"{folder}/{before}{folder_name(slide_id)}" for slide_id in slide_ids[step::step]]


@dataclass(frozen=True)
class Layout:
    """Keys below the output's root for one recipe."""

    recipe_fp: str
    """Fingerprint of the recipe."""

    @property
    def state(self) -> str:
        """Folder of all that is not for readers."""
        return f"_state/recipe={self.recipe_fp}"

    @property
    def embeddings(self) -> str:
        """Folder of the recipe's embeddings."""
        return f"embeddings/recipe={self.recipe_fp}"

    @property
    def recipe(self) -> str:
        """The recipe in full."""
        return f"{self.state}/recipe.json"

    @property
    def slides_table(self) -> str:
        """The recipe's slides table."""
        return f"slides/recipe={self.recipe_fp}/slides.parquet"

    @property
    def staging(self) -> str:
        """Folder of fragments."""
        return f"{self.state}/staging"

    @property
    def records(self) -> str:
        """Folder of slide records."""
        return f"{self.state}/slides"

    @property
    def done(self) -> str:
        """Folder of the keys that mark finished slides."""
        return f"{self.state}/done"

    def output(self, slide_id: str, partitions: Mapping[str, Any]) -> str:
        """The slide's one Parquet file; `partitions` become folders above `slide=`."""
        levels = [
            f"{name}={HIVE_NULL if value is None else folder_name(str(value))}"
            for name, value in partitions.items()
        ]
        return output_in("/".join([self.embeddings, *levels]), slide_id)

    def fragments(self, slide_id: str, plan_fp: str) -> str:
        """Folder of the fragments of one plan of the slide."""
        return f"{self.staging}/{folder_name(slide_id)}/{plan_fp}"

    def fragment(self, slide_id: str, plan_fp: str, shard: int) -> str:
        """One shard's embeddings."""
        return f"{self.fragments(slide_id, plan_fp)}/{shard:06d}.arrow"

    def record(self, slide_id: str) -> str:
        """The slide's record."""
        return f"{self.records}/{folder_name(slide_id)}.json"

    def done_key(self, slide_id: str, input_fp: str) -> str:
        """The empty key saying that the slide is finished for this input."""
        return f"{self.done}/{folder_name(slide_id)}/{input_fp}"

    def replaced_key(self, slide_id: str) -> str:
        """The empty key, for ever beside the done keys, of a slide whose file is not its first."""
        return f"{self.done}/{folder_name(slide_id)}/{REPLACED}"

    @property
    def doubts(self) -> str:
        """Folder of the marks of slides whose file is being replaced."""
        return f"{self.state}/doubts"

    def doubt(self, slide_id: str) -> str:
        """The empty key saying that the slide's file is being replaced, or was to be."""
        return f"{self.doubts}/{folder_name(slide_id)}"

    def quarantine(self, slide_id: str, plan_fp: str) -> str:
        """Where a file goes that would have overwritten a different one: one place per plan."""
        return f"{self.state}/quarantine/{folder_name(slide_id)}/{plan_fp}.parquet"

    def run(self, run: str) -> str:
        """The report of one run."""
        return f"{self.state}/runs/{run}.json"


def probe_key(run: str) -> str:
    """A key that only this run writes, to learn what the store can do."""
    return f"_state/probe/{run}"


def identity_key(cache_key: str) -> str:
    """Where the encoder identity of known weights is remembered, so that nothing reloads them."""
    return f"_state/encoders/{cache_key}.json"


def recipe_of_key(key: str) -> str | None:
    """The recipe fingerprint in a key below `embeddings/`, `slides/` or `_state/`, if any."""
    for segment in key.split("/"):
        if segment.startswith("recipe="):
            return segment.removeprefix("recipe=")
    return None


def output_in(folder: str, slide_id: str) -> str:
    """The slide's file where `folder` is the one above `slide=`."""
    return f"{folder}/slide={folder_name(slide_id)}/{EMBEDDINGS_FILE}"


def partitions_of_output(key: str, names: Sequence[str]) -> dict[str, str | None]:
    """Values, as text, of the partition columns `names` in the key of an embeddings file."""
    segments = key.split("/")[-2 - len(names) : -2]
    values = [
        segment.removeprefix(f"{name}=") for name, segment in zip(names, segments, strict=True)
    ]
    return {
        name: None if value == HIVE_NULL else original_name(value)
        for name, value in zip(names, values, strict=True)
    }


def slide_of_output(key: str) -> str | None:
    """The slide_id in the key of an embeddings file, or None for any other key."""
    found = folder_and_slide(key)
    return None if found is None else found[1]


def folder_and_slide(key: str) -> tuple[str, str] | None:
    """What `output_in` made the key of an embeddings file from; None for any other key.

    Also for a name that `folder_name` would have encoded in another way: that is no file of ours.
    """
    if not key.endswith(_FILE_BELOW):
        return None
    folder, mark, name = key[: -len(_FILE_BELOW)].rpartition("/slide=")
    if PLAIN_NAME.fullmatch(name):
        return folder, name
    slide_id = original_name(name)
    return (folder, slide_id) if mark and name == folder_name(slide_id) else None
