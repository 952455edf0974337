"""Whatever a slide's bytes are, it is read or refused: no crash, no hang, no other error."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slides import fuzz
from tests.slides.fuzz import Case

# Each with what it found, in the order in which it was found. Changing a mutation, or a base, makes
# other cases of them: look for the like again, and put those here.
CORPUS: list[Case] = [
    ("jpeg", 487),  # a ring of 150 directories, which tifffile followed for ever
    ("ndpi", 783),  # a chain that led into pixels and on, from one false directory to the next
    ("scn", 733),  # 4,000 entries that each hold the whole file
    ("philips", 586),  # StopIteration from tiffslide
    ("bif", 270),  # levels of different shapes: a tile past the edge of one
    ("plain", 546),  # numpy widened a level's whole band of pixels to average it
    ("scn", 5613),  # regions that lie beside the corner: the wrong tiles were checked
    ("dicom-native", 636),  # BytesLengthException, which is no ValueError, from pydicom
]


def check(cases: list[Case], *, processes: int = 1) -> None:
    result = fuzz.summary(fuzz.run(cases, processes=processes))
    assert result["findings"] == []
    assert result["ok"] > 0
    assert result["refused"]


@pytest.mark.parametrize("name", list(fuzz.bases()))
def test_every_base_is_read_whole(tmp_path: Path, name: str) -> None:
    base = fuzz.bases()[name]
    path = tmp_path / f"x{base.suffix}"
    path.write_bytes(base.data)
    assert fuzz.exercise(str(path)) == []


def test_a_case_is_the_same_every_time() -> None:
    for case in fuzz.cases(40, 0):
        assert fuzz.mutated(case) == fuzz.mutated(case)


def test_damaged_slides_are_read_or_refused() -> None:
    check(fuzz.cases(150, 0))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_damaged_slides_are_read_or_refused() -> None:
    check(fuzz.cases(10_000, 0), processes=2)


def test_slides_that_once_did_worse_are_read_or_refused() -> None:
    here = [case for case in CORPUS if case[0] in fuzz.bases()]
    outcomes = fuzz.run(here)
    assert [outcome for outcome in outcomes if outcome.finding] == []
