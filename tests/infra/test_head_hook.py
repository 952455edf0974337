"""A head that is told to go tells its driver, and waits for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.infra.kustomize import render
from tests.infra.pods import groups_of
from tests.infra.rules import ROOT

SETTINGS = "/etc/historay/job.yaml"
DRIVER = """
import pathlib, signal, sys, time

def stage(*_):
    time.sleep(1)
    pathlib.Path("staged").touch()
    sys.exit(4)

signal.signal(signal.SIGTERM, stage)
pathlib.Path("running").touch()
time.sleep(60)
"""


@pytest.fixture
def said(tmp_path: Path) -> tuple[str, list[str]]:
    """Entrypoint and hook of the manifest, with settings elsewhere: other jobs may run here."""
    (manifest,) = render(ROOT / "infra" / "kuberay" / "base" / "job")
    head = next(group for group in groups_of(manifest) if group.name == "head")
    hook = head.ray["lifecycle"]["preStop"]["exec"]["command"]
    settings = str(tmp_path / "job.yaml")
    assert SETTINGS in hook[-1]
    return (
        manifest["spec"]["entrypoint"].replace(SETTINGS, settings),
        [text.replace(SETTINGS, settings) for text in hook],
    )


@pytest.fixture
def driver(said: tuple[str, list[str]], tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the driver's name, begun by a shell, as Ray begins jobs."""
    (tmp_path / "ray_pipeline").mkdir()
    (tmp_path / "ray_pipeline" / "__main__.py").write_text(DRIVER)
    process = subprocess.Popen(
        said[0],
        shell=True,
        cwd=tmp_path,
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
        start_new_session=True,
    )
    while not (tmp_path / "running").exists():
        assert process.poll() is None
        time.sleep(0.05)
    yield process
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


def test_the_hook_waits_until_the_driver_has_staged(
    said: tuple[str, list[str]], driver: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    subprocess.run(said[1], check=True, timeout=60)
    assert (tmp_path / "staged").exists()
    assert driver.wait(10) == 4


def test_the_hook_touches_no_other_process(
    said: tuple[str, list[str]], driver: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    other = [text.replace(f"{tmp_path}/", f"{tmp_path}/of-another-job/") for text in said[1]]
    subprocess.run(other, check=True, timeout=60)
    assert driver.poll() is None
    assert not (tmp_path / "staged").exists()
