"""Several sources of items drained at the same time. No network, no knowledge of what they are."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from queue import Full, Queue
from typing import TypeVar

ITEMS_WAITING = 16
"""Items that wait to be taken: what is drained faster than it is used stays bounded."""
LOOK_EVERY_S = 0.2
"""Between two looks of a waiting thread at whether anybody is still there."""

T = TypeVar("T")


def side_by_side(parts: Iterable[Iterator[T] | None], threads: int) -> Iterator[T]:
    """What all `parts` yield, in any order, so many of them drained at the same time.

    Parts may come while others are drained: None says that just now there is none, and is to come
    after a short wait. Raises the first error of any of them; the others are then left where they
    are.
    """
    arrived: Queue[tuple[T, ...] | BaseException | None] = Queue(ITEMS_WAITING)
    left, waiting, one_at_a_time = threading.Event(), iter(parts), threading.Lock()
    no_more: Iterator[T] = iter(())

    def hand_over(what: tuple[T, ...] | BaseException | None) -> None:
        while not left.is_set():
            with suppress(Full):
                arrived.put(what, timeout=LOOK_EVERY_S)
                return

    def drain() -> None:
        while not left.is_set():
            with one_at_a_time:
                part = next(waiting, no_more)
            if part is no_more:
                return
            while part is not None and not left.is_set() and (item := tuple(islice(part, 1))):
                hand_over(item)

    def work() -> None:
        try:
            drain()
        except BaseException as error:  # noqa: BLE001 (raised again where the items are taken)
            hand_over(error)
        else:
            hand_over(None)

    # An error that somebody keeps holds this generator, too: then nothing ends them but the end of
    # the process, which must not wait for them.
    workers = [
        threading.Thread(target=work, name=f"side-by-side-{number}", daemon=True)
        for number in range(threads)
    ]
    try:
        for worker in workers:
            worker.start()
        ended = 0
        while ended < threads:
            what = arrived.get()
            if isinstance(what, BaseException):
                raise what
            if what is None:
                ended += 1
            else:
                yield from what
    finally:
        left.set()
        for worker in workers:
            worker.join()
