"""Where weights may come from, and the sentence people read when they can't be had."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ray_pipeline.encoders import weights as weights_module
from ray_pipeline.encoders.registry import get_spec
from ray_pipeline.encoders.spec import ModelSpec
from ray_pipeline.encoders.weights import (
    check_original,
    fetch_weights,
    local_file,
    resolve_weights,
    weights_cache_key,
)
from ray_pipeline.errors import NotFoundError, SettingsError, WeightsError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def spec() -> ModelSpec:
    """A model that has weights on a hub, as small as the toy."""
    toy = get_spec("toy")
    return replace(toy, name="tiny", hub_id="someone/tiny", weights_file="pytorch_model.bin")


class WebStore:
    """A web server with one object; counts the bytes it gives."""

    def __init__(self) -> None:
        self.body = b""
        self.etag = "one"
        self.gets = 0
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.uri = f"http://127.0.0.1:{self.server.server_port}/models/w.safetensors"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        store = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Keep the test's output quiet."""

            def _reply(self, status: int, body: bytes, **headers: str) -> None:
                self.send_response(status)
                self.send_header("ETag", f'"{store.etag}"')
                self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def do_HEAD(self) -> None:
                known = self.path == "/models/w.safetensors"
                self._reply(200 if known else 404, store.body if known else b"")

            def do_GET(self) -> None:
                if self.headers.get("If-Match", f'"{store.etag}"').strip('"') != store.etag:
                    self._reply(412, b"")
                    return
                store.gets += 1
                found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
                assert found is not None
                start, last = int(found[1]), int(found[2])
                size = len(store.body)
                part = store.body[start : last + 1]
                self._reply(206, part, Content_Range=f"bytes {start}-{last}/{size}")

        return Handler


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebStore]:
    monkeypatch.setenv("HISTORAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weights_module, "DOWNLOAD_CHUNK_BYTES", 1000)
    store = WebStore()
    thread = threading.Thread(target=store.server.serve_forever, daemon=True)
    thread.start()
    yield store
    store.server.shutdown()
    store.server.server_close()
    thread.join()


def hub_cache(folder: Path, content: bytes = b"weights") -> Path:
    """A hub cache with one downloaded file, laid out as huggingface_hub lays it out."""
    repo = folder / "models--someone--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    path = snapshot / "pytorch_model.bin"
    path.write_bytes(content)
    return path


def assert_tells_three_ways(sentence: str) -> None:
    assert "--weights /path/file.safetensors" in sentence
    assert "--weights s3://bucket/key" in sentence
    assert "hf download someone/tiny pytorch_model.bin" in sentence
    assert "\n" not in sentence


def test_toy_is_always_random() -> None:
    toy = get_spec("toy")
    source = resolve_weights(toy, None)
    assert source == resolve_weights(toy, "random")
    assert not source.meaningful
    with pytest.raises(WeightsError, match="toy has no weights but random ones"):
        resolve_weights(toy, "/some/file.bin")


def test_random_weights_of_a_real_architecture_mean_nothing(spec: ModelSpec) -> None:
    assert not resolve_weights(spec, "random").meaningful


def test_hub_cache_is_found_under_hf_home_without_network_or_torch(tmp_path: Path) -> None:
    path = hub_cache(tmp_path / "hub")
    code = (
        "import sys, socket\n"
        "from dataclasses import replace\n"
        "from ray_pipeline.encoders.registry import get_spec\n"
        "from ray_pipeline.encoders.weights import local_file, resolve_weights\n"
        "socket.socket.connect = None\n"
        "spec = replace(get_spec('toy'), hub_id='someone/tiny', weights_file='pytorch_model.bin')\n"
        "source = resolve_weights(spec, None)\n"
        "print(source.kind, source.version, local_file(spec, source), 'torch' in sys.modules)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_CACHE",)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["hub", COMMIT, str(path), "False"]


@pytest.fixture
def empty_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


@pytest.mark.usefixtures("empty_hub_cache")
def test_no_weights_at_all_tells_the_three_ways(spec: ModelSpec) -> None:
    with pytest.raises(WeightsError, match="not in the hub's local cache") as caught:
        resolve_weights(spec, None)
    assert_tells_three_ways(str(caught.value))


@pytest.mark.usefixtures("empty_hub_cache")
def test_pinned_and_gated_weights_tell_revision_and_terms(spec: ModelSpec) -> None:
    asked = replace(spec, revision="ab" * 20, gated=True)
    with pytest.raises(WeightsError) as caught:
        resolve_weights(asked, None)
    assert f"pytorch_model.bin --revision {'ab' * 20}, once" in str(caught.value)
    assert "accepted its terms at hf.co/someone/tiny" in str(caught.value)


def test_weights_that_are_not_on_the_hub_tell_where_they_are() -> None:
    spec = get_spec("kaiko-vits16")
    with pytest.raises(WeightsError, match="not on the hub") as caught:
        resolve_weights(spec, None)
    assert f"download {spec.weights_url} and give that" in str(caught.value)
    assert not resolve_weights(spec, "random").meaningful


@pytest.mark.parametrize("given", ["absent.bin", "absent.safetensors", "notes.txt", "folder.pt"])
def test_unusable_path_tells_the_three_ways(spec: ModelSpec, tmp_path: Path, given: str) -> None:
    (tmp_path / "notes.txt").write_text("no weights")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(WeightsError, match=given) as caught:
        resolve_weights(spec, str(tmp_path / given))
    assert_tells_three_ways(str(caught.value))


def test_path_is_taken_plain_as_file_uri_and_with_home(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a b.PTH"
    path.write_bytes(b"1234")
    monkeypatch.setenv("HOME", str(tmp_path))
    source = resolve_weights(spec, str(path))
    assert source.meaningful
    assert local_file(spec, source) == path
    assert source == resolve_weights(spec, f"file://{str(path).replace(' ', '%20')}")
    assert source == resolve_weights(spec, "~/a b.PTH")


def test_object_is_downloaded_once_in_ranges(spec: ModelSpec, web: WebStore) -> None:
    web.body = os.urandom(40_500)
    source = resolve_weights(spec, web.uri)
    assert (source.kind, source.version, web.gets) == ("uri", "one", 0)
    path = local_file(spec, source)
    assert path.read_bytes() == web.body
    assert (path.suffix, web.gets) == (".safetensors", 41)
    assert local_file(spec, source) == path
    assert web.gets == 41


def test_concurrent_downloads_share_one(spec: ModelSpec, web: WebStore) -> None:
    web.body = os.urandom(20_000)
    source = resolve_weights(spec, web.uri)
    threads = [threading.Thread(target=local_file, args=(spec, source)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert local_file(spec, source).read_bytes() == web.body
    assert web.gets == 20


def test_new_version_of_an_object_is_downloaded_beside_the_old(
    spec: ModelSpec, web: WebStore
) -> None:
    web.body = b"old"
    old = resolve_weights(spec, web.uri)
    old_path = local_file(spec, old)
    web.body, web.etag = b"new!", "two"
    new = resolve_weights(spec, web.uri)
    assert local_file(spec, new).read_bytes() == b"new!"
    assert old_path.read_bytes() == b"old"
    assert weights_cache_key(spec, old) != weights_cache_key(spec, new)


def test_object_replaced_after_it_was_resolved_is_refused(spec: ModelSpec, web: WebStore) -> None:
    web.body = b"old"
    source = resolve_weights(spec, web.uri)
    web.etag = "two"
    with pytest.raises(WeightsError, match="was replaced"):
        local_file(spec, source)


def test_weights_of_a_digest_are_fetched_once(web: WebStore, tmp_path: Path) -> None:
    web.body = bytes(range(256)) * 20
    digest = hashlib.sha256(web.body).hexdigest()
    target = tmp_path / "mounted" / "w.safetensors"
    assert fetch_weights(web.uri, target, digest.upper())
    assert target.read_bytes() == web.body
    gets = web.gets
    assert not fetch_weights(web.uri, target, digest)
    assert web.gets == gets
    assert [path.name for path in target.parent.glob("*.part")] == []


def test_weights_of_another_digest_change_nothing(web: WebStore, tmp_path: Path) -> None:
    web.body = b"what somebody else put there"
    target = tmp_path / "w.safetensors"
    target.write_bytes(b"before")
    wanted = hashlib.sha256(b"what was asked for").hexdigest()
    with pytest.raises(WeightsError, match="is not what was asked for") as caught:
        fetch_weights(web.uri, target, wanted)
    assert wanted[:12] in str(caught.value)
    assert target.read_bytes() == b"before"
    assert not target.with_name("w.safetensors.part").exists()


def test_what_can_not_be_fetched_is_told(web: WebStore, tmp_path: Path) -> None:
    digest = "0" * 64
    with pytest.raises(SettingsError, match="give 64 hex digits"):
        fetch_weights(web.uri, tmp_path / "w", "0" * 63)
    with pytest.raises(NotFoundError):
        fetch_weights(web.uri.replace("w.safe", "v.safe"), tmp_path / "w", digest)
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match="give another place"):
        fetch_weights(web.uri, tmp_path / "file" / "w", digest)


def test_absent_object_tells_the_three_ways(spec: ModelSpec, web: WebStore) -> None:
    with pytest.raises(WeightsError, match="does not exist") as caught:
        resolve_weights(spec, web.uri.replace("w.safe", "absent.safe"))
    assert_tells_three_ways(str(caught.value))


@pytest.mark.parametrize(
    "given", ["https://user:hush@host/w.bin", "https://host/w.bin?X-Amz-Signature=hush"]
)
def test_secrets_in_a_uri_are_refused_and_not_repeated(spec: ModelSpec, given: str) -> None:
    for model in (spec, get_spec("toy")):
        with pytest.raises(WeightsError) as caught:
            resolve_weights(model, given)
        assert "hush" not in str(caught.value)


def test_unwritable_cache_names_the_setting(
    spec: ModelSpec, web: WebStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.body = b"weights"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HISTORAY_CACHE", str(tmp_path / "file"))
    with pytest.raises(WeightsError, match="HISTORAY_CACHE"):
        local_file(spec, resolve_weights(spec, web.uri))


def test_pickle_must_be_the_original_where_that_is_known(spec: ModelSpec, tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    path.write_bytes(b"original")
    known = replace(spec, weights_sha256=hashlib.sha256(b"original").hexdigest())
    check_original(known, path)
    path.write_bytes(b"tampered")
    check_original(spec, path)
    check_original(known, path.with_suffix(".safetensors"))
    with pytest.raises(WeightsError, match=r"not the original pytorch_model\.bin of tiny"):
        check_original(known, path)


def test_cache_key_is_stable_and_follows_the_file(spec: ModelSpec, tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    path.write_bytes(b"one")
    key = weights_cache_key(spec, resolve_weights(spec, str(path)))
    assert re.fullmatch("[0-9a-f]{16}", key)
    assert key == weights_cache_key(spec, resolve_weights(spec, str(path)))
    assert key != weights_cache_key(get_spec("toy"), resolve_weights(spec, str(path)))
    path.write_bytes(b"another")
    assert key != weights_cache_key(spec, resolve_weights(spec, str(path)))


def test_cache_key_of_the_hub_is_the_same_on_every_node(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = set()
    for node in ("a", "b"):
        hub_cache(tmp_path / node)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / node))
        keys.add(weights_cache_key(spec, resolve_weights(spec, None)))
    assert len(keys) == 1
