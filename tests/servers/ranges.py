"""A fast object server over a folder of files: enough of S3 to read, on a network of one's choice.

    python -m tests.servers.ranges --folder DIR [--latency-ms 30] [--mb-per-s 80] [--cpu 1]

The folder's subfolders are the buckets; every request is answered, signed or not. The files should
be in the page cache: a read that waits for a disk holds up all connections.
GET and DELETE /_counters tell and reset what was served; POST /_link changes the network.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path

from tests.servers.local_http import (
    HEAD_END,
    HEAD_LIMIT_BYTES,
    Head,
    OwnProcess,
    announce,
    command_line,
    reply_head,
)
from tests.servers.objects import Reply, answer
from tests.servers.s3 import REGION

PACED_BYTES = 64 << 10
"""Given to a paced connection at a time, about as a network card does."""
UNPACED_BYTES = 1 << 20
"""Given to any other at a time; then the other connections have their turn."""
LONGEST_LAG_S = 0.05
"""How far a body may catch up with its clock; see `Counters.lost_s`."""
TIMER_ROUNDING_S = 0.0005
"""The event loop's timers end on the next millisecond; with half of one less, on the nearest."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """The network that is played."""

    latency_ms: float = 0.0
    """From the end of a request to the first byte of its reply."""
    mb_per_s: float = 0.0
    """Of every connection for itself, in 10^6 bytes; 0: as fast as it goes."""


@dataclass(kw_only=True)
class Counters:
    """What was served since the start, or since the last reset."""

    requests: int = 0
    """All requests but those to the server itself."""
    heads: int = 0
    """HEADs among them."""
    gets: int = 0
    """GETs among them that were answered with an object, or a part of one."""
    bytes: int = 0
    """Of objects, as handed to the kernel."""
    connections: int = 0
    """Connections taken."""
    most_at_once: int = 0
    """The most requests under way at one time."""
    lost_s: float = 0.0
    """Time that paced bodies did not catch up: of slow readers, or of this process without CPU."""


