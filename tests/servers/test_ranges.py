"""The range server through the clients that are measured on it."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast
from urllib.request import ProxyHandler, Request, build_opener

import obstore
import pytest
import s3fs
from obstore import exceptions as obstore_errors
from obstore.store import S3Store

from ray_pipeline.errors import NotFoundError, ObjectReplacedError
from ray_pipeline.store import Store
from tests.servers.ranges import RangeServer

DATA = random.Random(7).randbytes(3_000_000)
KEYS = ["a b/deep/x.svs", "a b/ü&1.svs", "empty", "slide.svs"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the bucket `slides`."""
    folder = tmp_path_factory.mktemp("buckets")
    for key in KEYS:
        path = folder / "slides" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"" if key == "empty" else DATA)
    return folder


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[RangeServer]:
    with RangeServer(folder) as server:
        yield server


@pytest.fixture
def server(running: RangeServer) -> RangeServer:
    """As fast as it goes, with counters at zero."""
    running.set_link()
    running.reset_counters()
    return running


@pytest.fixture
def client(server: RangeServer) -> S3Store:
    return opened(server, "slides")


def opened(server: RangeServer, bucket: str) -> S3Store:
    options: Any = {"allow_http": True}
    return S3Store(bucket, endpoint=server.endpoint, skip_signature=True, client_options=options)


@pytest.mark.parametrize("mb_per_s", [0.0, 200.0])
def test_ranges_are_right_byte_for_byte(
    server: RangeServer, client: S3Store, mb_per_s: float
) -> None:
    server.set_link(mb_per_s=mb_per_s)
    size = len(DATA)
    for start, end in [(0, 1), (0, size), (1, 70_000), (65_535, 65_537), (size - 1, size)]:
        assert obstore.get_range(client, "slide.svs", start=start, end=end) == DATA[start:end]
    assert obstore.get(client, "slide.svs").bytes() == DATA
    assert obstore.get(client, "empty").bytes() == b""
    for asked, wanted in [({"offset": 2_900_000}, DATA[2_900_000:]), ({"suffix": 99}, DATA[-99:])]:
        reply = obstore.get(client, "slide.svs", options={"range": cast(Any, asked)})
        assert reply.bytes() == wanted
        assert reply.meta["size"] == size


def test_many_connections_get_each_their_own_bytes(client: S3Store) -> None:
    starts = [random.Random(8).randrange(len(DATA) - 50_000) for _ in range(200)]
    with ThreadPoolExecutor(16) as threads:
        found = threads.map(
            lambda start: obstore.get_range(client, "slide.svs", start=start, length=50_000), starts
        )
        assert all(
            data == DATA[start : start + 50_000] for start, data in zip(starts, found, strict=True)
        )


def test_a_range_past_the_end_is_416(server: RangeServer) -> None:
    url = f"{server.endpoint}/slides/slide.svs"
    for wanted in [f"bytes={len(DATA)}-", "bytes=-0"]:
        request = Request(url, headers={"Range": wanted})
        with pytest.raises(OSError, match="416") as refusal:
            build_opener(ProxyHandler({})).open(request)
        assert cast(Any, refusal.value).headers["Content-Range"] == f"bytes */{len(DATA)}"
        cast(Any, refusal.value).close()


def test_a_replaced_file_is_another_version(
    folder: Path, server: RangeServer, client: S3Store
) -> None:
    path = folder / "slides" / "replaced"
    path.write_bytes(b"old")
    etag = obstore.head(client, "replaced")["e_tag"]
    assert etag is not None
    assert obstore.get(client, "replaced", options={"if_match": etag}).bytes() == b"old"
    path.with_name("new").write_bytes(b"new")
    path.with_name("new").replace(path)
    with pytest.raises(obstore_errors.PreconditionError):
        obstore.get(client, "replaced", options={"if_match": etag})
    assert obstore.get(client, "replaced").bytes() == b"new"
    path.unlink()
    with pytest.raises(FileNotFoundError):
        obstore.head(client, "replaced")


def test_lists_pages_and_folders(folder: Path, client: S3Store) -> None:
    assert [meta["path"] for meta in obstore.list(client).collect()] == KEYS
    assert [meta["path"] for meta in obstore.list(client, prefix="a b").collect()] == KEYS[:2]
    below = obstore.list_with_delimiter(client, prefix="a b")
    assert below["common_prefixes"] == ["a b/deep"]
    assert [(meta["path"], meta["size"]) for meta in below["objects"]] == [(KEYS[1], len(DATA))]
    head = obstore.head(client, KEYS[1])
    assert head["e_tag"] == below["objects"][0]["e_tag"]


def test_a_long_list_comes_in_pages(server: RangeServer, folder: Path) -> None:
    names = [f"{number:04}" for number in range(2100)]
    (folder / "many").mkdir()
    for name in names:
        (folder / "many" / name).touch()
    assert [meta["path"] for meta in obstore.list(opened(server, "many")).collect()] == names


def test_latency_comes_before_every_reply(server: RangeServer, client: S3Store) -> None:
    server.set_link(latency_ms=40)
    began = time.monotonic()
    for _ in range(3):
        obstore.get_range(client, "slide.svs", start=0, length=10)
    obstore.head(client, "slide.svs")
    assert time.monotonic() - began >= 4 * 0.040


def test_a_body_takes_its_time(server: RangeServer, client: S3Store) -> None:
    server.set_link(mb_per_s=20)
    began = time.monotonic()
    obstore.get_range(client, "slide.svs", start=0, length=2_000_000)
    # The last piece may come as early as the server's clock is coarse.
    assert time.monotonic() - began >= 0.100 - 0.001


def test_counts_what_it_serves(server: RangeServer, client: S3Store) -> None:
    obstore.head(client, "slide.svs")
    obstore.get_ranges(client, "slide.svs", starts=[0, 2_000_000], lengths=[1000, 500])
    obstore.list(client).collect()
    counters = server.counters()
    assert (counters.requests, counters.heads, counters.gets, counters.bytes) == (4, 1, 2, 1500)
    assert counters.connections >= 1
    server.reset_counters()
    assert server.counters().requests == 0


def test_historay_reads_it_from_the_environment(
    server: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    store = Store.open("s3://slides/a b")
    assert [info.key for info in store.list()] == ["deep/x.svs", "ü&1.svs"]
    etag = store.head("ü&1.svs").etag
    assert store.get_range("ü&1.svs", 5, 100, etag=etag) == DATA[5:105]
    with pytest.raises(ObjectReplacedError):
        store.get_range("ü&1.svs", 5, 100, etag="another")
    with pytest.raises(NotFoundError, match="no bucket"):
        list(Store.open("s3://absent").list())


def test_s3fs_reads_it(server: RangeServer) -> None:
    files = s3fs.S3FileSystem(anon=True, endpoint_url=server.endpoint, skip_instance_cache=True)
    assert files.ls("slides/a b") == ["slides/a b/deep", "slides/a b/ü&1.svs"]
    assert files.find("slides") == [f"slides/{key}" for key in KEYS]
    with files.open("slides/slide.svs", block_size=100_000) as file:
        file.seek(2_500_000)
        assert file.read(1000) == DATA[2_500_000:2_501_000]
