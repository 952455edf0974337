"""What all commands print with, and how they end."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

EXIT_ERROR, EXIT_USAGE, EXIT_SOME_FAILED, EXIT_STOPPED = 1, 2, 3, 4
"""Could not run; the command or settings must change; some slides failed; stopped on request."""

Cells = tuple[str, ...]
AsJson = Annotated[bool, typer.Option("--json", help="End standard output with one JSON object.")]


def aligned(rows: list[Cells]) -> str:
    """Cells in columns, none of them cut short: what is printed can be searched and copied."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


def say(text: str) -> None:
    """One text for standard output, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
