"""What our own HTTP servers share: message heads, and a process of their own to run in."""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import select
import socket
import struct
import subprocess
import sys
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, fields
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self, TypeVar
from urllib.parse import urlsplit
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 30.0
HEAD_END = b"\r\n\r\n"
HEAD_LIMIT_BYTES = 64 << 10
PIECE_BYTES = 256 << 10
"""Of a body, held at a time while it passes through."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """The head of a request or of a reply."""

    first: tuple[str, ...]
    """Words of the first line: method, target, version; or version, status, reason."""
    headers: Mapping[str, str]
    """Names in lower case; of a repeated one, the last."""

    @classmethod
    def parse(cls, raw: bytes) -> Head:
        """Read a whole head, its empty line included. Raises ValueError for anything else."""
        first, *lines = raw.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        words = tuple(first.split(" ", 2))
        if len(words) < 2:
            raise ValueError(f"no HTTP: {first!r}")
        pairs = (line.partition(":") for line in lines)
        return cls(first=words, headers={name.lower(): value.strip() for name, _, value in pairs})

    @property
    def body_bytes(self) -> int | None:
        """The length of the body where the head tells it."""
        length = self.headers.get("content-length")
        return None if length is None else int(length)

    @property
    def chunked(self) -> bool:
        """Whether the body tells its length itself, piece by piece."""
        return "chunked" in self.headers.get("transfer-encoding", "")


class Connection(NamedTuple):
    """One side of a proxy."""

    reader: StreamReader
    writer: StreamWriter

    async def send(self, data: bytes) -> None:
        """Write it, and wait while much waits to be sent."""
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> Literal[False]:
        """End it with a TCP RST and drop what was not sent; it is good for nothing more."""
        no_lingering = struct.pack("ii", 1, 0)
        wire = self.writer.get_extra_info("socket")
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_lingering)
        self.writer.transport.abort()
        return False


async def body_pieces(
    source: StreamReader, head: Head, *, to_end: bool = False
) -> AsyncIterator[bytes]:
    """A body as it is on the wire; with `to_end` one of no told length ends with the connection.

    Raises asyncio.IncompleteReadError where it ends too early.
    """
    if head.chunked:
        size = -1
        while size != 0:
            line = await source.readuntil(b"\r\n")
            size = int(line.partition(b";")[0], 16)
            yield line + (await source.readexactly(size + 2) if size else b"")
        line = b""
        while line != b"\r\n":  # fields may follow the last chunk
            line = await source.readuntil(b"\r\n")
            yield line
        return
    left = head.body_bytes
    if left is None:
        while to_end and (piece := await source.read(PIECE_BYTES)):
            yield piece
        return
    while left:
        piece = await source.read(min(left, PIECE_BYTES))
        if not piece:
            raise asyncio.IncompleteReadError(b"", left)
        left -= len(piece)
        yield piece


def reply_head(status: int, headers: Mapping[str, str]) -> bytes:
    """A reply's head, its empty line included."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def error_xml(code: str, message: str) -> bytes:
    """An error's body as S3 writes it."""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{escape(code)}</Code><Message>{escape(message)}</Message></Error>"
    ).encode()


def command_line(
    description: str | None, serves: str, settings: type[Settings]
) -> tuple[str, int, Settings]:
    """What a server's process is told: what it serves, its port, and its settings."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(f"--{serves}", required=True)
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--cpu", type=int, default=None, help="run on this CPU only")
    for each in fields(settings):
        option, kind = f"--{each.name.replace('_', '-')}", type(each.default)
        parser.add_argument(option, type=kind, default=each.default, metavar=kind.__name__.upper())
    told = vars(parser.parse_args())
    if told["cpu"] is not None:
        os.sched_setaffinity(0, {told["cpu"]})
    chosen = settings(**{each.name: told[each.name] for each in fields(settings)})
    return told[serves], told["port"], chosen


def announce(port: int) -> None:
    """Tell whoever started this process where it listens."""
    sys.stdout.write(json.dumps({"port": port}) + "\n")
    sys.stdout.flush()


class OwnProcess:
    """A server module run by `python -m` on loopback, from `start` to `stop` or inside `with`."""

    module: ClassVar[str]
    """Which: `tests.servers.…`."""

    def __init__(self, arguments: Mapping[str, object]) -> None:
        """`arguments`: options of its command line by their names; None leaves one out."""
        self._options = [
            f"--{name.replace('_', '-')}={value}"
            for name, value in arguments.items()
            if value is not None
        ]
        self._process: subprocess.Popen[str] | None = None
        self._port = 0

    @property
    def endpoint(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> Self:
        """Start it and wait until it listens. Raises RuntimeError where it does not."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", self.module, *self._options],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], START_TIMEOUT_S)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            self.stop()
            raise RuntimeError(f"{self.module} {self._options} did not start: see its stderr")
        self._port = int(json.loads(line)["port"])
        return self

    def stop(self) -> None:
        """Kill it and wait for its end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def ask(self, method: str, path: str, settings: Mapping[str, object] | None = None) -> Any:
        """A request to the server itself: its JSON. Raises RuntimeError when it refuses."""
        # http.client asks no proxy of the environment.
        connection = http.client.HTTPConnection(urlsplit(self.endpoint).netloc, timeout=30)
        try:
            body = None if settings is None else json.dumps(settings)
            connection.request(method, path, body)
            reply = connection.getresponse()
            text = reply.read().decode()
        finally:
            connection.close()
        if reply.status != HTTPStatus.OK:
            raise RuntimeError(f"{method} {path}: {reply.status} {text}")
        return json.loads(text)
