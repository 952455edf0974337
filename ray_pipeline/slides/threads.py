"""The threads that read a slide: the one that asks for its pixels, and those that help it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

MOST_GIVEN = 3
"""Tasks given to the helpers for each of them: the one it is at, and what it has to do while the
caller is at something else."""
MOST_UNDER_WAY = 4
"""Tasks for each thread that may wait for one before them to end."""


class Task:
    """Something that is done once, by whoever begins it first."""

    def __init__(self, job: Callable[[], None]) -> None:
        """Have `job` to do."""
        # Whoever takes it out does it, and nothing of it is held once it is done.
        self._job = [job]
        self._ended = threading.Event()
        self._errors: list[BaseException] = []

    @property
    def done(self) -> bool:
        """Whether it has come to an end, good or bad."""
        return self._ended.is_set()

    def run(self) -> bool:
        """Do it, unless it is begun; whether it was done here.

        What it raises waits for `result`, but for what isn't an Exception.
        """
        try:
            job = self._job.pop()
        except IndexError:
            return False
        try:
            job()
        except BaseException as error:
            self._errors.append(error)
            if not isinstance(error, Exception):
                raise
        finally:
            self._ended.set()
        return True

    def result(self) -> None:
        """Wait for its end. Raises what it raised, once: a kept error would keep what it held."""
        self._ended.wait()
        if self._errors:
            raise self._errors.pop()

    def drop(self) -> None:
        """Don't begin it any more, or wait for its end, good or bad."""
        with suppress(IndexError):
            self._job.pop()
            self._ended.set()
        self._ended.wait()
        self._errors.clear()


class Threads:
    """So many threads, the caller's own among them.

    It would else be woken for each task that ends, while every processor is decoding. Used by one
    thread at a time.
    """

    def __init__(self, n: int) -> None:
        """`n` threads, of which the caller is one."""
        self.most_under_way = MOST_UNDER_WAY * n
        self._helpers = ThreadPoolExecutor(n - 1) if n > 1 else None
        self._most_given = MOST_GIVEN * (n - 1)
        self._given: list[Task] = []

    @property
    def full(self) -> bool:
        """Whether the helpers have enough to do."""
        self._given = [task for task in self._given if not task.done]
        return self._helpers is None or len(self._given) >= self._most_given

    def start(self, job: Callable[[], None]) -> Task:
        """Have `job` done: by the helpers, or here and now where these have enough to do."""
        task = Task(job)
        if self._helpers is None or self.full:
            task.run()
        else:
            self._helpers.submit(task.run)
            self._given.append(task)
        return task

    def finish(self, task: Task) -> None:
        """See `Task.result`; it or, while another does it, what nobody has begun is done here."""
        task.run()
        while not task.done and any(given.run() for given in self._given):
            pass
        task.result()

    def close(self) -> None:
        """Let the helpers go; what they have not begun is left to the caller."""
        if self._helpers is not None:
            self._helpers.shutdown(wait=False, cancel_futures=True)
            self._helpers, self._given = None, []
