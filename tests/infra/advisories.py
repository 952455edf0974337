"""`python -m tests.infra.advisories`: known advisories of pins that are their project's newest.

For where a mirror of PyPI has no pages of single versions, of which pip-audit asks: the page of a
project tells the advisories of its newest version. Of a pin that is not, it tells what keeps it
from being, or that nothing does. Ends with 1 where a pin has an advisory that is no exception, with
3 where some pins can't be known (a newer version is out, or there is no page), and with 0 where all
are known to have none.
"""

from __future__ import annotations

import json
import re
import sys
import urllib.request
from collections.abc import Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import distributions, metadata
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

INDEX = "https://pypi.org"
OLDEST_PYTHON = metadata("historay")["Requires-Python"].removeprefix(">=")
"""The oldest that historay runs on; what its pins are resolved for."""
AT_ONCE = 8
"""Pages asked for side by side."""


@dataclass(frozen=True)
class Pin:
    """A line of constraints.txt, and what is known of it."""

    name: str
    version: str
    advisories: tuple[frozenset[str], ...] | None = None
    """The ids of each, all that it goes by; None where nothing is known."""
    newest: str = ""
    """The version that its project's page tells of; empty where there is no page."""
    held_by: tuple[str, ...] = ()
    """What keeps it from being the newest."""

    def __str__(self) -> str:
        """Of a pin of which nothing is known: why."""
        if not self.newest:
            return f"{self.name} {self.version}: its project has no page"
        why = "; ".join(self.held_by) or "nothing holds it: delete its line and run `make lock`"
        return f"{self.name} {self.version}, not {self.newest}: {why}"


def pins_of(constraints: str) -> list[Pin]:
    """The pins of a constraints file."""
    return [Pin(*found) for found in re.findall(r"(?m)^([\w.-]+)==([^\s;]+)", constraints)]


def asked(pin: Pin, pins: dict[str, str], index: str) -> Pin:
    """The pin with what its project's page tells; `pins`: the versions of all, by name."""
    try:
        with urllib.request.urlopen(f"{index}/pypi/{pin.name}/json", timeout=30) as reply:
            page: dict[str, Any] = json.load(reply)
        about = page["info"]
        newest = about["version"]
        if newest != pin.version:
            held_by = tuple(dict.fromkeys(holders(pin.name, about, pins)))
            return replace(pin, newest=newest, held_by=held_by)
        standing = (one for one in page["vulnerabilities"] if not one.get("withdrawn"))
        ids = tuple(frozenset((one["id"], *one.get("aliases", ()))) for one in standing)
    except (OSError, ValueError, KeyError):
        return pin
    return replace(pin, advisories=ids, newest=newest)


def holders(name: str, newest: dict[str, Any], pins: dict[str, str]) -> Iterator[str]:
    """What forbids the newest version of a package: Python's, what is installed, what it wants."""
    version, python = newest["version"], newest.get("requires_python") or ""
    if not SpecifierSet(python).contains(OLDEST_PYTHON):
        yield f"it wants Python {python}"
    for distribution in distributions():
        for wanted in map(Requirement, distribution.requires or ()):
            if canonicalize_name(wanted.name) == name and not wanted.specifier.contains(version):
                yield f"{distribution.name} {distribution.version} wants {wanted.specifier}"
    for wanted in map(Requirement, newest.get("requires_dist") or ()):
        pinned = pins.get(canonicalize_name(wanted.name), "")
        optional = wanted.marker and not wanted.marker.evaluate({"extra": ""})
        if pinned and not optional and not wanted.specifier.contains(pinned):
            yield f"it wants {wanted.name} {wanted.specifier}"


def audit(constraints: str, exceptions: Set[str], index: str = INDEX) -> int:
    """Ask for every pin of a constraints file, and print what there is to say."""
    versions = {pin.name: pin.version for pin in pins_of(constraints)}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        pins = list(pool.map(lambda pin: asked(pin, versions, index), pins_of(constraints)))
    unknown = [pin for pin in pins if pin.advisories is None]
    found = [
        f"{pin.name} {pin.version}: {', '.join(sorted(ids))}"
        for pin in pins
        for ids in pin.advisories or ()
        if not ids & exceptions
    ]
    sys.stdout.writelines(f"{line}\n" for line in found)
    sys.stdout.writelines(f"not known: {pin}\n" for pin in unknown)
    known = len(pins) - len(unknown)
    sys.stdout.write(f"{known} of {len(pins)} pins are known, {len(found)} advisories\n")
    return 1 if found else 3 if unknown else 0


def main() -> int:
    """Of this tree's pins and exceptions."""
    lines = (ROOT / ".ci" / "audit-exceptions").read_text().splitlines()
    exceptions = {line.split()[0] for line in lines if line and not line.startswith("#")}
    return audit((ROOT / "constraints.txt").read_text(), exceptions)


if __name__ == "__main__":
    sys.exit(main())
