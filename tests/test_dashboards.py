"""The dashboard shows every metric there is, and no other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_pipeline.metrics import METRICS

FOLDER = Path(__file__).resolve().parent.parent / "infra" / "dashboards"


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((FOLDER / "jobs.json").read_text())
    return loaded


def queries(dashboard: dict[str, Any]) -> Iterator[str]:
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


def test_the_metrics_of_the_queries_are_those_that_are_registered(
    dashboard: dict[str, Any],
) -> None:
    asked = {name for query in queries(dashboard) for name in re.findall(r"ray_\w+", query)}
    assert asked == {spec.exported for spec in METRICS}


def test_the_labels_of_the_queries_are_those_of_the_metrics(dashboard: dict[str, Any]) -> None:
    labels = {spec.exported: {"recipe", "WorkerId", *spec.labels} for spec in METRICS}
    for query in queries(dashboard):
        (name,) = re.findall(r"ray_\w+", query)
        for grouped in re.findall(r"by \(([^)]+)\)", query):
            assert set(grouped.split(", ")) <= labels[name], query


def test_panels_have_ids_of_their_own_and_lie_side_by_side(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = [
        (panel["gridPos"]["x"] + column, panel["gridPos"]["y"] + line)
        for panel in panels
        for column in range(panel["gridPos"]["w"])
        for line in range(panel["gridPos"]["h"])
    ]
    assert len(set(taken)) == len(taken)
    assert max(column for column, _ in taken) < 24


def test_metrics_named_in_the_readme_exist() -> None:
    said = set(re.findall(r"ray_historay_\w+", (FOLDER / "README.md").read_text()))
    assert said
    assert said <= {spec.exported for spec in METRICS}
