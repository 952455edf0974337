"""The S3 server in memory, by the store that talks to it: what lies there, and what is counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_pipeline.errors import NotFoundError, PreconditionError
from ray_pipeline.store import Store
from tests.servers.buckets import BucketServer, etag_of_filled


@pytest.fixture(scope="module")
def buckets() -> Iterator[BucketServer]:
    with BucketServer() as server:
        yield server


@pytest.fixture
def server(buckets: BucketServer, monkeypatch: pytest.MonkeyPatch) -> BucketServer:
    for name, value in buckets.env.items():
        monkeypatch.setenv(name, value)
    return buckets


def test_objects_and_conditions(server: BucketServer) -> None:
    store = Store.open("s3://objects/a")
    etag = store.put("b c/ä.txt", b"0123456789", if_absent=True)
    with pytest.raises(PreconditionError):
        store.put("b c/ä.txt", b"other", if_absent=True)
    assert store.head("b c/ä.txt").etag == etag
    assert bytes(store.get_range("b c/ä.txt", 2, 3, etag=etag)) == b"234"
    with pytest.raises(PreconditionError):
        store.put("b c/ä.txt", b"other", if_match="another")
    store.put("b c/ä.txt", b"other", if_match=etag)
    assert store.get("b c/ä.txt") == b"other"
    store.put("x&y", b"")
    store.delete(["b c/ä.txt", "x&y", "absent"])
    assert list(store.list()) == []
    with pytest.raises(NotFoundError):
        store.get("x&y")


def test_lists_come_in_pages_and_in_order(server: BucketServer) -> None:
    keys = [f"many/{number:05d}" for number in range(2500)]
    server.fill("lists", [*keys[::-1], "many2", "few/x/y", "few/x/z", "few/w"], 7)
    server.reset_counters()
    store = Store.open("s3://lists")
    found = list(store.list("many"))
    assert [info.key for info in found] == keys
    assert {(info.etag, info.size_bytes) for info in found[:1]} == {(etag_of_filled(keys[0]), 7)}
    assert server.counters() == {"lists LIST many/": 3}
    assert store.folders("few") == ["x"]
    assert [info.key for info in store.list("few")] == ["few/w", "few/x/y", "few/x/z"]


@pytest.mark.parametrize("folder", ["", "cohort", "cohort/b 1"])
def test_a_long_listing_is_cut_as_it_goes_on(server: BucketServer, folder: str) -> None:
    named = [f"{folder}/{n % 7}/slide {n:05d}.svs".lstrip("/") for n in range(25_000)]
    bucket = f"cut-{len(folder)}"
    server.fill(bucket, [*named, "cohort0", "b", "z/z"], 7)
    server.reset_counters()
    store = Store.open(f"s3://{bucket}")
    pages = store.pages(folder, in_order=False)
    found = [info.key for page in pages for info in page]
    expected = named if folder else [*named, "cohort0", "b", "z/z"]
    assert sorted(found) == sorted(expected)
    assert 26 <= sum(server.counters().values()) <= 26 * 5
    assert server.counters().keys() <= {
        f"{bucket} LIST {one}" for one in ("", "cohort/", "cohort/b 1")
    }


def test_an_object_may_stay_in_a_file(server: BucketServer, tmp_path: Path) -> None:
    data = bytes(range(256)) * 100
    (tmp_path / "file").write_bytes(data)
    server.put_file("files", "a/b", tmp_path / "file")
    (tmp_path / "file").unlink()
    store = Store.open("s3://files")
    assert store.head("a/b").size_bytes == len(data)
    assert store.get("a/b") == data
    assert bytes(store.get_range("a/b", 300, 1000)) == data[300:1300]


def test_requests_are_counted_by_bucket_verb_and_folder(server: BucketServer) -> None:
    store = Store.open("s3://counted")
    server.reset_counters()
    for number in range(3):
        store.put(f"_state/recipe=f/staging/s/{number}", b"abc")
    store.get("_state/recipe=f/staging/s/1")
    store.head("_state/recipe=f/staging/s/2")
    store.delete(f"_state/recipe=f/staging/s/{number}" for number in range(3))
    where = "_state/staging"
    assert server.counters() == {
        f"counted PUT {where}": 3,
        f"counted GET {where}": 1,
        f"counted HEAD {where}": 1,
        f"counted DELETE {where}": 1,
    }
