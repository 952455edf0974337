"""`historay-serve`, from outside: the batch job's vectors, and no request lost on the way."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from ray_pipeline.encoders.encoder import resolve_precision
from ray_pipeline.slides.slide import open_slide
from ray_pipeline.store import Store
from ray_pipeline.synthetic import write_slide
from tests.cluster.test_real_slide import SLIDE as REAL_SLIDE
from tests.cluster.test_real_slide import cosine
from tests.commands import historay
from tests.conftest import REAL_SLIDES
from tests.listening import reachable_from_elsewhere
from tests.serve.running import HEADERS, PNG, TOY, Load, Running, historay_serve
from tests.serve_app.pictures import encoded
from tests.serve_app.serving import TOKEN
from tests.serve_app.test_api import ACCEPTS, data_uri, form, vectors_in

ANSWERED = ("200", "503", "ConnectError")
CUT_OFF = ("ReadError", "RemoteProtocolError", "WriteError")
SECRET = "X-Amz-Signature=5e1f0d0c0b0a"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({}, "there is no token"),
        ({"allow_anonymous": True, "host": "0.0.0.0"}, "open to the network"),
        ({"allow_anonymous": True, "hots": "127.0.0.1"}, "'hots': is no known key"),
        ({"tokens_file": "/nowhere/tokens"}, "can't be read"),
        (
            {"allow_anonymous": True, "regions": {"prefixes": ["file:///x/"]}},
            "set regions.allow_file",
        ),
    ],
)
def test_it_does_not_start_on_wrong_settings_and_says_why(
    tmp_path: Path, said: dict[str, object], words: str
) -> None:
    done = ended(tmp_path, {"models": [TOY], **said})
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert words in line


@pytest.mark.ray
def test_what_a_replica_can_not_do_without_is_the_last_word(tmp_path: Path) -> None:
    encoder = {"model": "h0-mini", "weights": str(tmp_path / "gone.safetensors")}
    done = ended(tmp_path, {"models": [{"encoder": encoder}], "allow_anonymous": True})
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: the service did not start: ")
    assert "gone.safetensors" in last


def ended(folder: Path, said: dict[str, object]) -> subprocess.CompletedProcess[str]:
    """The command on these settings, without a token from elsewhere."""
    config = folder / "serve.yaml"
    config.write_text(yaml.safe_dump(said))
    return subprocess.run(
        [sys.executable, "-m", "serve_app", "--config", str(config)],
        env={**os.environ, "HISTORAY_SERVE_TOKENS": ""},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    write_slide(folder / "synthetic.svs", width_px=5000, height_px=4000, mpp=0.25, seed=3)
    return folder


@pytest.fixture(scope="module")
def running(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    regions = {"prefixes": [f"file://{slides}", f"file://{REAL_SLIDES}"], "allow_file": True}
    serve = tmp_path_factory.mktemp("serve")
    with historay_serve(serve, regions=regions, ingress_replicas=2) as made:
        yield made


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_the_vectors_are_those_of_the_batch_job(
    running: Running, slides: Path, tmp_path: Path
) -> None:
    same_vectors(running, slides / "synthetic.svs", tmp_path, reduce=2)


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_so_are_those_of_a_real_slide(running: Running, real_slides: Path, tmp_path: Path) -> None:
    same_vectors(running, real_slides / REAL_SLIDE, tmp_path, reduce=1)


@pytest.mark.ray
def test_no_part_of_it_can_be_reached_from_elsewhere(running: Running) -> None:
    assert reachable_from_elsewhere(running.process.pid) == []


def same_vectors(running: Running, path: Path, tmp_path: Path, *, reduce: int) -> None:
    """Embed all tiles of a slide by the job and by every endpoint, and compare them."""
    job = ["--slides", str(path), "--output", str(tmp_path / "out"), "--model", "toy"]
    outcome = historay("embed", *job)
    assert outcome.code == 0, outcome.stderr
    store = Store.open(str(tmp_path / "out"))
    (info,) = store.list("embeddings")
    table = pq.ParquetFile(store.open_file(info.key)).read()
    stored = np.stack(table["embedding"].to_numpy())
    xy = np.stack([table["x"].to_numpy(), table["y"].to_numpy()], axis=1).astype(np.int32)
    tiles = open_slide(str(path)).read_tiles(
        level=0, reduce=reduce, xy=xy, side_px=224.0, tile_px=224
    )
    images = [encoded(tile) for tile in tiles]
    places = {"uri": f"file://{path}", "tiles": xy.tolist()}
    with running.client() as client:
        replies = [
            client.post("/v1/embeddings", json={"input": [data_uri(image) for image in images]}),
            *(
                reply
                for accept in ACCEPTS
                for reply in (
                    client.post("/v1/tiles", files=form(images), headers={"accept": accept}),
                    client.post("/v1/regions", json=places, headers={"accept": accept}),
                )
            ),
        ]
        info_reply = client.get("/info").json()
    for reply in replies:
        found = vectors_in(reply)
        assert found.shape == stored.shape
        assert cosine(found, stored).min() >= 0.9999
    (recipe,) = [key.key for key in store.list("_state") if key.key.endswith("recipe.json")]
    (encoder,) = info_reply["models"][0]["encoders"]
    assert json.loads(store.get(recipe))["recipe"]["encoder"] == encoder["identity"]


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_metrics_are_those_of_all_processes_whoever_is_asked(running: Running) -> None:
    give_up_at, asked = time.monotonic() + 60, set[str]()
    while len(asked) < 2 and time.monotonic() < give_up_at:
        with running.client() as client:
            page = client.get("/metrics").text
        ingresses = re.findall(r'historay_tiles_in_hand{replica="(\w+)"}', page)
        assert len(ingresses) == 2
        asked.add(ingresses[0])  # who answers puts its own first
    assert len(asked) == 2


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_killed_encoder_costs_no_request(running: Running) -> None:
    with Load(running.url) as load:
        load.wait_for(30)
        running.kill("ray::ServeReplica:historay:encoder-toy")
        load.wait_for(60)
    assert set(load.outcomes) == {"200"}


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_changed_file_is_taken_up_and_costs_no_request(running: Running) -> None:
    settings = yaml.safe_load(running.config.read_text())
    with Load(running.url) as load:
        load.wait_for(20)
        # Another than the one in use, which `auto` chose by what this processor has.
        other = "bf16" if resolve_precision("cpu", "auto") == "fp32" else "fp32"
        settings["models"][0]["encoder"]["precision"] = other
        running.config.write_text(yaml.safe_dump(settings))
        running.process.send_signal(signal.SIGHUP)
        give_up_at = time.monotonic() + 120
        while len(load.encoders) < 2 and time.monotonic() < give_up_at:
            time.sleep(0.2)
        load.wait_for(20)
    assert set(load.outcomes) == {"200"}
    assert len(load.encoders) == 2
    # A file that is wrong changes nothing.
    running.config.write_text("models: [")
    running.process.send_signal(signal.SIGHUP)
    give_up_at = time.monotonic() + 60
    while "is no valid YAML" not in running.said() and time.monotonic() < give_up_at:
        time.sleep(0.2)
    with running.client() as client:
        assert client.post("/v1/tiles", files=form([PNG])).status_code == 200


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_nothing_secret_is_written_anywhere(running: Running) -> None:
    wrong = "wrong-token-0123456789"
    marker = "bWFya2VyLW9mLWFuLWltYWdl"  # base64 of some bytes
    with running.client() as client:
        uri = f"s3://bucket/slide.svs?{SECRET}"
        client.post("/v1/regions", json={"uri": uri, "tiles": [[0, 0]]})
        client.post("/v1/embeddings", json={"input": f"https://host/tile.png?{SECRET}"})
        client.post("/v1/embeddings", json={"input": marker})
        client.post(f"/v1/tiles?{SECRET}", content=PNG, headers={"content-type": "image/png"})
        client.get("/info", headers={"authorization": f"Bearer {wrong}"})
        assert client.post("/v1/tiles", files=form([PNG])).status_code == 200
    time.sleep(1)
    said = running.said()
    assert "encoder-toy" in said, "the logs that are looked through are there"
    for secret in (TOKEN, wrong, SECRET, marker):
        assert secret not in said


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_stopping_under_load_answers_all_that_was_accepted(running: Running) -> None:
    """The last test of this module: the service is gone after it."""
    with Load(running.url, tiles=32) as load:
        load.wait_for(10)
        running.process.terminate()
        assert running.process.wait(120) == 0
    assert {"200", "503"} <= set(load.outcomes) <= {*ANSWERED, *CUT_OFF}, load.outcomes
    # While it drains it refuses in words; what it still refuses when the port closes is cut off,
    # and nothing that it had taken before.
    assert load.refused_at is not None
    assert all(sent_at > load.refused_at for sent_at in load.cut_off)
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{running.url}/health", headers=HEADERS)
