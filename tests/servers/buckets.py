"""S3 in memory, in a process of its own: a million keys, and each request counted as S3 bills it.

    python -m tests.servers.buckets --name x [--latency-ms 50]

Buckets are there once something lies in them. Every request is answered, signed or not.
GET and DELETE /_counters tell and reset what was asked; POST /_fill puts many objects at once,
uncounted, whose bytes nobody will read; POST /_file puts one whose bytes stay in a local file;
POST /_link changes the network.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import mmap
import re
from asyncio import StreamReader, StreamWriter
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape

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
from tests.servers.objects import PAGE_KEYS, XML, wanted_range
from tests.servers.s3 import REGION

Verb = Literal["LIST", "GET", "HEAD", "PUT", "DELETE"]
MODIFIED_S = 1_790_000_000
"""All objects' time, seconds since 1970."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """The network that is played."""

    latency_ms: float = 0.0
    """Before each reply."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One object."""

    etag: str
    """Without quotes."""
    size_bytes: int
    """As it is told."""
    data: bytes | mmap.mmap | None
    """None where nobody will read it."""


def etag_of_filled(key: str) -> str:
    """The etag that /_fill gives."""
    return hashlib.md5(key.encode(), usedforsecurity=False).hexdigest()


class BucketServer(OwnProcess):
    """This module in a process of its own."""

    module = "tests.servers.buckets"

    def __init__(self, *, latency_ms: float = 0.0) -> None:
        super().__init__({"name": "buckets", "latency_ms": latency_ms})

    @property
    def env(self) -> dict[str, str]:
        """The environment variables by which obstore finds this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_SKIP_SIGNATURE": "true",
            "AWS_REGION": REGION,
            "AWS_ALLOW_HTTP": "true",
        }

    def counters(self) -> dict[str, int]:
        """Requests so far by bucket, verb and the key's first two folders: `BUCKET VERB a/b`."""
        counters: dict[str, int] = self.ask("GET", "/_counters")
        return counters

    def reset_counters(self) -> None:
        """Count from zero again."""
        self.ask("DELETE", "/_counters")

    def fill(self, bucket: str, keys: Sequence[str], size_bytes: int) -> None:
        """Put objects of that size, uncounted and without bytes."""
        self.ask("POST", "/_fill", {"bucket": bucket, "keys": keys, "size_bytes": size_bytes})

    def put_file(self, bucket: str, key: str, path: Path) -> None:
        """Put an object, uncounted, as a local file has it, which may be deleted then."""
        self.ask("POST", "/_file", {"bucket": bucket, "key": key, "path": str(path)})

    def set_link(self, *, latency_ms: float = 0.0) -> None:
        """Play another network to the requests from now on."""
        self.ask("POST", "/_link", asdict(Link(latency_ms=latency_ms)))


@dataclass
class Bucket:
    """Objects by key, and the keys in order."""

    objects: dict[str, Stored] = field(default_factory=dict)
    _sorted: list[str] = field(default_factory=list)
    _changed: bool = False

    def put(self, key: str, stored: Stored) -> None:
        """Write one object."""
        self._changed |= key not in self.objects
        self.objects[key] = stored

    def delete(self, key: str) -> None:
        """Delete one object, or none."""
        self._changed |= self.objects.pop(key, None) is not None

    def page(self, query: Mapping[str, str]) -> bytes:
        """One page of ListObjectsV2."""
        if self._changed:
            self._sorted, self._changed = sorted(self.objects), False
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        # A page's token is its last entry.
        after = query.get("continuation-token") or query.get("start-after", "")
        most = min(int(query.get("max-keys", PAGE_KEYS)), PAGE_KEYS)
        keys, entries, last = self._sorted, list[str](), ""
        at = bisect_left(keys, max(prefix, f"{after}\0" if after else ""))
        if delimiter and after.endswith(delimiter):
            at = bisect_left(keys, f"{after[: -len(delimiter)]}{chr(ord(delimiter) + 1)}", lo=at)
        while len(entries) < most and at < len(keys) and keys[at].startswith(prefix):
            key = last = keys[at]
            end = key.find(delimiter, len(prefix)) if delimiter else -1
            if end < 0:
                entries.append(_entry(key, self.objects[key]))
                at += 1
            else:
                last = key[: end + len(delimiter)]
                folder = escape(last)
                entries.append(f"<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>")
                at = bisect_left(keys, f"{key[:end]}{chr(ord(delimiter) + 1)}", lo=at)
        more = at < len(keys) and keys[at].startswith(prefix)
        token = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>" if more else ""
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Prefix>{escape(prefix)}</Prefix><KeyCount>{len(entries)}</KeyCount>"
            f"<MaxKeys>{most}</MaxKeys><IsTruncated>{str(more).lower()}</IsTruncated>"
            f"{token}{''.join(entries)}</ListBucketResult>"
        ).encode()


