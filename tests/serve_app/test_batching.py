"""The queue gives all their own vectors, in turn, within bounds, and computes nothing idle."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_pipeline.errors import NotFiniteError
from serve_app.batching import Batch, TileQueue
from serve_app.errors import (
    DeadlineError,
    EncoderFailedError,
    OverloadedError,
    UnavailableError,
)

SIZES = st.lists(st.integers(1, 20), min_size=1, max_size=12)


def tiles_of(request: int, n: int) -> npt.NDArray[np.uint8]:
    """Tiles uint8 [n, 1, 1, 3] that tell whose they are, and which."""
    tiles = np.zeros((n, 1, 1, 3), np.uint8)
    tiles[:, 0, 0, 0], tiles[:, 0, 0, 1] = request, np.arange(n)
    return tiles


class Device:
    """An encoder that notes what it is given; while `gate` is closed it does not come back."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[int, int]]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()
        self.error: Exception | None = None

    def __call__(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float16]:
        self.batches.append([(int(a), int(b)) for a, b in tiles[:, 0, 0, :2]])
        self.started.set()
        assert self.gate.wait(30)
        if self.error is not None:
            raise self.error
        return tiles[:, 0, 0, :].astype(np.float16)

    @property
    def order(self) -> list[tuple[int, int]]:
        return [place for batch in self.batches for place in batch]

    async def busy(self) -> None:
        """Come back when a batch is on the device."""
        await asyncio.to_thread(self.started.wait, 30)


def queue_of(device: Device, batch_size: int = 4, most_waiting: int = 1000) -> TileQueue:
    return TileQueue(device, batch_size=batch_size, most_waiting=most_waiting)


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(coroutine)


@given(SIZES, st.integers(1, 9))
def test_each_request_gets_its_own_vectors_in_order(sizes: list[int], batch_size: int) -> None:
    async def scenario() -> None:
        device = Device()
        queue = queue_of(device, batch_size)
        done = await asyncio.gather(
            *(queue.embed(tiles_of(index, n)) for index, n in enumerate(sizes))
        )
        for index, (embedded, n) in enumerate(zip(done, sizes, strict=True)):
            assert embedded.vectors.dtype == np.float16
            assert (embedded.vectors == tiles_of(index, n)[:, 0, 0, :]).all()
        # Greedy, and no tile twice: as many batches as the tiles need, all but the last full.
        assert len(set(device.order)) == len(device.order) == sum(sizes)
        assert [len(batch) for batch in device.batches[:-1]] == [batch_size] * (
            len(device.batches) - 1
        )
        assert queue.waiting == 0
        await queue.close()

    run(scenario())


@given(SIZES, st.integers(1, 9))
def test_a_request_waits_for_no_more_tiles_of_another_than_it_has(
    sizes: list[int], batch_size: int
) -> None:
    async def scenario() -> None:
        device = Device()
        queue = queue_of(device, batch_size)
        await asyncio.gather(*(queue.embed(tiles_of(index, n)) for index, n in enumerate(sizes)))
        for index, n in enumerate(sizes):
            before_last = device.order[: device.order.index((index, n - 1))]
            for other in range(len(sizes)):
                assert sum(place[0] == other for place in before_last) <= n
        await queue.close()

    run(scenario())


def test_what_comes_while_the_device_is_busy_goes_together_in_the_next_batch() -> None:
    async def scenario() -> None:
        device = Device()
        device.gate.clear()
        queue = queue_of(device, batch_size=8)
        first = asyncio.create_task(queue.embed(tiles_of(0, 1)))
        await device.busy()
        others = [asyncio.create_task(queue.embed(tiles_of(index, 2))) for index in (1, 2, 3)]
        await asyncio.sleep(0)
        assert queue.waiting == 6
        device.gate.set()
        await asyncio.gather(first, *others)
        assert [len(batch) for batch in device.batches] == [1, 6]
        await queue.close()

    run(scenario())


def test_a_full_batch_follows_at_once_and_one_that_is_not_full_waits_for_company() -> None:
    async def scenario() -> None:
        device = Device()
        device.gate.clear()
        queue = queue_of(device, batch_size=4)
        first = asyncio.create_task(queue.embed(tiles_of(0, 1)))
        await device.busy()
        others = [asyncio.create_task(queue.embed(tiles_of(1, 3)))]
        await asyncio.sleep(0.05)
        assert queue.waiting == 3
        others.append(asyncio.create_task(queue.embed(tiles_of(2, 10))))
        await asyncio.sleep(0.05)
        # One batch follows the one on the device, and not more, however many tiles wait.
        assert [len(batch) for batch in device.batches] == [1]
        assert queue.waiting == 9
        device.gate.set()
        await asyncio.gather(first, *others)
        assert sorted(len(batch) for batch in device.batches) == [1, 1, 4, 4, 4]
        await queue.close()

    run(scenario())


def test_past_the_bound_it_is_said_at_once_and_nothing_changes() -> None:
    async def scenario() -> None:
        device = Device()
        device.gate.clear()
        queue = queue_of(device, batch_size=2, most_waiting=5)
        first = asyncio.create_task(queue.embed(tiles_of(0, 4)))
        await device.busy()
        waiting = asyncio.create_task(queue.embed(tiles_of(1, 4)))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match=r"4 of 5 tiles wait .* 2 more don't fit"):
            await queue.embed(tiles_of(2, 2))
        assert queue.waiting == 4
        last = asyncio.create_task(queue.embed(tiles_of(3, 1)))
        await asyncio.sleep(0)
        device.gate.set()
        await asyncio.gather(first, waiting, last)
        assert not any(request == 2 for request, _ in device.order)
        await queue.close()

    run(scenario())


