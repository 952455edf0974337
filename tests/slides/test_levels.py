"""Which microns per pixel are believed, and what is said of the rest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_pipeline.errors import NoMppError, SettingsError
from ray_pipeline.slides.levels import MPP_TRUSTED, settle_mpp


def test_the_files_own_number_is_the_mean_of_both_axes() -> None:
    mpp = settle_mpp("a", 0.25, 0.252, None)
    assert (mpp.value, mpp.source, mpp.found) == (0.251, "file", 0.251)


@given(override=st.floats(*MPP_TRUSTED), found=st.none() | st.floats(0.001, 1000))
def test_an_override_wins_and_what_the_file_states_is_still_told(
    override: float, found: float | None
) -> None:
    mpp = settle_mpp("a", found, found, override)
    assert (mpp.value, mpp.source) == (override, "override")
    assert mpp.found == found


@pytest.mark.parametrize("override", [0.0, -1.0, 100.0, float("nan")])
def test_an_override_that_no_scanner_has_is_refused(override: float) -> None:
    with pytest.raises(SettingsError, match=r"not within 0\.05\.\.20\.0"):
        settle_mpp("a", 0.5, 0.5, override)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (None, None, "states no microns per pixel"),
        (352.8, 352.8, r"states 352\.8 microns per pixel, which is not within 0\.05\.\.20\.0"),
        (0.0, 0.0, "states 0 microns"),
        (0.5, 0.25, "not square"),
    ],
)
def test_what_can_not_be_believed_names_slide_value_and_mend(
    x: float | None, y: float | None, words: str
) -> None:
    with pytest.raises(NoMppError, match=words) as caught:
        settle_mpp("slide-7", x, y, None)
    assert "slide-7" in str(caught.value)
    assert "--mpp-override" in str(caught.value)
