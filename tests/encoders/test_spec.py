"""Specs and identities are plain values, and every registry entry states what it must."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from dataclasses import fields, replace

import pytest

from ray_pipeline.encoders.registry import MODELS, get_spec
from ray_pipeline.encoders.spec import EncoderIdentity, ModelSpec
from ray_pipeline.errors import SettingsError

every_model = pytest.mark.parametrize("spec", MODELS.values(), ids=MODELS.keys())


def identity_of(spec: ModelSpec) -> EncoderIdentity:
    return EncoderIdentity.of(spec, weights_digest="ab" * 32, meaningful=True, precision="fp16")


@every_model
def test_entry_states_what_people_need(spec: ModelSpec) -> None:
    assert spec.licence
    assert re.fullmatch("main|[0-9a-f]{40}", spec.revision)
    assert spec.description.endswith(".")
    assert 0.25 <= spec.mpp <= 2
    assert 112 <= spec.tile_px <= 1024
    assert spec.tile_px % 14 == 0 or spec.tile_px % 16 == 0
    assert all(0.4 < value < 0.8 for value in spec.mean)
    assert all(0.15 < value <= 0.5 for value in spec.std)
    assert spec.published == (spec.weights_file is not None)
    assert spec.hub_id is None or spec.weights_url is None
    assert spec.weights_sha256 is None or re.fullmatch("[0-9a-f]{64}", spec.weights_sha256)
    assert pickle.loads(pickle.dumps(spec)) == spec


@every_model
def test_entry_says_which_of_its_fields_are_unverified(spec: ModelSpec) -> None:
    stated = {field.name for field in fields(spec)} - {"name", "description", "unverified"}
    assert set(spec.unverified) <= stated
    assert len(set(spec.unverified)) == len(spec.unverified)


@every_model
def test_licence_that_says_non_commercial_is_marked_so(spec: ModelSpec) -> None:
    said = "-NC" in spec.licence or "non-commercial" in spec.licence
    assert spec.non_commercial >= said
    assert not spec.gated or spec.hub_id is not None


def test_h_optimus_0_has_the_published_facts() -> None:
    spec = get_spec("h-optimus-0")
    assert (spec.parameters, spec.tokens, spec.dim) == (1_134_774_272, 261, 1536)
    assert (spec.tile_px, spec.mpp, spec.licence) == (224, 0.5, "Apache-2.0")
    assert not spec.gated


def test_unknown_model_names_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"'nosuch'.*h-optimus-0, .*virchow2, .*toy"):
        get_spec("nosuch")


def test_identity_survives_json_and_pickle() -> None:
    identity = identity_of(get_spec("h-optimus-0"))
    assert EncoderIdentity.from_json(json.loads(json.dumps(identity.to_json()))) == identity
    assert pickle.loads(pickle.dumps(identity)) == identity
    assert len({identity, identity_of(get_spec("h-optimus-0"))}) == 1


def test_identity_says_how_pixels_are_prepared() -> None:
    assert identity_of(get_spec("h-optimus-0")).to_json()["preprocessing"] == {
        "tile_px": 224,
        "mean": [0.707223, 0.578729, 0.703617],
        "std": [0.211883, 0.230117, 0.177517],
        "scale": 255.0,
        "resize": "none",
        "crop": "none",
    }


def test_identity_with_an_unknown_field_is_refused() -> None:
    values = identity_of(get_spec("toy")).to_json()
    with pytest.raises(TypeError, match="surplus"):
        EncoderIdentity.from_json({**values, "surplus": 1})


def test_identity_tells_models_apart() -> None:
    identity = identity_of(get_spec("toy"))
    assert identity != replace(identity, precision="bf16")
    assert identity != identity_of(get_spec("h-optimus-0"))


def imports_after(statement: str, *names: str) -> list[str]:
    """Which of the modules `names` a fresh interpreter has loaded after `statement`."""
    code = f"{statement}\nimport sys\nprint(*[n for n in {names!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_encoder_loads_neither_ray_nor_the_service() -> None:
    assert (
        imports_after("import ray_pipeline.encoders.encoder", "ray", "fastapi", "serve_app") == []
    )


def test_registry_is_read_without_torch() -> None:
    statement = "import ray_pipeline.encoders.registry, ray_pipeline.encoders.weights"
    assert imports_after(statement, "torch", "timm", "torchvision", "ray") == []
