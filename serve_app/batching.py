"""The queue before a device: greedy, bounded, fair between requests. Plain asyncio.

As soon as the device is free, whatever waits becomes the next batch: nothing is waited for. While
it computes, the next batch is made ready once it is full, so that the device does not wait for the
event loop. A batch is filled by turns, one tile from each waiting request, so that a request of
many tiles takes no more than its share. A request that was cancelled, or whose time is up, leaves
the queue at once, and those of its tiles that the device does not have yet are not computed.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from ray_pipeline.errors import HistorayError, NotFiniteError
from serve_app.errors import DeadlineError, EncoderFailedError, OverloadedError, UnavailableError

Tiles = npt.NDArray[np.uint8]
Vectors = npt.NDArray[np.float16]
Encode = Callable[[Tiles], Vectors]
"""uint8 [N, px, px, 3] -> float16 [N, dim]; called in a thread, never twice at once."""
TAKEN = 2
"""Batches that are taken from the queue at a time: one on the device, and one that follows it."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A batch that the device is done with, as it is told to `on_batch`."""

    tiles: int
    """Tiles that were computed."""
    requests: int
    """Requests they came from."""
    device_s: float
    """Seconds the device took."""


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """What became of a request's tiles."""

    vectors: Vectors
    """float16 [n, dim], in the order of the tiles."""
    queue_s: float
    """Seconds until the first of the tiles went to the device."""
    total_s: float
    """Seconds until the last of them was done."""


class _Request:
    """One request in the queue."""

    def __init__(self, tiles: Tiles, done: asyncio.Future[None]) -> None:
        self.tiles, self.done = tiles, done
        self.next = 0
        """First tile that no batch has taken."""
        self.unfinished = len(tiles)
        self.vectors: Vectors | None = None
        self.taken_at: float | None = None

    @property
    def waiting(self) -> int:
        return len(self.tiles) - self.next


_Places = list[tuple[_Request, int]]
"""A batch: whose tiles, and which of theirs."""


