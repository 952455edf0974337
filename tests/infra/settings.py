"""What the manifests say to this code: settings that it takes, in pools where it fits."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from ray.scripts.scripts import start
from ray.serve.schema import HTTPOptionsSchema, ServeApplicationSchema, ServeDeploySchema

from ray_pipeline.errors import HistorayError, SettingsError
from ray_pipeline.placement import Node, check_fit, choose_placement
from ray_pipeline.settings import JobSettings, load_settings
from serve_app.settings import ServiceSettings, service_settings
from tests.infra.kustomize import Manifest
from tests.infra.pods import Group, groups_of, workers_of
from tests.infra.rules import SECRETS

COMMAND = "python -m ray_pipeline embed --config "
SAID_WHERE_CLUSTERS_GROW = ("encoders", "encoder_gpus", "encoder_cpus", "readers")
"""Settings whose defaults are counted from the nodes that are there."""
STOP_MARGIN_S = 10
"""From the end of stop_grace_s to the driver's exit."""


def job(manifests: Sequence[Manifest]) -> Iterator[str]:
    """The RayJob runs `historay embed` with settings that it takes, and that fit its pools."""
    for manifest in _of("RayJob", manifests):
        entrypoint = manifest["spec"]["entrypoint"]
        if not entrypoint.startswith(COMMAND):
            yield f"RayJob: its entrypoint is not '{COMMAND}...'"
            continue
        path = PurePosixPath(entrypoint.removeprefix(COMMAND))
        head = next(group for group in groups_of(manifest) if group.name == "head")
        text = _mounted_text(head, path, manifests)
        if text is None:
            yield f"RayJob: no ConfigMap brings {path} to the head"
            continue
        try:
            settings = _loaded(text)
            nodes = [
                Node(
                    cpus=worker.limit("cpu"),
                    gpus=worker.limit("nvidia.com/gpu"),
                    memory_bytes=int(worker.params["memory"]),
                )
                for worker in workers_of(manifest)
                for _ in range(worker.spec["maxReplicas"])
            ]
            check_fit(choose_placement(settings, nodes), nodes)
        except HistorayError as error:
            yield f"RayJob: {error}"
            continue
        if not settings.autoscaling:
            yield "RayJob: its cluster grows, but autoscaling is not set"
        for key in SAID_WHERE_CLUSTERS_GROW:
            if getattr(settings, key) is None:
                yield f"RayJob: {key} is not said, and there are no nodes yet to count"
        yield from _graces(manifest, head, settings, entrypoint)


def starting(manifests: Sequence[Manifest]) -> Iterator[str]:
    """`ray start` has the options that pods are started with."""
    options = {option.lstrip("-") for parameter in start.params for option in parameter.opts}
    for manifest in manifests:
        for group in groups_of(manifest):
            for option in set(group.params) - options:
                yield f"{manifest['kind']}, {group.name}: `ray start` has no --{option}"


def _graces(
    manifest: Manifest, head: Group, settings: JobSettings, entrypoint: str
) -> Iterator[str]:
    stop_s = next(
        (int(one["value"]) for one in head.ray["env"] if one["name"] == "RAY_JOB_STOP_WAIT_TIME_S"),
        3,
    )
    needed_s = settings.stop_grace_s + STOP_MARGIN_S
    if stop_s < needed_s:
        yield f"RayJob: Ray kills the driver after {stop_s} s, and it takes {needed_s:g} s to stop"
    if head.pod.get("terminationGracePeriodSeconds", 30) < needed_s:
        yield f"RayJob: the head is killed before its driver stops, which takes {needed_s:g} s"
    for group in groups_of(manifest):
        if group.pod.get("terminationGracePeriodSeconds", 30) <= settings.stop_grace_s:
            yield f"RayJob, {group.name}: no longer left than stop_grace_s"
    if f'"{entrypoint} "' not in str(head.ray["lifecycle"]["preStop"]["exec"]["command"]):
        yield "RayJob: the head's hook does not look for the entrypoint"


