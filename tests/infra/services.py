"""What must hold of a Serve config file: what Ray checks, and the keys that Ray lets pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeDeploySchema

from ray_pipeline.errors import SettingsError
from serve_app.settings import ServiceSettings, encoder_settings, service_settings
from tests.infra.strict import unknown_keys

IMPORT_PATH = "serve_app.app:app"


def service_problems(config: Any) -> list[str]:
    """One sentence for each thing that is wrong with a Serve config; none where all is well."""
    if not isinstance(config, dict):
        return ["it holds no keys and values"]
    unknown = [f"{where} is no known key" for where in unknown_keys(ServeDeploySchema, config)]
    try:
        ServeDeploySchema.model_validate(config)
    except ValidationError as error:
        said = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        return [*unknown, *said]
    return [*unknown, *_problems(config)]


def _problems(config: dict[str, Any]) -> Iterator[str]:
    http = config.get("http_options", {})
    if "host" not in http:
        yield "http_options.host is missing: Serve would bind every address of the machine"
    for application in config["applications"]:
        if application["import_path"] != IMPORT_PATH:
            yield f"import_path is {application['import_path']}, not {IMPORT_PATH}"
        args = application.get("args", {})
        try:
            settings = service_settings(args)
        except SettingsError as error:
            yield f"args: {error}"
            continue
        yield from _application_problems(settings, args, http)
        yield from _deployment_problems(settings, application.get("deployments", []))


def _application_problems(
    settings: ServiceSettings, args: dict[str, Any], http: dict[str, Any]
) -> Iterator[str]:
    if settings.allow_anonymous:
        yield "args.allow_anonymous: anybody could use it"
    if settings.tokens_file is None:
        yield "args.tokens_file is missing: replicas on other machines have no variable of yours"
    for key in {"host", "port"} & args.keys():
        yield f"args.{key} does nothing here: http_options decides"
    timeout_s = http.get("request_timeout_s")
    if timeout_s is not None and timeout_s <= settings.limits.request_s:
        yield "http_options.request_timeout_s is not above limits.request_s: clients get no reason"


def _deployment_problems(
    settings: ServiceSettings, deployments: list[dict[str, Any]]
) -> Iterator[str]:
    names = {"ingress", *(f"encoder-{model.served_as}" for model in settings.models)}
    for deployment in deployments:
        name = deployment["name"]
        if name not in names:
            yield f"deployment '{name}' is none of {', '.join(sorted(names))}"
        # Ray takes these two as plain mappings.
        scaling = deployment.get("autoscaling_config") or {}
        for where in unknown_keys(AutoscalingConfig, scaling):
            yield f"{name}: autoscaling_config.{where} is no known key"
        try:
            encoder_settings(deployment.get("user_config") or {})
        except SettingsError as error:
            yield f"{name}: user_config: {error}"
