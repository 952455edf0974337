"""A proxy that spoils some of the replies of the S3 server behind it, repeatably.

    python -m tests.servers.faults --upstream http://127.0.0.1:PORT [--error-503 0.05] [--seed 1]

Requests pass as they came, the Host header too, so that signatures made for the proxy's address
still hold. Every request draws from one generator in the order of arrival, whatever its kind: the
same requests in the same order meet the same faults.

GET /_faults tells what was done, POST /_faults changes settings; with `seed` among them the
generator starts over, and the counters with it.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from asyncio import StreamReader, StreamWriter
from collections import Counter
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from http import HTTPStatus
from typing import TypedDict, Unpack
from urllib.parse import urlsplit

from tests.servers.local_http import (
    HEAD_END,
    PIECE_BYTES,
    Connection,
    Head,
    OwnProcess,
    announce,
    body_pieces,
    command_line,
    error_xml,
    reply_head,
)

OF_PUTS = ("error_503", "reset", "lost_reply")
OF_GETS = ("error_503", "reset", "truncate", "stall")
OF_OTHERS = ("error_503", "reset")


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Shares of the requests that meet a fault, at most one each, and how these go.

    What cuts a body spares replies without one.
    """

    error_503: float = 0.0
    """503 SlowDown, the upstream not asked."""
    reset: float = 0.0
    """A TCP reset: before the upstream is asked; of GETs, half in the middle of the body."""
    truncate: float = 0.0
    """Of GETs: the whole length is announced, half of the body comes, then a proper close."""
    stall: float = 0.0
    """Of GETs: half of the body comes, then nothing for `stall_s`, then a proper close."""
    lost_reply: float = 0.0
    """Of PUTs: the upstream carries it out, the client gets a TCP reset."""
    stall_s: float = 30.0
    """How long a stalled connection stays open."""
    latency_ms: float = 0.0
    """Before each request is looked at."""
    seed: int = 0
    """Of the generator."""

    def __post_init__(self) -> None:
        shares = asdict(self)
        for kinds in (OF_PUTS, OF_GETS):
            of_these = [shares[kind] for kind in kinds]
            if min(of_these) < 0 or sum(of_these) > 1 + 1e-9:
                raise ValueError(f"shares of {', '.join(kinds)} must be from 0 to 1 together")

    def drawn(self, method: str, number: float) -> str | None:
        """The fault for a request that drew `number` of [0, 1)."""
        for kind in {"PUT": OF_PUTS, "GET": OF_GETS}.get(method, OF_OTHERS):
            share = float(asdict(self)[kind])
            if number < share:
                return kind
            number -= share
        return None


class Settings(TypedDict, total=False):
    """The fields of Faults, each of which may be left out."""

    error_503: float
    reset: float
    truncate: float
    stall: float
    lost_reply: float
    stall_s: float
    latency_ms: float
    seed: int


class FaultProxy(OwnProcess):
    """This module in a process of its own, in front of `upstream` (`http://HOST:PORT`)."""

    module = "tests.servers.faults"

    def __init__(
        self, upstream: str, *, cpu: int | None = None, **settings: Unpack[Settings]
    ) -> None:
        super().__init__({"upstream": upstream, "cpu": cpu, **asdict(Faults(**settings))})

    def counts(self) -> dict[str, int]:
        """How many requests came, and how many met each kind of fault."""
        counts: dict[str, int] = self.ask("GET", "/_faults")["counts"]
        return counts

    def set(self, **settings: Unpack[Settings]) -> None:
        """Change these and leave the rest; `seed` starts the generator and the counts over."""
        self.ask("POST", "/_faults", settings)


