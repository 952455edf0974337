"""Kill everything, again and again, while a job runs: nothing may be lost, doubled or wrong.

    python -m tests.cluster.chaos --minutes 10 --seed 1 [--slides 600]
        [--every WORKER GATEWAY NODE DRIVER] [--out FILE]

A job of small slides on a Ray cluster of one head and three worker nodes, Ceph's gateway behind a
proxy that spoils replies. By draws from the seed, workers at work, raylets, the gateway and the
driver are killed (SIGKILL) for so many minutes, or until the job is done; what is not a worker is
started again, the driver with the same command until it exits with 0. All the while DuckDB reads
the output. Then every row is compared with what an undisturbed process makes of the slides.
"""

from __future__ import annotations

import argparse
import signal
import sys
from dataclasses import asdict

from tests.benchmarks.report import finish
from tests.cluster.chaos.outcome import WANTED
from tests.cluster.chaos.run import EVERY_S, run_chaos
from tests.servers.ceph import CephCluster

SLIDES_PER_MINUTE = 60
PACKAGES = ("ray", "duckdb", "obstore", "pyarrow", "torch")


def main() -> int:
    """Run it once; 0 when nothing was lost, doubled or wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, required=True, help="for which things are killed")
    parser.add_argument("--seed", type=int, default=1, help="of slides, faults and kills")
    parser.add_argument("--slides", type=int, help=f"default: {SLIDES_PER_MINUTE} a minute")
    parser.add_argument(
        "--every",
        type=float,
        nargs=4,
        default=EVERY_S,
        metavar=("WORKER", "GATEWAY", "NODE", "DRIVER"),
        help="mean seconds between two kills, %(default)s; two cores want more in long runs",
    )
    parser.add_argument("--out", help="write the report to this file too")
    asked = parser.parse_args()
    slides = asked.slides or round(SLIDES_PER_MINUTE * asked.minutes)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nothing is left running
    worker, gateway, node, driver = asked.every
    ceph = CephCluster()
    ceph.start()
    try:
        chaos = run_chaos(
            ceph,
            minutes=asked.minutes,
            seed=asked.seed,
            slides=slides,
            every_s=(worker, gateway, node, driver),
        )
    finally:
        ceph.stop()
    print(chaos.table)
    finish(
        "chaos",
        ratios=chaos.ratios,
        wanted=WANTED,
        figures=asdict(chaos),
        packages=PACKAGES,
        out=asked.out,
    )
    return int(any(chaos.ratios.values()))


if __name__ == "__main__":
    sys.exit(main())
