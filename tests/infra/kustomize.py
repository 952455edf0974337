"""What `kubectl kustomize` prints, for the features that infra/kuberay uses and no others.

The tests run where no kubectl is; where there is one, `test_kuberay.py` compares the two.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonpatch
import yaml

Manifest = dict[str, Any]

KNOWN = {
    *("apiVersion", "kind", "namespace", "resources", "components"),
    *("configMapGenerator", "patches", "images"),
}
OF_THE_CLUSTER = {"PriorityClass"}
"""Kinds that have no namespace. A Namespace itself takes the name of what it is put into."""


def render(folder: Path) -> list[Manifest]:
    """The manifests of a folder with a kustomization. Raises ValueError for unknown features."""
    return _accumulated(folder, [])


def documents(file: Path) -> list[Manifest]:
    """All manifests of a YAML file."""
    return [_unshared(one) for one in yaml.safe_load_all(file.read_text()) if one]


def _accumulated(folder: Path, so_far: list[Manifest]) -> list[Manifest]:
    said = yaml.safe_load((folder / "kustomization.yaml").read_text())
    if unknown := set(said) - KNOWN:
        raise ValueError(f"{folder}: this renderer does not know {', '.join(sorted(unknown))}")
    found = so_far
    for resource in said.get("resources", ()):
        path = folder / resource
        found = [*found, *(render(path) if path.is_dir() else documents(path))]
    for component in said.get("components", ()):
        found = _accumulated((folder / component).resolve(), found)
    found = [*found, *(_config_map(folder, one) for one in said.get("configMapGenerator", ()))]
    found = [_patched(folder, one, said.get("patches", ())) for one in found]
    for manifest in found:
        if namespace := said.get("namespace"):
            _put_into(manifest, namespace)
        for image in said.get("images", ()):
            _set_image(manifest, image)
    return found


def _config_map(folder: Path, said: dict[str, Any]) -> Manifest:
    if said["options"] != {"disableNameSuffixHash": True} or set(said) != {
        *("name", "files", "options"),
    }:
        raise ValueError(f"{folder}: this renderer makes ConfigMaps of files, without a hash, only")
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": said["name"]},
        "data": {Path(name).name: (folder / name).read_text() for name in said["files"]},
    }


def _patched(folder: Path, manifest: Manifest, patches: Any) -> Manifest:
    for patch in patches:
        target = patch["target"]
        if unknown := set(target) - {"kind", "name"}:
            raise ValueError(f"{folder}: this renderer does not know targets by {unknown}")
        if manifest["kind"] != target["kind"]:
            continue
        if not re.fullmatch(target.get("name", ".*"), manifest["metadata"]["name"]):
            continue
        text = (folder / patch["path"]).read_text() if "path" in patch else patch["patch"]
        manifest = jsonpatch.apply_patch(manifest, _unshared(yaml.safe_load(text)))
    return manifest


def _unshared(node: Any) -> Any:
    """A copy in which what YAML's anchors share is there as often as it is spoken of."""
    return json.loads(json.dumps(node))


def _put_into(manifest: Manifest, namespace: str) -> None:
    if manifest["kind"] == "Namespace":
        manifest["metadata"]["name"] = namespace
    elif manifest["kind"] not in OF_THE_CLUSTER:
        manifest["metadata"]["namespace"] = namespace


def _set_image(node: Any, image: dict[str, str]) -> None:
    """Name and tag of an image, wherever containers are listed."""
    if isinstance(node, list):
        for item in node:
            _set_image(item, image)
    elif isinstance(node, dict):
        for container in [*node.get("containers", ()), *node.get("initContainers", ())]:
            if re.split("[:@]", container.get("image", ""))[0] == image["name"]:
                container["image"] = f"{image['newName']}:{image['newTag']}"
        for item in node.values():
            _set_image(item, image)