def service(manifests: Sequence[Manifest]) -> Iterator[str]:
    """The RayService runs `serve_app` with settings that both Ray and we take."""
    for manifest in _of("RayService", manifests):
        said = yaml.safe_load(manifest["spec"]["serveConfigV2"])
        try:
            config = ServeDeploySchema.model_validate(said)
        except ValidationError as error:
            yield f"RayService: serveConfigV2: {error}"
            continue
        # Ray takes keys that it does not know, and forgets them.
        yield from _misspelled(said, ServeDeploySchema, "")
        yield from _misspelled(said.get("http_options", {}), HTTPOptionsSchema, "http_options.")
        for application, plain in zip(config.applications, said["applications"], strict=True):
            yield from _misspelled(plain, ServeApplicationSchema, "applications.")
            module, _, attribute = application.import_path.partition(":")
            if not hasattr(importlib.import_module(module), attribute):
                yield f"RayService: there is no {application.import_path}"
            try:
                settings = service_settings(application.args)
            except SettingsError as error:
                yield f"RayService: {error}"
                continue
            yield from _opened(manifest, settings)
            yield from _roomy(manifest, settings)
            if manifest["spec"]["rayClusterDeletionDelaySeconds"] < settings.drain_s:
                yield f"RayService: an old cluster goes before drain_s, {settings.drain_s:g} s"
        for worker in workers_of(manifest):
            ports = {port["name"]: port["containerPort"] for port in worker.ray["ports"]}
            if ports.get("serve") != config.http_options.port:
                yield f"RayService, {worker.name}: its port is not that of http_options"


def _opened(manifest: Manifest, settings: ServiceSettings) -> Iterator[str]:
    """Tokens are wanted, and are where every pod finds them."""
    if settings.allow_anonymous or settings.tokens_file is None:
        yield "RayService: no token is wanted of clients"
        return
    path = PurePosixPath(settings.tokens_file)
    for group in groups_of(manifest):
        name = _volume_at(group, path.parent).get("secret", {}).get("secretName")
        if path.name not in SECRETS.get(name, ()):
            yield f"RayService, {group.name}: no secret brings {path}"


def _roomy(manifest: Manifest, settings: ServiceSettings) -> Iterator[str]:
    """Every replica has a pool that it fits, and there are as many GPUs as replicas may want."""
    pools = [(one.limit("cpu"), one.limit("nvidia.com/gpu")) for one in workers_of(manifest)]
    gpus = sum(
        worker.limit("nvidia.com/gpu") * worker.spec["maxReplicas"]
        for worker in workers_of(manifest)
    )
    wanted = [("the ingress", settings.ingress_cpus, 0.0)]
    most_gpus = 0.0
    for model in settings.models:
        if model.gpus is None:
            yield f"RayService: gpus of {model.served_as} is not said, and there are no nodes yet"
            continue
        wanted.append((model.served_as, model.cpus, model.gpus))
        most = model.autoscaling.max_replicas if model.autoscaling else model.replicas
        most_gpus += most * model.gpus
    for name, cpus, of_gpu in wanted:
        if not any(cpus <= pool[0] and of_gpu <= pool[1] for pool in pools):
            yield f"RayService: no pool has room for {name} ({cpus:g} CPUs, {of_gpu:g} GPUs)"
    if most_gpus > gpus:
        yield f"RayService: {most_gpus:g} GPUs may be wanted, and there are {gpus:g} at most"


def _misspelled(said: dict[str, Any], model: type[BaseModel], where: str) -> Iterator[str]:
    for key in set(said) - set(model.model_fields):
        yield f"RayService: Ray Serve knows no {where}{key}"


def _of(kind: str, manifests: Sequence[Manifest]) -> list[Manifest]:
    return [one for one in manifests if one["kind"] == kind]


def _mounted_text(group: Group, path: PurePosixPath, manifests: Sequence[Manifest]) -> str | None:
    """What a ConfigMap brings to a path in a pod."""
    name = _volume_at(group, path.parent).get("configMap", {}).get("name")
    for config_map in _of("ConfigMap", manifests):
        if config_map["metadata"]["name"] == name:
            text: str | None = config_map["data"].get(path.name)
            return text
    return None


def _volume_at(group: Group, folder: PurePosixPath) -> dict[str, Any]:
    mounts = {mount["mountPath"]: mount["name"] for mount in group.ray["volumeMounts"]}
    for volume in group.pod["volumes"]:
        if volume["name"] == mounts.get(str(folder)):
            found: dict[str, Any] = volume
            return found
    return {}


def _loaded(text: str) -> JobSettings:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "job.yaml"
        file.write_text(text, encoding="utf-8")
        return load_settings(str(file), {})
