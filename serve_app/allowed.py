"""Which URIs `/v1/regions` may open: prefixes matched on scheme, bucket and whole path segments.

A URI is taken apart once and compared part by part, never as text: `slides-private/` is not under
`slides/`. What could be read in two ways (escapes, empty or dotted segments, credentials, queries)
is refused, not cleaned. Web servers are not among the schemes: they may redirect to anywhere, and
the stores' client follows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ray_pipeline.errors import SettingsError
from serve_app.errors import ForbiddenUriError
from serve_app.settings import RegionSettings

LONGEST_URI = 2048
SCHEMES = ("s3", "gs", "az")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{0,253}")
_AMBIGUOUS = re.compile(r"[\x00-\x1f\x7f\\%?#@*]")
"""Escapes, queries, credentials, wildcards and controls: none is needed to name a slide."""


@dataclass(frozen=True)
class _Place:
    scheme: str
    bucket: str
    segments: tuple[str, ...]


class AllowedUris:
    """The prefixes of the settings, taken apart."""

    def __init__(self, settings: RegionSettings) -> None:
        """Raises SettingsError for a prefix that can't be meant."""
        self._prefixes = []
        for prefix in settings.prefixes:
            try:
                place = _taken_apart(prefix.removesuffix("/"))
            except ForbiddenUriError as error:
                raise SettingsError(f"regions.prefixes: {error}") from None
            if place.scheme == "file" and not settings.allow_file:
                raise SettingsError(
                    "regions.prefixes holds a file:// prefix: set regions.allow_file too, or "
                    "leave it out."
                )
            self._prefixes.append(_real(place))

    def check(self, uri: str) -> str:
        """The URI to open, or ForbiddenUriError. It is repeated in no error."""
        place = _real(_taken_apart(uri))
        for prefix in self._prefixes:
            depth = len(prefix.segments)
            same = (place.scheme, place.bucket) == (prefix.scheme, prefix.bucket)
            if same and len(place.segments) > depth and place.segments[:depth] == prefix.segments:
                return f"{place.scheme}://{place.bucket}/{'/'.join(place.segments)}"
        raise ForbiddenUriError(
            "this URI is under none of the prefixes whose slides may be read here: ask the "
            "operator to add its prefix to regions.prefixes."
        )


def _taken_apart(uri: str) -> _Place:
    if len(uri) > LONGEST_URI:
        raise ForbiddenUriError(f"a URI has at most {LONGEST_URI} characters.")
    if _AMBIGUOUS.search(uri):
        raise ForbiddenUriError(
            "a URI holds no escapes, queries, fragments, credentials, wildcards, backslashes or "
            "control characters: give scheme://bucket/path."
        )
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme not in (*SCHEMES, "file"):
        raise ForbiddenUriError(f"a slide's URI begins with one of {', '.join(SCHEMES)}://.")
    bucket, _, path = rest.partition("/")
    if scheme == "file" and bucket:
        raise ForbiddenUriError("a file's URI has three slashes: file:///path.")
    if scheme != "file" and (not _BUCKET.fullmatch(bucket) or ".." in bucket):
        raise ForbiddenUriError("a bucket's name is of a-z, 0-9, '.', '_' and '-'.")
    segments = tuple(path.split("/")) if path else ()
    if any(segment.strip() in ("", ".", "..") for segment in segments):
        raise ForbiddenUriError("a URI's path has no empty, '.' or '..' segments.")
    return _Place(scheme, bucket, segments)


def _real(place: _Place) -> _Place:
    """For files, where all links have been followed: a link may lead out of a prefix."""
    if place.scheme != "file":
        return place
    path = Path("/", *place.segments).resolve()
    return _Place("file", "", path.parts[1:])
