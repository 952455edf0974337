"""How stores are set up: by the clouds' variables, and by ours for single buckets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import count
from pathlib import Path
from typing import ClassVar

import pytest

from ray_pipeline import store as store_module
from ray_pipeline.errors import AccessError, SettingsError, UnreachableError
from ray_pipeline.store import Store
from ray_pipeline.store_options import StoreOptions, options_of
from tests.servers.local_http import error_xml
from tests.servers.memory import MemoryBucket, serving
from tests.servers.s3 import REGION
from tests.servers.tls import https

NUMBERS = count()


def new_bucket() -> str:
    """A name whose client no other test has made."""
    return f"bucket-{next(NUMBERS)}"


@dataclass
class Seen:
    """What a server was asked."""

    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """(target, headers by their names in lower case)."""
    refusal: tuple[HTTPStatus, str, str] | None = None
    """Status, code and message that it answers instead of what is asked for."""


class _Listening(MemoryBucket):
    seen: ClassVar[Seen]

    def read(self) -> None:
        """Read, or what a test wants answered."""
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.seen.requests.append((self.path, headers))
        if self.seen.refusal is None:
            return super().read()
        status, code, message = self.seen.refusal
        return self.answer(status, error_xml(code, message))


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def listening(seen: Seen, unset: pytest.MonkeyPatch) -> Iterator[str]:
    """A server of S3's protocol that takes note, with the environment pointing at it."""
    unset.setenv("AWS_ACCESS_KEY_ID", "a-key")
    unset.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
    unset.setenv("AWS_REGION", REGION)
    with serving(_Listening, seen=seen, objects={"x": (1, b"0123")}) as url:
        unset.setenv("AWS_ENDPOINT_URL", url)
        yield url


def test_the_bucket_stands_in_the_path_or_in_the_host(
    listening: str, seen: Seen, unset: pytest.MonkeyPatch
) -> None:
    bucket = new_bucket()
    assert Store.open(f"s3://{bucket}").get("x") == b"0123"
    assert seen.requests[-1][0] == f"/{bucket}/x"
    unset.setenv("AWS_ENDPOINT_URL", "http://s3.lab.example")
    unset.setenv("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true")
    # No such host is looked for: a proxy gets the whole URL.
    unset.setenv("HTTP_PROXY", listening)
    unset.setenv("http_proxy", listening)
    for name in ("NO_PROXY", "no_proxy"):
        unset.delenv(name, raising=False)
    Store.open(f"s3://{bucket}").list().__next__()
    target, headers = seen.requests[-1]
    assert target.startswith(f"http://{bucket}.s3.lab.example/")
    assert headers["host"] == f"{bucket}.s3.lab.example"


def test_single_buckets_are_reached_in_their_own_ways(
    listening: str, seen: Seen, unset: pytest.MonkeyPatch
) -> None:
    public, other, plain = new_bucket(), new_bucket(), new_bucket()
    unset.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    said = {
        f"s3://{public}": {"anonymous": True, "endpoint": listening},
        f"s3://{other}": {"region": "eu-west-1", "endpoint": listening},
    }
    unset.setenv("HISTORAY_STORES", json.dumps(said))
    Store.open(f"s3://{public}").get("x")
    assert "authorization" not in seen.requests[-1][1]
    Store.open(f"s3://{other}").get("x")
    assert "/eu-west-1/s3/" in seen.requests[-1][1]["authorization"]
    unset.delenv("AWS_ENDPOINT_URL_S3")
    Store.open(f"s3://{plain}").get("x")
    assert f"/{REGION}/s3/" in seen.requests[-1][1]["authorization"]


@pytest.mark.parametrize(
    ("said", "where"),
    [
        ('{"s3://b": {"secret_key": "hunter2hunter2"}}', "s3://b.secret_key"),
        ('{"s3://b": {"endpoint": "https://me:hunter2hunter2@host"}}', "s3://b.endpoint"),
        ('{"s3://b": {"endpoint": "hunter2hunter2"}}', "s3://b.endpoint"),
        ("hunter2hunter2", "the whole"),
    ],
)
def test_options_that_mean_nothing_are_refused_unshown(said: str, where: str) -> None:
    with pytest.raises(SettingsError, match=f"HISTORAY_STORES is not usable at {where}") as caught:
        options_of("s3://b", {"HISTORAY_STORES": said})
    assert "hunter2" not in str(caught.value)
    assert "anonymous, region, endpoint" in str(caught.value)


def test_a_bucket_that_nothing_is_said_of_is_as_the_clouds_variables_say() -> None:
    said = {"HISTORAY_STORES": '{"gs://b": {"anonymous": true}}'}
    assert options_of("gs://b", said).anonymous
    for uri in ("gs://bb", "s3://b"):
        assert options_of(uri, said) == StoreOptions() == options_of(uri, {})


@pytest.mark.parametrize("name", ["AWS_SERVER_SIDE_ENCRYPTION", "AWS_CA_BUNDLE"])
def test_a_variable_without_a_meaning_is_named_and_its_value_is_not(
    listening: str, unset: pytest.MonkeyPatch, name: str
) -> None:
    del listening
    unset.setenv(name, "hunter2hunter2")
    with pytest.raises(SettingsError, match=f"make no client for it: check .*{name}") as caught:
        Store.open(f"s3://{new_bucket()}").get("x")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidToken"])
def test_credentials_that_are_no_longer_good_are_told_from_missing_permissions(
    listening: str, seen: Seen, code: str
) -> None:
    del listening
    seen.refusal = HTTPStatus.BAD_REQUEST, code, "no"
    with pytest.raises(AccessError, match=f"credentials.*{code}") as caught:
        Store.open(f"s3://{new_bucket()}").get("x")
    assert "GetObject" not in str(caught.value)


def test_a_permission_that_the_reply_names_is_the_one_that_is_told(
    listening: str, seen: Seen
) -> None:
    del listening
    message = "User: me is not authorized to perform: kms:Decrypt on resource: arn"
    seen.refusal = HTTPStatus.FORBIDDEN, "AccessDenied", message
    with pytest.raises(AccessError, match=r"^kms:Decrypt on s3://.* is refused") as caught:
        Store.open(f"s3://{new_bucket()}").get("x")
    assert "arn" not in str(caught.value)


def test_an_authority_of_ones_own(
    listening: str, authority: tuple[Path, Path], unset: pytest.MonkeyPatch
) -> None:
    unset.setattr(store_module, "LONGEST_PAUSE_S", 0.01)
    bucket = new_bucket()
    with https(listening, authority[1]) as url:
        unset.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(UnreachableError):
            Store.open(f"s3://{bucket}").get_range("x", 1, 2)
        unset.setenv("AWS_CA_BUNDLE", str(authority[0]))
        assert bytes(Store.open(f"s3://{bucket}").get_range("x", 1, 2)) == b"12"
