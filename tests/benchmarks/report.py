"""What every benchmark ends with: one JSON object of its ratios and where they were made."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any


def finish(
    name: str,
    *,
    ratios: Mapping[str, float],
    wanted: Mapping[str, str],
    figures: Mapping[str, Any],
    packages: Sequence[str],
    out: str | None,
) -> None:
    """Print the report as the last line of standard output, and write it to `out`.

    `wanted` states each ratio's bound as `>= 0.75` or `<= 8`; whether all hold is in `holds`.
    """
    holds = {key: _holds(ratios[key], bound) for key, bound in wanted.items() if key in ratios}
    report = {
        "benchmark": name,
        "ratios": {key: round(value, 4) for key, value in ratios.items()},
        "wanted": dict(wanted),
        "holds": holds,
        "figures": figures,
        "hardware": hardware(),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
        "commit": _commit(),
    }
    if out is not None:
        Path(out).write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


def hardware() -> dict[str, object]:
    """The machine, in few words."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": ", ".join(sorted(models)),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "load_1min": round(os.getloadavg()[0], 2),
    }


def _holds(value: float, bound: str) -> bool:
    sign, limit = bound.split()
    match sign:
        case ">=":
            return value >= float(limit)
        case "<=":
            return value <= float(limit)
        case ">":
            return value > float(limit)
        case _:
            return value < float(limit)


def _commit() -> str:
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() or "unknown"


def peak_gb() -> float:
    """The most memory this process ever had, GB.

    Linux's own mark, for `ru_maxrss` comes from the parent where that is larger.
    """
    told = Path("/proc/self/status").read_text().partition("VmHWM:")[2]
    return round(int(told.split()[0]) * 1024 / 1e9, 4)
