"""Storage that refuses for a moment does not end a search."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PATIENCE_SECONDS = 60.0
LONGEST_WAIT_SECONDS = 8.0


class Patience:
    """Bears faults of the storage for ``PATIENCE_SECONDS``. ``say`` is told, once each, when it goes and comes."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._since: float | None = None
        self._wait = 0.5

    def bear(self, error: OSError) -> None:
        """Wait before another try.

        Raises:
            OSError: the storage has been away for too long: ``error`` itself.
        """
        now = time.monotonic()
        if self._since is None:
            self._since = now
            self._say(f"storage refuses: {error}; trying again for {PATIENCE_SECONDS:g} s")
        if now - self._since + self._wait > PATIENCE_SECONDS:
            raise error
        time.sleep(self._wait)
        self._wait = min(2 * self._wait, LONGEST_WAIT_SECONDS)

    def served(self) -> None:
        """The storage works."""
        if self._since is not None:
            self._say("storage is back")
        self._since, self._wait = None, 0.5


def patiently(action: Callable[[], T], say: Callable[[str], None]) -> T:
    """Do ``action``, again and again while the storage refuses.

    Raises:
        OSError: it refused for ``PATIENCE_SECONDS``.
    """
    patience = Patience(say)
    while True:
        try:
            result = action()
        except OSError as error:
            patience.bear(error)
        else:
            patience.served()
            return result
