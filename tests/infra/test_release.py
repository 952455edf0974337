"""What a release is made of: one version, whole archives, a whole bill, exceptions with reasons."""

from __future__ import annotations

import datetime
import io
import json
import re
import tarfile
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import distributions
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from packaging.utils import canonicalize_name

from tests.commands import historay
from tests.conftest import ROOT
from tests.infra.advisories import audit
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


@pytest.fixture
def project_pages(tmp_path: Path) -> Iterator[str]:
    """Pages of projects as PyPI has them.

    `holed` has an advisory, `mended` had one; `old`, `late`, `torn` and `ray`, which historay pins,
    moved on.
    """
    holed = {"id": "PYSEC-1", "aliases": ["CVE-1"], "withdrawn": None}
    mended = {"id": "PYSEC-2", "aliases": [], "withdrawn": "2026-01-01"}
    moved = {"version": "2.0"}
    pages: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
        "sound": ({"version": "1.0"}, []),
        "old": (moved, []),
        "late": ({**moved, "requires_python": ">=3.99"}, []),
        "torn": ({**moved, "requires_dist": ["sound>=2", "old>2; extra == 'more'"]}, []),
        "ray": ({"version": "999.0"}, []),
        "holed": ({"version": "1.0"}, [holed]),
        "mended": ({"version": "1.0"}, [mended]),
    }
    for name, (about, advisories) in pages.items():
        page = tmp_path / "pypi" / name / "json"
        page.parent.mkdir(parents=True)
        page.write_text(json.dumps({"info": about, "vulnerabilities": advisories}))
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("pins", "exceptions", "expected"),
    [
        ("sound mended", set(), (0, "2 of 2 pins are known, 0 advisories")),
        ("sound holed old", set(), (1, "holed 1.0: CVE-1, PYSEC-1")),
        ("sound holed", {"CVE-1"}, (0, "2 of 2 pins are known, 0 advisories")),
        ("sound old", set(), (3, "1 of 2 pins are known, 0 advisories")),
        ("old", set(), (3, "old 1.0, not 2.0: nothing holds it: delete its line")),
        ("late", set(), (3, "late 1.0, not 2.0: it wants Python >=3.99\n")),
        ("sound torn old", set(), (3, "torn 1.0, not 2.0: it wants sound >=2\n")),
        ("ray", set(), (3, f"ray 1.0, not 999.0: historay {version()} wants ==")),
        ("nowhere", set(), (3, "nowhere 1.0: its project has no page")),
    ],
)
def test_the_audit_by_newest_versions_tells_what_it_knows(
    project_pages: str,
    capsys: pytest.CaptureFixture[str],
    pins: str,
    exceptions: set[str],
    expected: tuple[int, str],
) -> None:
    ended = audit("".join(f"{name}==1.0\n" for name in pins.split()), exceptions, project_pages)
    assert (ended, expected[1] in capsys.readouterr().out) == (expected[0], True)


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
