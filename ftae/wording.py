"""Sizes, durations, counts, uncertain values and suggestions as text."""

from collections.abc import Iterable
from difflib import get_close_matches


def size(num_bytes: float) -> str:
    """A number of bytes with three digits, in powers of 1000: ``312 MB``."""
    for unit in ("B", "KB", "MB", "GB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


def duration(seconds: float) -> str:
    """A time in at most two units: ``12 ms``, ``3.4 s``, ``40 s``, ``5 min 20 s``, ``3 h 10 min``."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def count(number: int, noun: str) -> str:
    """``1 image``, ``3 images``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listed(items: Iterable[object]) -> str:
    """``1, 2 and 3``."""
    *first, last = map(str, items)
    return f"{', '.join(first)} and {last}" if first else last


def plus_minus(mean: float, deviation: float) -> str:
    """A value and its standard deviation, to at least two digits of the latter: ``23.701 ± 0.052``."""
    power = int(f"{deviation:.1e}".partition("e")[2])  # of ten, once rounded to two digits
    digits = max(0, 1 - power) if deviation > 0.0 else 4
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}"


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """``", did you mean 'x'?"`` for the closest of ``choices``, or an empty string."""
    by_letters = {choice.lower(): choice for choice in choices}
    close = get_close_matches(name.lower(), by_letters, n=1, cutoff=0.6)
    return f", did you mean {by_letters[close[0]]!r}?" if close else ""


def full_trainings(used: float, budget: float | None = None, of: str = " of ") -> str:
    """``9.4 full trainings``, ``9.4 of 24 full trainings``."""
    counted = used_of_budget(used) if budget is None else used_of_budget(budget)
    return f"{used_of_budget(used, budget, of)} full training{'s' * (counted != '1')}"


def used_of_budget(used: float, budget: float | None = None, of: str = "/") -> str:
    """``9.4/24``; ``9.4`` where there is no budget; where it was lowered below, ``9.4 (5 asked for since)``."""
    number, asked = (f"{value:.1f}".removesuffix(".0") for value in (used, budget or 0.0))
    if budget is None:
        return number
    return f"{number}{of}{asked}" if used <= budget + 1e-6 else f"{number} ({asked} asked for since)"


def done_of_asked(done: int, asked: int, of: str = "/") -> str:
    """``3/8``; where the number of trials was lowered below those that are done, ``3 (1 asked for since)``."""
    return f"{done}{of}{asked}" if done <= asked else f"{done} ({asked} asked for since)"
