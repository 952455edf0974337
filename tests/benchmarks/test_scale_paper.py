"""The page on a million slides says what the benchmarks' reports say."""

from __future__ import annotations

from tests.benchmarks.scale_paper import PAGE, read_reports, written


def test_the_page_holds_the_figures_of_the_reports() -> None:
    page = PAGE.read_text()
    assert written(page, read_reports()) == page, "python -m tests.benchmarks.scale_paper"


def test_the_page_changes_with_the_reports() -> None:
    reports = read_reports()
    reports["scale"]["figures"]["requests_per_slide"]["PUT"] *= 2
    assert written(PAGE.read_text(), reports) != PAGE.read_text()
