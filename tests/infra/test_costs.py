"""The page on costs says what the calculator says."""

from __future__ import annotations

import json

import pytest
import yaml

from ray_pipeline.costs import DIRECT_TILES_PER_S, HALVED_TILES_PER_S, Prices, load_prices
from tests.infra.costs_page import JOBS, PAGE, PRICES, READER, scaled, slide_work, written

REPORT = json.loads(READER.read_text())


def test_the_page_holds_the_figures() -> None:
    page = PAGE.read_text()
    assert written(page, REPORT, load_prices(str(PRICES))) == page, (
        "python -m tests.infra.costs_page"
    )
    assert f"take {DIRECT_TILES_PER_S / HALVED_TILES_PER_S:.2g} times the reading" in page


def test_the_page_changes_with_figures_and_prices() -> None:
    page, prices = PAGE.read_text(), load_prices(str(PRICES))
    assert written(page, REPORT, prices.model_copy(update={"usd_per_gpu_hour": 1.0})) != page
    more = {**REPORT, "ratios": {**REPORT["ratios"], "gets_per_tile": 1.0}}
    assert written(page, more, prices) != page


def test_the_prices_to_edit_are_all_there_are_and_hold_the_defaults() -> None:
    said = yaml.safe_load(PRICES.read_text())
    assert set(said) == set(Prices.model_fields)
    defaults = Prices().model_dump(exclude_none=True)
    assert {name: said[name] for name in defaults} == defaults


@pytest.mark.parametrize("slides", [1, 6, JOBS[0][0]])
def test_many_slides_are_as_many_times_one(slides: int) -> None:
    one, many = slide_work(REPORT), scaled(slide_work(REPORT), slides)
    assert many.slide_gets == pytest.approx(slides * one.slide_gets)
    assert many.tiles == slides * one.tiles
