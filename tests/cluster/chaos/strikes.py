"""What is killed, how often, and by which draws."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tests.cluster.chaos.nodes import RayNodes
from tests.servers.ceph import CephCluster

STAGES = {
    "planning tasks": "PlanSlide",
    "readers": "ReadTiles",
    "encoders": "EncodeTiles",
    "staging tasks": "StageShard",
    "commit tasks": "_commit",
}
"""Workers by what Ray calls them."""
RARELY = {"encoders": 0.25}
"""Weight of a stage among the others: an encoder takes many seconds to start."""
LONGEST_OUTAGE_S, LONGEST_ABSENCE_S = 3.0, 8.0
"""Of the gateway, and of a node."""
LOOK_AGAIN_S = 0.2
"""After there was nothing to kill."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """When one kind is killed."""

    every_s: float
    """Mean of the pauses, which are drawn from half to one and a half of it."""
    lasts_s: float
    """From the first pause on."""
    seed: int
    """Of all draws; each kind has a generator of its own."""

    def drawn(self, random: Random) -> float:
        """One pause, seconds."""
        return random.uniform(0.5, 1.5) * self.every_s


class Striker(threading.Thread):
    """Kills one kind of thing every now and then, by draws of its own, until it is ended."""

    def __init__(self, kind: str, pace: Pace) -> None:
        super().__init__(name=kind, daemon=True)
        self.killed: Counter[str] = Counter()
        """How many of what."""
        self.error: BaseException | None = None
        """What ended it before its time."""
        self._pace, self._random = pace, Random(f"{pace.seed} {kind}")
        self._ended = threading.Event()

    def strike(self, random: Random) -> str | None:
        """Kill one; what it was, or None where there was none."""
        raise NotImplementedError

    def pause(self, seconds: float) -> None:
        """Wait, but not past the end."""
        self._ended.wait(seconds)

    def run(self) -> None:
        try:
            ends_at = time.monotonic() + self._pace.lasts_s
            self.pause(self._pace.drawn(self._random))
            # Once at least, however slow the machine is.
            while not self._ended.is_set() and (time.monotonic() < ends_at or not self.killed):
                struck = self.strike(self._random)
                if struck is None:
                    self.pause(LOOK_AGAIN_S)
                else:
                    self.killed[struck] += 1
                    self.pause(self._pace.drawn(self._random))
        except BaseException as error:  # noqa: BLE001 (told by `end`)
            self.error = error

    def end(self) -> None:
        """Strike no more. Raises what went wrong meanwhile."""
        self._ended.set()
        if self.is_alive():
            self.join()
        if self.error is not None:
            raise self.error


class WorkerStriker(Striker):
    """Kills workers at work: first the stage is drawn, then one of its processes."""

    def __init__(self, nodes: RayNodes, pace: Pace) -> None:
        super().__init__("worker", pace)
        self._nodes = nodes

    def strike(self, random: Random) -> str | None:
        at_work = [each for each in self._nodes.processes() if each.title.startswith("ray::")]
        found = {
            stage: [each for each in at_work if re.search(rf"\b{name}\b", each.title)]
            for stage, name in STAGES.items()
        }
        present = [stage for stage in STAGES if found[stage]]
        if not present:
            return None
        (stage,) = random.choices(present, [RARELY.get(stage, 1.0) for stage in present])
        return stage if random.choice(found[stage]).kill() else None


class NodeStriker(Striker):
    """Kills the raylet of a worker node, and starts the node again a while later."""

    def __init__(self, nodes: RayNodes, pace: Pace) -> None:
        super().__init__("raylet", pace)
        self._nodes = nodes

    def strike(self, random: Random) -> str | None:
        number = random.choice(self._nodes.workers)
        if not self._nodes.kill_node(number):
            return None  # still starting
        self.pause(random.uniform(0, LONGEST_ABSENCE_S))
        self._nodes.start_again(number)
        return "raylets"


class GatewayStriker(Striker):
    """Kills Ceph's gateway, and starts it again a while later."""

    def __init__(self, ceph: CephCluster, pace: Pace) -> None:
        super().__init__("gateway", pace)
        self._ceph = ceph

    def strike(self, random: Random) -> str | None:
        self._ceph.kill_gateway()
        self.pause(random.uniform(0, LONGEST_OUTAGE_S))
        self._ceph.start_gateway()
        return "gateways"


class DriverStriker(Striker):
    """Kills the process that `at_work` gives, where it gives one, and all its group."""

    def __init__(self, at_work: Callable[[], subprocess.Popen[str] | None], pace: Pace) -> None:
        super().__init__("driver", pace)
        self._at_work = at_work

    def strike(self, random: Random) -> str | None:
        process = self._at_work()
        if process is None or process.poll() is not None:
            return None
        os.killpg(process.pid, signal.SIGKILL)
        return "drivers"
