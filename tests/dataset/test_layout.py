"""Any slide_id makes one safe path segment, and comes back from it."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from ray_pipeline.dataset.layout import (
    LIST_PARTS,
    LONG_LIST,
    Layout,
    cuts,
    folder_name,
    original_name,
    slide_of_output,
)


@given(st.text(min_size=1, max_size=40))
def test_names_round_trip_and_stay_one_segment(name: str) -> None:
    if any(0xD800 <= ord(letter) <= 0xDFFF for letter in name):
        return
    segment = folder_name(name)
    assert "/" not in segment
    assert segment not in (".", "..")
    assert original_name(segment) == name


def test_partitions_stand_above_the_slide() -> None:
    key = Layout("0" * 12).output("a b/c", {"site": "läver", "grade": None})
    assert key == (
        "embeddings/recipe=000000000000/site=l%C3%A4ver/grade=__HIVE_DEFAULT_PARTITION__/"
        "slide=a%20b%2Fc/embeddings.parquet"
    )
    assert slide_of_output(key) == "a b/c"
    assert slide_of_output("embeddings/recipe=0/slide=x/other.parquet") is None


def test_a_long_listing_is_cut_into_parts_of_about_one_size() -> None:
    ids = [f"{number:06}" for number in range(2 * LONG_LIST)]
    found = cuts("done", ids, before="slide=")
    assert len(found) in (LIST_PARTS - 1, LIST_PARTS)
    keys = [f"done/slide={slide_id}" for slide_id in ids]
    places = [0, *map(keys.index, found), len(keys)]
    assert all(b - a <= len(ids) // LIST_PARTS + 1 for a, b in pairwise(places))
    assert cuts("done", ids[: LONG_LIST - 1]) == []
