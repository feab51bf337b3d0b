"""The errors that ftae raises on purpose, and one-line messages for the errors of other code.

FtaeError             a fault that the user can fix: one message, exit status 1, no traceback
├── SpecError         a search or production file is wrong; holds every problem
├── ModelRaised       a user's own module raised an exception while it ran
└── TrainingFailed    a configuration could not be trained; its trial scores the worst value
"""

import os
import re
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

MAX_TEXT = 300  # characters of a message of other code
OWN_FILES = f"{Path(__file__).parent}{os.sep}"
STANDARD_LIBRARY = sysconfig.get_path("stdlib")
INSTALLED = ("site-packages", "dist-packages")


class FtaeError(Exception):
    """A fault that the user can fix. The message states the rule, the value and the choices."""


class SpecError(FtaeError):
    """A file does not describe a valid search or production run.

    ``problems`` has one line for each fault, in the order of the file.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class ModelRaised(FtaeError):
    """A user's own module raised an exception, ``__cause__``, while it ran."""


class Reason(StrEnum):
    """Why a configuration could not be trained; other reasons are ``non-finite METRIC`` and ``raised ERROR``."""

    NON_FINITE_LOSS = "non-finite loss"
    NON_FINITE_GRADIENT = "non-finite gradient"
    OUT_OF_MEMORY = "out of memory"
    POSTERIOR_COLLAPSE = "posterior collapse"
    CODEBOOK_COLLAPSE = "codebook collapse"
    BLOW_UP = "adversarial blow-up"
    MODE_COLLAPSE = "mode collapse"
    LOST_RECALL = "mode collapse by recall"


class TrainingFailed(FtaeError):
    """Training failed because of the configuration, not because of the machine.

    ``reason`` is a ``Reason``, ``non-finite val/NAME`` for a metric, or ``raised TYPE: MESSAGE (FILE:LINE)``.
    ``step`` is the optimizer step after which it was noticed.
    """

    def __init__(self, reason: str, step: int) -> None:
        self.reason = str(reason)
        self.step = step
        super().__init__(f"{reason} at step {step}")

    def __reduce__(self) -> tuple[type["TrainingFailed"], tuple[str, int]]:
        return type(self), (self.reason, self.step)


@contextmanager
def one_message(
    what: str, *, kind: type[FtaeError] = FtaeError, passing: tuple[type[BaseException], ...] = ()
) -> Iterator[None]:
    """Turns every exception that other code raises inside into a ``kind`` with the message ``what: raised(error)``.

    Errors of ftae pass unchanged, and so do those of the types ``passing``.
    """
    try:
        yield
    except passing:
        raise
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        if isinstance(error, FtaeError) and not isinstance(error, ModelRaised):
            raise
        cause = error if error.__cause__ is None or not isinstance(error, ModelRaised) else error.__cause__
        raise kind(f"{what}: {raised(cause)}") from cause


def raised(error: BaseException) -> str:
    """An error of other code on one line: ``TYPE: MESSAGE (FILE:LINE)``, with the line of the user's code."""
    text = _first_line(error.msg if isinstance(error, SyntaxError) else str(error))
    return type(error).__name__ + (f": {text}" if text else "") + _place(error)


def _first_line(text: str) -> str:
    if wanted := re.search(r"tried to allocate (\d+) bytes", text):  # torch puts it among lines of its source
        return f"{round(int(wanted[1]) / 1e9, 1):,g} GB of memory cannot be allocated"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = " ".join(lines[: 2 if lines[0].endswith(":") else 1]) if lines else ""
    return first if len(first) <= MAX_TEXT else f"{first[: MAX_TEXT - 3]}..."


def _place(error: BaseException) -> str:
    """`` (FILE:LINE)`` of the deepest call in the user's files; empty if there is none."""
    if isinstance(error, SyntaxError) and error.filename is not None and Path(error.filename).is_file():
        return _file_and_line(error.filename, error.lineno)
    calls = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    calls = [(file, line) for file, line in calls if not _is_of_others(file)]
    users = [call for call in calls if _package(call[0]) is None]
    if not users and calls:  # an installed module: its package is the one that was called first
        users = [call for call in calls if _package(call[0]) == _package(calls[0][0])]
    return _file_and_line(*users[-1]) if users else ""


def _is_of_others(file: str) -> bool:
    """Whether a file belongs to Python, ftae or torch."""
    is_pythons = file.startswith(("<", STANDARD_LIBRARY)) and _package(file) is None
    return is_pythons or file.startswith(OWN_FILES) or _package(file) == "torch"


def _package(file: str) -> str | None:
    """The installed package that a file belongs to; None for a file that is not installed."""
    parts = Path(file).parts
    return next((parts[i + 1] for i, part in enumerate(parts[:-1]) if part in INSTALLED), None)


def _file_and_line(file: str, line: int | None) -> str:
    path, here = Path(file), Path.cwd()
    name = path.relative_to(here) if _package(file) is None and path.is_relative_to(here) else path.name
    return f" ({name}:{line})"
