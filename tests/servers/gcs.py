"""A bucket in memory that speaks as much of Google Cloud Storage's XML API as the store asks for.

Conditions on puts (`x-goog-if-generation-match`) are honoured, refused with 501, or ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from http import HTTPStatus
from itertools import count
from threading import Lock
from typing import ClassVar

from tests.servers.memory import Conditions, MemoryBucket, serving


class GcsBucket(MemoryBucket):
    """One request."""

    generations: ClassVar[Iterator[int]]
    lock: ClassVar[Lock]

    def put(self, data: bytes) -> None:
        """Write one object."""
        asked = self.headers.get("x-goog-if-generation-match")
        if asked is not None and self.conditions == "refused":
            return self.answer(HTTPStatus.NOT_IMPLEMENTED)
        with self.lock:
            standing = self.objects.get(self.name, (0, b""))[0]
            if asked is not None and self.conditions == "honoured" and int(asked) != standing:
                return self.answer(HTTPStatus.PRECONDITION_FAILED)
            self.objects[self.name] = next(self.generations), data
            return self.answer(HTTPStatus.OK, headers=self.told())

    def delete(self) -> None:
        """Delete an object."""
        found = self.objects.pop(self.name, None)
        self.answer(HTTPStatus.NO_CONTENT if found else HTTPStatus.NOT_FOUND)


def gcs_bucket(conditions: Conditions = "honoured") -> AbstractContextManager[str]:
    """A server on a free loopback port, as STORAGE_EMULATOR_HOST wants it told."""
    return serving(GcsBucket, conditions=conditions, objects={}, generations=count(1), lock=Lock())
