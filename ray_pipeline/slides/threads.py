"""The threads that read a slide: the one that asks for its pixels, and those that help it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

MOST_GIVEN = 2
"""Tasks that a helper has at most: the one it is at, and the next."""


class Task:
    """Something to be done once, by whoever begins it first."""

    def __init__(self, job: Callable[[], None], helpers: ThreadPoolExecutor | None) -> None:
        """Give `job` to the helpers, or do it at once where there are none."""
        self._job = job
        self._error: Exception | None = None
        self._given: Future[None] | None = None
        if helpers is None:
            self._run()
        else:
            self._given = helpers.submit(job)

    @property
    def done(self) -> bool:
        """Whether it has come to an end, good or bad."""
        return self._given is None or self._given.done()

    def take(self) -> bool:
        """Do it here and now, unless someone has begun it; whether it was done here."""
        if self._given is None or not self._given.cancel():
            return False
        self._given = None
        self._run()
        return True

    def result(self) -> None:
        """Wait for its end. Raises what it raised."""
        if self._given is not None:
            self._given.result()
        elif self._error is not None:
            raise self._error

    def drop(self) -> None:
        """See that it is not under way any more, whatever became of it."""
        if self._given is not None and not self._given.cancel():
            self._given.exception()

    def _run(self) -> None:
        # Kept, and raised in its turn: which of several errors is told shan't be left to chance.
        try:
            self._job()
        except Exception as error:  # noqa: BLE001
            self._error = error


class Threads:
    """So many threads, the caller's own among them.

    That one would else be woken for each task that ends, while every processor is decoding. Used
    by one thread at a time.
    """

    def __init__(self, n: int) -> None:
        """`n` threads, of which the caller is one."""
        self._helpers = ThreadPoolExecutor(n - 1) if n > 1 else None
        self._most_given = MOST_GIVEN * (n - 1)
        self._given: list[Task] = []

    def start(self, job: Callable[[], None]) -> Task:
        """Have `job` done, here and now where the helpers have enough to do."""
        self._given = [task for task in self._given if not task.done]
        if self._helpers is None or len(self._given) >= self._most_given:
            return Task(job, None)
        task = Task(job, self._helpers)
        self._given.append(task)
        return task

    def finish(self, task: Task) -> None:
        """See `Task.result`; meanwhile the caller does what no helper has begun."""
        while not task.done and any(given.take() for given in self._given):
            pass
        task.result()

    def close(self) -> None:
        """Let the helpers go."""
        if self._helpers is not None:
            self._helpers.shutdown(wait=False, cancel_futures=True)
