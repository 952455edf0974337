"""What is wrong with `serve.yaml` is named by its key; values are not repeated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ray_pipeline.errors import SettingsError
from serve_app.settings import load_service_settings, service_settings

TOY = {"encoder": {"model": "toy"}}


def test_nothing_said_is_the_published_model_on_loopback() -> None:
    settings = service_settings({})
    assert [model.served_as for model in settings.models] == ["h-optimus-0"]
    assert settings.host == "127.0.0.1"
    assert settings.regions.prefixes == []
    assert not settings.allow_anonymous


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"token": "abc-secret"}, "'token': is no known key"),
        ({"models": []}, "'models': "),
        ({"models": [{"encoder": {"model": "huge"}}]}, r"'models.0.encoder.model': .*choose one"),
        ({"models": [TOY, TOY]}, "two models are called 'toy'"),
        ({"models": [{**TOY, "name": "a/b"}]}, r"'models.0.name': "),
        ({"models": [{**TOY, "queue_tiles": 5}]}, "queue_tiles of 'toy' is less"),
        ({"models": [{**TOY, "autoscaling": {"min_replicas": 3}}]}, "max_replicas is below"),
        ({"limits": {"request_tiles": 4000}}, "request_tiles is more than tiles_in_hand"),
        ({"limits": {"body_bytes": 2 << 30}}, "body_bytes is more than bytes_in_hand"),
        ({"port": 70000}, "'port': "),
    ],
)
def test_what_is_wrong_is_named(said: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        service_settings(said)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("text", [None, "models: [a\n", "- a\n"])
def test_a_broken_file_is_one_sentence(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "serve.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_service_settings(str(file))
    assert len(str(caught.value).splitlines()) == 1


def test_one_model_can_be_served_under_two_names(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(
        "models:\n- encoder: {model: toy}\n- {name: toy-exact, encoder: {model: toy, "
        "precision: fp32}}\n"
    )
    settings = load_service_settings(str(file))
    assert [model.served_as for model in settings.models] == ["toy", "toy-exact"]
