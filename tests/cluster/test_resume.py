"""Kill the driver and everything with it in mid-run: the rerun goes on, and nothing differs."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from subprocess import Popen

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_pipeline.dataset.layout import Layout, recipe_of_key, slide_of_output
from ray_pipeline.dataset.staging import list_staged
from ray_pipeline.store import Store
from ray_pipeline.synthetic import write_slide
from tests.commands import historay, kill_group, start
from tests.servers.s3 import S3Server

DEADLINE_S = 240


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small slides and two of several shards."""
    folder = tmp_path_factory.mktemp("slides")
    for name, side in (("a", 1024), ("b", 1024), ("c", 8192), ("d", 8192)):
        write_slide(folder / f"{name}.svs", width_px=side, height_px=side, seed=ord(name))
    return folder


def outputs(store: Store) -> dict[str, str]:
    """slide_id -> etag of its file."""
    found = {slide_of_output(info.key): info.etag for info in store.list("embeddings")}
    return {slide: etag for slide, etag in found.items() if slide is not None}


def staged(store: Store) -> dict[str, int]:
    """slide_id -> number of staged shards, for slides without a file."""
    layouts = {fp for info in store.list("_state") if (fp := recipe_of_key(info.key))}
    done = outputs(store)
    return {
        slide: sum(map(len, plans.values()))
        for fp in layouts
        for slide, plans in list_staged(store, Layout(fp)).items()
        if slide not in done
    }


def rows(store: Store) -> pa.Table:
    tables = [
        pq.read_table(store.open_file(info.key)).replace_schema_metadata(None)
        for info in store.list("embeddings")
    ]
    whole = pa.concat_tables(
        [table.set_column(0, "slide_id", table[0].cast("string")) for table in tables]
    )
    return whole.sort_by([("slide_id", "ascending"), ("tile", "ascending")])


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_killed_driver_loses_nothing_and_repeats_nothing(s3: S3Server, slides: Path) -> None:
    bucket = s3.bucket()
    job = ["--slides", f"{slides}/", "--model", "toy", "--json"]
    broken = Store.open(f"{bucket}/broken")
    process = start("embed", *job, "--output", broken.uri, env=s3.env)
    deadline = time.monotonic() + DEADLINE_S
    while not (outputs(broken) and {"c", "d"} & set(staged(broken))):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    kill_group(process)
    time.sleep(5)  # workers outlive their driver by a moment, and may finish what they hold
    finished, half_done = outputs(broken), staged(broken)
    assert finished
    assert half_done

    rerun = historay("embed", *job, "--output", broken.uri, env=s3.env)
    assert rerun.code == 0, rerun.stderr
    after = outputs(broken)
    assert set(after) == set("abcd")
    assert {slide: after[slide] for slide in finished} == finished
    assert rerun.json["tiles_resumed"] >= 256 * (sum(half_done.values()) - len(half_done))
    assert staged(broken) == {}

    whole = Store.open(f"{bucket}/whole")
    assert historay("embed", *job, "--output", whole.uri, env=s3.env).code == 0
    one, other = rows(broken), rows(whole)
    assert one.drop(["embedding"]).equals(other.drop(["embedding"]))
    assert np.array_equal(np.stack(one["embedding"]), np.stack(other["embedding"]))


def under_way(process: Popen[str], output: Path) -> None:
    """Wait until the first shard is staged."""
    deadline = time.monotonic() + DEADLINE_S
    while not list(output.glob("_state/*/staging/*/*/*.arrow")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_termination_signal_stops_it_and_the_same_command_resumes(
    slides: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    job = ["--slides", f"{slides}/", "--output", str(output), "--model", "toy", "--json"]
    process = start("embed", *job)
    under_way(process, output)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 4, stderr
    assert stderr.endswith("stopped on request; resume with the same command.\n")
    assert "Traceback" not in stderr
    told = json.loads(stdout.splitlines()[-1])
    assert (told["stopped"], told["slides_failed"]) == (True, 0)
    (report,) = output.glob("_state/*/runs/*.json")
    assert json.loads(report.read_text())["stopped"] is True
    store = Store.open(str(output))
    done = sum(pq.read_metadata(path).num_rows for path in output.glob("embeddings/**/*.parquet"))
    waiting = sum(staged(store).values())
    assert told["tiles"] <= done + 256 * waiting, "what was counted is kept"
    rerun = historay("embed", *job)
    assert rerun.code == 0, rerun.stderr
    assert set(outputs(store)) == set("abcd")
    assert rerun.json["tiles_resumed"] > 256 * (waiting - 4)


@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.parametrize("after_s", [0, 0.5, 2])
def test_a_signal_before_anything_is_under_way_stops_it_too(
    slides: Path, tmp_path: Path, after_s: float
) -> None:
    process = start(
        *("embed", "--slides", f"{slides}/", "--output", str(tmp_path / "out"), "--model", "toy")
    )
    deadline = time.monotonic() + DEADLINE_S
    while not (tmp_path / "out").exists():  # the probe of the store, just before Ray starts
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(after_s)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=120)
    assert (process.returncode, "Traceback" in stderr) == (4, False), stderr
    assert stderr.endswith("stopped on request; resume with the same command.\n")


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_second_signal_ends_it_at_once(slides: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    job = ["--slides", f"{slides}/", "--output", str(output), "--model", "toy"]
    process = start("embed", *job, "--stop-grace-s", "3600")
    under_way(process, output)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: to all of its group
        time.sleep(0.2)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 4, stderr
    assert stderr.endswith("stopped on request; resume with the same command.\n")
    assert list(output.glob("_state/*/runs/*.json")) == []
