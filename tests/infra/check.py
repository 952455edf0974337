"""`python -m tests.infra.check FILE...`: what is wrong with manifests, and what is left to edit.

Cluster files of `ray up`, Serve configs and job files, told apart by their keys. Ends with 1 where
there is anything to say.
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from ray_pipeline.errors import SettingsError
from ray_pipeline.settings import load_settings
from tests.infra.clusters import cluster_problems
from tests.infra.placeholders import placeholders
from tests.infra.services import service_problems
from tests.infra.strict import read_yaml


def problems_of(path: Path) -> list[str]:
    """One sentence for each thing that is wrong with a manifest."""
    try:
        said = read_yaml(path.read_text())
    except yaml.YAMLError as error:
        return [" ".join(str(error).split())]
    if not isinstance(said, dict):
        return ["it holds no keys and values"]
    if "applications" in said or "http_options" in said:
        return service_problems(said)
    if "provider" in said or "available_node_types" in said:
        return cluster_problems(said)
    try:
        load_settings(str(path), {})
    except SettingsError as error:
        return [str(error)]
    return []


def main(names: list[str]) -> int:
    """Check the files, and print what there is to say."""
    told = 0
    for name in names:
        path = Path(name)
        left = sorted(placeholders(path.read_text()))
        for sentence in [*problems_of(path), *(f"{word} is left to edit" for word in left)]:
            sys.stdout.write(f"{name}: {sentence}\n")
            told += 1
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
