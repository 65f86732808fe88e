"""Makes the next batch while an accelerator works on the current one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

BatchT = TypeVar("BatchT")


class Prefetch(Generic[BatchT]):
    """Makes the next batch in a thread while an accelerator works on the current one.

    Args:
        batch_of: returns the batch of an index.
        every: distance from one index to the next.
        enabled: False makes each batch when it is taken.
    """

    def __init__(self, batch_of: Callable[[int], BatchT], *, every: int, enabled: bool) -> None:
        self._batch_of, self._every = batch_of, every
        self._pool = ThreadPoolExecutor(1) if enabled else None
        self._next: tuple[int, Future[BatchT]] | None = None

    def take(self, index: int) -> BatchT:
        """Return the batch of an index."""
        if self._pool is None:
            return self._batch_of(index)
        batch = self._next[1].result() if self._next is not None and self._next[0] == index else self._batch_of(index)
        following = index + self._every
        self._next = (following, self._pool.submit(self._batch_of, following))
        return batch

    def __enter__(self) -> Prefetch[BatchT]:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
