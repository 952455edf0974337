"""Keeping a device busy: tiles of many callers fill its batches, ahead of what it computes."""

from __future__ import annotations

import atexit
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

Tiles = npt.NDArray[np.uint8]
Vectors = npt.NDArray[np.float16]

EXIT_S = 30.0
"""How long a process that ends waits for the batches under way, seconds."""


class OutOfMemory(Exception):
    """The device could not hold a batch of this size."""


class Runner(Protocol):
    """A device that takes batches of one size. Used by one thread only."""

    @property
    def batch_size(self) -> int:
        """Tiles in every batch."""
        ...

    @property
    def slots(self) -> int:
        """Batches that may be under way at once; they end in the order in which they started."""
        ...

    def room(self, slot: int) -> Tiles:
        """Where the tiles of a slot's next batch are to be put: uint8 [batch_size, h, w, 3].

        Raises OutOfMemory.
        """
        ...

    def start(self, slot: int) -> None:
        """Begin to compute what lies in the slot's room. Raises OutOfMemory."""
        ...

    def finish(self, slot: int) -> tuple[Vectors, float]:
        """Wait for the slot's batch: float16 [batch_size, dim], and the seconds it computed.

        The vectors are good until the slot starts again. Raises OutOfMemory.
        """
        ...

    def shrink(self) -> bool:
        """Go on with smaller batches, dropping all that is under way; False where it can't."""
        ...


@dataclass(eq=False)
class Encoded:
    """One caller's vectors, and what they took."""

    vectors: Vectors
    """float16 [n, dim], in the order of the tiles."""
    device_s: float = 0.0
    """Seconds that the device computed for these tiles: their share of each batch."""
    places: float = 0.0
    """Places in batches that they took: their number, and their share of those left empty."""


@dataclass(eq=False)
class Pending:
    """Tiles of one call on their way through the device."""

    tiles: Tiles
    encoded: Encoded
    taken: int = 0
    left: int = 0
    error: BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)

    def result(self) -> Encoded:
        """Wait for the vectors. Raises what the runner raised."""
        self.done.wait()
        if self.error is not None:
            raise self.error
        return self.encoded


@dataclass(frozen=True)
class _Piece:
    """Neighbouring tiles of one caller in one batch."""

    asked: Pending
    start: int
    stop: int


class Feeder:
    """One thread that owns a device and runs whole batches of whatever tiles wait for it.

    Tiles are taken in the order of the calls, across them, so that short calls share a batch. While
    the device computes, the next batch is put together; a batch that is not full starts only when
    the device would stand still without it.
    """

    def __init__(self, runner: Runner, dim: int) -> None:
        self._runner, self._dim = runner, dim
        self._waiting: deque[Pending] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, tiles: Tiles) -> Pending:
        """Ask for the vectors of tiles uint8 [n, h, w, 3], which must not change before they come.

        May be called by several threads at once. The result raises what the runner raises;
        OutOfMemory only where smaller batches don't help.
        """
        encoded = Encoded(np.empty((len(tiles), self._dim), np.float16))
        asked = Pending(tiles, encoded, left=len(tiles))
        if not len(tiles):
            asked.done.set()
            return asked
        with self._changed:
            if self._closed:
                raise RuntimeError("the encoder is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="encoder", daemon=True)
                self._thread.start()
                atexit.register(self._leave)
            self._waiting.append(asked)
            self._changed.notify()
        return asked

    def close(self) -> None:
        """End the thread once all that was asked for is done; later calls are refused."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        # A collection of garbage may come to call this in the thread itself.
        if self._thread not in (None, threading.current_thread()):
            self._thread.join()
        atexit.unregister(self._leave)

    def _leave(self) -> None:
        """At the end of the process: drop what waits, and see the batches under way out.

        A thread that comes back from torch's C++ while the interpreter ends aborts the process.
        """
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(EXIT_S)

    def _work(self) -> None:
        running: deque[tuple[int, list[_Piece]]] = deque()
        slot = 0
        while True:
            with self._changed:
                while not self._waiting and not running and not self._closed:
                    self._changed.wait()
                if not self._waiting and not running:
                    return
                wanted = sum(len(asked.tiles) - asked.taken for asked in self._waiting)
                free = len(running) < self._runner.slots
                pieces: list[_Piece] = []
                if free and (wanted >= self._runner.batch_size or (wanted and not running)):
                    pieces = self._take(self._runner.batch_size)
            try:
                if pieces:
                    running.append((slot, pieces))
                    self._fill(slot, pieces)
                    self._runner.start(slot)
                    slot = (slot + 1) % self._runner.slots
                else:
                    self._give(*running[0])
                    running.popleft()
            except OutOfMemory as error:
                dropped = [piece for _, batch in running for piece in batch]
                running.clear()
                slot = 0
                if self._runner.shrink():
                    self._put_back(dropped)
                else:
                    self._fail(dropped, error)
            except Exception as error:  # noqa: BLE001 - whatever it is, the callers must hear of it
                self._fail([piece for _, batch in running for piece in batch], error)
                running.clear()
                slot = 0

    def _take(self, count: int) -> list[_Piece]:
        """The next tiles that wait, at most `count`."""
        pieces = []
        while count and self._waiting:
            asked = self._waiting[0]
            stop = min(asked.taken + count, len(asked.tiles))
            pieces.append(_Piece(asked, asked.taken, stop))
            count -= stop - asked.taken
            asked.taken = stop
            if stop == len(asked.tiles):
                self._waiting.popleft()
        return pieces

    def _fill(self, slot: int, pieces: list[_Piece]) -> None:
        room, at = self._runner.room(slot), 0
        for piece in pieces:
            count = piece.stop - piece.start
            room[at : at + count] = piece.asked.tiles[piece.start : piece.stop]
            at += count
        room[at:] = 0

    def _give(self, slot: int, pieces: list[_Piece]) -> None:
        vectors, device_s = self._runner.finish(slot)
        held = sum(piece.stop - piece.start for piece in pieces)
        at = 0
        for piece in pieces:
            count, asked = piece.stop - piece.start, piece.asked
            asked.encoded.vectors[piece.start : piece.stop] = vectors[at : at + count]
            asked.encoded.device_s += device_s * count / held
            asked.encoded.places += self._runner.batch_size * count / held
            at += count
            asked.left -= count
            if not asked.left:
                asked.done.set()

    def _put_back(self, pieces: list[_Piece]) -> None:
        """Let pieces wait again, before all others: each caller's tiles from its first one on."""
        with self._changed:
            first: dict[Pending, int] = {}
            for piece in pieces:
                first.setdefault(piece.asked, piece.start)
            for asked, start in reversed(first.items()):
                asked.taken = start
                if asked not in self._waiting:
                    self._waiting.appendleft(asked)

    def _fail(self, pieces: list[_Piece], error: BaseException) -> None:
        with self._changed:
            for asked in {piece.asked for piece in pieces}:
                asked.error = error
                if asked in self._waiting:
                    self._waiting.remove(asked)
                asked.done.set()
