"""Batches across callers: each gets the vectors of its own tiles, whatever the device does."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_pipeline.encoders.feeder import Encoded, Feeder, OutOfMemory, Tiles, Vectors

SIDE = 2


class Device:
    """Vectors that tell a tile by its first pixel; batches past `room_for` tiles don't fit."""

    def __init__(self, batch_size: int, slots: int, room_for: int = 1000) -> None:
        self.batch_size, self.slots, self.room_for = batch_size, slots, room_for
        self.fault: Exception | None = None
        self.sizes: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self._clear()

    def _clear(self) -> None:
        self._rooms = [
            np.zeros((self.batch_size, SIDE, SIDE, 3), np.uint8) for _ in range(self.slots)
        ]
        self._started: list[int] = []

    def room(self, slot: int) -> Tiles:
        assert slot not in self._started, "a room is written while its batch is under way"
        if self.batch_size > 2 * self.room_for:
            raise OutOfMemory
        return self._rooms[slot]

    def start(self, slot: int) -> None:
        if self.batch_size > self.room_for:
            raise OutOfMemory
        self._started.append(slot)
        assert len(self._started) <= self.slots

    def finish(self, slot: int) -> tuple[Vectors, float]:
        self.gate.wait(20)
        if self.fault is not None:
            self._started.clear()
            raise self.fault
        assert self._started.pop(0) == slot
        self.sizes.append(self.batch_size)
        return np.stack([code(tile) for tile in self._rooms[slot]]), 0.5

    def shrink(self) -> bool:
        if self.batch_size == 1:
            return False
        self.batch_size //= 2
        self._clear()
        return True


def code(tile: npt.NDArray[np.uint8]) -> npt.NDArray[np.float16]:
    return np.asarray(tile[0, 0], np.float16)


def tiles_of(start: int, count: int) -> Tiles:
    numbers = np.arange(start, start + count)
    pixels = np.stack([numbers % 251, numbers // 251, numbers % 7], axis=1).astype(np.uint8)
    return np.broadcast_to(pixels[:, None, None], (count, SIDE, SIDE, 3)).copy()


def encode(feeder: Feeder, tiles: Tiles) -> Encoded:
    return feeder.submit(tiles).result()


def encode_all(feeder: Feeder, calls: Sequence[Tiles]) -> list[Encoded]:
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(partial(encode, feeder), calls))


@given(
    counts=st.lists(st.integers(0, 40), max_size=12),
    batch_size=st.integers(1, 16),
    slots=st.integers(1, 3),
    room_for=st.integers(1, 20),
)
def test_every_caller_gets_its_own_vectors(
    counts: list[int], batch_size: int, slots: int, room_for: int
) -> None:
    device = Device(batch_size, slots, room_for)
    feeder = Feeder(device, dim=3)
    calls = [tiles_of(1000 * i, count) for i, count in enumerate(counts)]
    results = encode_all(feeder, calls)
    feeder.close()
    for tiles, result in zip(calls, results, strict=True):
        assert result.vectors.shape == (len(tiles), 3)
        if len(tiles):
            np.testing.assert_array_equal(result.vectors, np.stack([code(t) for t in tiles]))
    assert sum(r.places for r in results) == pytest.approx(sum(device.sizes))
    assert sum(r.device_s for r in results) == pytest.approx(0.5 * len(device.sizes))


def test_short_calls_share_full_batches() -> None:
    device = Device(batch_size=8, slots=1)
    device.gate.clear()
    feeder = Feeder(device, dim=3)
    first = feeder.submit(tiles_of(0, 1))
    while not device._started:
        time.sleep(0.001)
    rest = [feeder.submit(tiles_of(i, 1)) for i in range(1, 17)]
    device.gate.set()
    assert first.result().places == 8
    assert [pending.result().places for pending in rest] == [1.0] * 16
    feeder.close()
    assert len(device.sizes) == 3


def test_a_fault_reaches_its_callers_and_the_next_call_goes_on() -> None:
    device = Device(batch_size=4, slots=2)
    feeder = Feeder(device, dim=3)
    device.fault = RuntimeError("the device fell off the bus")
    with pytest.raises(RuntimeError, match="fell off"):
        encode(feeder, tiles_of(0, 30))
    device.fault = None
    np.testing.assert_array_equal(
        encode(feeder, tiles_of(5, 9)).vectors, np.stack([code(t) for t in tiles_of(5, 9)])
    )
    feeder.close()


def test_what_does_not_fit_even_alone_is_said() -> None:
    feeder = Feeder(Device(batch_size=8, slots=2, room_for=0), dim=3)
    with pytest.raises(OutOfMemory):
        encode(feeder, tiles_of(0, 3))
    feeder.close()


def test_nothing_is_taken_after_the_end() -> None:
    feeder = Feeder(Device(batch_size=2, slots=1), dim=3)
    assert len(encode(feeder, tiles_of(0, 5)).vectors) == 5
    feeder.close()
    with pytest.raises(RuntimeError, match="closed"):
        feeder.submit(tiles_of(0, 1))
