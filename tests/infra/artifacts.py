"""`python -m tests.infra.artifacts dist/`: what is wrong with a built wheel and sdist.

They hold every file of the packages, and nothing that is no part of a release. Ends with 1 where
there is anything to say.
"""

from __future__ import annotations

import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT

PACKAGES = ("ray_pipeline", "serve_app")
BESIDE = {"CHANGELOG.md", "LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "constraints.txt"}
"""What an sdist holds besides the packages, pyproject.toml and what setuptools writes."""
WRITTEN = ("historay.egg-info/", "setup.cfg")


def version() -> str:
    """The version, from the one place that states it."""
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert isinstance(stated, str)
    return stated


def source_files() -> set[str]:
    """The files that the packages must have, relative to the root."""
    found = (path for package in PACKAGES for path in (ROOT / package).rglob("*"))
    # What Python keeps of what it compiled is its own.
    files = (path for path in found if path.is_file() and path.parent.name != "__pycache__")
    # Without the marker nobody's type checker looks at our types, and nothing else tells.
    typed = (f"{package}/py.typed" for package in PACKAGES)
    return {*typed, *(str(path.relative_to(ROOT)) for path in files)}


def wheel_problems(wheel: Path) -> Iterator[str]:
    """One sentence for each thing that is wrong with a wheel."""
    if not wheel.name.startswith(f"historay-{version()}-"):
        yield f"{wheel.name} is not of version {version()}"
    names = set(zipfile.ZipFile(wheel).namelist())
    about = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    yield from _unlike(names - about, source_files(), wheel.name)
    if not any(name.endswith("licenses/LICENSE") for name in about):
        yield f"{wheel.name} lacks its licence"


def sdist_problems(sdist: Path) -> Iterator[str]:
    """One sentence for each thing that is wrong with an sdist."""
    root = f"historay-{version()}"
    if sdist.name != f"{root}.tar.gz":
        yield f"{sdist.name} is not of version {version()}"
    with tarfile.open(sdist) as archive:
        files = [member.name for member in archive.getmembers() if member.isfile()]
    names = {name.partition("/")[2] for name in files}
    kept = {name for name in names if not name.startswith(WRITTEN)}
    yield from _unlike(kept, source_files() | BESIDE | {"pyproject.toml"}, sdist.name)


def _unlike(found: set[str], wanted: set[str], where: str) -> Iterator[str]:
    yield from (f"{where} lacks {name}" for name in sorted(wanted - found))
    yield from (f"{where} holds {name}" for name in sorted(found - wanted))


def main(folder: str) -> int:
    """Check what lies in the folder, and print what there is to say."""
    wheels, sdists = (sorted(Path(folder).glob(f"*.{kind}")) for kind in ("whl", "tar.gz"))
    told = [] if len(wheels) == len(sdists) == 1 else [f"{folder} holds not one of each"]
    told += [said for wheel in wheels for said in wheel_problems(wheel)]
    told += [said for sdist in sdists for said in sdist_problems(sdist)]
    sys.stdout.writelines(f"{sentence}\n" for sentence in told)
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
