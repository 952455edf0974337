"""Every error kind there is has its row in the guide, and no other: in the section of its kin."""

from __future__ import annotations

import re
from pathlib import Path

from ray_pipeline import errors as base
from ray_pipeline.errors import (
    ClusterError,
    DatasetError,
    HistorayError,
    SlideError,
    StoreError,
    UsageError,
)
from serve_app import errors as service
from serve_app.errors import ServiceError
from serve_app.http_errors import status_of

GUIDE = Path(__file__).resolve().parents[2] / "infra" / "troubleshooting" / "README.md"
CLASSES = {
    value
    for module in (base, service)
    for value in vars(module).values()
    if isinstance(value, type) and issubclass(value, HistorayError)
}
SECTIONS = {
    "One slide is at fault": SlideError,
    "The store said no": StoreError,
    "The output and what was": DatasetError,
    "The cluster": ClusterError,
    "The command or its settings": UsageError,
    "The service": ServiceError,
}


def told() -> dict[str, list[tuple[str, str]]]:
    """Section -> (kind, the cell behind it) of each of its rows."""
    found = {}
    for part in GUIDE.read_text().split("\n## ")[1:]:
        lines = re.findall(r"^\| (`[^|]+?) \| ([^|]*) \|", part, re.MULTILINE)
        found[part.splitlines()[0]] = [
            (kind, cell) for names, cell in lines for kind in re.findall(r"`([a-z-]+)`", names)
        ]
    return found


def test_every_kind_has_one_row_and_no_row_is_of_another() -> None:
    kinds = [kind for pairs in told().values() for kind, _ in pairs]
    assert len(set(kinds)) == len(kinds)
    assert set(kinds) == {error.kind for error in CLASSES}


def test_kinds_stand_with_their_kin() -> None:
    for heading, pairs in told().items():
        for start, root in SECTIONS.items():
            if heading.startswith(start):
                kin = {error.kind for error in CLASSES if root in error.__mro__}
                assert {kind for kind, _ in pairs} - {HistorayError.kind} == kin, heading


def test_the_services_kinds_have_their_status() -> None:
    by_kind = {error.kind: error for error in CLASSES}
    for kind, status in told()["The service"]:
        assert int(status) == status_of(by_kind[kind]), kind
