"""The pods that KubeRay makes of a RayJob or a RayService, as far as the manifests tell."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.infra.kustomize import Manifest

CLUSTER_KEYS = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
"""Where a resource keeps the specification of its Ray cluster."""
_SUFFIXES = {"m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9} | {
    f"{letter}i": 1024.0**power for power, letter in enumerate("KMGT", start=1)
}


@dataclass(frozen=True, kw_only=True)
class Group:
    """A kind of pod."""

    name: str
    """`submitter`, `head`, or the group's own name."""
    template: dict[str, Any]
    """A PodTemplateSpec, with the containers that the operator adds and our manifests describe."""
    params: dict[str, str]
    """Arguments of `ray start`."""
    spec: dict[str, Any]
    """The whole group, of workers."""

    @property
    def pod(self) -> dict[str, Any]:
        """A PodSpec."""
        spec: dict[str, Any] = self.template["spec"]
        return spec

    @property
    def ray(self) -> dict[str, Any]:
        """The container that Ray runs in."""
        first: dict[str, Any] = self.pod["containers"][0]
        return first

    def limit(self, resource: str) -> float:
        """A limit of that container; 0 where there is none."""
        limits = self.ray.get("resources", {}).get("limits", {})
        return quantity(limits.get(resource, "0"))


def cluster_of(manifest: Manifest) -> dict[str, Any] | None:
    """The RayClusterSpec in it, if any."""
    key = CLUSTER_KEYS.get(manifest["kind"])
    found: dict[str, Any] | None = manifest["spec"].get(key) if key else None
    return found


def groups_of(manifest: Manifest) -> Iterator[Group]:
    """All kinds of pods of a RayJob or RayService; none of anything else."""
    cluster = cluster_of(manifest)
    if cluster is None:
        return
    if submitter := manifest["spec"].get("submitterPodTemplate"):
        yield Group(name="submitter", template=submitter, params={}, spec={})
    head = cluster["headGroupSpec"]
    spec = head["template"].get("spec", {})
    containers = spec.get("containers", [])
    options = cluster.get("autoscalerOptions", {})
    fields = ("securityContext", "env", "resources", "volumeMounts")
    autoscaler = {
        "name": "autoscaler",
        "image": containers[0].get("image", "") if containers else "",
        **{field: options[field] for field in fields if field in options},
    }
    template = {
        **head["template"],
        "spec": {**spec, "containers": [*containers, autoscaler]},
    }
    yield Group(name="head", template=template, params=head["rayStartParams"], spec=head)
    for worker in cluster["workerGroupSpecs"]:
        yield Group(
            name=worker["groupName"],
            template=worker["template"],
            params=worker["rayStartParams"],
            spec=worker,
        )


def workers_of(manifest: Manifest) -> list[Group]:
    """The groups that tasks and actors run in."""
    return [group for group in groups_of(manifest) if group.name not in ("submitter", "head")]


def quantity(text: str) -> float:
    """A quantity of Kubernetes, such as `500m` or `8Gi`, as a number."""
    found = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(text))
    if found is None or found[2] not in _SUFFIXES:
        raise ValueError(f"'{text}' is no quantity")
    return float(found[1]) * _SUFFIXES[found[2]]
