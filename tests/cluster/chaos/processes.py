"""The processes below one that we started, as Linux tells of them."""

from __future__ import annotations

import os
import signal
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, order=True)
class Process:
    """One process at the moment when it was looked at."""

    pid: int
    """Its id, which another one may have once it is gone."""
    born: int
    """Clock ticks from boot to its start: with `pid` they name it for ever."""
    title: str
    """Its command line, or what it calls itself: `ray::NAME()` for a worker of Ray at work."""

    def kill(self) -> bool:
        """SIGKILL it; whether it was still there."""
        fields = _stat(self.pid)
        if not fields or int(fields[BORN]) != self.born or fields[STATE] == "Z":
            return False
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
            return True
        return False


STATE, PARENT, BORN = 0, 1, 19
"""Where things stand in /proc/PID/stat, counted from after the name (proc_pid_stat(5))."""


def below(root: int) -> list[Process]:
    """All descendants of process `root`, sorted."""
    children: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children[int(fields[PARENT])].append((int(entry.name), int(fields[BORN])))
    waiting, found = [root], []
    while waiting:
        for pid, born in children[waiting.pop()]:
            waiting.append(pid)
            found.append(Process(pid, born, _title(pid)))
    return sorted(found)


def _title(pid: int) -> str:
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    return raw.replace(b"\0", b" ").decode(errors="replace").strip()


def _stat(pid: int) -> list[str]:
    """The fields of its `stat` after the name, which may hold anything; none where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
