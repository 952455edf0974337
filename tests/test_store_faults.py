"""What `Store` makes of replies that are spoilt on their way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from ray_pipeline import store as store_module
from ray_pipeline.errors import NotFoundError, UnreachableError
from ray_pipeline.store import READ_ATTEMPTS, Store
from tests.servers.faults import FaultProxy
from tests.servers.s3 import S3Server

KEYS = [f"deep/{number:04d}" for number in range(1500)]
"""More than one page of a listing."""


@pytest.fixture(scope="module")
def bucket(moto_server: S3Server) -> str:
    uri = moto_server.bucket()
    client = moto_server.client()
    for key in KEYS:
        client.put_object(Bucket=uri.removeprefix("s3://"), Key=f"out/{key}", Body=b"x" * 100)
    client.close()
    return uri


@pytest.fixture
def proxy(moto_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with FaultProxy(moto_server.endpoint_url) as proxy:
        for name, value in replace(moto_server, endpoint_url=proxy.endpoint).env.items():
            monkeypatch.setenv(name, value)
        yield proxy


def test_a_listing_that_breaks_off_goes_on_where_it_was(proxy: FaultProxy, bucket: str) -> None:
    store = Store.open(f"{bucket}/out")
    proxy.set(truncate=0.3, reset=0.2, seed=5)
    for _ in range(5):
        assert [info.key for info in store.list("deep")] == KEYS
    assert proxy.counts()["truncate"] > 0
    assert proxy.counts()["reset"] > 0


def test_whole_objects_survive_broken_replies(proxy: FaultProxy, bucket: str) -> None:
    store = Store.open(f"{bucket}/out")
    proxy.set(truncate=0.3, reset=0.2, seed=5)
    for key in KEYS[:20]:
        assert store.get(key) == b"x" * 100
    assert proxy.counts()["truncate"] > 0


def test_that_an_object_is_absent_survives_broken_replies(proxy: FaultProxy, bucket: str) -> None:
    store = Store.open(f"{bucket}/out")
    proxy.set(truncate=0.15, reset=0.1, seed=5)
    for number in range(20):
        with pytest.raises(NotFoundError):
            store.get(f"absent/{number}")
    assert proxy.counts()["truncate"] > 0


def test_a_listing_that_never_comes_whole_is_unreachable(
    proxy: FaultProxy, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "LONGEST_PAUSE_S", 0.01)
    proxy.set(truncate=1.0)
    with pytest.raises(UnreachableError, match="the store gave no usable answer to list"):
        list(Store.open(f"{bucket}/out").list("deep"))
    assert proxy.counts()["truncate"] == READ_ATTEMPTS
