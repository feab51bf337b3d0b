"""The errors ftae raises on purpose.

FtaeError             something the user can fix: one message, exit status 1, no traceback
├── SpecError         a search or production file is wrong; carries every problem found
└── TrainingFailed    a configuration could not be trained; the search scores it as the worst
"""

from collections.abc import Sequence


class FtaeError(Exception):
    """A fault the user can fix. The message states the rule, the value and the choices."""


class SpecError(FtaeError):
    """A file does not describe a valid search or production run.

    ``problems`` holds one line per fault, in the order of the file.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class TrainingFailed(FtaeError):
    """Training stopped because of the configuration itself (not because of the machine).

    ``reason`` is one of: non-finite loss, non-finite gradient, out of memory, posterior collapse,
    codebook collapse.
    ``step`` is the optimizer step at which it was seen.
    """

    def __init__(self, reason: str, step: int) -> None:
        self.reason = reason
        self.step = step
        super().__init__(f"{reason} at step {step}")

    def __reduce__(self) -> tuple[type["TrainingFailed"], tuple[str, int]]:
        return type(self), (self.reason, self.step)
