"""A network of hosts on one machine: namespaces of Linux, each with an address of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

REQUIREMENT = "HISTORAY_REQUIRE_HOSTS"
"""Set to 1 where a machine that can't have them is a failure."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """One network namespace, on the bridge with all others and with us."""

    name: str
    """Of the namespace."""
    cable: str
    """Our end of its connection."""
    address: str
    """Its IPv4 address."""

    def command(self, *words: str, disk: Path | None = None, at: Path | None = None) -> list[str]:
        """What runs these words there; with `disk`, they see that folder where `at` is."""
        there = ["ip", "netns", "exec", self.name]
        if disk is None:
            return [*there, *words]
        # A namespace for the network comes with one for mounts.
        mount = 'mount --bind "$0" "$1" && shift && exec "$@"'
        return [*there, "sh", "-c", mount, str(disk), str(at), *words]

    def cut_off(self) -> None:
        """Pull its cable: packets to and from it vanish, and nobody is told."""
        _ip("link", "set", self.cable, "down")

    def freeze(self) -> None:
        """Stop whatever runs there: it takes what is sent to it, and never answers."""
        self._signal(signal.SIGSTOP)

    def kill_all(self) -> None:
        """SIGKILL whatever runs there."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        for pid in _ip("netns", "pids", self.name).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), number)


@dataclass(frozen=True, kw_only=True)
class Network:
    """Some hosts, and where they reach what this process starts."""

    hosts: tuple[Host, ...]
    """All of them."""
    address: str
    """Our own address among them."""


@contextmanager
def network(count: int) -> Iterator[Network]:
    """So many hosts on a bridge of their own; all that runs there is killed at the end.

    Skips the test, or fails it where `REQUIREMENT` is set, on machines without rights to make them.
    """
    tag = secrets.token_hex(3)
    bridge, subnet = f"hb{tag}", f"10.{100 + secrets.randbelow(100)}.{secrets.randbelow(256)}"
    hosts = tuple(
        Host(name=f"hn{tag}-{number}", cable=f"hc{tag}-{number}", address=f"{subnet}.{number}")
        for number in range(1, count + 1)
    )
    try:
        _start_bridge(bridge, f"{subnet}.254")
    except (OSError, subprocess.CalledProcessError) as error:
        reason = f"no network namespaces here ({error}): they take root and iproute2"
        if os.environ.get(REQUIREMENT) == "1":
            pytest.fail(f"{REQUIREMENT}=1, but {reason}")
        pytest.skip(reason)
    try:
        for host in hosts:
            _start_host(host, bridge)
        yield Network(hosts=hosts, address=f"{subnet}.254")
    finally:
        for host in hosts:
            with suppress(subprocess.CalledProcessError):
                host.kill_all()
                _ip("netns", "del", host.name)
        _ip("link", "del", bridge)


def _start_bridge(name: str, address: str) -> None:
    if shutil.which("ip") is None:
        raise FileNotFoundError("ip")
    _ip("link", "add", name, "type", "bridge")
    _ip("addr", "add", f"{address}/24", "dev", name)
    _ip("link", "set", name, "up")


def _start_host(host: Host, bridge: str) -> None:
    _ip("netns", "add", host.name)
    _ip("link", "add", host.cable, "type", "veth", "peer", "name", "eth0", "netns", host.name)
    _ip("link", "set", host.cable, "master", bridge, "up")
    for words in (
        ("addr", "add", f"{host.address}/24", "dev", "eth0"),
        ("link", "set", "eth0", "up"),
        ("link", "set", "lo", "up"),
    ):
        _ip("-n", host.name, *words)


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout
