"""Secrets leave every text, and nothing else does."""

from __future__ import annotations

import json
import logging
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_pipeline.errors import DamagedSlideError
from ray_pipeline.logs import json_line, worker_log
from ray_pipeline.redaction import holds_secret, redacted

KEY_ID = "AKIAIOSFODNN7EXAMPLE"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("s3://user:hunter2@bucket/a.svs.", "s3://***@bucket/a.svs."),
        (
            "https://h/a.svs?X-Amz-Credential=hunter2%2Fs3&X-Amz-Date=1&X-Amz-Signature=hunter2",
            "https://h/a.svs?X-Amz-Credential=***&X-Amz-Date=1&X-Amz-Signature=***",
        ),
        ("az://c/a.svs?sv=1&sig=hunter2%3D was", "az://c/a.svs?sv=1&sig=*** was"),
        ("(https://h/a?Signature=hunter2, b)", "(https://h/a?Signature=***, b)"),
        ("X-Amz-Security-Token: hunter2", "X-Amz-Security-Token: ***"),
        ("Authorization: Bearer hunter2hunter2hunter2", "Authorization: Bearer ***"),
        (f"the key {KEY_ID} is unknown", "the key *** is unknown"),
        ("GOOG1EHUNTERHUNTERHUNTERHUNTER2", "***"),
        (
            "-----BEGIN PRIVATE KEY-----\\nhunter2\\n-----END",
            "-----BEGIN PRIVATE KEY-----***-----END",
        ),
    ],
)
def test_secrets_are_hidden(text: str, clean: str) -> None:
    hidden = redacted(text)
    assert hidden == clean
    assert redacted(hidden) == hidden
    assert holds_secret(text)


def test_values_of_the_environment_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "wJalrXUtnFEMI")
    monkeypatch.setenv("HISTORAY_SERVE_TOKENS", "first-token\nsecond-token")
    monkeypatch.setenv("SHORT_SECRET", "test")
    text = "wJalrXUtnFEMI/K7MDENG, wJalrXUtnFEMI, second-token, test"
    assert redacted(text) == "***, ***, ***, test"


@pytest.mark.parametrize(
    "name",
    [
        "AWS_SSE_CUSTOMER_KEY_BASE64",
        "AZURE_ENCRYPTION_KEY",
        "AZURE_STORAGE_ACCESS_KEY",
        "AZURE_STORAGE_MASTER_KEY",
        "AZURE_STORAGE_SAS_TOKEN",
        "GOOGLE_BEARER_TOKEN",
    ],
)
def test_what_opens_a_store_is_hidden(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "hunter2hunter2")
    assert redacted("it was hunter2hunter2.") == "it was ***."


WORDS = ("s3://b/a", "b.svs", "sig", "signature", "?", "&", "no@one", "bearer", "token:", "é")


@given(words=st.lists(st.sampled_from(WORDS)))
def test_other_text_stays_as_it_is(words: list[str]) -> None:
    assert redacted(" ".join(words)) == " ".join(words)


@pytest.mark.parametrize(
    ("uri", "secret"),
    [
        ("s3://bucket/slides/sig=1/a.svs", False),
        ("s3://bucket/a@b?x.svs", False),
        ("s3://u:p@bucket/a.svs", True),
        ("https://h/a.svs%3FX-Amz-Signature%3Dhunter2", True),
        (f"s3://bucket/a.svs?AWSAccessKeyId={KEY_ID}", True),
    ],
)
def test_a_uri_holds_a_secret_or_does_not(uri: str, secret: bool) -> None:
    assert holds_secret(uri) is secret


def test_an_error_never_holds_what_its_sentence_was_given() -> None:
    error = DamagedSlideError("a: https://h/a.svs?X-Amz-Signature=hunter2 is cut short.")
    assert "hunter2" not in str(error) + repr(error) + str(pickle.loads(pickle.dumps(error)))


def test_log_lines_are_clean_json(capfd: pytest.CaptureFixture[str]) -> None:
    said = json.loads(json_line("sig=hunter2", uri="s3://u:hunter2@b", shard=None, n={"a": KEY_ID}))
    assert {name: said[name] for name in said if name != "time"} == {
        "level": "INFO",
        "uri": "s3://***@b",
        "n": {"a": "***"},
        "message": "sig=***",
    }
    log = worker_log()
    assert worker_log() is log
    assert len(log.handlers) == 1
    (handler,) = log.handlers
    record = logging.LogRecord("historay", logging.WARNING, "", 0, "%s", ("sig=hunter2",), None)
    record.facts = {"slide_id": "a", "shard": 3}
    line = json.loads(handler.format(record))
    told = line["level"], line["slide_id"], line["shard"], line["message"]
    assert told == ("WARNING", "a", 3, "sig=***")
    log.removeHandler(handler)
