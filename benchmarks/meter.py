"""Where the time of a process goes, by the functions it runs."""

import resource
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any


@dataclass(frozen=True)
class Reading:
    """What a process has used since it began: CPU seconds, wall seconds and the most memory it ever had.

    ``parts``: CPU seconds of the named functions; ``calls``: how often they were called.
    """

    cpu: float
    main_thread: float
    wall: float
    peak_mb: float
    parts: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)

    def __sub__(self, earlier: "Reading") -> "Reading":
        parts, calls = Counter(self.parts), Counter(self.calls)
        parts.subtract(earlier.parts)
        calls.subtract(earlier.calls)
        spent = (self.cpu - earlier.cpu, self.main_thread - earlier.main_thread, self.wall - earlier.wall)
        return Reading(*spent, self.peak_mb, parts, calls)


class Meter:
    """CPU time of functions, each without the watched ones that it calls. To be read by the main thread."""

    def __init__(self) -> None:
        self._parts, self._calls = Counter[str](), Counter[str]()
        self._inner = threading.local()

    def watch(self, part: str, owner: Any, *names: str) -> None:
        """Count what these functions of a class or module take to ``part``."""
        for name in names:
            setattr(owner, name, self._watched(part, getattr(owner, name)))

    def read(self) -> Reading:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        spent = (time.process_time(), time.thread_time(), time.monotonic())
        return Reading(*spent, peak, Counter(self._parts), Counter(self._calls))

    def _watched(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            outside, self._inner.seconds = getattr(self._inner, "seconds", 0.0), 0.0
            begin = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent = time.thread_time() - begin
                self._parts[part] += spent - self._inner.seconds
                self._calls[f"{part}.{function.__name__}"] += 1
                self._inner.seconds = outside + spent

        return wrapper