@pytest.mark.parametrize("how", ["cancelled", "timed out"])
def test_nobody_waits_so_nothing_is_computed(how: str) -> None:
    async def scenario() -> None:
        device = Device()
        device.gate.clear()
        queue = queue_of(device, batch_size=2)
        first = asyncio.create_task(queue.embed(tiles_of(0, 2)))
        await device.busy()
        timeout_s = None if how == "cancelled" else 0.02
        idle = asyncio.create_task(queue.embed(tiles_of(1, 9), timeout_s=timeout_s))
        await asyncio.sleep(0)
        if how == "cancelled":
            idle.cancel()
            with pytest.raises(asyncio.CancelledError):
                await idle
        else:
            with pytest.raises(DeadlineError, match=r"9 of 9 tiles were not through after 0\.02 s"):
                await idle
        assert queue.waiting == 0
        device.gate.set()
        await first
        assert device.order == [(0, 0), (0, 1)]
        await queue.close()

    run(scenario())


def test_of_a_batch_that_is_ready_only_what_is_still_wanted_is_computed() -> None:
    async def scenario() -> None:
        device, told = Device(), list[Batch]()
        device.gate.clear()
        queue = TileQueue(device, batch_size=2, most_waiting=99, on_batch=told.append)
        first = asyncio.create_task(queue.embed(tiles_of(0, 2)))
        await device.busy()
        leaves = asyncio.create_task(queue.embed(tiles_of(1, 1)))
        stays = asyncio.create_task(queue.embed(tiles_of(2, 1)))
        await asyncio.sleep(0.05)
        assert queue.waiting == 0
        leaves.cancel()
        await asyncio.sleep(0)
        device.gate.set()
        await first
        assert ((await stays).vectors == tiles_of(2, 1)[:, 0, 0, :]).all()
        assert device.order == [(0, 0), (0, 1), (2, 0)]
        assert [(batch.tiles, batch.requests) for batch in told] == [(2, 1), (1, 1)]
        await queue.close()

    run(scenario())


@given(st.data())
def test_it_comes_to_rest_whoever_leaves(data: st.DataObject) -> None:
    sizes = data.draw(SIZES)
    leaving = data.draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)))
    batch_size = data.draw(st.integers(1, 6))
    turns = data.draw(st.integers(0, 6))

    async def scenario() -> None:
        device = Device()
        queue = queue_of(device, batch_size, most_waiting=60)
        tasks = [asyncio.create_task(queue.embed(tiles_of(i, n))) for i, n in enumerate(sizes)]
        for _ in range(turns):
            await asyncio.sleep(0)
        for task, leaves in zip(tasks, leaving, strict=True):
            if leaves:
                task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        await queue.drain()
        assert queue.waiting == 0
        assert len(set(device.order)) == len(device.order)
        for index, (outcome, leaves) in enumerate(zip(outcomes, leaving, strict=True)):
            if not leaves and not isinstance(outcome, OverloadedError):
                assert not isinstance(outcome, BaseException)
                assert (outcome.vectors[:, 0] == index).all()
        await queue.close()

    run(scenario())


def test_an_error_of_the_device_ends_everything() -> None:
    async def scenario() -> None:
        device = Device()
        device.error = RuntimeError("CUDA error at s3://bucket/secret")
        queue = queue_of(device, batch_size=2)
        outcomes = await asyncio.gather(
            *(queue.embed(tiles_of(i, 3)) for i in range(3)), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [EncoderFailedError] * 3
        assert "secret" not in str(outcomes[0])
        assert queue.waiting == 0
        assert queue.failure is not None
        with pytest.raises(EncoderFailedError):
            await queue.embed(tiles_of(9, 1))
        await queue.close()

    run(scenario())


def test_vectors_that_are_no_numbers_are_no_answer() -> None:
    async def scenario() -> None:
        def encode(tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float16]:
            vectors = np.zeros((len(tiles), 2), np.float16)
            vectors[tiles[:, 0, 0, 0] == 7] = np.nan
            return vectors

        queue = TileQueue(encode, batch_size=4, most_waiting=10)
        bad, good = await asyncio.gather(
            queue.embed(tiles_of(7, 1)), queue.embed(tiles_of(1, 1)), return_exceptions=True
        )
        assert isinstance(bad, NotFiniteError)
        assert not isinstance(good, BaseException)
        await queue.close()

    run(scenario())


def test_draining_finishes_what_was_taken_and_takes_nothing_more() -> None:
    async def scenario() -> None:
        device = Device()
        device.gate.clear()
        queue = queue_of(device, batch_size=2)
        taken = asyncio.create_task(queue.embed(tiles_of(0, 5)))
        await device.busy()
        draining = asyncio.create_task(queue.drain())
        await asyncio.sleep(0)
        with pytest.raises(UnavailableError):
            await queue.embed(tiles_of(1, 1))
        assert not draining.done()
        device.gate.set()
        assert len((await taken).vectors) == 5
        await draining
        await queue.close()

    run(scenario())


def test_every_batch_is_told_of() -> None:
    async def scenario() -> None:
        told: list[Batch] = []
        queue = TileQueue(Device(), batch_size=4, most_waiting=99, on_batch=told.append)
        await asyncio.gather(queue.embed(tiles_of(0, 5)), queue.embed(tiles_of(1, 1)))
        assert [(batch.tiles, batch.requests) for batch in told] == [(4, 2), (2, 1)]
        with pytest.raises(ValueError, match="must have tiles"):
            await queue.embed(tiles_of(0, 0))
        await queue.close()

    run(scenario())
