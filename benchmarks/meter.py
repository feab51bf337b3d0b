"""Where the CPU time of a process goes, by the functions that it calls."""

import resource
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any


@dataclass(frozen=True)
class Reading:
    """What a process has used since it began: CPU and wall seconds, and the most memory that it ever had.

    ``parts``: CPU seconds of the watched functions; ``calls``: how often each was called, as ``part.name``.
    """

    cpu: float
    main_thread: float
    wall: float
    peak_mb: float
    parts: defaultdict[str, float]
    calls: Counter[str]

    def __sub__(self, earlier: "Reading") -> "Reading":
        """What was used since an earlier reading; the peak is this one's."""
        parts = defaultdict(float, {part: spent - earlier.parts[part] for part, spent in self.parts.items()})
        spent = (self.cpu - earlier.cpu, self.main_thread - earlier.main_thread, self.wall - earlier.wall)
        return Reading(*spent, self.peak_mb, parts, self.calls - earlier.calls)


class Meter:
    """CPU time of functions, each without the watched ones that it calls. To be read by the main thread."""

    def __init__(self) -> None:
        self._parts: defaultdict[str, float] = defaultdict(float)
        self._calls: Counter[str] = Counter()
        self._inner = threading.local()

    def watch(self, part: str, owner: Any, *names: str) -> None:
        """Count what these functions of a class or module take to ``part``."""
        for name in names:
            setattr(owner, name, self._watched(part, getattr(owner, name)))

    def read(self) -> Reading:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        spent = (time.process_time(), time.thread_time(), time.monotonic())
        return Reading(*spent, peak, self._parts.copy(), self._calls.copy())

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