class RangeServer(OwnProcess):
    """This module in a process of its own: `folder/b/k` is `s3://b/k` in the environment `env`."""

    module = "tests.servers.ranges"

    def __init__(
        self,
        folder: Path,
        *,
        latency_ms: float = 0.0,
        mb_per_s: float = 0.0,
        cpu: int | None = None,
    ) -> None:
        link = asdict(Link(latency_ms=latency_ms, mb_per_s=mb_per_s))
        super().__init__({"folder": folder.absolute(), "cpu": cpu, **link})

    @property
    def env(self) -> dict[str, str]:
        """The environment variables by which historay, obstore, boto3 and s3fs find this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_SKIP_SIGNATURE": "true",
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ALLOW_HTTP": "true",
            # fsspec reads it when it is imported: for processes started in this environment.
            "FSSPEC_S3": json.dumps({"anon": True, "endpoint_url": self.endpoint}),
        }

    def counters(self) -> Counters:
        """What was served so far."""
        return Counters(**self.ask("GET", "/_counters"))

    def reset_counters(self) -> None:
        """Count from zero again."""
        self.ask("DELETE", "/_counters")

    def set_link(self, *, latency_ms: float = 0.0, mb_per_s: float = 0.0) -> None:
        """Play another network to the requests from now on."""
        self.ask("POST", "/_link", asdict(Link(latency_ms=latency_ms, mb_per_s=mb_per_s)))


class _Server:
    """All connections of one process, in one event loop."""

    def __init__(self, folder: Path, link: Link) -> None:
        self._folder = folder
        self._link = link
        self._counters = Counters()
        self._at_once = 0
        self._loop = asyncio.get_running_loop()

    async def listen(self, port: int) -> None:
        """Take connections for ever."""
        with socket.create_server(("127.0.0.1", port), backlog=1024) as listener:
            listener.setblocking(False)
            announce(listener.getsockname()[1])
            connections = set[asyncio.Task[None]]()
            while True:
                connection, _ = await self._loop.sock_accept(listener)
                task = self._loop.create_task(self._connection(connection))
                connections.add(task)
                task.add_done_callback(connections.discard)

    async def _connection(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._counters.connections += 1
        received = b""
        with connection, suppress(ConnectionError):  # until the client goes away
            while True:
                while HEAD_END not in received:
                    received += await self._more(connection, received)
                asked = self._loop.time()
                raw, _, received = received.partition(HEAD_END)
                head = Head.parse(raw)
                body_bytes = head.body_bytes or 0
                while len(received) < body_bytes:
                    received += await self._more(connection, received)
                body, received = received[:body_bytes], received[body_bytes:]
                if head.first[1].startswith("/_"):
                    reply = self._own_reply(head, body)
                    await self._send(connection, head, reply, asked, Link())
                else:
                    await self._serve(connection, head, asked)

    async def _more(self, connection: socket.socket, received: bytes) -> bytes:
        more = await self._loop.sock_recv(connection, HEAD_LIMIT_BYTES)
        if not more or len(received) > HEAD_LIMIT_BYTES:
            raise ConnectionAbortedError("the end of the requests, or no request")
        return more

    async def _serve(self, connection: socket.socket, head: Head, asked: float) -> None:
        link = self._link
        self._at_once += 1
        self._counters.requests += 1
        self._counters.heads += head.first[0] == "HEAD"
        self._counters.most_at_once = max(self._counters.most_at_once, self._at_once)
        try:
            if link.latency_ms:
                await asyncio.sleep(asked + link.latency_ms / 1e3 - self._loop.time())
            with answer(self._folder, head) as reply:
                await self._send(connection, head, reply, asked, link)
        finally:
            self._at_once -= 1

    async def _send(
        self, connection: socket.socket, head: Head, reply: Reply, asked: float, link: Link
    ) -> None:
        length = len(reply.body) if reply.file is None else reply.length
        first = reply_head(reply.status, {**reply.headers, "Content-Length": str(length)})
        if head.first[0] == "HEAD":
            await self._loop.sock_sendall(connection, first)
        elif reply.file is None:
            await self._loop.sock_sendall(connection, first + reply.body)
        else:
            self._counters.gets += 1
            # One packet for the head and the body's first bytes, where these come at once.
            joined = reply.length > 0 and not link.mb_per_s
            connection.send(first, socket.MSG_MORE if joined else 0)
            began = asked + link.latency_ms / 1e3
            await self._send_file(connection, reply, link.mb_per_s * 1e6, began)

    async def _send_file(
        self, connection: socket.socket, reply: Reply, bytes_per_s: float, began: float
    ) -> None:
        assert reply.file is not None
        sent = 0
        while sent < reply.length:
            size = min(reply.length - sent, PACED_BYTES if bytes_per_s else UNPACED_BYTES)
            if bytes_per_s:
                # Each piece has its time on the body's clock, so that no lateness adds up.
                early = began + (sent + size) / bytes_per_s - self._loop.time()
                if early > TIMER_ROUNDING_S:
                    await asyncio.sleep(early - TIMER_ROUNDING_S)
                lost = max(0.0, -early - LONGEST_LAG_S)
                began += lost
                self._counters.lost_s += lost
            try:
                given = os.sendfile(connection.fileno(), reply.file, reply.start + sent, size)
            except BlockingIOError:
                await self._writable(connection)
                continue
            if given == 0:
                raise ConnectionAbortedError("the file became shorter while it was sent")
            sent += given
            self._counters.bytes += given
            if not bytes_per_s:
                await asyncio.sleep(0)

    async def _writable(self, connection: socket.socket) -> None:
        ready = asyncio.Event()
        self._loop.add_writer(connection, ready.set)
        try:
            await ready.wait()
        finally:
            self._loop.remove_writer(connection)

    def _own_reply(self, head: Head, body: bytes) -> Reply:
        match head.first[:2]:
            case ("GET", "/_counters"):
                return Reply(status=HTTPStatus.OK, body=json.dumps(asdict(self._counters)).encode())
            case ("DELETE", "/_counters"):
                self._counters = Counters()
            case ("POST", "/_link"):
                self._link = Link(**json.loads(body))
            case _:
                return Reply.error(HTTPStatus.NOT_FOUND, "NoSuchKey")
        return Reply(status=HTTPStatus.OK, body=b"{}")


async def _main() -> None:
    folder, port, link = command_line(__doc__, "folder", Link)
    await _Server(Path(folder), link).listen(port)


if __name__ == "__main__":
    asyncio.run(_main())
