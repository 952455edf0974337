"""A bucket in memory that speaks as much of Google Cloud Storage's XML API as the store asks for.

Conditions on puts (`x-goog-if-generation-match`) are honoured, refused with 501, or ignored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from threading import Lock, Thread
from typing import ClassVar, Literal
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

Conditions = Literal["honoured", "refused", "ignored"]


class _Bucket(BaseHTTPRequestHandler):
    """One request; the class made for a server holds its objects: name -> (generation, bytes)."""

    protocol_version = "HTTP/1.1"
    conditions: ClassVar[Conditions] = "honoured"
    objects: ClassVar[dict[str, tuple[int, bytes]]]
    generations: ClassVar[Iterator[int]]
    lock: ClassVar[Lock]

    def do_PUT(self) -> None:
        """Write one object."""
        data = self.rfile.read(int(self.headers["Content-Length"]))
        asked = self.headers.get("x-goog-if-generation-match")
        if asked is not None and self.conditions == "refused":
            return self._answer(HTTPStatus.NOT_IMPLEMENTED)
        with self.lock:
            standing = self.objects.get(self._name, (0, b""))[0]
            if asked is not None and self.conditions == "honoured" and int(asked) != standing:
                return self._answer(HTTPStatus.PRECONDITION_FAILED)
            self.objects[self._name] = next(self.generations), data
            return self._answer(HTTPStatus.OK, headers=self._told())

    def do_GET(self) -> None:
        """Read an object or a part of it, or list the bucket."""
        if not self._name:
            return self._answer(HTTPStatus.OK, self._listing())
        if self._name not in self.objects:
            return self._answer(HTTPStatus.NOT_FOUND)
        told, data = self._told(), self.objects[self._name][1]
        asked = self.headers.get("Range")
        if self.headers.get("If-Match", told["ETag"]) != told["ETag"]:
            return self._answer(HTTPStatus.PRECONDITION_FAILED)
        if asked is None:
            return self._answer(HTTPStatus.OK, data, told)
        first, last = map(int, asked.removeprefix("bytes=").split("-"))
        told["Content-Range"] = f"bytes {first}-{min(last, len(data) - 1)}/{len(data)}"
        return self._answer(HTTPStatus.PARTIAL_CONTENT, data[first : last + 1], told)

    def do_HEAD(self) -> None:
        """What GET tells of the object, without it."""
        self.do_GET()

    def do_DELETE(self) -> None:
        """Delete an object."""
        found = self.objects.pop(self._name, None)
        self._answer(HTTPStatus.NO_CONTENT if found else HTTPStatus.NOT_FOUND)

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    @property
    def _name(self) -> str:
        return unquote(urlsplit(self.path).path).lstrip("/").partition("/")[2]

    def _told(self) -> dict[str, str]:
        generation, data = self.objects[self._name]
        return {
            "ETag": _etag(data),
            "Last-Modified": formatdate(0, usegmt=True),
            "x-goog-generation": str(generation),
        }

    def _listing(self) -> bytes:
        prefix = parse_qs(urlsplit(self.path).query).get("prefix", [""])[0]
        entries = "".join(
            f"<Contents><Key>{escape(name)}</Key><Size>{len(data)}</Size>"
            "<LastModified>1970-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>{escape(_etag(data))}</ETag></Contents>"
            for name, (_, data) in sorted(self.objects.items())
            if name.startswith(prefix)
        )
        told = f"<IsTruncated>false</IsTruncated>{entries}"
        return f"<ListBucketResult>{told}</ListBucketResult>".encode()

    def _answer(
        self, status: HTTPStatus, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


@contextmanager
def gcs_bucket(conditions: Conditions = "honoured") -> Iterator[str]:
    """A server on a free loopback port, as STORAGE_EMULATOR_HOST wants it told."""
    state: dict[str, object] = {
        "conditions": conditions,
        "objects": {},
        "generations": count(1),
        "lock": Lock(),
    }
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Bucket", (_Bucket,), state)) as server:
        server.daemon_threads = True
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
