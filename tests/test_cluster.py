"""What Ray's errors are to the user: one sentence each."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import (
    ActorDiedError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from ray_pipeline.cluster import connect, own_error
from ray_pipeline.doctor import SLOW_TO_IMPORT
from ray_pipeline.errors import ClusterError, WeightsError
from tests.commands import historay

RAISED = """ray::MapWorker(MapBatches(StageShard)).submit() (pid=1, ip=192.0.2.2)
  File "stages.py", line 1, in stage
ValueError: Arrays were not all the same length: 256 vs 0

The above exception was the direct cause of the following exception:

ray::MapWorker(MapBatches(StageShard)).submit() (pid=1, ip=192.0.2.2)
ray.exceptions.UserCodeException: UDF failed to process a data block.
To change retry attempts, configure `DataContext`."""
"""As Ray Data tells of what a stage raised."""
OUT_OF_MEMORY = OutOfMemoryError("Killed.\nSee `ray logs`.\n")  # type: ignore[no-untyped-call]


def test_nothing_here_makes_every_process_of_ray_start_late() -> None:
    """Two seconds each were most of what a small job, and this suite, took."""
    assert find_spec(SLOW_TO_IMPORT) is None, "install what brings it in an environment of its own"


LOCAL_CLUSTER = """
import os, ray
from ray_pipeline.cluster import connect
from tests.listening import reachable_from_elsewhere
connect()
print(ray.get(ray.remote(lambda: 1).remote()))
print(*reachable_from_elsewhere(os.getpid()), sep="\\n")
"""


@pytest.mark.ray
def test_a_cluster_on_this_machine_can_not_be_reached_from_elsewhere() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOCAL_CLUSTER],
        env={**os.environ, "RAY_ADDRESS": ""},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert done.stdout.split("\n", 1) == ["1", "\n"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OUT_OF_MEMORY, "its node ran short of memory"),
        (WorkerCrashedError(), "WorkerCrashedError: "),
        (
            RayTaskError("stage", RAISED, ValueError()),  # type: ignore[no-untyped-call]
            "(RayTaskError: ValueError: Arrays were not all the same length: 256 vs 0)",
        ),
        (ActorDiedError(), "an actor died while it started"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_an_error_of_ray_is_one_sentence_with_the_mend(error: RayError, words: str) -> None:
    sentence = str(own_error(error))
    assert words in sentence
    assert "run again to go on" in sentence
    assert "\n" not in sentence


def test_an_error_of_ours_that_ray_made_text_of_is_itself_again() -> None:
    died = ActorDiedError()
    died.error_msg += "\n  File x\nray_pipeline.errors.WeightsError: toy: other weights.\n"
    ours = own_error(died)
    assert (type(ours), str(ours)) == (WeightsError, "toy: other weights.")


@pytest.mark.parametrize("address", ["head", "http://head:8265"])
def test_an_address_that_is_none_is_one_sentence(tmp_path: Path, address: str) -> None:
    (tmp_path / "a.svs").write_bytes(b"x")
    job = ["--slides", str(tmp_path), "--output", str(tmp_path / "out"), "--model", "toy"]
    outcome = historay("embed", *job, env={"RAY_ADDRESS": address})
    assert outcome.code == 1
    assert f"RAY_ADDRESS={address} leads to no Ray cluster" in outcome.error


@pytest.mark.parametrize("too_slow", [1, 2, 3])
def test_a_ray_that_starts_too_slowly_has_three_tries(
    monkeypatch: pytest.MonkeyPatch, too_slow: int
) -> None:
    starts: list[dict[str, Any]] = []

    def init(**settings: Any) -> None:
        starts.append(settings)
        if len(starts) <= too_slow:
            # As Ray itself does it: no class of its own.
            raise Exception("The current node timed out\nduring startup.")  # noqa: TRY002

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    if too_slow < 3:
        connect()
        assert len(starts) == too_slow + 1
    else:
        with pytest.raises(ClusterError, match=r"did not start .*during startup\): run again"):
            connect()
        assert len(starts) == 3
