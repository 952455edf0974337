"""infra/kuberay: what kustomize makes of it is right, and what is wrong would be found."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonpatch
import pytest
import yaml

from serve_app.cli import RAY_ENVIRONMENT
from tests.infra.kustomize import Manifest, documents, render
from tests.infra.planted import PLANTED, WORDS
from tests.infra.pods import CLUSTER_KEYS, groups_of
from tests.infra.rules import RAY_VERSION, ROOT, RULES, SECRETS, VERSION
from tests.infra.schemas import SCHEMA, origins, schema_problems
from tests.infra.settings import job, service, starting

FOLDER = ROOT / "infra" / "kuberay"
README = (FOLDER / "README.md").read_text(encoding="utf-8")
OVERLAYS = ("dev", "prod")
PARTS = ("common", "job", "service")
FREE = {"labels", "annotations", "matchLabels", "nodeSelector", "data", "rayStartParams"} | {
    *("limits", "requests"),
}
"""Mappings whose keys are names of somebody's choice."""
FILES = sorted(FOLDER.rglob("*.yaml"))


@cache
def overlay(name: str, folder: Path = FOLDER) -> tuple[Manifest, ...]:
    """All manifests of an overlay."""
    return tuple(one for part in PARTS for one in render(folder / "overlays" / name / part))


def str_of(manifest: Manifest) -> str:
    return f"{manifest['kind']} {manifest['metadata']['name']}"


def problems(manifests: tuple[Manifest, ...]) -> list[str]:
    found = [sentence for manifest in manifests for sentence in schema_problems(manifest)]
    if not found:  # what has not the right form can't be asked anything
        rules = (*RULES, job, service, starting)
        found = [sentence for rule in rules for sentence in rule(manifests)]
    return found


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_is_right(name: str) -> None:
    assert problems(overlay(name)) == []


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_services_pods_start_ray_as_historay_serve_does(name: str) -> None:
    (service,) = [one for one in overlay(name) if one["kind"] == "RayService"]
    told = [
        {one["name"]: one.get("value") for one in container["env"]}
        for group in groups_of(service)
        for container in group.template["spec"]["containers"]
        if container["name"].startswith("ray")
    ]
    assert len(told) > 1
    for environment in told:
        assert environment.items() >= RAY_ENVIRONMENT.items()


def test_the_other_cloud_is_right_too(tmp_path: Path) -> None:
    folder = tmp_path / "kuberay"
    shutil.copytree(FOLDER, folder)
    site = folder / "overlays" / "prod" / "site" / "kustomization.yaml"
    site.write_text(site.read_text().replace("components/eks", "components/gke"))
    manifests = overlay("prod", folder)
    assert problems(manifests) == []
    assert "iam.gke.io/gcp-service-account" in str(manifests)
    assert "eks.amazonaws.com" not in str(manifests)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", OVERLAYS)
def test_kustomize_makes_the_same_of_it(name: str, part: str) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl here to compare with")
    folder = FOLDER / "overlays" / name / part
    outcome = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True
    )
    theirs = [one for one in yaml.safe_load_all(outcome.stdout) if one]
    assert sorted(theirs, key=str_of) == sorted(render(folder), key=str_of)


# ---------------------------------------------------------------- planted errors


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_error_is_found(what: str) -> None:
    kind, operation, words = PLANTED[what]
    manifests = list(copy.deepcopy(overlay("prod")))
    at = next(index for index, one in enumerate(manifests) if one["kind"] == kind)
    manifests[at] = jsonpatch.apply_patch(manifests[at], [operation])
    found = problems(tuple(manifests))
    assert any(words in sentence for sentence in found), found


@pytest.mark.parametrize("what", WORDS)
def test_misspelled_settings_are_found(what: str) -> None:
    kind, path, right, wrong, words = WORDS[what]
    manifests = list(copy.deepcopy(overlay("prod")))
    manifest = next(one for one in manifests if one["kind"] == kind)
    node: Any = manifest
    *above, last = path.strip("/").split("/")
    for key in above:
        node = node[key]
    assert right in node[last]
    node[last] = node[last].replace(right, wrong)
    found = problems(tuple(manifests))
    assert any(words in sentence for sentence in found), found


@pytest.mark.parametrize("kind", sorted({one["kind"] for one in overlay("prod")}))
def test_every_misspelled_key_is_found(kind: str) -> None:
    seen: set[str] = set()
    for manifest in overlay("prod"):
        if manifest["kind"] != kind:
            continue
        for path in key_paths(manifest):
            # One of a list, and one pod, stands for all.
            general = re.sub(r"/\d+|.*/(template|submitterPodTemplate)(?=/)", "", path)
            if general not in seen:
                seen.add(general)
                typo = {"op": "move", "from": path, "path": f"{path}Typo"}
                assert list(schema_problems(jsonpatch.apply_patch(manifest, [typo]))), path
    assert seen