def _entry(key: str, stored: Stored) -> str:
    return (
        f"<Contents><Key>{escape(key)}</Key><LastModified>2026-09-21T14:13:20.000Z</LastModified>"
        f"<ETag>&quot;{stored.etag}&quot;</ETag><Size>{stored.size_bytes}</Size>"
        "<StorageClass>STANDARD</StorageClass></Contents>"
    )


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What one request gets."""

    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


def _refusal(status: HTTPStatus, code: str) -> Reply:
    return Reply(status=status, headers=XML, body=error_xml(code, status.description))


@dataclass
class _Server:
    """All connections of one process, in one event loop."""

    link: Link
    buckets: dict[str, Bucket] = field(default_factory=dict)
    counters: Counter[str] = field(default_factory=Counter)
    versions: int = 0

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
                while True:
                    head = Head.parse(await reader.readuntil(HEAD_END))
                    body = b"".join([piece async for piece in body_pieces(reader, head)])
                    if head.first[1].startswith("/_"):
                        reply = self._own_reply(head, body)
                    else:
                        await asyncio.sleep(self.link.latency_ms / 1e3)
                        reply = self._answer(head, body)
                    length = reply.headers.get("Content-Length", str(len(reply.body)))
                    headers = {**reply.headers, "Content-Length": length}
                    first = reply_head(reply.status, headers)
                    await client.send(first if head.first[0] == "HEAD" else first + reply.body)
            except (ConnectionError, asyncio.IncompleteReadError):
                return  # the client went away

    def _answer(self, head: Head, body: bytes) -> Reply:
        method, url = head.first[0], urlsplit(head.first[1])
        name, _, key = unquote(url.path).lstrip("/").partition("/")
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        bucket = self.buckets.setdefault(name, Bucket())
        verb: Verb
        match method:
            case "GET" if not key:
                verb, reply = "LIST", Reply(headers=XML, body=bucket.page(query))
                key = query.get("prefix", "")
            case "GET" | "HEAD":
                verb, reply = method, _read(bucket, key, head.headers, bare=method == "HEAD")
            case "PUT":
                verb, reply = "PUT", self._put(bucket, key, body, head.headers)
            case "DELETE":
                bucket.delete(key)
                verb, reply = "DELETE", Reply(status=HTTPStatus.NO_CONTENT)
            case "POST" if "delete" in query:
                keys = [_unescaped(one) for one in re.findall("<Key>(.*?)</Key>", body.decode())]
                for each in keys:
                    bucket.delete(each)
                done = "".join(f"<Deleted><Key>{escape(one)}</Key></Deleted>" for one in keys)
                verb, key = "DELETE", keys[0] if keys else ""
                reply = Reply(headers=XML, body=f"<DeleteResult>{done}</DeleteResult>".encode())
            case _:
                return _refusal(HTTPStatus.NOT_IMPLEMENTED, "NotImplemented")
        # `recipe=<fp>` says nothing here.
        folders = [one for one in key.split("/") if not one.startswith("recipe=")][:2]
        self.counters[f"{name} {verb} {'/'.join(folders)}"] += 1
        return reply

    def _put(self, bucket: Bucket, key: str, body: bytes, asked: Mapping[str, str]) -> Reply:
        standing = bucket.objects.get(key)
        absent, match = asked.get("if-none-match"), asked.get("if-match")
        if (absent == "*" and standing is not None) or (
            match is not None and (standing is None or match.strip('"') != standing.etag)
        ):
            return _refusal(HTTPStatus.PRECONDITION_FAILED, "PreconditionFailed")
        self.versions += 1
        stored = Stored(f"{self.versions:032x}", len(body), body)
        bucket.put(key, stored)
        return Reply(headers={"ETag": f'"{stored.etag}"'})

    def _own_reply(self, head: Head, body: bytes) -> Reply:
        match head.first[:2]:
            case ("GET", "/_counters"):
                return Reply(body=json.dumps(self.counters).encode())
            case ("DELETE", "/_counters"):
                self.counters.clear()
            case ("POST", "/_fill"):
                told = json.loads(body)
                bucket = self.buckets.setdefault(told["bucket"], Bucket())
                for key in told["keys"]:
                    bucket.put(key, Stored(etag_of_filled(key), told["size_bytes"], None))
            case ("POST", "/_file"):
                told = json.loads(body)
                with Path(told["path"]).open("rb") as file:
                    data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
                stored = Stored(etag_of_filled(told["key"]), len(data), data)
                self.buckets.setdefault(told["bucket"], Bucket()).put(told["key"], stored)
            case ("POST", "/_link"):
                self.link = Link(**json.loads(body))
            case _:
                return _refusal(HTTPStatus.NOT_FOUND, "NoSuchKey")
        return Reply(body=b"{}")


def _read(bucket: Bucket, key: str, asked: Mapping[str, str], *, bare: bool) -> Reply:
    stored = bucket.objects.get(key)
    if stored is None or (stored.data is None and not bare):
        return _refusal(HTTPStatus.NOT_FOUND, "NoSuchKey")
    if asked.get("if-match", stored.etag).strip('"') != stored.etag:
        return _refusal(HTTPStatus.PRECONDITION_FAILED, "PreconditionFailed")
    modified = formatdate(MODIFIED_S, usegmt=True)
    headers = {"ETag": f'"{stored.etag}"', "Last-Modified": modified}
    if bare:
        return Reply(headers={**headers, "Content-Length": str(stored.size_bytes)})
    data = stored.data or b""
    span = wanted_range(asked.get("range"), len(data))
    if span is None:
        return Reply(headers=headers, body=data[:])
    start, end = span
    if start >= len(data):
        return _refusal(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "InvalidRange")
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
    return Reply(status=HTTPStatus.PARTIAL_CONTENT, headers=headers, body=data[start:end])


def _unescaped(text: str) -> str:
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


async def _main() -> None:
    _, port, link = command_line(__doc__, "name", Link)
    await _Server(link).listen(port)


if __name__ == "__main__":
    asyncio.run(_main())
