"""Several sources of items drained at the same time. No network, no knowledge of what they are."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import Full, Queue
from typing import TypeVar

ITEMS_WAITING = 16
"""Items that wait to be taken: what is drained faster than it is used stays bounded."""
LOOK_EVERY_S = 0.2
"""Between two looks of a waiting thread at whether anybody is still there."""

T = TypeVar("T")


def side_by_side(parts: Sequence[Iterator[T]], threads: int) -> Iterator[T]:
    """What all `parts` yield, in any order, so many of them drained at the same time.

    Raises the first error of any of them; the others are then left where they are.
    """
    arrived: Queue[tuple[T] | BaseException | None] = Queue(ITEMS_WAITING)
    left = threading.Event()

    def hand_over(what: tuple[T] | BaseException | None) -> None:
        while not left.is_set():
            with suppress(Full):
                arrived.put(what, timeout=LOOK_EVERY_S)
                return

    def drain(part: Iterator[T]) -> None:
        try:
            for item in part:
                hand_over((item,))
                if left.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 (raised again where the items are taken)
            hand_over(error)
        else:
            hand_over(None)

    with ThreadPoolExecutor(threads, "side-by-side") as pool:
        try:
            for part in parts:
                pool.submit(drain, part)
            ended = 0
            while ended < len(parts):
                what = arrived.get()
                if isinstance(what, BaseException):
                    raise what
                if what is None:
                    ended += 1
                else:
                    yield from what
        finally:
            left.set()
