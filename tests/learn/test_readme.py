"""The example of the README runs."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_pipeline.learn import evaluation
from ray_pipeline.learn.training import Training
from tests.learn.cohorts import tiny_cohort
from tests.test_docs import README


def test_the_example_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    brief = partial(Training, least_epochs=1, most_epochs=2)
    monkeypatch.setattr(evaluation, "Training", brief)
    made = tiny_cohort(patients=10)
    section = README.split("## Learning from it")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    known: dict[str, Any] = {
        "labels": {slide: ("no", "yes")[index % 2] for index, slide in enumerate(made.features)},
        "patients": {slide: f"patient of {slide}" for slide in made.features},
        "bags": made.bags,
        "features": np.concatenate(list(made.features.values())),
        "tile_labels": np.repeat(np.arange(10) % 2, 5).tolist(),
        "tile_patients": np.repeat(np.arange(10), 5).astype(str).tolist(),
    }
    exec(code, known)
    assert capsys.readouterr().out.count(" to ") == 2
    written = sorted(path.parent.name for path in tmp_path.glob("out/learnt/attention/*/*.parquet"))
    assert written == [f"slide=s{index}" for index in range(10)]
