"""The script ``ftae``, and ``python -m ftae``: runs a command, whatever the standard streams are."""

import io
import os
import sys
from typing import Any

from ftae.cli.main import main


class _Lossy(io.FileIO):
    """Standard error that never fails: without a reader, or on a full disk, the text is lost."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def run() -> None:
    """Run the command of ``sys.argv``."""
    _open_streams()
    try:
        main()
    finally:
        _abandon_output()


def _open_streams() -> None:
    """Connect closed streams to the null device: else the next opened file takes their number, and their output."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # opens as the lowest free number: this one
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    encoding = "utf-8" if sys.stderr is None else sys.stderr.encoding
    errors = io.BufferedWriter(_Lossy(2, "w", closefd=False))
    sys.stderr = io.TextIOWrapper(errors, encoding=encoding, errors="backslashreplace", line_buffering=True)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the names of files need not be text


def _abandon_output() -> None:
    """Discard what cannot be written: the error was reported once, and Python would try again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == "__main__":
    run()