class TileQueue:
    """Feeds one encoder from many requests. Belongs to the event loop that made it."""

    def __init__(
        self,
        encode: Encode,
        *,
        batch_size: int,
        most_waiting: int,
        on_batch: Callable[[Batch], None] = lambda batch: None,
    ) -> None:
        """`most_waiting` bounds the tiles that no batch has taken yet."""
        self._encode, self._on_batch = encode, on_batch
        self.batch_size, self.most_waiting = batch_size, most_waiting
        self._rota: deque[_Request] = deque()
        self._waiting = 0
        # Of one thread: what it is given while it computes follows at once, and in order.
        self._device = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._taken = 0
        self._free_at = time.monotonic()
        """When the device was done with the last batch."""
        self._idle = asyncio.Event()
        self._idle.set()
        self._mean_tile_s = 0.0
        self._closed = False
        self.failure: EncoderFailedError | None = None
        """Set for good once the device has given an error."""

    @property
    def waiting(self) -> int:
        """Tiles that no batch has taken yet."""
        return self._waiting

    @property
    def retry_after_s(self) -> int:
        """Whole seconds in which what waits now will be through."""
        return max(1, math.ceil(self._waiting * self._mean_tile_s))

    async def embed(self, tiles: Tiles, *, timeout_s: float | None = None) -> Embedded:
        """Vectors of uint8 [n, px, px, 3], n >= 1; `timeout_s` is how long they may take in all.

        Raises ValueError without tiles, OverloadedError at once where they don't fit, DeadlineError
        when time is up, EncoderFailedError for an error of the device, UnavailableError once the
        queue drains, NotFiniteError for NaN or infinity.
        """
        if not len(tiles):
            raise ValueError("a request must have tiles.")
        if self.failure is not None:
            raise EncoderFailedError(str(self.failure))
        if self._closed:
            raise UnavailableError("this replica is being stopped: send the request again.")
        if self._waiting + len(tiles) > self.most_waiting:
            raise OverloadedError(
                f"{self._waiting} of {self.most_waiting} tiles wait for the device, and "
                f"{len(tiles)} more don't fit: try again in {self.retry_after_s} s."
            )
        started = time.monotonic()
        request = _Request(tiles, asyncio.get_running_loop().create_future())
        self._rota.append(request)
        self._waiting += len(tiles)
        self._idle.clear()
        # Not before those who came at the same moment have their place beside it.
        asyncio.get_running_loop().call_soon(self._hand_over)
        try:
            async with asyncio.timeout(timeout_s):
                await request.done
        except TimeoutError:
            raise DeadlineError(
                f"{request.unfinished} of {len(tiles)} tiles were not through after "
                f"{timeout_s:g} s: send fewer at a time, or try again later."
            ) from None
        finally:
            self._forget(request)
        assert request.vectors is not None
        assert request.taken_at is not None
        if not np.isfinite(request.vectors).all():
            raise NotFiniteError("an embedding holds NaN or infinity: check the weights.")
        return Embedded(
            vectors=request.vectors,
            queue_s=request.taken_at - started,
            total_s=time.monotonic() - started,
        )

    async def drain(self) -> None:
        """Take nothing more, and come back when all that was taken is through."""
        self._closed = True
        await self._idle.wait()

    async def close(self) -> None:
        """Drain, and let go of the device's thread."""
        await self.drain()
        self._device.shutdown(wait=False)

    def _hand_over(self) -> None:
        """Give the encoder what waits, as long as the device is free or a whole batch waits."""
        while self._rota and (
            not self._taken or (self._taken < TAKEN and self._waiting >= self.batch_size)
        ):
            places, started = self._take(), time.monotonic()
            self._taken += 1
            ran = asyncio.get_running_loop().run_in_executor(self._device, self._compute, places)
            ran.add_done_callback(partial(self._taken_back, places, started))
        if not self._rota and not self._taken:
            self._idle.set()

    def _taken_back(
        self,
        places: _Places,
        started: float,
        ran: asyncio.Future[tuple[_Places, Vectors] | None],
    ) -> None:
        """A batch is through: give its vectors to their requests, and hand over the next."""
        now, began = time.monotonic(), max(started, self._free_at)
        self._taken -= 1
        self._free_at = now
        if (error := ran.exception()) is not None:
            self._fail(error, places)
        elif (computed := ran.result()) is not None:
            wanted, vectors = computed
            self._mean_tile_s += 0.2 * ((now - began) / len(wanted) - self._mean_tile_s)
            self._give_back(wanted, vectors, began)
            requests = len({id(request) for request, _ in wanted})
            self._on_batch(Batch(tiles=len(wanted), requests=requests, device_s=now - began))
        self._hand_over()

    def _take(self) -> _Places:
        """The next batch, one tile from each request in turn."""
        places: _Places = []
        while self._rota and len(places) < self.batch_size:
            request = self._rota.popleft()
            places.append((request, request.next))
            request.next += 1
            self._waiting -= 1
            if request.waiting:
                self._rota.append(request)
        return places

    def _compute(self, places: _Places) -> tuple[_Places, Vectors] | None:
        """In the device's thread: the places that are still wanted, and their vectors."""
        wanted = [(request, index) for request, index in places if not request.done.done()]
        if not wanted:
            return None
        return wanted, self._encode(np.stack([request.tiles[index] for request, index in wanted]))

    @staticmethod
    def _give_back(places: _Places, vectors: Vectors, began: float) -> None:
        for (request, index), vector in zip(places, vectors, strict=True):
            request.taken_at = request.taken_at or began
            if request.vectors is None:
                request.vectors = np.empty((len(request.tiles), len(vector)), np.float16)
            request.vectors[index] = vector
            request.unfinished -= 1
            if not request.unfinished and not request.done.done():
                request.done.set_result(None)

    def _fail(self, error: BaseException, places: _Places) -> None:
        """An error of the device ends every request: what it holds can't be trusted any more."""
        said = str(error) if isinstance(error, HistorayError) else type(error).__name__
        self.failure = EncoderFailedError(
            f"the encoder gave an error ({said}) and its replica is being replaced: try again."
        )
        for request in {id(request): request for request, _ in places}.values():
            self._rota.append(request)
        for request in list(self._rota):
            if not request.done.done():
                request.done.set_exception(EncoderFailedError(str(self.failure)))
        self._rota.clear()
        self._waiting = 0

    def _forget(self, request: _Request) -> None:
        """Take a request's remaining tiles out of the queue, if any are left."""
        if request.waiting and request in self._rota:
            self._rota.remove(request)
            self._waiting -= request.waiting
