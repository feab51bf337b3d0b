"""``ftae``, the script, and ``python -m ftae``: a command on the standard streams as they are, even closed ones."""

import io
import os
import sys
from typing import Any

from ftae.cli.main import main


class _Unheard(io.FileIO):
    """Standard error whose reader is gone, or whose disk is full: what nobody can read ends nothing."""

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
    """Those that are closed lead nowhere: the next file opened would else get their number, and what is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free is this one
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    encoding = "utf-8" if sys.stderr is None else sys.stderr.encoding
    heartbeat = io.BufferedWriter(_Unheard(2, "w", closefd=False))
    sys.stderr = io.TextIOWrapper(heartbeat, encoding=encoding, errors="backslashreplace", line_buffering=True)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files are bytes, and need not be text


def _abandon_output() -> None:
    """What cannot be written has been told once; Python would try again while it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == "__main__":
    run()
