"""The fault proxy: nothing to notice without faults, and what each of them is on the wire."""

from __future__ import annotations

import http.client
import random
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from urllib.parse import urlsplit

import obstore
import pytest
from obstore.store import S3Store

from tests.servers.ceph import CephCluster
from tests.servers.faults import FaultProxy, Faults, Settings
from tests.servers.s3 import REGION, S3Server, free_port

DATA = random.Random(5).randbytes(1_000_000)
HALF = len(DATA) // 2


@pytest.fixture(scope="module")
def bucket(moto_server: S3Server) -> str:
    """Holds `object`, which anyone may read and write."""
    name = moto_server.bucket().removeprefix("s3://")
    moto_server.client().put_object(Bucket=name, Key="object", Body=DATA)
    return name


@pytest.fixture(scope="module")
def running(moto_server: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(moto_server.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def proxy(running: FaultProxy) -> FaultProxy:
    """No faults, counts at zero."""
    running.ask("POST", "/_faults", asdict(Faults()))
    return running


def through(proxy: FaultProxy, upstream: S3Server) -> S3Server:
    return replace(upstream, endpoint_url=proxy.endpoint)


@contextmanager
def asked(
    proxy: FaultProxy, bucket: str, method: str = "GET", *, key: str = "object"
) -> Iterator[http.client.HTTPResponse]:
    """The reply to one request on a connection of its own; its body is still to be read."""
    connection = http.client.HTTPConnection(urlsplit(proxy.endpoint).netloc, timeout=20)
    with closing(connection):
        # moto wants to be asked by someone, whoever it is.
        named = {"Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4"}
        body = DATA if method == "PUT" else None
        connection.request(method, f"/{bucket}/{key}", body, named)
        with connection.getresponse() as reply:
            yield reply


def outcome(proxy: FaultProxy, bucket: str, method: str = "GET", *, key: str = "object") -> str:
    """What became of one request."""
    said = ""
    try:
        with asked(proxy, bucket, method, key=key) as reply:
            said = f"{reply.status} of {reply.headers['Content-Length']}, "
            return f"{said}came {len(reply.read())}"
    except http.client.IncompleteRead as error:
        return f"{said}came {len(error.partial)}"
    except http.client.RemoteDisconnected:
        return f"{said}closed"
    except ConnectionError:
        return f"{said}reset"


def is_transparent(proxy: FaultProxy, upstream: S3Server) -> None:
    server = through(proxy, upstream)
    bucket = server.bucket().removeprefix("s3://")
    client = S3Store(
        bucket,
        endpoint=server.endpoint_url,
        access_key_id=server.access_key,
        secret_access_key=server.secret_key,
        region=REGION,
        client_options={"allow_http": True},
    )
    obstore.put(client, "folder/new", DATA, use_multipart=False)
    assert obstore.get(client, "folder/new").bytes() == DATA
    assert obstore.get_range(client, "folder/new", start=7, end=9) == DATA[7:9]
    assert obstore.head(client, "folder/new")["size"] == len(DATA)
    # boto3 waits for `100 Continue` before it sends a body.
    boto = server.client()
    boto.put_object(Bucket=bucket, Key="other", Body=DATA)
    assert boto.get_object(Bucket=bucket, Key="other")["Body"].read() == DATA
    boto.close()
    assert [meta["path"] for meta in obstore.list(client).collect()] == ["folder/new", "other"]
    obstore.delete(client, ["folder/new", "other"])
    with pytest.raises(FileNotFoundError):
        obstore.head(client, "folder/new")
    counts = proxy.counts()
    assert counts.pop("requests") == 10
    assert not any(counts.values())


def test_without_faults_it_is_not_noticed(proxy: FaultProxy, moto_server: S3Server) -> None:
    is_transparent(proxy, moto_server)


@pytest.mark.ceph
def test_signatures_hold_at_a_server_that_checks_them(ceph_cluster: CephCluster) -> None:
    with FaultProxy(ceph_cluster.server.endpoint_url) as proxy:
        is_transparent(proxy, ceph_cluster.server)


def test_error_503(proxy: FaultProxy, bucket: str) -> None:
    proxy.set(error_503=1.0)
    for method in ("GET", "HEAD", "PUT"):
        with asked(proxy, bucket, method, key="refused") as reply:
            assert reply.status == 503
            assert (b"SlowDown" in reply.read()) == (method != "HEAD")
    with closing(http.client.HTTPConnection(urlsplit(proxy.endpoint).netloc)) as connection:
        # One that waits before it sends its body is refused at once.
        connection.putrequest("PUT", f"/{bucket}/refused")
        connection.putheader("Content-Length", "1000")
        connection.putheader("Expect", "100-continue")
        connection.endheaders()
        with connection.getresponse() as reply:
            assert reply.status == 503
    assert proxy.counts()["error_503"] == proxy.counts()["requests"] == 4
    proxy.set(error_503=0.0)
    assert outcome(proxy, bucket, "HEAD", key="refused").startswith("404")


def test_reset(proxy: FaultProxy, bucket: str) -> None:
    proxy.set(reset=1.0)
    gets = {outcome(proxy, bucket) for _ in range(12)}
    assert gets == {"reset", f"200 of {len(DATA)}, reset"}
    assert outcome(proxy, bucket, "PUT", key="refused") == "reset"
    assert proxy.counts()["reset"] == 13
    proxy.set(reset=0.0)
    assert outcome(proxy, bucket, "HEAD", key="refused").startswith("404")


def test_truncate(proxy: FaultProxy, bucket: str) -> None:
    proxy.set(truncate=1.0)
    assert outcome(proxy, bucket) == f"200 of {len(DATA)}, came {HALF}"
    assert outcome(proxy, bucket, "HEAD") == f"200 of {len(DATA)}, came 0"
    assert proxy.counts()["truncate"] == 1


def test_stall(proxy: FaultProxy, bucket: str) -> None:
    proxy.set(stall=1.0, stall_s=0.3)
    began = time.monotonic()
    assert outcome(proxy, bucket) == f"200 of {len(DATA)}, came {HALF}"
    assert time.monotonic() - began >= 0.3
    assert proxy.counts()["stall"] == 1


def test_lost_reply(proxy: FaultProxy, bucket: str) -> None:
    proxy.set(lost_reply=1.0)
    assert outcome(proxy, bucket, "PUT", key="written") == "reset"
    with asked(proxy, bucket, key="written") as reply:
        assert reply.read() == DATA
    assert proxy.counts()["lost_reply"] == 1


def test_latency(proxy: FaultProxy, bucket: str) -> None:
    proxy.set(latency_ms=50)
    began = time.monotonic()
    assert outcome(proxy, bucket) == f"200 of {len(DATA)}, came {len(DATA)}"
    assert time.monotonic() - began >= 0.050


def test_a_seed_repeats_its_faults(proxy: FaultProxy, moto_server: S3Server, bucket: str) -> None:
    settings: Settings = {"error_503": 0.2, "reset": 0.2, "truncate": 0.2, "seed": 1}
    proxy.set(**settings)
    first = [outcome(proxy, bucket) for _ in range(30)]
    assert len(set(first)) == 5
    counts = proxy.counts()
    assert counts["error_503"] == sum(each.startswith("503") for each in first)
    proxy.set(seed=2)
    assert [outcome(proxy, bucket) for _ in range(30)] != first
    with FaultProxy(moto_server.endpoint_url, **settings) as other:
        assert [outcome(other, bucket) for _ in range(30)] == first
        assert other.counts() == counts


def test_settings_that_mean_nothing_are_refused(proxy: FaultProxy) -> None:
    with pytest.raises(RuntimeError, match="together"):
        proxy.set(error_503=0.7, truncate=0.7)
    with pytest.raises(RuntimeError, match="unexpected"):
        proxy.ask("POST", "/_faults", {"reste": 1.0})
    assert proxy.ask("GET", "/_faults")["settings"]["error_503"] == 0.0


def test_a_dead_upstream_shows(bucket: str) -> None:
    with FaultProxy(f"http://127.0.0.1:{free_port()}") as proxy:
        assert outcome(proxy, bucket) in ("closed", "reset")
