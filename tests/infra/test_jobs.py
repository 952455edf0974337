"""The job files and the script that submits them."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from ray_pipeline.errors import SettingsError
from ray_pipeline.settings import load_settings
from tests.conftest import ROOT
from tests.infra.placeholders import placeholders
from tests.infra.programs import BIN, run_program

FOLDER = ROOT / "infra" / "jobs"
SUBMIT = FOLDER / "submit.sh"
README = (FOLDER / "README.md").read_text()
JOBS = sorted(FOLDER.glob("*.yaml"))


def submit(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **environment}
    return subprocess.run(
        [str(SUBMIT), *args], env=env, capture_output=True, text=True, timeout=500, check=False
    )


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.stem)
def test_the_settings_of_a_job_file_are_valid(job: Path) -> None:
    settings = load_settings(str(job), {})
    assert settings.autoscaling, "the cluster has no worker before a job wants one"
    assert settings.log_format == "json"
    assert f"`{job.name}`" in README


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("encoders:", "encodres:", "did you mean 'encoders'"),
        ("model: h-optimus-0", "model: h-optimus-0\nmodel: uni", "twice"),
        ("readers: ", "readers: -", "readers"),
        ("output:", "# output:", "'output' is missing"),
    ],
)
@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.stem)
def test_what_is_planted_in_a_job_file_is_found(
    job: Path, before: str, after: str, sentence: str, tmp_path: Path
) -> None:
    text = job.read_text()
    assert before in text
    planted = tmp_path / "job.yaml"
    planted.write_text(text.replace(before, after))
    with pytest.raises(SettingsError, match=re.escape(sentence)):
        load_settings(str(planted), {})


def test_the_linter_has_nothing_to_say_of_the_script_and_finds_what_is_planted() -> None:
    text = SUBMIT.read_text()
    assert text.splitlines()[0] == "#!/usr/bin/env bash"
    assert "\nset -euo pipefail\n" in text
    assert os.access(SUBMIT, os.X_OK)
    outcome = run_program("shellcheck", "-", text=text)
    assert outcome.returncode == 0, outcome.stdout
    unquoted = run_program(
        "shellcheck",
        "-",
        text=text.replace('rm -rf -- "$folder"', "rm -rf $folder").replace(
            'cp -- "$job" "$folder/job.yaml"', "cp -- $job $folder/job.yaml"
        ),
    )
    assert "SC2086" in unquoted.stdout


def test_nothing_is_submitted_that_can_not_be_meant(tmp_path: Path) -> None:
    nothing = submit()
    assert (nothing.returncode, nothing.stderr[:6]) == (2, "usage:")
    absent = submit(str(tmp_path / "absent.yaml"))
    assert absent.returncode == 2
    assert "is no file" in absent.stderr
    for job in JOBS:
        unedited = submit(str(job))
        assert unedited.returncode == 2
        assert "edit these lines first" in unedited.stderr
        assert all(word in unedited.stderr for word in placeholders(job.read_text()))


def test_only_the_job_file_travels_and_the_clusters_answer_is_the_scripts(tmp_path: Path) -> None:
    """With a program in the place of `ray` that writes down how it was called."""
    job = tmp_path / "my job.yaml"
    job.write_text("output: here  # EDIT was done\n")
    ray = tmp_path / "ray"
    ray.write_text(
        '#!/bin/sh\nfor word in "$@"; do echo "$word"; done\necho "$RAY_API_SERVER_ADDRESS"\n'
        'echo "$RAY_AUTH_MODE"\nls -A "$6"\ncat "$6/job.yaml"\nexit 7\n'
    )
    ray.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    unset = {"RAY_API_SERVER_ADDRESS": "", "RAY_AUTH_MODE": ""}
    outcome = submit(str(job), "--retry", "not-a-slide", PATH=path, **unset)
    assert outcome.returncode == 7, outcome.stderr
    called = outcome.stdout.splitlines()
    name, folder = called[3], called[5]
    assert re.fullmatch(r"my-job-\d{8}T\d{6}Z", name)
    assert f"ray job stop {name}" in outcome.stderr
    command = "python -m ray_pipeline embed --config job.yaml --retry not-a-slide"
    assert called == [
        *("job", "submit", "--submission-id", name, "--working-dir", folder, "--"),
        *command.split(),
        *("http://127.0.0.1:8265", "token", "job.yaml", *job.read_text().splitlines()),
    ]
    assert not Path(folder).exists()
