"""The Serve config files: valid for Ray, strict at every level, and closed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ray.serve.schema import ServeDeploySchema

from serve_app.auth import is_loopback
from serve_app.cli import RAY_ENVIRONMENT
from tests.conftest import ROOT
from tests.infra.planting import planted
from tests.infra.services import service_problems
from tests.infra.strict import read_yaml

FOLDER = ROOT / "infra" / "serve"
FILES = sorted(FOLDER.glob("*.yaml"))
README = (FOLDER / "README.md").read_text()


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    file: Path = request.param
    assert f"`{file.name}`" in README
    read: dict[str, Any] = read_yaml(file.read_text())
    return read


def test_nothing_is_wrong_with_a_config(config: dict[str, Any]) -> None:
    assert service_problems(config) == []


def test_what_the_head_alone_answers_stays_on_its_loopback(config: dict[str, Any]) -> None:
    alone = config["proxy_location"] == "HeadOnly"
    assert is_loopback(config["http_options"]["host"]) is alone


def test_nodes_are_started_as_historay_serve_starts_its_own() -> None:
    told = dict(re.findall(r"^export (RAY_(?!AUTH)\w+)=(\S+)$", README, re.MULTILINE))
    assert told == RAY_ENVIRONMENT


SILENT = [
    # Ray takes each of these without a word.
    ("proxy_lokation", "HeadOnly", "proxy_lokation is no known key"),
    ("http_options.hots", "127.0.0.1", "http_options.hots is no known key"),
    ("http_options.host", None, "host is missing"),
    ("applications.0.imprt_path", "x:y", "applications[0].imprt_path is no known key"),
    ("applications.0.deployments", [{"name": "ingress", "num_replica": 2}], "num_replica is no"),
    ("applications.0.deployments",
     [{"name": "ingress", "ray_actor_options": {"num_cpu": 1}}], "num_cpu is no known key"),
    ("applications.0.deployments",
     [{"name": "ingress", "autoscaling_config": {"max_replica": 1}}], "max_replica is no"),
    ("applications.0.deployments", [{"name": "ingres"}], "deployment 'ingres' is none of"),
    ("applications.0.deployments",
     [{"name": "encoder-h-optimus-0", "user_config": {"modle": "uni"}}], "modle"),
    ("applications.0.import_path", "serve_app.api:app", "not serve_app.app:app"),
    ("applications.0.args.models.0.encoder.wights", "random", "'models.0.encoder.wights'"),
    ("applications.0.args.models.0.encoder.model", "h-optimus-9", "h-optimus-9"),
    ("applications.0.args.modles", [], "'modles'"),
    ("applications.0.args.tokens_file", None, "tokens_file is missing"),
    ("applications.0.args.allow_anonymous", True, "anybody could use it"),
    ("applications.0.args.port", 80, "http_options decides"),
    ("http_options.request_timeout_s", 60, "not above limits.request_s"),
]  # fmt: skip
LOUD = [
    ("proxy_location", "Nowhere", "proxy_location"),
    ("http_options.port", "eighty", "http_options.port"),
    ("target_capacity", 200, "target_capacity"),
    ("applications.0.import_path", None, "import_path"),
]


@pytest.mark.parametrize(("place", "value", "sentence"), SILENT)
def test_what_ray_lets_pass_is_found(
    config: dict[str, Any], place: str, value: Any, sentence: str
) -> None:
    changed = planted(config, place, value)
    ServeDeploySchema.model_validate(changed)
    problems = service_problems(changed)
    assert any(sentence in problem for problem in problems), problems


@pytest.mark.parametrize(("place", "value", "sentence"), LOUD)
def test_what_ray_refuses_is_told(
    config: dict[str, Any], place: str, value: Any, sentence: str
) -> None:
    problems = service_problems(planted(config, place, value))
    assert any(sentence in problem for problem in problems), problems
