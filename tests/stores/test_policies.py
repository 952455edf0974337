"""The files of `infra/iam`: all told of, all filled in by the words that are told of."""

from __future__ import annotations

import re

import pytest

from tests.stores.policies import FOLDER

README = (FOLDER / "README.md").read_text()
FILES = sorted(path.name for path in FOLDER.glob("*.json"))
PLACEHOLDER = re.compile(r"\b[A-Z]{3,}(?:_[A-Z]{3,})*\b")


def test_the_readme_tells_of_every_file_and_of_no_other() -> None:
    assert sorted(set(re.findall(r"`((?:s3|gcs)-[a-z-]+\.json)`", README))) == FILES


@pytest.mark.parametrize("name", FILES)
def test_what_is_to_be_replaced_stands_in_capitals(name: str) -> None:
    text = (FOLDER / name).read_text()
    found = set(PLACEHOLDER.findall(text))
    assert found == set(PLACEHOLDER.findall(README)) & found
    assert not re.search(r"\d{12}|@|lab", text), "somebody's own account or bucket"
