"""`python -m tests.infra.materials FILE ENVIRONMENT`: what a bill of materials lacks.

It names every distribution of the environment with the version that is there, and says of each
where it comes from. Ends with 1 where there is anything to say.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name


def material_problems(bill: dict[str, Any], installed: Iterable[Distribution]) -> Iterator[str]:
    """One sentence for each difference between a CycloneDX bill and what is installed."""
    parts = [*bill.get("components", []), bill.get("metadata", {}).get("component", {})]
    named = {canonicalize_name(part["name"]): part for part in parts if "name" in part}
    for distribution in installed:
        name = canonicalize_name(distribution.metadata["Name"])
        part = named.pop(name, None)
        if part is None:
            yield f"{name} is not in the bill"
        elif part.get("version") != distribution.version:
            yield f"{name} is {distribution.version}, and {part.get('version')} in the bill"
        elif name != "historay" and not str(part.get("purl", "")).startswith("pkg:pypi/"):
            yield f"{name} has no package URL"
    yield from (f"{name} is in the bill alone" for name in sorted(named))


def main(file: str, environment: str) -> int:
    """Compare, and print what there is to say."""
    folders = [str(path) for path in Path(environment).glob("lib/python*/site-packages")]
    bill = json.loads(Path(file).read_text())
    told = list(material_problems(bill, distributions(path=folders)))
    sys.stdout.writelines(f"{sentence}\n" for sentence in told)
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
