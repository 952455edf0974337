"""A commit that Ray gives to a node which has just been frozen.

    python -m tests.cluster.lost_commit OUTPUT

The cluster is this head, of one CPU, and one other node, which is to be frozen once "ready" is
printed, and a line is to be written then. Prints the status that the commit's record has.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_pipeline.cluster import connect, disconnect
from ray_pipeline.console import say
from ray_pipeline.pipeline import CommitTasks
from ray_pipeline.store import Store
from tests.dataset.conftest import staged_slide

DEADLINE_S = 100
"""Ray by itself waits for such a node for five minutes at least (its gRPC's keepalive)."""


class Holder:
    """Holds a CPU."""


def main() -> None:
    """Have the other node asked, give the head's CPU back once it is dead, await the commit."""
    output = sys.argv[1]
    connect()
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    holder: Any = ray.remote(num_cpus=1)(Holder).options(scheduling_strategy=here).remote()
    ray.get(holder.__ray_ready__.remote())
    # On the other node, to which the driver has a connection from then on.
    ray.get(ray.remote(num_cpus=0.5)(nothing).remote())
    say("ready")
    sys.stdin.readline()
    commits = CommitTasks(1, "run-1")
    launched = commits.launch(staged_slide(store=Store.open(output)))
    wait_until(lambda: nodes_alive() == 1)
    ray.kill(holder)
    for _ in range(20):
        assert commits.first_of([launched], 0.5) is None, "it did not wait for the frozen node"
    wait_until(lambda: commits.first_of([launched], 0.5) is not None)
    say(commits.result(launched).status)
    disconnect()


def nothing() -> None:
    """A task that ends at once."""


def nodes_alive() -> int:
    return sum(node["Alive"] for node in ray.nodes())  # type: ignore[no-untyped-call]


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {DEADLINE_S} s")
        time.sleep(0.1)


if __name__ == "__main__":
    main()