class _Proxy:
    """All connections of one process; every request has an upstream connection for itself."""

    def __init__(self, upstream: str, faults: Faults) -> None:
        url = urlsplit(upstream)
        self._upstream = url.hostname, url.port or 80
        self._faults = faults
        self._start_over()

    def _start_over(self) -> None:
        self._generator = random.Random(self._faults.seed)
        self._counts = Counter(dict.fromkeys(("requests", *OF_GETS, "lost_reply"), 0))

    async def listen(self, port: int) -> None:
        """Take connections for ever."""
        server = await asyncio.start_server(
            self._connection, "127.0.0.1", port, limit=PIECE_BYTES, backlog=1024
        )
        announce(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    async def _connection(self, reader: StreamReader, writer: StreamWriter) -> None:
        client = Connection(reader, writer)
        with closing(writer):
            try:
                while await self._request(client):
                    pass
            except (ConnectionError, asyncio.IncompleteReadError):
                return  # one of the two sides went away; so the other one is told

    async def _request(self, client: Connection) -> bool:
        """Answer one request; whether the connection is good for another."""
        raw = await client.reader.readuntil(HEAD_END)
        head = Head.parse(raw)
        if head.first[1] == "/_faults":
            return await self._own_request(head, client)
        self._counts["requests"] += 1
        faults = self._faults
        # Always two draws, so that no fault moves those of later requests.
        number, early = self._generator.random(), self._generator.random() < 0.5
        kind = faults.drawn(head.first[0], number)
        await asyncio.sleep(faults.latency_ms / 1e3)
        if kind == "error_503":
            self._counts[kind] += 1
            return await _refuse(head, client)
        if kind == "reset" and (early or head.first[0] != "GET"):
            self._counts[kind] += 1
            return client.reset()
        upstream = Connection(*await asyncio.open_connection(*self._upstream, limit=PIECE_BYTES))
        with closing(upstream.writer):
            if "expect" in head.headers:
                # No signature covers this header, and the client waits for its answer.
                raw = re.sub(rb"(?i)\r\nexpect:[^\r]*", b"", raw)
                client.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            upstream.writer.write(raw)
            async for piece in body_pieces(client.reader, head):
                await upstream.send(piece)
            raw = await upstream.reader.readuntil(HEAD_END)
            if kind == "lost_reply":
                self._counts[kind] += 1
                return client.reset()
            return await self._relay(head, raw, upstream, client, kind)

    async def _relay(
        self, head: Head, raw: bytes, upstream: Connection, client: Connection, kind: str | None
    ) -> bool:
        reply = Head.parse(raw)
        await client.send(raw)
        closes = "close" in (reply.headers.get("connection"), head.headers.get("connection"))
        if head.first[0] == "HEAD" or reply.first[1] in ("204", "304"):
            return not closes
        half = 1 if reply.body_bytes is None else reply.body_bytes // 2
        passed = 0
        async for piece in body_pieces(upstream.reader, reply, to_end=True):
            if kind is not None and passed + len(piece) > half:
                self._counts[kind] += 1
                await client.send(piece[: half - passed])
                if kind == "reset":
                    return client.reset()
                if kind == "stall":
                    with suppress(TimeoutError):  # the client may leave earlier
                        await asyncio.wait_for(client.reader.read(1), self._faults.stall_s)
                return False
            passed += len(piece)
            await client.send(piece)
        return not closes and (reply.body_bytes is not None or reply.chunked)

    async def _own_request(self, head: Head, client: Connection) -> bool:
        told = b"".join([piece async for piece in body_pieces(client.reader, head)])
        status, refusal = HTTPStatus.OK, ""
        if head.first[0] == "POST":
            try:
                settings = json.loads(told)
                self._faults = replace(self._faults, **settings)
                if "seed" in settings:
                    self._start_over()
            except (TypeError, ValueError) as error:
                status, refusal = HTTPStatus.BAD_REQUEST, str(error)
        answer = {"counts": self._counts, "settings": asdict(self._faults), "error": refusal}
        body = json.dumps(answer).encode()
        await client.send(reply_head(status, {"Content-Length": str(len(body))}) + body)
        return True


async def _refuse(head: Head, client: Connection) -> bool:
    waits = "expect" in head.headers
    if not waits:
        # All of it: the kernel resets a connection that is closed with bytes unread.
        async for _ in body_pieces(client.reader, head):
            pass
    body = error_xml("SlowDown", "Please reduce your request rate.")
    headers = {"Content-Type": "application/xml", "Content-Length": str(len(body))}
    if waits:
        headers["Connection"] = "close"
    first = reply_head(HTTPStatus.SERVICE_UNAVAILABLE, headers)
    await client.send(first if head.first[0] == "HEAD" else first + body)
    return not waits


async def _main() -> None:
    upstream, port, faults = command_line(__doc__, "upstream", Faults)
    await _Proxy(upstream, faults).listen(port)


if __name__ == "__main__":
    asyncio.run(_main())
