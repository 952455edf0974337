"""Every folder of `infra/` says what it is for, and Ray's version stands in one place."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.conftest import ROOT

INFRA = ROOT / "infra"
FOLDERS = sorted(path for path in INFRA.iterdir() if path.is_dir())
READMES = [INFRA / "README.md", *(folder / "README.md" for folder in FOLDERS)]
RAY = next(
    re.search(r"==(.+)", one)
    for one in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    if one.startswith("ray")
)


def test_the_index_names_every_folder() -> None:
    linked = set(re.findall(r"\]\(([a-z]+)/README\.md\)", READMES[0].read_text()))
    assert linked == {folder.name for folder in FOLDERS}


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_a_readme_says_what_to_edit_and_its_links_lead_somewhere(readme: Path) -> None:
    text = readme.read_text()
    assert "edit" in text
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (readme.parent / link).exists(), link


def test_every_make_target_that_is_told_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for readme in READMES:
        assert (
            set(re.findall(r"(?:`|^)make ([a-z-]+)", readme.read_text(), re.MULTILINE)) <= targets
        )


def test_rays_version_is_that_of_the_project_wherever_it_is_said() -> None:
    assert RAY is not None
    assert f"ray=={RAY[1]}" in (ROOT / "constraints.txt").read_text().splitlines()
    for path in INFRA.rglob("*"):
        if path.is_file():
            said = re.findall(
                r"(?:rayVersion: *['\"]?|rayproject/ray:|\bray(?:\[[\w,]+\])?==)(\d+\.\d+\.\d+)",
                path.read_text(),
            )
            assert set(said) <= {RAY[1]}, path
