"""What must hold of the manifests beyond their form: that they run this code, and are safe to run.

Each rule is a generator of sentences; none means that all is well. A rule gets all manifests of an
overlay at once, since half of them speak of what the other half defines.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from ray_pipeline.redaction import holds_secret
from tests.infra.kustomize import Manifest
from tests.infra.pods import Group, cluster_of, groups_of, quantity, workers_of

ROOT = Path(__file__).resolve().parents[2]
_PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
RAY_VERSION = re.findall(r'"ray\[data,serve\]==([0-9.]+)"', _PROJECT)[0]
"""As pyproject.toml states it; nowhere else in this repository is it decided."""
VERSION = re.findall(r'^version = "([^"]+)"', _PROJECT, re.MULTILINE)[0]
"""Ours."""
RESOURCES = ("cpu", "memory", "ephemeral-storage")
SECRETS = {
    one["metadata"]["name"]: set(one["stringData"])
    for one in yaml.safe_load_all((ROOT / "infra/kuberay/secrets.example.yaml").read_text())
}
"""Secrets that an operator is told to make, and their keys."""

Rule = Callable[[Sequence[Manifest]], Iterator[str]]


def versions(manifests: Sequence[Manifest]) -> Iterator[str]:
    """One Ray, ours, in every image that has a name for good."""
    tag = f"{VERSION}-ray{RAY_VERSION}"
    for manifest in manifests:
        cluster = cluster_of(manifest)
        if cluster and cluster["rayVersion"] != RAY_VERSION:
            yield (
                f"{manifest['kind']}: rayVersion {cluster['rayVersion']}, but pyproject.toml says "
                f"{RAY_VERSION}"
            )
        for where, _, container in containers(manifest):
            found = container["image"].partition(":")[2]
            if found != tag:
                yield f"{where}: image {container['image']} has not the tag {tag}"


def limits(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Every container says what it takes, and memory is not promised twice."""
    for manifest in manifests:
        for where, _, container in containers(manifest):
            said = container.get("resources", {})
            for bound in ("requests", "limits"):
                for resource in RESOURCES:
                    if resource not in said.get(bound, {}):
                        yield f"{where}: no {bound} of {resource}"
            if said.get("requests", {}).get("memory") != said.get("limits", {}).get("memory"):
                yield f"{where}: more memory may be used than is asked for"


def hardening(manifests: Sequence[Manifest]) -> Iterator[str]:
    """What Kubernetes' restricted level wants, and some more."""
    for manifest in manifests:
        labels = manifest["metadata"].get("labels", {})
        enforced = labels.get("pod-security.kubernetes.io/enforce")
        if manifest["kind"] == "Namespace" and enforced != "restricted":
            yield "the namespace does not enforce the restricted level"
        for group in groups_of(manifest):
            where = f"{manifest['kind']}, {group.name}"
            said = group.pod.get("securityContext", {})
            if said.get("runAsNonRoot") is not True or not said.get("runAsUser"):
                yield f"{where}: may run as root"
            if said.get("seccompProfile") != {"type": "RuntimeDefault"}:
                yield f"{where}: no seccomp profile"
            if group.pod.get("enableServiceLinks") is not False:
                yield f"{where}: variables of all services of the namespace come in"
            if group.pod.get("automountServiceAccountToken") is not (group.name == "head"):
                yield f"{where}: only heads, for their autoscaler, have a token of Kubernetes"
            for unwanted in ("hostNetwork", "hostPID", "hostIPC"):
                if group.pod.get(unwanted):
                    yield f"{where}: {unwanted}"
            if any("hostPath" in volume for volume in group.pod.get("volumes", ())):
                yield f"{where}: a folder of the node"
        for where, _, container in containers(manifest):
            if container.get("securityContext") != {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }:
                yield f"{where}: its securityContext leaves it more than it needs"


def memory(manifests: Sequence[Manifest]) -> Iterator[str]:
    """/dev/shm is memory with a limit, holds Ray's object store, and is counted once."""
    for manifest in manifests:
        for group in groups_of(manifest):
            if group.name == "submitter":
                continue
            where = f"{manifest['kind']}, {group.name}"
            mounts = {mount["mountPath"]: mount["name"] for mount in group.ray["volumeMounts"]}
            volumes = {volume["name"]: volume for volume in group.pod["volumes"]}
            shm = volumes.get(mounts.get("/dev/shm", ""), {}).get("emptyDir", {})
            if shm.get("medium") != "Memory" or "sizeLimit" not in shm:
                yield f"{where}: /dev/shm is no memory with a limit"
                continue
            shm_bytes = quantity(shm["sizeLimit"])
            if int(group.params["object-store-memory"]) > shm_bytes:
                yield f"{where}: Ray's object store is larger than /dev/shm"
            if int(group.params["memory"]) + shm_bytes > group.limit("memory"):
                yield f"{where}: memory for tasks and /dev/shm are more than the container's limit"
            scratch = volumes.get(mounts.get("/tmp", ""), {}).get("emptyDir", {})
            if quantity(scratch.get("sizeLimit", "0")) > group.limit("ephemeral-storage"):
                yield f"{where}: /tmp is larger than the container's ephemeral storage"


def placing(manifests: Sequence[Manifest]) -> Iterator[str]:
    """No work on heads; of the groups with GPUs, the autoscaler chooses by priority."""
    for manifest in manifests:
        for group in groups_of(manifest):
            if group.name == "head" and group.params.get("num-cpus") != "0":
                yield f"{manifest['kind']}, head: Ray would run tasks there"
        offers = [
            (group.name, group.spec.get("priority"), [group.limit(one) for one in RESOURCES])
            for group in workers_of(manifest)
            if group.limit("nvidia.com/gpu")
        ]
        if len(offers) > 1 and any(offer[2] != offers[0][2] for offer in offers):
            yield f"{manifest['kind']}: groups with GPUs offer different resources"
        if len(offers) > 1 and len({offer[1] for offer in offers}) < len(offers):
            yield f"{manifest['kind']}: groups with GPUs have no order of priority"


