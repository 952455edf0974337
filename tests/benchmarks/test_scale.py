"""The scale benchmark runs, and counts what a slide asks of the store."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_pipeline.costs import work_of
from tests.benchmarks.scale_driver import TILES
from tests.benchmarks.test_benchmarks import quick_run


@pytest.mark.ray
@pytest.mark.slow
def test_the_scale(tmp_path: Path) -> None:
    report = quick_run("scale", tmp_path)
    assert set(report["ratios"]) == {
        "cost_per_slide_1e3_over_1e2",
        "driver_rss_gb_1e3",
        "resume_1e3_s",
        "rerun_1e2_s",
    }
    figures = report["figures"]
    counted = work_of(
        TILES, dim=1, slide_gets=0, fetch_bytes=0, reading_cpu_s=0, reading_basis="assumed"
    )
    # 40 fragments, the file, the record, the done key; each fragment and the record are read.
    assert figures["requests_per_slide"]["PUT"] == 43 == counted.output_puts
    assert figures["requests_per_slide"]["GET"] == 41 == counted.output_gets
    assert figures["requests_per_slide"]["DELETE"] == counted.output_deletes
    assert figures["requests_per_slide"]["HEAD"] == 0
    assert figures["requests_per_slide"]["LIST"] < 0.1
    assert set(figures["sizes"]) == {"100", "1000"}
    rerun = figures["rerun"]
    assert rerun["slides"] == 100
    assert (rerun["source_reads"], rerun["puts_under_embeddings"]) == (0, 0)
    assert any(what.startswith("slides LIST") for what in rerun["requests"])
