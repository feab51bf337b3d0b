"""Runs ``ftae`` commands in this process, for tests of what they print and how they end."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from ftae.cli import main as cli

CLUSTER_AND_DEBUG = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "FTAE_DEBUG")


class Result(NamedTuple):
    """The exit status of a command, and what it printed."""

    status: int
    out: str
    err: str


Ftae = Callable[..., Result]


def commands_in(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ftae:
    """A function that runs a command in ``folder``, of a user who names no cluster."""
    monkeypatch.chdir(folder)
    for name in CLUSTER_AND_DEBUG:
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["ftae", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return Result(int(end.value.code or 0), *capsys.readouterr())

    return run
