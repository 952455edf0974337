"""The form of the manifests: the one that Kubernetes, KubeRay and Prometheus know."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from jsonschema import Draft202012Validator

from tests.infra.kustomize import Manifest
from tests.infra.pods import groups_of

KUBERNETES = "1.32"
"""The oldest version that the manifests are for."""
SCHEMA: dict[str, Any] = yaml.safe_load(
    (Path(__file__).parent / "kuberay.schema.yaml").read_text(encoding="utf-8")
)
CUSTOM = {"RayJob", "RayService", "PodMonitor"}
"""Kinds of that schema. All others are Kubernetes' own."""


def schema_problems(manifest: Manifest) -> Iterator[str]:
    """One sentence for each thing that the schemas do not allow."""
    kind = manifest.get("kind")
    if kind is None or "apiVersion" not in manifest:
        yield "there is no kind, or no apiVersion"
        return
    where = f"{kind} {manifest.get('metadata', {}).get('name')}"
    if kind not in CUSTOM:
        yield from _of_kubernetes(where, manifest)
        return
    schema = {"$ref": f"#/$defs/{kind}", "$defs": SCHEMA["$defs"]}
    found = list(Draft202012Validator(schema).iter_errors(manifest))
    for error in found:
        path = ".".join(str(part) for part in error.absolute_path)
        yield f"{where}: {path}: {error.message}"
    if found:
        return
    for group in groups_of(manifest):
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "template": group.template}
        yield from _of_kubernetes(f"{where}, {group.name}", pod)


def _of_kubernetes(where: str, manifest: Manifest) -> Iterator[str]:
    if problem := _first_problem(json.dumps(manifest)):
        yield f"{where}: {problem}"


@cache
def _first_problem(manifest: str) -> str | None:
    """Kept, for kubernetes-validate reads megabytes of schema each time."""
    try:
        kubernetes_validate.validate(json.loads(manifest), KUBERNETES, strict=True)
    except kubernetes_validate.SchemaNotFoundError as error:
        return f"Kubernetes {error.version} has no {error.kind} of {error.api_version}"
    except kubernetes_validate.ValidationError as error:
        return f"{'.'.join(str(part) for part in error.path)}: {error.message}"
    return None


def origins(node: Any) -> Iterator[tuple[str, str | None]]:
    """Every field of the schema, and the type and field that it says it comes from."""
    if isinstance(node, list):
        for item in node:
            yield from origins(item)
    elif isinstance(node, dict):
        for field, schema in node.get("properties", {}).items():
            yield field, schema.get("$comment")
        for value in node.values():
            yield from origins(value)
