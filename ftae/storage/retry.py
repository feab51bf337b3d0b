"""A short fault of the storage does not end a search."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

RETRY_SECONDS = 60.0

FIRST_WAIT_SECONDS = 0.5  # doubled after every try

LONGEST_WAIT_SECONDS = 8.0


class StorageRetry:
    """Waits between retries, for ``RETRY_SECONDS`` in all. Calls ``notify`` at the first fault and at the recovery."""

    def __init__(self, notify: Callable[[str], None]) -> None:
        self._notify = notify
        self._first_fault: float | None = None  # time of the first of the faults in a row
        self._wait = FIRST_WAIT_SECONDS

    def failed(self, error: OSError) -> None:
        """Wait before the next try.

        Raises:
            OSError: ``error`` itself, if the storage has failed for too long.
        """
        now = time.monotonic()
        if self._first_fault is None:
            self._first_fault = now
            self._notify(f"the storage fails: {error}; trying again for {RETRY_SECONDS:g} s")
        if now - self._first_fault + self._wait > RETRY_SECONDS:
            raise error
        time.sleep(self._wait)
        self._wait = min(2 * self._wait, LONGEST_WAIT_SECONDS)

    def succeeded(self) -> None:
        """A try succeeded: the next fault begins a new series of retries."""
        if self._first_fault is not None:
            self._notify("the storage works again")
        self._first_fault, self._wait = None, FIRST_WAIT_SECONDS


def with_retries(action: Callable[[], T], notify: Callable[[str], None]) -> T:
    """Call ``action`` until the storage takes it; returns its result.

    Raises:
        OSError: the storage failed for ``RETRY_SECONDS``.
    """
    retry = StorageRetry(notify)
    while True:
        try:
            result = action()
        except OSError as error:
            retry.failed(error)
        else:
            retry.succeeded()
            return result
