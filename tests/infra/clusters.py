"""What must hold of a cluster file for `ray up`: what Ray checks, and what Ray lets pass.

Ray's schema knows the keys of a file and of a node type, but takes any of `provider` and anything
for a `node_config`, and a misspelled key of a cloud would quietly give machines that are not spot,
not encrypted, or open. So these are held against the clouds' own descriptions of their APIs.
"""

from __future__ import annotations

import copy
import io
import json
import re
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
import click
import jsonschema
import ray.autoscaler
from botocore.validate import ParamValidator
from googleapiclient.discovery_cache import get_static_doc
from ray.autoscaler._private.util import prepare_config, validate_config

from ray_pipeline.settings import JobSettings

SCHEMA = Path(ray.autoscaler.__file__).parent / "ray-schema.json"
RAYS_REFUSALS = (
    click.ClickException,
    jsonschema.ValidationError,
    AssertionError,
    KeyError,
    NotImplementedError,
    ValueError,
)
HEAD_VARIABLES = ("RAY_AUTH_MODE=token", "RAY_JOB_STOP_WAIT_TIME_S=", "HISTORAY_CACHE=")
WORKER_VARIABLES = ("RAY_AUTH_MODE=token", "HISTORAY_CACHE=")


def cluster_problems(cluster: Any) -> list[str]:
    """One sentence for each thing that is wrong with a cluster file; none where all is well."""
    try:
        # Ray prints what it warns of.
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            validate_config(prepare_config(copy.deepcopy(cluster)))
    except RAYS_REFUSALS as error:
        return [f"Ray refuses it: {str(error).splitlines()[0]}"]
    return list(_problems(cluster))


