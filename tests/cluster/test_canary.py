"""Secrets are planted wherever people put them, and looked for wherever historay writes."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import duckdb
import pytest

from ray_pipeline.synthetic import write_slide
from tests.commands import Outcome, historay
from tests.servers.moto import MotoServer
from tests.servers.ray_head import ray_head
from tests.servers.s3 import S3Server, free_port

pytestmark = pytest.mark.timeout(900)

SECRETS = {
    "key id": "AKIACANARYCANARYCANA",
    "secret key": "canary/Secret+1wJalrXUtnFEMIK7MDENGbPxRfi",
    "session token": "canarySession2FwoGZXIvYXdzEBYaDH",
    "GCS key": "GOOG1ECANARY3CANARYCANARYCANARYCANARY",
    "signature": "canarysignature4e5f6a7b8c9d",
    "SAS": "canarysas5AbCdEf%3D",
    "password": "canarypassword6",
    "bearer token": "canarybearer7eyJhbGciOi.J9",
}
SIGNED = (
    f"X-Amz-Credential={SECRETS['key id']}%2F20260101%2Fs3&X-Amz-Expires=60"
    f"&X-Amz-Security-Token={SECRETS['session token']}&X-Amz-Signature={SECRETS['signature']}"
)


class Telltale(BaseHTTPRequestHandler):
    """A web server that has a slide, refuses to give it, and repeats every secret with that."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.send_header("ETag", '"1"')
        self.end_headers()

    def do_GET(self) -> None:
        self._refuse()

    def do_PUT(self) -> None:
        self._refuse()

    def _refuse(self) -> None:
        body = f"{self.headers} {SECRETS} {SIGNED}".encode()
        self.send_response(403, f"sig={SECRETS['SAS']}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def telltale() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Telltale)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def planted(moto_server: S3Server) -> dict[str, str]:
    """An environment full of secrets, in which moto is the S3."""
    return {
        **moto_server.env,
        "AWS_ACCESS_KEY_ID": SECRETS["key id"],
        "AWS_SECRET_ACCESS_KEY": SECRETS["secret key"],
        "AWS_SESSION_TOKEN": SECRETS["session token"],
        "GCS_HMAC_KEY": SECRETS["GCS key"],
        "AZURE_STORAGE_SAS_TOKEN": f"sv=1&sig={SECRETS['SAS']}",
        "LAB_PASSWORD": SECRETS["password"],
        "LAB_TOKEN": SECRETS["bearer token"],
    }


@dataclass
class Found:
    """Which secrets stand where."""

    places: list[str]

    def look(self, where: str, text: str) -> None:
        self.places += [f"{name} in {where}" for name, value in SECRETS.items() if value in text]

    def look_below(self, folder: Path) -> None:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                self.look(str(path.relative_to(folder)), path.read_bytes().decode("latin-1"))


@pytest.mark.ray
def test_no_secret_of_a_job_is_written_anywhere(
    moto_server: S3Server, planted: dict[str, str], telltale: str, tmp_path: Path
) -> None:
    write_slide(tmp_path / "good.svs", width_px=1024, height_px=1024, seed=1)
    manifest = tmp_path / "slides.csv"
    manifest.write_text(
        "uri,link\n"
        f"good.svs,https://host/report.pdf?{SIGNED}\n"
        f"http://{telltale}/refused.svs,az://c/d?sig={SECRETS['SAS']}\n"
        f"s3://no-such-bucket/lost.svs,Bearer {SECRETS['bearer token']}\n"
    )
    output, found = tmp_path / "out", Found([])
    job = ("--slides", str(manifest), "--output", str(output), "--model", "toy", "--json")
    with ray_head(tmp_path / "head.log", environment=planted) as head:
        outcome = historay("embed", *job, env={**planted, **head.env})
        assert outcome.code == 3, outcome.stderr
        assert outcome.json["slides_done"] == 1
        kinds = {failure["slide_id"]: failure["kind"] for failure in outcome.json["failures"]}
        assert kinds == {"refused": "access-denied", "lost": "not-found"}
        worker_logs = [path.read_text() for path in head.logs.glob("worker-*.err")]
        assert any('"slide_id": "refused"' in log for log in worker_logs), "nothing to look at"
        found.look_below(head.temp)
        found.look("metrics", urllib.request.urlopen(head.metrics_url, timeout=30).read().decode())
    told = historay("errors", str(output), "--json", env=planted)
    for where, one in (("embed", outcome), ("errors", told)):
        found.look(f"{where}'s output", one.stdout + one.stderr)
    found.look_below(output)
    for table in ("embeddings/**/*.parquet", "slides/*/slides.parquet"):
        rows = duckdb.execute(f"select * from '{output}/{table}'").fetchall()
        assert rows
        found.look(table, str(rows))
        footers = duckdb.execute(
            f"select decode(key), decode(value) from parquet_kv_metadata('{output}/{table}')"
        )
        found.look(f"footers of {table}", str(footers.fetchall()))
    links = duckdb.execute(f"select link from '{output}/slides/*/slides.parquet'").fetchall()
    assert any(link.startswith("https://host/report.pdf?X-Amz-Credential=***") for (link,) in links)
    assert found.places == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("said", "code", "words"),
    [
        ({"uri": f"https://host/a.svs?{SIGNED}"}, 2, "carries credentials or a signature"),
        ({"uri": f"https://lab:{SECRETS['password']}@host/a.svs"}, 2, "carries credentials"),
        ({"uri": f"az://c/a.svs?sv=1&sig={SECRETS['SAS']}"}, 2, "carries credentials"),
        ({"uri": f"s3://b/a.svs?AWSAccessKeyId={SECRETS['key id']}"}, 2, "carries credentials"),
        ({"uri": "s3://no-such-bucket/a.svs"}, 1, "there is no bucket"),
        ({"output": f"s3://k:{SECRETS['password']}@b/o"}, 2, "carries credentials"),
        ({"weights": f"https://h/w.bin?{SIGNED}"}, 2, "no weights for h-optimus-0"),
        ({"batch_size": f"Bearer {SECRETS['bearer token']}"}, 2, "'batch_size'"),
        ({"aws_secret_access_key": SECRETS["secret key"]}, 2, "no known key"),
        ({"precision": SECRETS["secret key"]}, 2, "'precision'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_no_secret_is_repeated_by_what_refuses_it(
    planted: dict[str, str], tmp_path: Path, said: dict[str, str], code: int, words: str
) -> None:
    write_slide(tmp_path / "a.svs", width_px=1024, height_px=1024, seed=1)
    settings = {"slides": str(tmp_path / "slides.csv"), "output": str(tmp_path / "out"), **said}
    (tmp_path / "slides.csv").write_text(f"uri\n{settings.pop('uri', 'a.svs')}\n")
    config = tmp_path / "job.yaml"
    config.write_text("".join(f"{key}: '{value}'\n" for key, value in settings.items()))
    _refused(historay("embed", "--config", str(config), env=planted), code, words)


@pytest.fixture(scope="module")
def endpoints(tmp_path_factory: pytest.TempPathFactory, telltale: str) -> Iterator[dict[str, str]]:
    """Ways in which an S3 endpoint fails a job."""
    moto = MotoServer(tmp_path_factory.mktemp("moto") / "moto.log", check_keys=True)
    yield {
        "refuses the key": moto.start().endpoint_url,
        "repeats secrets": f"http://{telltale}",
        "holds a password": f"http://lab:{SECRETS['password']}@127.0.0.1:{free_port()}",
    }
    moto.stop()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["refuses the key", "repeats secrets", "holds a password"])
def test_no_secret_is_in_what_an_endpoint_does(
    planted: dict[str, str], endpoints: dict[str, str], tmp_path: Path, how: str
) -> None:
    write_slide(tmp_path / "a.svs", width_px=1024, height_px=1024, seed=1)
    job = ("--slides", str(tmp_path / "a.svs"), "--output", "s3://bucket/out", "--model", "toy")
    env = {**planted, "AWS_ENDPOINT_URL": endpoints[how]}
    _refused(historay("embed", *job, env=env), 1, "s3://bucket/out")


def _refused(outcome: Outcome, code: int, words: str) -> None:
    assert outcome.code == code, outcome.stderr
    assert words in outcome.error
    found = Found([])
    found.look("output", outcome.stdout + outcome.stderr)
    assert found.places == []
