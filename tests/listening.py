"""Where a process and all that it started can be reached."""

from __future__ import annotations

import ipaddress
from contextlib import suppress

import psutil


def reachable_from_elsewhere(pid: int) -> list[str]:
    """`ADDRESS:PORT NAME` of each socket, listening or UDP, that is not on loopback."""
    found = []
    for process in (first := psutil.Process(pid), *first.children(recursive=True)):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            for socket in process.net_connections("inet"):
                if socket.status in (psutil.CONN_LISTEN, psutil.CONN_NONE) and socket.laddr:
                    address = ipaddress.ip_address(socket.laddr.ip)
                    # An IPv6 socket may be bound to an address of IPv4.
                    if not (getattr(address, "ipv4_mapped", None) or address).is_loopback:
                        name = " ".join(process.cmdline())[:60]
                        found.append(f"{address}:{socket.laddr.port} {name}")
    return found
