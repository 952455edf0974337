"""What Ray's errors are to the user: one sentence each."""

from __future__ import annotations

import pytest
from ray.exceptions import OutOfMemoryError, RayError, WorkerCrashedError

from ray_pipeline.cluster import own_error

OUT_OF_MEMORY = OutOfMemoryError("Killed.\nSee `ray logs`.\n")  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OUT_OF_MEMORY, "its node ran short of memory"),
        (WorkerCrashedError(), "WorkerCrashedError: "),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_an_error_of_ray_is_one_sentence_with_the_mend(error: RayError, words: str) -> None:
    sentence = str(own_error(error))
    assert words in sentence
    assert "run again to go on" in sentence
    assert "\n" not in sentence