def key_paths(node: Any, path: str = "") -> Iterator[str]:
    """JSON pointers to all keys, but those that may be called anything."""
    if isinstance(node, dict):
        for key, value in node.items():
            below = f"{path}/{key.replace('~', '~0').replace('/', '~1')}"
            yield below
            if key not in FREE:
                yield from key_paths(value, below)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from key_paths(value, f"{path}/{index}")


def test_a_secret_in_an_overlay_is_found() -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "historay-ray-token"}}
    found = problems((*overlay("prod"), secret))
    assert any("secrets are made by hand" in sentence for sentence in found)


def test_what_the_renderer_does_not_know_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: []\nnamePrefix: x-\n")
    with pytest.raises(ValueError, match="does not know namePrefix"):
        render(tmp_path)


# ---------------------------------------------------------------- the files themselves


def test_every_field_of_the_schema_says_where_it_comes_from() -> None:
    fields = list(origins(SCHEMA))
    assert len(fields) > 50
    for field, origin in fields:
        assert origin is not None, field
        assert re.fullmatch(rf"[A-Z]\w+\.{re.escape(field)}", origin), (field, origin)


def test_every_field_of_the_schema_is_used() -> None:
    used = {key for name in OVERLAYS for one in overlay(name) for key in keys_of(one)}
    assert {field for field, _ in origins(SCHEMA)} <= used


def keys_of(node: Any) -> set[str]:
    if isinstance(node, dict):
        return set(node).union(*map(keys_of, node.values()))
    return set().union(*map(keys_of, node)) if isinstance(node, list) else set()


def test_the_base_knows_no_cloud() -> None:
    for part in PARTS:
        for manifest in render(FOLDER / "base" / part):
            assert "annotations" not in manifest["metadata"]
            for group in groups_of(manifest):
                assert not {"nodeSelector", "tolerations", "affinity"} & set(group.pod)


def test_clouds_bind_the_accounts_that_reach_stores_and_no_others() -> None:
    bound = {
        one["metadata"]["name"]
        for one in overlay("prod")
        if one["kind"] == "ServiceAccount" and one["metadata"].get("annotations")
    }
    assert bound == {"historay-job", "historay-job-head", "historay-service"}


def test_the_example_of_secrets_has_no_values() -> None:
    for secret in documents(FOLDER / "secrets.example.yaml"):
        assert set(secret["stringData"].values()) == {None}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(FOLDER)))
def test_what_is_to_be_edited_is_in_the_readme(file: Path) -> None:
    for placeholder in set(re.findall(r"YOUR-[A-Z-]+[A-Z]", file.read_text())):
        assert f"`{placeholder}`" in README, placeholder


def test_the_readme_names_no_placeholder_that_is_not_there() -> None:
    there = "".join(file.read_text() for file in FILES)
    for placeholder in set(re.findall(r"YOUR-[A-Z-]+[A-Z]", README)):
        assert placeholder in there, placeholder


def test_namespaces_of_others_are_in_the_readme() -> None:
    for name in OVERLAYS:
        spoken = re.findall(r"kubernetes.io/metadata.name': '([a-z-]+)'", str(overlay(name)))
        assert {"kuberay-system", "monitoring", "gateway"} <= set(spoken)
        for namespace in set(spoken):
            assert f"`{namespace}`" in README, namespace


def test_files_and_secrets_of_the_readme_exist() -> None:
    for path in re.findall(r"`((?:overlays|components|base)/[\w./-]+)`", README):
        assert (FOLDER / path).exists(), path
    for path in re.findall(r"-k infra/kuberay/(\S+)", README):
        assert (FOLDER / path / "kustomization.yaml").exists(), path
    for name in re.findall(r"create secret generic (\S+)", README):
        assert name in SECRETS
    for key in re.findall(r"--from-(?:literal|env-file|file)=(\w+)=", README):
        assert any(key in keys for keys in SECRETS.values()), key
    assert f"historay:{VERSION}-ray{RAY_VERSION}" in README


def test_resources_of_the_readme_have_these_names() -> None:
    names = {one["kind"].lower(): one["metadata"]["name"] for one in overlay("prod")}
    for kind in map(str.lower, CLUSTER_KEYS):
        said = set(re.findall(rf"\b{kind}[ /]([a-z][a-z-]*)", README))
        assert said <= {names[kind]}, said
