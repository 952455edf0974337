"""An S3 bucket in memory whose every request waits for leave, and meets the fate it is given.

The bucket's name tells who asks: `s3://a` and `s3://b` are the same objects. So a test decides,
request by request, who goes next and what becomes of it.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from itertools import count
from threading import Condition
from typing import ClassVar, Literal
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

from tests.servers.memory import Conditions, MemoryBucket, etag, serving

Fate = Literal["done", "unanswered", "refused", "again", "conflict", "half", "late"]
"""What becomes of a request:

done        carried out and answered
unanswered  carried out, and the answer is 503
refused     not carried out: 503
again       carried out twice, as for a client that lost the first answer: the second answer
conflict    409 to a put with a condition, where those are honoured, and nothing is done; others
            are refused
half        of several deletes the first half is carried out, then 503; others are refused
late        503, and carried out when `Steps.land` says so; reads are refused
"""
PATIENCE_S = 600.0
"""How long anybody waits for anybody."""

Change = Callable[[], HTTPStatus]


@dataclass(frozen=True, kw_only=True)
class Put:
    """One put that was carried out."""

    client: str
    """Who asked."""
    note: object
    """What stood in `Steps.notes` for the client when it asked."""
    name: str
    """Of the object."""
    data: bytes
    """What was put."""
    matched: bool
    """Whether it carried a condition, and the bucket honours them."""
    replaced: bytes | None
    """What stood there until then."""
    seen: tuple[bytes | None] | None
    """What the client found there when it last read the object (None: nothing), if it did."""


class Steps:
    """Who waits, who has leave, and all that was changed so far."""

    def __init__(self, conditions: Conditions) -> None:
        self.objects: dict[str, tuple[int, bytes]] = {}
        """name -> (number of the change, bytes)."""
        self.puts: list[Put] = []
        """In the order of their doing."""
        self.deleted: list[tuple[str, str]] = []
        """(client, name) of objects that were deleted."""
        self.late: list[Change] = []
        """Changes that are still under way."""
        self.notes: dict[str, object] = {}
        """client -> anything that its puts shall carry."""
        self.requests: dict[str, int] = defaultdict(int)
        """client -> requests that had leave."""
        self._conditions = conditions
        self._seen: dict[tuple[str, str], bytes | None] = {}
        self._numbers = count(1)
        self._changed = Condition()
        self._leave: dict[str, deque[Fate]] = defaultdict(deque)
        self._for_ever: dict[str, Fate] = {}
        self._waiting: set[str] = set()
        self._ended: set[str] = set()

    def begin(self, client: str) -> None:
        """A new client of that name, which has read nothing and has leave for nothing."""
        with self._changed:
            self._leave[client].clear()
            self._for_ever.pop(client, None)
            self._ended.discard(client)
            self._seen = {key: data for key, data in self._seen.items() if key[0] != client}
            self.requests[client] = 0

    def end(self, client: str) -> None:
        """The client asks nothing any more."""
        with self._changed:
            self._ended.add(client)
            self._changed.notify_all()

    def free(self, client: str) -> None:
        """All requests of the client are done, from now on."""
        with self._changed:
            self._for_ever[client] = "done"

    def step(self, client: str, fates: Sequence[Fate] = (), then: Fate | None = None) -> bool:
        """Let so many requests go, and all that follow where `then` says how.

        Comes back when the client waits again or has ended; False when it has ended.
        """
        with self._changed:
            self._leave[client].extend(fates)
            if then is not None:
                self._for_ever[client] = then
            self._changed.notify_all()
            self._wait(
                lambda: (
                    client in self._ended or (client in self._waiting and not self._may_go(client))
                )
            )
            return client not in self._ended

    def land(self, index: int) -> None:
        """Carry out a change that is late."""
        with self._changed:
            self.late.pop(index)()

    def standing(self, name: str) -> bytes | None:
        """The object's bytes, if there is one."""
        return self.objects[name][1] if name in self.objects else None

    def arrive(self, client: str) -> Fate:
        """A request is here: wait for leave, and tell its fate."""
        with self._changed:
            self._waiting.add(client)
            self._changed.notify_all()
            self._wait(lambda: self._may_go(client))
            self._waiting.discard(client)
            self.requests[client] += 1
            return self._leave[client].popleft() if self._leave[client] else self._for_ever[client]

    def read(self, client: str, name: str) -> bool:
        """Whether a read is answered; what it finds is then what the client has seen."""
        fate = self.arrive(client)
        self._seen[client, name] = self.standing(name)
        return fate in ("done", "again")

    def put(
        self, client: str, name: str, data: bytes, *, if_absent: bool, if_match: str | None
    ) -> HTTPStatus:
        """A put, when it has leave."""
        asked = if_absent or if_match is not None
        note = self.notes.get(client)
        seen = (self._seen[client, name],) if (client, name) in self._seen else None

        def change() -> HTTPStatus:
            standing = self.standing(name)
            if asked and self._conditions == "refused":
                return HTTPStatus.NOT_IMPLEMENTED
            if asked and self._conditions == "honoured":
                if if_match is not None and standing is None:
                    return HTTPStatus.NOT_FOUND
                if standing is not None and (if_absent or etag(standing) != if_match):
                    return HTTPStatus.PRECONDITION_FAILED
            self.objects[name] = next(self._numbers), data
            matched = asked and self._conditions == "honoured"
            self.puts.append(
                Put(
                    client=client,
                    note=note,
                    name=name,
                    data=data,
                    matched=matched,
                    replaced=standing,
                    seen=seen,
                )
            )
            return HTTPStatus.OK

        fate = self.arrive(client)
        if fate == "conflict" and asked and self._conditions == "honoured":
            return HTTPStatus.CONFLICT
        return self._carried_out(fate, change)

    def delete(self, client: str, names: Sequence[str]) -> HTTPStatus:
        """Deletions, when they have leave."""

        def change(most: int = len(names)) -> HTTPStatus:
            for name in names[:most]:
                if self.objects.pop(name, None) is not None:
                    self.deleted.append((client, name))
            return HTTPStatus.OK

        fate = self.arrive(client)
        if fate == "half":
            change(len(names) // 2)
        return self._carried_out(fate, change)

    def _carried_out(self, fate: Fate, change: Change) -> HTTPStatus:
        with self._changed:
            if fate == "late":
                self.late.append(change)
            if fate not in ("done", "unanswered", "again"):
                return HTTPStatus.SERVICE_UNAVAILABLE
            status = change()
            if fate == "again":
                return change()
            return HTTPStatus.SERVICE_UNAVAILABLE if fate == "unanswered" else status

    def _may_go(self, client: str) -> bool:
        return bool(self._leave[client]) or client in self._for_ever

    def _wait(self, until: Callable[[], bool]) -> None:
        if not self._changed.wait_for(until, PATIENCE_S):
            raise TimeoutError(f"nothing came for {PATIENCE_S:g} s")


class _Bucket(MemoryBucket):
    steps: ClassVar[Steps]

    def read(self) -> None:
        """Read an object or a part of it, or list the bucket."""
        if not self.steps.read(self._client, self.name):
            return self.answer(HTTPStatus.SERVICE_UNAVAILABLE)
        return super().read()

    def put(self, data: bytes) -> None:
        """Write one object."""
        match = self.headers.get("If-Match")
        status = self.steps.put(
            self._client,
            self.name,
            data,
            if_absent=self.headers.get("If-None-Match") == "*",
            if_match=None if match is None else match.strip('"'),
        )
        self.answer(status, headers={"ETag": f'"{etag(data)}"'})

    def delete(self) -> None:
        """Delete the objects that the body names."""
        asked = ET.fromstring(self.body())
        names = [key.text or "" for key in asked.iter() if key.tag.endswith("Key")]
        told = "".join(f"<Deleted><Key>{escape(name)}</Key></Deleted>" for name in names)
        status = self.steps.delete(self._client, names)
        self.answer(status, f"<DeleteResult>{told}</DeleteResult>".encode())

    @property
    def _client(self) -> str:
        return unquote(urlsplit(self.path).path).lstrip("/").partition("/")[0]


class SteppedServer:
    """The server's address, and the bucket behind it, which can be changed for an empty one."""

    def __init__(self, url: str, bucket: type[_Bucket]) -> None:
        self.url, self._bucket = url, bucket

    def empty(self, conditions: Conditions, *, page_keys: int) -> Steps:
        """An empty bucket in place of the old one."""
        steps = Steps(conditions)
        self._bucket.steps, self._bucket.page_keys = steps, page_keys
        self._bucket.objects = steps.objects
        return steps


@contextmanager
def stepped_server() -> Iterator[SteppedServer]:
    """A server on a free loopback port; `empty` it before the first request."""

    class Bucket(_Bucket):
        pass

    with serving(Bucket) as url:
        yield SteppedServer(url, Bucket)