def secrecy(manifests: Sequence[Manifest]) -> Iterator[str]:
    """No secret is written down, and Ray's own ports want a token."""
    for manifest in manifests:
        where = f"{manifest['kind']} {manifest['metadata']['name']}"
        if manifest["kind"] == "Secret":
            yield f"{where}: secrets are made by hand, or by an operator for secrets"
        if holds_secret(yaml.safe_dump(manifest, width=10_000)):
            yield f"{where}: holds what looks like a secret"
        cluster = cluster_of(manifest)
        if cluster and cluster.get("authOptions", {}).get("mode") != "token":
            yield f"{where}: Ray's ports are open to all who reach them"
        for place, _, container in containers(manifest):
            for variable in container.get("env", ()):
                named = re.search(r"SECRET|PASSWORD|TOKEN|_KEY", variable["name"])
                if named and "value" in variable:
                    yield f"{place}: {variable['name']} is written down"


def references(manifests: Sequence[Manifest]) -> Iterator[str]:
    """What is spoken of exists: accounts, priorities, ConfigMaps, secrets, labels."""
    known = {(one["kind"], one["metadata"]["name"]) for one in manifests}
    for manifest in manifests:
        for group in groups_of(manifest):
            for kind, name in _spoken_of(group):
                if (kind, name) not in known and not (kind == "Secret" and name in SECRETS):
                    yield f"{manifest['kind']}, {group.name}: there is no {kind} {name}"
        cluster = cluster_of(manifest) or {}
        token = cluster.get("authOptions", {}).get("secretName")
        if token and "auth_token" not in SECRETS.get(token, ()):
            yield f"{manifest['kind']}: there is no secret {token} with the key auth_token"
    labelled = {
        group.template["metadata"]["labels"].get("historay/workload")
        for manifest in manifests
        for group in groups_of(manifest)
    }
    spoken = set(
        re.findall(
            r"historay/workload'?: '?([a-z]+)",
            " ".join(str(one["spec"]) for one in manifests if one["kind"] == "NetworkPolicy"),
        )
    )
    for workload in sorted(spoken ^ labelled, key=str):
        yield f"historay/workload {workload}: pods and network policies do not agree"


def network(manifests: Sequence[Manifest]) -> Iterator[str]:
    """All is denied first, and no port is open to everybody."""
    policies = [one for one in manifests if one["kind"] == "NetworkPolicy"]
    deny = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    if policies and not any(policy["spec"] == deny for policy in policies):
        yield "no network policy denies everything first"
    for policy in policies:
        name = policy["metadata"]["name"]
        for rule in policy["spec"].get("ingress", ()):
            if not rule.get("from"):
                yield f"network policy {name}: open to everybody"
        for rule in policy["spec"].get("egress", ()):
            if not rule.get("to") or (_anywhere(rule) and not rule.get("ports")):
                yield f"network policy {name}: lets everything out"


def operator(manifests: Sequence[Manifest]) -> Iterator[str]:
    """What KubeRay refuses though its schema allows it.

    Source: KubeRay, ray-operator/controllers/ray/utils/validation.go.
    """
    for manifest in manifests:
        spec, cluster = manifest.get("spec", {}), cluster_of(manifest)
        if cluster is None:
            continue
        where = manifest["kind"]
        if spec.get("ttlSecondsAfterFinished") and not spec.get("shutdownAfterJobFinishes"):
            yield f"{where}: ttlSecondsAfterFinished takes shutdownAfterJobFinishes"
        strategy = spec.get("upgradeStrategy", {})
        if strategy.get("type") == "NewClusterWithIncrementalUpgrade":
            options = strategy.get("clusterUpgradeOptions")
            if options is None or not cluster.get("enableInTreeAutoscaling"):
                yield f"{where}: an upgrade in steps takes its options, and the autoscaler"
            elif options["stepSizePercent"] > options.get("maxSurgePercent", 100):
                yield f"{where}: stepSizePercent is above maxSurgePercent"
        for group in groups_of(manifest):
            if group.spec.get("minReplicas", 0) > group.spec.get("maxReplicas", 0):
                yield f"{where}, {group.name}: minReplicas is above maxReplicas"
            if group.name != "submitter" and group.pod.get("restartPolicy", "Never") != "Never":
                yield f"{where}, {group.name}: the autoscaler wants restartPolicy Never"
            if "labels" in group.params:
                yield f"{where}, {group.name}: labels belong beside rayStartParams"


def containers(manifest: Manifest) -> Iterator[tuple[str, Group, dict[str, Any]]]:
    """All containers: what to call it, its group, itself."""
    for group in groups_of(manifest):
        for container in group.pod["containers"]:
            yield f"{manifest['kind']}, {group.name}, {container['name']}", group, container


def _spoken_of(group: Group) -> Iterator[tuple[str, str]]:
    yield "ServiceAccount", group.pod.get("serviceAccountName", "default")
    yield "PriorityClass", group.pod.get("priorityClassName", "none")
    for volume in group.pod.get("volumes", ()):
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"]
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"]
    for container in group.pod["containers"]:
        for source in container.get("envFrom", ()):
            yield "Secret", source["secretRef"]["name"]


def _anywhere(rule: dict[str, Any]) -> bool:
    return any(peer.get("ipBlock", {}).get("cidr") == "0.0.0.0/0" for peer in rule["to"])


RULES: tuple[Rule, ...] = (
    *(versions, limits, hardening, memory, placing),
    *(secrecy, references, network, operator),
)
