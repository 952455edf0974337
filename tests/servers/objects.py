"""A folder of files as the buckets of an S3 server: its answers, without the network."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from http import HTTPStatus
from pathlib import Path
from typing import Self
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape

from tests.servers.local_http import Head, error_xml

PAGE_KEYS = 1000
"""S3 lists no more at a time."""
XML = {"Content-Type": "application/xml"}


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What one request gets: a body at hand, or a range of an open file."""

    status: HTTPStatus
    """Of HTTP."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Without Content-Length."""
    body: bytes = b""
    """Empty where there is a file."""
    file: int | None = None
    """Descriptor of the object; leaving `with reply` closes it."""
    start: int = 0
    """First byte wanted of the file."""
    length: int = 0
    """How many bytes are wanted of the file."""

    @classmethod
    def error(cls, status: HTTPStatus, code: str, **headers: str) -> Reply:
        """A refusal as S3 words it."""
        return cls(status=status, headers=XML | headers, body=error_xml(code, status.description))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            os.close(self.file)


def answer(folder: Path, head: Head) -> Reply:
    """The answer to one request; the subfolders of `folder` are the buckets."""
    method, target = head.first[:2]
    url = urlsplit(target)
    bucket, _, key = unquote(url.path).lstrip("/").partition("/")
    if method not in ("GET", "HEAD"):
        return Reply.error(HTTPStatus.METHOD_NOT_ALLOWED, "MethodNotAllowed")
    if not bucket or ".." in (bucket, *key.split("/")):
        return Reply.error(HTTPStatus.NOT_FOUND, "NoSuchBucket")
    if key:
        return _object(folder / bucket, key, head.headers)
    if not (folder / bucket).is_dir():
        return Reply.error(HTTPStatus.NOT_FOUND, "NoSuchBucket")
    query = dict(parse_qsl(url.query, keep_blank_values=True))
    return Reply(status=HTTPStatus.OK, headers=XML, body=_listing(folder / bucket, query))


def _object(bucket: Path, key: str, asked: Mapping[str, str]) -> Reply:
    try:
        file = os.open(f"{bucket}/{key}", os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return Reply.error(HTTPStatus.NOT_FOUND, "NoSuchKey" if bucket.is_dir() else "NoSuchBucket")
    reply = _opened(file, asked)
    if reply.file is None:
        os.close(file)
    return reply


def _opened(file: int, asked: Mapping[str, str]) -> Reply:
    # Of the open file: by now the path may name another one.
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode):
        return Reply.error(HTTPStatus.NOT_FOUND, "NoSuchKey")
    etag, size = _etag(status), status.st_size
    versions = [tag.strip(' "') for tag in asked.get("if-match", "*").split(",")]
    if "*" not in versions and etag.strip('"') not in versions:
        return Reply.error(HTTPStatus.PRECONDITION_FAILED, "PreconditionFailed")
    headers = {
        "ETag": etag,
        "Last-Modified": formatdate(status.st_mtime, usegmt=True),
        "Accept-Ranges": "bytes",
        "Content-Type": "binary/octet-stream",
    }
    span = wanted_range(asked.get("range"), size)
    if span is None:
        return Reply(status=HTTPStatus.OK, headers=headers, file=file, length=size)
    start, end = span
    if start >= size:
        outside = {"Content-Range": f"bytes */{size}"}
        return Reply.error(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "InvalidRange", **outside)
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    part = HTTPStatus.PARTIAL_CONTENT
    return Reply(status=part, headers=headers, file=file, start=start, length=end - start)


def wanted_range(header: str | None, size: int) -> tuple[int, int] | None:
    """(start, end) of a Range header, its start at or past `size` where nothing is in it.

    None, the whole object, for no header and, as S3 does, for one that is no single range.
    """
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "")
    first, last = found.groups() if found else ("", "")
    if (not first and not last) or (first and last and int(first) > int(last)):
        return None
    if not first:
        return (max(0, size - int(last)) if int(last) else size), size
    return int(first), min(size, int(last) + 1) if last else size


def _etag(status: os.stat_result) -> str:
    # The inode too: two files written within one tick of the clock share their times.
    return f'"{status.st_size:x}-{status.st_mtime_ns:x}-{status.st_ino:x}"'


def _listing(bucket: Path, query: Mapping[str, str]) -> bytes:
    """One page of ListObjectsV2; of `query`, encoding-type and fetch-owner are left aside."""
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    # A page's token is its last entry.
    after = query.get("continuation-token") or query.get("start-after", "")
    page_keys = min(int(query.get("max-keys", PAGE_KEYS)), PAGE_KEYS)
    entries: dict[str, Path | None] = {}
    for key, path in _files(bucket):
        if not key.startswith(prefix):
            continue
        end = key.find(delimiter, len(prefix)) if delimiter else -1
        if end < 0:
            entries[key] = path
        else:
            entries[key[: end + len(delimiter)]] = None
    names = sorted(name for name in entries if name > after)
    page = names[:page_keys]
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">',
        f"<Name>{escape(bucket.name)}</Name><Prefix>{escape(prefix)}</Prefix>",
        f"<Delimiter>{escape(delimiter)}</Delimiter>" if delimiter else "",
        f"<KeyCount>{len(page)}</KeyCount><MaxKeys>{page_keys}</MaxKeys>",
    ]
    truncated = bool(page) and len(page) < len(names)
    lines.append(f"<IsTruncated>{str(truncated).lower()}</IsTruncated>")
    if truncated:
        lines.append(f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>")
    lines += [_entry(name, entries[name]) for name in page]
    return "\n".join([*lines, "</ListBucketResult>"]).encode()


def _entry(name: str, path: Path | None) -> str:
    if path is None:
        return f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
    status = path.stat()
    modified = datetime.fromtimestamp(status.st_mtime, UTC).isoformat(timespec="milliseconds")
    return (
        f"<Contents><Key>{escape(name)}</Key><Size>{status.st_size}</Size>"
        f"<LastModified>{modified.removesuffix('+00:00')}Z</LastModified>"
        f"<ETag>{escape(_etag(status))}</ETag><StorageClass>STANDARD</StorageClass></Contents>"
    )


def _files(bucket: Path) -> Iterator[tuple[str, Path]]:
    for folder, _, names in os.walk(bucket):
        for name in names:
            path = Path(folder, name)
            yield path.relative_to(bucket).as_posix(), path
