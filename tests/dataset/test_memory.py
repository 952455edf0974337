"""What readers and exports hold does not grow with the number of slides; README has the figures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.dataset.outputs import make_output

pytestmark = pytest.mark.slow

TILES, DIM = 8_000, 1536
VECTORS_MB = TILES * DIM * 4 / 2**20
"""Vectors of one slide, float32."""
FILE_MB = 22
DECODING_MB = 150
"""What the README states."""
SLIDES = 12
BAGS = "for bag in dataset.torch_bags([f's{n}' for n in range(%d)]): pass"
EXPORT = f"assert export_slides(dataset.output, sys.argv[2], %r).slides_exported == {SLIDES}"
ASKED = "dataset.to_duckdb().execute(%r).fetchall()"


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("memory") / "out")
    make_output(uri, {f"s{n}": TILES for n in range(SLIDES)}, dim=DIM)
    return uri


def peak_mb(output: str, code: str, folder: Path) -> float:
    """The most memory of a process that runs `code`, beyond what it held before: Linux's marks."""
    program = f"""
import sys, torch
from ray_pipeline.dataset.reading import open_dataset
from ray_pipeline.exports.run import export_slides
def told(name): return int(open("/proc/self/status").read().partition(name)[2].split()[0]) / 1024
dataset = open_dataset(sys.argv[1])
dataset.slides(), dataset.listed
open("/proc/self/clear_refs", "w").write("5")  # the mark starts anew
before = told("VmRSS:")
{code}
print(told("VmHWM:") - before)
"""
    command = [sys.executable, "-c", program, output, str(folder / "export")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert ended.returncode == 0, ended.stderr
    return float(ended.stdout.split()[-1])


def test_of_bags_two_are_in_memory(output: str, tmp_path: Path) -> None:
    few, all_of_them = (peak_mb(output, BAGS % n, tmp_path) for n in (2, SLIDES))
    # Two, for the loop still has the one before; a file; and what decodes row groups.
    assert all_of_them < 2 * VECTORS_MB + FILE_MB + DECODING_MB
    assert all_of_them - few < VECTORS_MB


@pytest.mark.parametrize("to", ["h5", "h5ad", "geojson", "lance"])
def test_exports_of_slides_of_8000_tiles_stay_below_half_a_gigabyte(
    output: str, tmp_path: Path, to: str
) -> None:
    assert peak_mb(output, EXPORT % to, tmp_path) < 500


def test_questions_about_all_tiles_do_not_hold_them(output: str, tmp_path: Path) -> None:
    sql = "select slide_id, avg(list_cosine_similarity(embedding, embedding)) from tiles group by 1"
    assert peak_mb(output, ASKED % sql, tmp_path) < 400 < SLIDES * VECTORS_MB