def node_types(cluster: dict[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The head's node type, and those of the workers by name."""
    workers = dict(cluster["available_node_types"])
    return workers.pop(cluster["head_node_type"]), workers


def _problems(cluster: dict[str, Any]) -> Iterator[str]:
    provider = cluster["provider"]
    known = json.loads(SCHEMA.read_text())["properties"]["provider"]["properties"]
    yield from (f"provider.{key} is no known key" for key in provider.keys() - known.keys())
    if provider.get("cache_stopped_nodes") is not False:
        yield "provider.cache_stopped_nodes is not false: stopped nodes keep their disks and bills"
    head, workers = node_types(cluster)
    if head["resources"] != {"CPU": 0, "GPU": 0}:
        yield "the head has resources: tasks and actors would run beside what schedules them"
    for name, worker in workers.items():
        if worker.get("max_workers", 0) > cluster["max_workers"]:
            yield f"{name}: max_workers is more than the cluster's"
    cloud = {"aws": _aws_problems, "gcp": _gcp_problems}.get(provider["type"])
    if cloud is None:
        yield f"provider.type {provider['type']} is not one that is checked here"
    else:
        for name, node_type in cluster["available_node_types"].items():
            is_head = name == cluster["head_node_type"]
            yield from (f"{name}: {said}" for said in cloud(node_type["node_config"], is_head))
    yield from _auth_problems(cluster)
    yield from _start_problems(cluster)


def _auth_problems(cluster: dict[str, Any]) -> Iterator[str]:
    if "ssh_private_key" not in cluster.get("auth", {}):
        yield "auth.ssh_private_key is missing: Ray would make a key of its own"
    if "~/.ray/auth_token" not in cluster.get("file_mounts", {}):
        yield "file_mounts lacks ~/.ray/auth_token: nodes could not speak to each other"
    for key, value in _said(cluster):
        if re.search(r"(?i)secret|password|access_?key|credentials", key):
            yield f"{key} has no place in a file: give nodes a role"
        if re.search(r"AKIA[0-9A-Z]{16}|-----BEGIN|\"private_key\"", str(value)):
            yield f"{key} holds a secret"


def _start_problems(cluster: dict[str, Any]) -> Iterator[str]:
    for kind, variables in (("head", HEAD_VARIABLES), ("worker", WORKER_VARIABLES)):
        said = " ".join(cluster.get(f"{kind}_start_ray_commands", ()))
        for variable in variables:
            if variable not in said:
                yield f"{kind}_start_ray_commands lacks {variable}"
        if "--disable-usage-stats" not in said:
            yield f"{kind}_start_ray_commands lacks --disable-usage-stats"
    head = " ".join(cluster.get("head_start_ray_commands", ()))
    if "--dashboard-host=127.0.0.1" not in head:
        yield "the dashboard, which takes jobs, is not on the head's loopback alone"
    if "--num-cpus=0" not in head:
        yield "head_start_ray_commands lacks --num-cpus=0"
    grace_s = JobSettings.model_fields["stop_grace_s"].default
    wait = re.search(r"RAY_JOB_STOP_WAIT_TIME_S=(\d+)", head)
    if wait and int(wait[1]) <= grace_s:
        yield f"RAY_JOB_STOP_WAIT_TIME_S is not above stop_grace_s, {grace_s:g} s"


@cache
def _run_instances() -> Any:
    model = botocore.session.Session().get_service_model("ec2")
    return model.operation_model("RunInstances").input_shape


@cache
def _compute_schemas() -> dict[str, Any]:
    schemas: dict[str, Any] = json.loads(get_static_doc("compute", "v1"))["schemas"]
    return schemas


def _aws_problems(node: dict[str, Any], is_head: bool) -> Iterator[str]:
    request = {key: value for key, value in node.items() if key != "SubnetIds"}
    # What Ray adds to the request by itself.
    request |= {"MinCount": 1, "MaxCount": 1, "SubnetId": "".join(node.get("SubnetIds", [])[:1])}
    report = ParamValidator().validate(request, _run_instances())
    if report.has_errors():
        yield from report.generate_report().splitlines()
        return
    for key, why in (
        (
            "IamInstanceProfile",
            "Ray would let the head do anything in EC2 and S3",
        ),
        ("SecurityGroupIds", "Ray would let the whole world in by SSH"),
        ("SubnetIds", "Ray would take any subnet"),
        ("KeyName", "Ray could not enter"),
        ("ImageId", "there is nothing to start"),
    ):
        if not node.get(key):
            yield f"{key} is missing: {why}"
    metadata = node.get("MetadataOptions", {})
    if metadata.get("HttpTokens") != "required":
        yield "MetadataOptions.HttpTokens is not 'required': IMDSv1 gives the role to any request"
    if metadata.get("HttpPutResponseHopLimit") != 1:
        yield "MetadataOptions.HttpPutResponseHopLimit is not 1: containers reach the role"
    disks = [mapping.get("Ebs", {}) for mapping in node.get("BlockDeviceMappings", [])]
    if not disks or any(disk.get("Encrypted") is not True for disk in disks):
        yield "a disk is not encrypted"
    if any(disk.get("DeleteOnTermination") is not True for disk in disks):
        yield "a disk outlives its machine"
    spot = node.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
    if spot is is_head:
        yield "the head is a spot machine" if is_head else "the worker is no spot machine"


def _gcp_problems(node: dict[str, Any], is_head: bool) -> Iterator[str]:
    schemas = _compute_schemas()
    if unlike := list(_unlike(node, {"$ref": "Instance"}, schemas, "")):
        yield from unlike
        return
    accounts = node.get("serviceAccounts", [])
    if len(accounts) != 1:
        yield "serviceAccounts does not name one: the project's own may do nearly anything"
    interfaces = node.get("networkInterfaces", [])
    if not interfaces:
        yield "networkInterfaces is missing: Ray would give it a public address"
    if any("accessConfigs" in interface for interface in interfaces):
        yield "a network interface has a public address"
    items = node.get("metadata", {}).get("items", [])
    if {"key": "block-project-ssh-keys", "value": "true"} not in items:
        yield "the project's SSH keys open it: block-project-ssh-keys"
    shielded = node.get("shieldedInstanceConfig", {})
    for key in ("enableSecureBoot", "enableVtpm", "enableIntegrityMonitoring"):
        if shielded.get(key) is not True:
            yield f"shieldedInstanceConfig.{key} is not true"
    if any(disk.get("autoDelete") is not True for disk in node.get("disks", [])):
        yield "a disk outlives its machine"
    spot = node.get("scheduling", {}).get("provisioningModel") == "SPOT"
    if spot is is_head:
        yield "the head is a spot machine" if is_head else "the worker is no spot machine"
    if spot and node["scheduling"].get("instanceTerminationAction") != "DELETE":
        yield "a spot machine that was taken away is stopped, not deleted, and its disk costs"


_JSON_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}


def _unlike(said: Any, schema: Any, schemas: dict[str, Any], where: str) -> Iterator[str]:
    """Where `said` has a key or a type that a discovery document's schema does not have."""
    schema = schemas[schema["$ref"]] if "$ref" in schema else schema
    place = where or "node_config"
    if schema["type"] == "object":
        if not isinstance(said, dict):
            yield f"{place} is no mapping"
            return
        for key, value in said.items():
            inner = schema.get("properties", {}).get(key) or schema.get("additionalProperties")
            if inner is None:
                yield f"{place}.{key} is no known key"
            else:
                yield from _unlike(value, inner, schemas, f"{where}.{key}" if where else key)
    elif schema["type"] == "array":
        if not isinstance(said, list):
            yield f"{place} is no list"
            return
        for index, item in enumerate(said):
            yield from _unlike(item, schema["items"], schemas, f"{place}[{index}]")
    else:
        yield from _unlike_value(said, schema, place)


def _unlike_value(said: Any, schema: dict[str, Any], place: str) -> Iterator[str]:
    wanted = _JSON_TYPES.get(schema["type"], object)
    # An int64 is text in JSON, and a number is taken for it.
    is_long = schema.get("format") in ("int64", "uint64") and isinstance(said, int)
    if not (is_long or isinstance(said, wanted)) or (isinstance(said, bool) and wanted is int):
        yield f"{place} is no {schema['type']}"
    elif "enum" in schema and said not in schema["enum"]:
        yield f"{place} is '{said}', none of {', '.join(schema['enum'])}"


def _said(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every key with its value, at all levels, and the items of lists with the list's key."""
    inner: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = [(key, item) for item in value]
    yield key, "" if isinstance(value, dict | list) else value
    for name, item in inner:
        yield from _said(item, str(name))
