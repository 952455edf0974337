"""What servers that keep a bucket in memory share: objects, reads and listings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, ClassVar, Literal
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from tests.servers.objects import PAGE_KEYS, wanted_range

Conditions = Literal["honoured", "refused", "ignored"]
"""What becomes of a condition on a put; those refused are told 501."""


class MemoryBucket(BaseHTTPRequestHandler):
    """One request; the class made for a server holds its objects: name -> (generation, bytes)."""

    protocol_version = "HTTP/1.1"
    # What is sent in pieces waits for the client, which acknowledges the first one late.
    wbufsize = 1 << 16
    disable_nagle_algorithm = True
    conditions: ClassVar[Conditions] = "honoured"
    page_keys: ClassVar[int] = PAGE_KEYS
    objects: ClassVar[dict[str, tuple[int, bytes]]]

    def put(self, data: bytes) -> None:
        """Write one object."""
        raise NotImplementedError

    def delete(self) -> None:
        """Delete an object, or those that the body names."""
        raise NotImplementedError

    def read(self) -> None:
        """Read an object or a part of it, or list the bucket."""
        if not self.name:
            return self.answer(HTTPStatus.OK, self._listing())
        if self.name not in self.objects:
            return self.answer(HTTPStatus.NOT_FOUND)
        told, data = self.told(), self.objects[self.name][1]
        if self.headers.get("If-Match", told["ETag"]) != told["ETag"]:
            return self.answer(HTTPStatus.PRECONDITION_FAILED)
        span = wanted_range(self.headers.get("Range"), len(data))
        if span is None:
            return self.answer(HTTPStatus.OK, data, told)
        told["Content-Range"] = f"bytes {span[0]}-{span[1] - 1}/{len(data)}"
        return self.answer(HTTPStatus.PARTIAL_CONTENT, data[slice(*span)], told)

    def do_GET(self) -> None:
        """Read."""
        self.read()

    def do_HEAD(self) -> None:
        """What GET tells of the object, without it."""
        self.read()

    def do_PUT(self) -> None:
        """Write."""
        self.put(self.body())

    def do_POST(self) -> None:
        """Of all that S3 posts, deletions only."""
        self.delete()

    def do_DELETE(self) -> None:
        """Delete."""
        self.delete()

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    @property
    def name(self) -> str:
        """The object's name; empty for the bucket."""
        return unquote(urlsplit(self.path).path).lstrip("/").partition("/")[2]

    def body(self) -> bytes:
        """What came with the request."""
        return self.rfile.read(int(self.headers["Content-Length"]))

    def told(self) -> dict[str, str]:
        """Headers that tell the object's version."""
        generation, data = self.objects[self.name]
        return {
            "ETag": f'"{etag(data)}"',
            "Last-Modified": formatdate(0, usegmt=True),
            "x-goog-generation": str(generation),
        }

    def _listing(self) -> bytes:
        """One page; its token is its last name."""
        query = parse_qs(urlsplit(self.path).query)
        prefix, after = query.get("prefix", [""])[0], query.get("continuation-token", [""])[0]
        names = sorted(name for name in self.objects if name.startswith(prefix) and name > after)
        page, more = names[: self.page_keys], len(names) > self.page_keys
        entries = "".join(
            f"<Contents><Key>{escape(name)}</Key><Size>{len(data)}</Size>"
            "<LastModified>1970-01-01T00:00:00.000Z</LastModified>"
            f'<ETag>"{etag(data)}"</ETag></Contents>'
            for name in page
            for data in [self.objects[name][1]]
        )
        told = f"<IsTruncated>{str(more).lower()}</IsTruncated>{entries}"
        if more:
            told += f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>"
        return f"<ListBucketResult>{told}</ListBucketResult>".encode()

    def answer(
        self, status: HTTPStatus, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> None:
        """Send the whole reply."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def etag(data: bytes) -> str:
    """The version tag of an object, without quotes."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


@contextmanager
def serving(bucket: type[MemoryBucket], **state: Any) -> Iterator[str]:
    """A server on a free loopback port, whose requests are `bucket` with `state`: its URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Bucket", (bucket,), state)) as server:
        server.daemon_threads = True
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
