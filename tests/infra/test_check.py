"""`python -m tests.infra.check`, which users run on the files they edited."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.infra.check import main, problems_of
from tests.infra.strict import read_yaml

MANIFESTS = [
    path
    for kind in ("vm", "jobs", "serve")
    for path in sorted((ROOT / "infra" / kind).glob("*.yaml"))
]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_file_is_ready_once_it_is_edited(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(path)]) == 1
    told = capsys.readouterr().out.splitlines()
    assert told
    assert all(line.endswith("is left to edit") for line in told)
    edited = tmp_path / path.name
    edited.write_text(path.read_text().replace("EDIT-", "my-"))
    assert main([str(edited)]) == 0
    assert capsys.readouterr().out == ""


def test_a_key_said_twice_is_found(tmp_path: Path) -> None:
    file = tmp_path / "twice.yaml"
    file.write_text("provider: {type: aws}\nprovider: {type: gcp}\n")
    (problem,) = problems_of(file)
    assert "'provider' is said twice" in problem
    assert read_yaml("a: &x {p: 1}\nb: {<<: *x, p: 2}\n")["b"] == {"p": 2}
    with pytest.raises(yaml.YAMLError, match="twice"):
        read_yaml("a: {p: 1, p: 2}\n")
