"""The cluster files of `ray up`: valid for Ray, known to the clouds, and closed."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from ray.scripts.scripts import start

from ray_pipeline.placement import Node, check_fit, choose_placement
from ray_pipeline.settings import load_settings
from tests.conftest import ROOT
from tests.infra.clusters import cluster_problems, node_types
from tests.infra.placeholders import placeholders
from tests.infra.planting import planted
from tests.infra.programs import run_program
from tests.infra.strict import read_yaml

FOLDER = ROOT / "infra" / "vm"
README = (FOLDER / "README.md").read_text()
NAMES = ("aws", "gcp")
GIB = 1 << 30


def text_of(name: str) -> str:
    return (FOLDER / f"{name}.yaml").read_text()


def cluster_of(name: str) -> dict[str, Any]:
    read: dict[str, Any] = read_yaml(text_of(name))
    return read


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_wrong_with_a_cluster_file(name: str) -> None:
    assert cluster_problems(cluster_of(name)) == []


PLANTED = [
    # What Ray itself refuses.
    ("both", "max_workerz", 8, "Ray refuses it"),
    ("both", "head_node_type", "haed", "Ray refuses it"),
    ("both", "available_node_types.worker.max_wrokers", 2, "Ray refuses it"),
    ("both", "available_node_types.worker.resources.GPU", "one", "Ray refuses it"),
    ("both", "available_node_types.worker.min_workers", 9, "Ray refuses it"),
    # What Ray lets pass.
    ("both", "provider.cache_stoped_nodes", False, "is no known key"),
    ("both", "provider.cache_stopped_nodes", True, "keep their disks"),
    ("both", "provider.type", "local", "Ray refuses it"),
    ("both", "available_node_types.head.resources.CPU", 4, "the head has resources"),
    ("both", "available_node_types.worker.max_workers", 80, "more than the cluster's"),
    ("both", "auth.ssh_private_key", None, "a key of its own"),
    ("both", "file_mounts", {}, "auth_token"),
    ("both", "head_start_ray_commands", ["ray start --head"], "lacks RAY_AUTH_MODE=token"),
    ("both", "head_start_ray_commands", ["ray start --head"], "on the head's loopback"),
    ("both", "worker_start_ray_commands", ["ray start"], "lacks --disable-usage-stats"),
    ("both", "head_start_ray_commands", ["RAY_JOB_STOP_WAIT_TIME_S=3"], "not above stop_grace_s"),
    ("aws", "provider.aws_credentials.aws_secret_access_key", "0", "is no known key"),
    ("aws", "available_node_types.head.node_config.MetadataOptions.HttpTokens", "optional", "IMDS"),
    ("aws", "available_node_types.worker.node_config.MetadataOptions.HttpPutResponseHopLimit", 2,
     "containers reach the role"),
    ("aws", "available_node_types.worker.node_config.InstanceMarketOption", {},
     "InstanceMarketOption"),
    ("aws", "available_node_types.worker.node_config.InstanceMarketOptions.MarketType", "sport",
     "the worker is no spot machine"),
    ("aws", "available_node_types.head.node_config.InstanceMarketOptions", {"MarketType": "spot"},
     "the head is a spot machine"),
    ("aws", "available_node_types.worker.node_config.SecurityGroupIds", None, "whole world"),
    ("aws", "available_node_types.worker.node_config.IamInstanceProfile", None, "do anything"),
    ("aws", "available_node_types.worker.node_config.IamInstanceProfile", "name", "Invalid type"),
    ("aws", "available_node_types.head.node_config.BlockDeviceMappings.0.Ebs.Encrypted", False,
     "not encrypted"),
    ("aws", "available_node_types.head.node_config.BlockDeviceMappings.0.Ebs.Encryptd", True,
     'Encryptd'),
    ("aws", "available_node_types.head.node_config.UserData", "AKIA0123456789ABCDEF", "a secret"),
    ("gcp", "available_node_types.worker.node_config.machinetype", "g2", "no known key"),
    ("gcp", "available_node_types.worker.node_config.scheduling.provisioningModel", "SPOTS",
     "none of"),
    ("gcp", "available_node_types.worker.node_config.scheduling.provisioningModel", "STANDARD",
     "the worker is no spot machine"),
    ("gcp", "available_node_types.worker.node_config.scheduling.instanceTerminationAction", "STOP",
     "stopped, not deleted"),
    ("gcp", "available_node_types.worker.node_config.scheduling", [{"preemptible": True}],
     "scheduling is no mapping"),
    ("gcp", "available_node_types.head.node_config.networkInterfaces.0.accessConfigs", [],
     "public address"),
    ("gcp", "available_node_types.head.node_config.serviceAccounts", [], "does not name one"),
    ("gcp", "available_node_types.head.node_config.metadata.items.0.value", "false", "SSH keys"),
    ("gcp", "available_node_types.head.node_config.shieldedInstanceConfig.enableSecureBoot", False,
     "enableSecureBoot"),
    ("gcp", "available_node_types.head.node_config.disks.0.initializeParams.diskSizeGB", 50,
     "diskSizeGB is no known key"),
    ("gcp", "available_node_types.worker.node_config.disks.1.autoDelete", False, "outlives"),
    ("gcp", "provider.gcp_credentials", {"type": "service_account"}, "has no place in a file"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "place", "value", "sentence"),
    [
        (name, *planted)
        for which, *planted in PLANTED
        for name in (NAMES if which == "both" else (which,))
    ],
)
def test_what_is_planted_is_found(name: str, place: str, value: Any, sentence: str) -> None:
    problems = cluster_problems(planted(cluster_of(name), place, value))
    assert any(sentence in problem for problem in problems), problems


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_are_sound(name: str, tmp_path: Path) -> None:
    cluster = cluster_of(name)
    kinds = [key for key in cluster if key.endswith("_commands")]
    assert len(kinds) == 4
    script = "\n".join(["#!/usr/bin/env bash", *(line for kind in kinds for line in cluster[kind])])
    outcome = run_program("shellcheck", "--shell=bash", "-", text=script)
    assert outcome.returncode == 0, outcome.stdout
    starts = [line for kind in kinds for line in cluster[kind] if "ray start" in line]
    assert len(starts) == 2
    for line in starts:
        words = line.split("ray start ")[1].replace('"', "").split()
        start.make_context("start", words)


def test_a_misspelled_option_of_ray_start_is_found() -> None:
    with pytest.raises(Exception, match="dashbord"):
        start.make_context("start", ["--head", "--dashbord-host=127.0.0.1"])


@pytest.mark.parametrize("name", NAMES)
def test_nodes_get_all_that_installing_takes_at_the_versions_that_were_tested(name: str) -> None:
    cluster = cluster_of(name)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    mounted = {local for local in cluster["file_mounts"].values() if not local.startswith("~")}
    assert mounted == {
        "pyproject.toml", "constraints.txt", "ray_pipeline", "serve_app",
        project["project"]["readme"], *project["project"]["license-files"],
    }  # fmt: skip
    installs = [
        line for key in cluster if key.endswith("setup_commands")
        for line in cluster[key] if "pip install" in line
    ]  # fmt: skip
    assert len(installs) == 3
    assert all("--constraint ~/historay/constraints.txt" in line for line in installs)
    (extra,) = re.findall(r"\[(\w+)\]", "".join(cluster["head_setup_commands"]))
    assert extra in project["project"]["optional-dependencies"]


@pytest.mark.parametrize("name", NAMES)
def test_everything_to_edit_is_told(name: str) -> None:
    said = set(
        re.findall(r"EDIT-[A-Z-]*[A-Z]", README.split(f"## {name.upper()}")[1].split("\n## ")[0])
    )
    assert placeholders(text_of(name)) == said


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("job", "workers"), [("small", 1), ("large", 8)])
def test_the_jobs_fit_the_clusters(name: str, job: str, workers: int) -> None:
    cluster = cluster_of(name)
    _, types = node_types(cluster)
    (worker,) = types.values()
    assert workers <= worker["max_workers"]
    resources = worker["resources"]
    node = Node(cpus=resources["CPU"], gpus=resources["GPU"], memory_bytes=32 * GIB)
    head = Node(cpus=0)
    settings = load_settings(str(ROOT / "infra" / "jobs" / f"{job}.yaml"), {})
    placement = choose_placement(settings, [head])
    assert placement.device == "cuda"
    check_fit(placement, [head, *[node] * workers])
    # The first node may be filled with readers before its encoder is asked for.
    readers = int(node.cpus / placement.reader_cpus)
    assert node.cpus - readers * placement.reader_cpus >= placement.encoder_cpus
    waits_s = re.findall(r"RAY_JOB_STOP_WAIT_TIME_S=(\d+)", str(cluster["head_start_ray_commands"]))
    assert [int(wait_s) > settings.stop_grace_s for wait_s in waits_s] == [True]


def test_only_one_address_may_enter() -> None:
    """The commands of the README for AWS and GCP open SSH to one address, and nothing else."""
    assert "0.0.0.0/0" not in README
    lines = README.replace("\\\n", " ").splitlines()
    opened = [line for line in lines if "--cidr" in line or "--source-ranges" in line]
    assert len(opened) == 2
    for line in opened:
        assert re.search(r"--port 22\b|--allow=tcp:22\b", line), line
    # RFC 5737's documentation range, which is nobody's, and the range of Google's tunnel.
    assert re.findall(r"(?:--cidr|--source-ranges)[ =](\S+)", README) == [
        "203.0.113.7/32", "35.235.240.0/20",
    ]  # fmt: skip


def test_the_ways_without_an_open_port_are_valid() -> None:
    """What the README says instead of `auth` and `provider` on AWS."""
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    cluster = cluster_of("aws")
    for key, value in read_yaml(block).items():
        cluster[key] |= value
    assert cluster_problems(cluster) == []
