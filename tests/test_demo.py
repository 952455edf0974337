"""The first thing that anybody runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import historay


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_the_demo_embeds_three_slides_and_answers_its_query(tmp_path: Path) -> None:
    first = historay("demo", "--folder", str(tmp_path))
    assert first.code == 0, first.stderr
    assert "3 slides done, 0 finished before" in first.stdout
    assert "join (select slide_id, mean_embedding" in first.stdout
    rows = [line.split("│")[1:-1] for line in first.stdout.splitlines() if line.count("│") == 5]
    answer = {name.strip(): float(likeness) for name, *_, likeness in rows[2:]}
    assert set(answer) == {"biopsy", "resection"}, "the blank slide has no tiles"
    assert all(0 < likeness <= 1 for likeness in answer.values())
    again = historay("demo", "--folder", str(tmp_path))
    assert "0 slides done, 3 finished before" in again.stdout
