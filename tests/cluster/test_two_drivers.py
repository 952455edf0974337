"""Two drivers on one output at the same time, on a real store: one file per slide, both done."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from pathlib import Path
from subprocess import Popen

import numpy as np
import pyarrow.parquet as pq
import pytest

from ray_pipeline.dataset.layout import Layout, slide_of_output
from ray_pipeline.dataset.start import read_state
from ray_pipeline.store import Store
from ray_pipeline.synthetic import write_slide
from tests.commands import Outcome, historay, kill_group, start
from tests.servers.s3 import S3Server

TIMEOUT_S = 500
SLIDES = 15


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small slides, and two of several shards."""
    folder = tmp_path_factory.mktemp("slides")
    for number in range(SLIDES):
        side = 6144 if number % 5 == 4 else 1024
        write_slide(folder / f"{number}.svs", width_px=side, height_px=side, seed=number)
    return folder


class Watch(threading.Thread):
    """Notes every version that was seen of every file, until it is ended."""

    def __init__(self, store: Store) -> None:
        super().__init__(daemon=True)
        self.seen: dict[str, set[str]] = defaultdict(set)
        """Key of a file -> etags."""
        self._store, self._ended = store, threading.Event()

    def run(self) -> None:
        last = False
        while not last:
            last = self._ended.wait(0.1)
            for info in self._store.list("embeddings"):
                self.seen[info.key].add(info.etag)

    def end(self) -> None:
        self._ended.set()
        self.join()


def ends(processes: list[Popen[str]]) -> list[Outcome]:
    """How they ended, waiting for all; whatever happens, none is left."""
    deadline, outcomes = time.monotonic() + TIMEOUT_S, []
    try:
        for process in processes:
            told = process.communicate(timeout=deadline - time.monotonic())
            outcomes.append(Outcome(process.returncode, *told))
    finally:
        for process in processes:
            if process.poll() is None:
                kill_group(process)
    return outcomes


@pytest.mark.ray
@pytest.mark.ceph
@pytest.mark.timeout(900)
def test_two_drivers_at_once_make_one_file_per_slide(ceph: S3Server, slides: Path) -> None:
    output = Store.open(f"{ceph.bucket()}/out")
    job = ["embed", "--slides", f"{slides}/", "--output", output.uri, "--model", "toy", "--json"]
    watch = Watch(output)
    watch.start()
    outcomes = ends([start(*job, env=ceph.env) for _ in range(2)])
    watch.end()
    for outcome in outcomes:
        assert outcome.code == 0, outcome.stderr
        assert outcome.json["slides_done"] > 0, "they were not at work at the same time"
        assert outcome.json["slides_done"] + outcome.json["slides_finished_before"] == SLIDES
    assert all(len(versions) == 1 for versions in watch.seen.values()), "a file was replaced"
    names = sorted(slide_of_output(key) or "" for key in watch.seen)
    assert names == sorted(path.stem for path in slides.iterdir())
    for key in watch.seen:
        tiles = pq.read_table(output.open_file(key))["tile"].to_numpy()
        assert np.array_equal(tiles, np.arange(len(tiles)))
    layout = Layout(outcomes[0].json["recipe_fp"])
    assert not list(output.list(f"{layout.state}/quarantine"))

    again = historay(*job, env=ceph.env)
    assert (again.code, again.json["slides_finished_before"]) == (0, SLIDES)
    assert read_state(output, layout).staged == {}, "what one of them staged too late is swept"
