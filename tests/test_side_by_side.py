"""Sources drained at the same time: all of what they yield, and no thread left behind."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from ray_pipeline.side_by_side import side_by_side


def threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("side-by-side")]


@pytest.mark.parametrize(("parts", "at_once"), [(0, 4), (1, 1), (3, 8), (17, 4)])
def test_all_that_the_parts_yield_comes_out(parts: int, at_once: int) -> None:
    found = side_by_side([iter(range(n, 1000 + n)) for n in range(parts)], at_once)
    assert sorted(found) == sorted(x for n in range(parts) for x in range(n, 1000 + n))
    assert threads() == []


def test_what_is_left_early_ends() -> None:
    for _ in side_by_side([iter(range(1000))] * 3, 2):
        break
    assert threads() == []


def test_the_first_error_is_raised_and_no_further_part_is_begun() -> None:
    begun = []

    def failing(number: int) -> Iterator[int]:
        begun.append(number)
        if number >= 0:
            raise OSError(f"part {number}")
        yield number

    with pytest.raises(OSError, match="part 0"):
        list(side_by_side([failing(number) for number in range(50)], 1))
    assert len(begun) < 50
    assert threads() == []


def test_parts_may_come_while_others_are_drained() -> None:
    def parts() -> Iterator[Iterator[int] | None]:
        for number in range(20):
            yield None
            yield iter(range(10 * number, 10 * number + 10))

    assert sorted(side_by_side(parts(), 4)) == list(range(200))
    assert threads() == []


def test_an_error_of_who_gives_the_parts_is_raised() -> None:
    def parts() -> Iterator[Iterator[int]]:
        yield iter(range(10))
        raise OSError("no further part")

    with pytest.raises(OSError, match="no further part"):
        list(side_by_side(parts(), 4))
    assert threads() == []


def test_a_process_ends_though_an_error_holds_what_was_left() -> None:
    program = """
from itertools import count
from ray_pipeline.side_by_side import side_by_side
for item in side_by_side([count()], 1):
    raise SystemError("of the one who takes them")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "of the one who takes them" in done.stderr
