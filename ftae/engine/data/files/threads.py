"""Work on many files at once, in bounded memory."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

AHEAD = 32  # results that are computed but not asked for yet
A = TypeVar("A")
B = TypeVar("B")


def in_order(function: Callable[[A], B], items: Iterable[A], *, threads: int | None = None) -> Iterator[B]:
    """What ``function`` returns for each item, in order. Threads help: reading files and Pillow release the lock.

    Unlike ``ThreadPoolExecutor.map``, which submits all items at once, no more than some are submitted ahead.
    """
    threads = threads or min(AHEAD, (os.cpu_count() or 1) + 4)
    pending: deque[Future[B]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > max(AHEAD, threads):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def chunks(items: Iterable[A], size: int) -> Iterator[tuple[A, ...]]:
    """Consecutive items, ``size`` at a time."""
    left = iter(items)
    while chunk := tuple(islice(left, size)):
        yield chunk
