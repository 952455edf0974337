"""What a long run shows where there is no terminal, and the time it says is left."""

from __future__ import annotations

import io
import json

import pytest

from ray_pipeline.progress import Counts, Reporter, seconds_left


@pytest.mark.parametrize(
    ("counts", "tiles_per_s", "left"),
    [
        (Counts(slides=4, slides_planned=2, tiles_planned=200, tiles=100), 10.0, 30.0),
        (Counts(slides=1, slides_planned=1, tiles_planned=50, tiles=50), 10.0, 0.0),
        (Counts(slides=4), 10.0, None),
        (Counts(slides=4, slides_planned=2, tiles_planned=200), 0.0, None),
    ],
)
def test_time_left(counts: Counts, tiles_per_s: float, left: float | None) -> None:
    assert seconds_left(counts, tiles_per_s) == left


def test_lines_are_json_and_not_too_many() -> None:
    stream = io.StringIO()
    with Reporter(stream, every_s=3600) as reporter:
        for tiles in range(1000):
            reporter.show(Counts(slides=1, slides_planned=1, tiles=tiles, tiles_planned=1000))
        reporter.say("slide-7 failed at read: cut short.")
        reporter.show(Counts(slides=1, tiles=1000), final=True)
    said, shown = (json.loads(line) for line in stream.getvalue().splitlines())
    assert said["message"] == "slide-7 failed at read: cut short."
    assert shown["progress"]["tiles"] == 1000
    assert {"tiles_per_s", "elapsed_s", "left_s"} <= set(shown["progress"])


def test_a_terminal_gets_a_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with Reporter(stream) as reporter:
        reporter.show(Counts(slides=2, slides_done=1, slides_failed=1, tiles=7), final=True)
        reporter.say("one line")
    assert "slides 1/2 (1 failed)  tiles 7" in stream.getvalue()
    assert "one line" in stream.getvalue()
