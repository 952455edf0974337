"""What a release is made of: one version, whole archives, a whole bill, exceptions with reasons."""

from __future__ import annotations

import datetime
import io
import re
import tarfile
import zipfile
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.utils import canonicalize_name

from tests.commands import historay
from tests.conftest import ROOT
from tests.infra.artifacts import BESIDE, main, source_files, version
from tests.infra.materials import material_problems
from tests.infra.programs import run_program

CI = ROOT / ".ci"
SCRIPTS = ("run", "release", "audit")


def test_the_version_is_stated_in_one_place() -> None:
    assert historay("--version").stdout == f"historay {version()}\n"
    sources = [ROOT / name for name in source_files()]
    stating = [path for path in sources if f'"{version()}"' in path.read_text()]
    assert stating == []


def test_the_changelog_is_in_its_form() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    for heading in headings[1:]:
        assert re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", heading), heading


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_linter_has_nothing_to_say_of_the_scripts(script: str) -> None:
    outcome = run_program("shellcheck", str(CI / script))
    assert outcome.returncode == 0, outcome.stdout


def test_every_exception_of_the_audit_has_a_reason_and_an_end() -> None:
    lines = (CI / "audit-exceptions").read_text().splitlines()
    for line in (line for line in lines if not line.startswith("#")):
        said = re.fullmatch(r"(PYSEC|GHSA|CVE)-[\w-]+ .{20,} (\d{4}-\d\d-\d\d)\.?", line)
        assert said, line
        assert datetime.date.fromisoformat(said[2]) >= datetime.datetime.now(datetime.UTC).date(), (
            line
        )


def built(folder: Path, *, without: str = "", extra: str = "") -> str:
    """A wheel and an sdist as they should be, but for one file."""
    files = (source_files() | ({extra} if extra else set())) - {without}
    about = f"historay-{version()}.dist-info/licenses/LICENSE"
    with zipfile.ZipFile(folder / f"historay-{version()}-py3-none-any.whl", "w") as wheel:
        for name in {*files, about}:
            wheel.writestr(name, "")
    with tarfile.open(folder / f"historay-{version()}.tar.gz", "w:gz") as sdist:
        for name in {*files, *BESIDE, "pyproject.toml", "setup.cfg"} - {without}:
            sdist.addfile(tarfile.TarInfo(f"historay-{version()}/{name}"), io.BytesIO())
    return str(folder)


@pytest.mark.parametrize(
    ("planted", "sentence"),
    [
        ({"without": "ray_pipeline/py.typed"}, "lacks ray_pipeline/py.typed"),
        ({"without": "ray_pipeline/encoders/catalogue/toy.py"}, "lacks ray_pipeline/encoders"),
        ({"extra": "tests/conftest.py"}, "holds tests/conftest.py"),
    ],
)
def test_what_is_planted_in_archives_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], planted: dict[str, str], sentence: str
) -> None:
    assert main(built(tmp_path, **planted)) == 1
    told = capsys.readouterr().out
    assert told.count(sentence) == 2, told


def test_archives_that_are_whole_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(built(tmp_path)) == 0
    assert main(str(tmp_path / "nothing")) == 1
    assert "not one of each" in capsys.readouterr().out


def test_a_bill_that_is_not_whole_is_found() -> None:
    installed = {canonicalize_name(one.metadata["Name"]): one for one in distributions()}
    some = [installed[canonicalize_name(name)] for name in ("ray", "torch", "pydantic")]
    parts: list[dict[str, Any]] = [
        {"name": one.metadata["Name"], "version": one.version, "purl": "pkg:pypi/x"} for one in some
    ]
    assert list(material_problems({"components": parts}, some)) == []
    planted: list[tuple[list[dict[str, Any]], str]] = [
        (parts[1:], "ray is not in the bill"),
        ([*parts, {"name": "left-pad", "version": "1"}], "left-pad is in the bill alone"),
        ([{**parts[0], "version": "1.0"}, *parts[1:]], "and 1.0 in the bill"),
        ([{**parts[0], "purl": ""}, *parts[1:]], "ray has no package URL"),
    ]
    for components, sentence in planted:
        problems = list(material_problems({"components": components}, some))
        assert len(problems) == 1
        assert sentence in problems[0]
