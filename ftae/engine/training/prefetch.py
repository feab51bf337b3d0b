"""Batches made ahead, beside the step that uses the one before."""

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import torch

T = TypeVar("T")


def made_ahead(make: Callable[[int], T], numbers: range, *, threads: int) -> Generator[T]:
    """``make(number)`` for each of ``numbers``, in order, made by threads, of which each is one item ahead.

    What ``make`` raises is raised in place of its item. The threads end with the generator: when it is exhausted, has
    raised, or is closed; what they are making then is finished first.
    """
    left, ahead = iter(numbers), deque[Future[T]]()
    pool = ThreadPoolExecutor(threads, "batches", initializer=_settings_of_this_thread())
    try:
        ahead.extend(pool.submit(make, number) for number in islice(left, threads))
        while ahead:
            item = ahead.popleft().result()
            ahead.extend(pool.submit(make, number) for number in islice(left, 1))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)


def _settings_of_this_thread() -> Callable[[], None]:
    """Gives another thread the settings of torch that each thread has of its own: CPU threads, and the GPU."""
    num_threads = torch.get_num_threads()  # last digits may depend on it
    gpu = torch.cuda.current_device() if torch.cuda.is_available() else None

    def take() -> None:
        torch.set_num_threads(num_threads)
        if gpu is not None:
            torch.cuda.set_device(gpu)

    return take
