"""Storage that refuses for a moment does not end a search."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

RETRY_SECONDS = 60.0

LONGEST_WAIT_SECONDS = 8.0


class StorageRetry:
    """Bears faults of the storage for ``RETRY_SECONDS``. ``notify`` is told, once each, when it goes and comes."""

    def __init__(self, notify: Callable[[str], None]) -> None:
        self._notify = notify
        self._since: float | None = None
        self._wait = 0.5

    def failed(self, error: OSError) -> None:
        """Wait before another try.

        Raises:
            OSError: the storage has been away for too long: ``error`` itself.
        """
        now = time.monotonic()
        if self._since is None:
            self._since = now
            self._notify(f"storage refuses: {error}; trying again for {RETRY_SECONDS:g} s")
        if now - self._since + self._wait > RETRY_SECONDS:
            raise error
        time.sleep(self._wait)
        self._wait = min(2 * self._wait, LONGEST_WAIT_SECONDS)

    def succeeded(self) -> None:
        """The storage works."""
        if self._since is not None:
            self._notify("storage is back")
        self._since, self._wait = None, 0.5


def with_retries(action: Callable[[], T], notify: Callable[[str], None]) -> T:
    """Do ``action``, again and again while the storage refuses.

    Raises:
        OSError: it refused for ``RETRY_SECONDS``.
    """
    patience = StorageRetry(notify)
    while True:
        try:
            result = action()
        except OSError as error:
            patience.failed(error)
        else:
            patience.succeeded()
            return result
