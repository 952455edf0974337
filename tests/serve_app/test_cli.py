"""The command `historay-serve` where no service comes of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ray_pipeline.errors import SettingsError
from serve_app.app import app


def test_an_address_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text("models: [{encoder: {model: toy}}]\nallow_anonymous: true\n")
    done = subprocess.run(
        [sys.executable, "-m", "serve_app", "--config", str(config)],
        env={**os.environ, "RAY_ADDRESS": "head"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert (
        done.stderr.strip().splitlines()[-1].startswith("error: RAY_ADDRESS=head leads to no Ray")
    )
    assert "Traceback" not in done.stderr


def test_a_prefix_that_is_not_allowed_is_told_before_a_replica_starts() -> None:
    toy = {"encoder": {"model": "toy"}}
    settings = {"models": [toy], "allow_anonymous": True, "regions": {"prefixes": ["file:///x/"]}}
    with pytest.raises(SettingsError, match=r"set regions\.allow_file"):
        app(settings)
