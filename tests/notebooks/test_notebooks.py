"""The notebooks run from top to bottom in an empty folder, and are kept without outputs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CELL_TIMEOUT_S = 240
LARGEST_BYTES, LARGEST_SHOWN_BYTES = 30_000, 400_000
"""Of a notebook as it is kept, and of all that it shows."""

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == [
        "01_first_slide",
        "02_query_with_sql",
        "03_map_of_a_slide",
        "04_similar_tiles",
        "05_slide_level",
        "06_ask_the_service",
    ]


@each_notebook
def test_a_notebook_is_kept_small_and_without_outputs(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    assert path.stat().st_size < LARGEST_BYTES
    assert not [cell.id for cell in code_cells(notebook) if cell.outputs or cell.execution_count]
    assert not [cell.id for cell in notebook.cells if cell.metadata or "attachments" in cell]
    assert notebook.cells[0].source.startswith("# ")


@pytest.mark.ray
@each_notebook
def test_a_notebook_runs_in_an_empty_folder(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_ADDRESS", "")
    notebook = read(path)
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT_S,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    shown = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert not [output for output in shown if "error: " in output.get("text", "")]
    assert code_cells(notebook)[-1].outputs
    assert len(json.dumps(notebook)) < LARGEST_SHOWN_BYTES
