"""Streams that are closed, full or gone, and names that are no text."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Ftae, Result
from stored_searches import make_search

from ftae import __version__


def shell(line: str, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    """A command line, where ``FTAE`` is the script."""
    command = line.replace("FTAE", f"{sys.executable} -m ftae")
    return subprocess.run(["bash", "-c", command], capture_output=True, cwd=cwd, check=False)


@pytest.mark.parametrize(
    ("line", "status", "err"),
    [
        ("FTAE list >&-", 0, b""),
        ("FTAE show small >&-", 0, b""),
        ("FTAE best small --json >&- 2>&- <&-", 0, b""),
        ("FTAE best none 2>&-", 1, b""),
        ("FTAE best none 2> /dev/full", 1, b""),
        ("FTAE best none >&-", 1, b"error: there is no search 'none' in searches; choose one of small\n"),
        ("FTAE list > /dev/full", 1, b"error: [Errno 28] No space left on device\n"),
        ("FTAE best small > /dev/full", 1, b"error: [Errno 28] No space left on device\n"),
        ("FTAE best small --trial 0 2>&1 | head -c 6", 0, b""),
        ("FTAE --version >&-", 0, b""),
    ],
)
def test_closed_and_full_streams_make_no_noise(line: str, status: int, err: bytes, tmp_path: Path) -> None:
    make_search(tmp_path / "searches" / "small", 20.0, 21.0)
    result = shell(line, tmp_path)
    assert (result.returncode, result.stderr) == (status, err)


@pytest.mark.parametrize("command", ["list", "show small", "best small", "best small --json"])
def test_a_reader_that_has_gone_is_no_error_to_tell(command: str, tmp_path: Path) -> None:
    make_search(tmp_path / "searches" / "small", 20.0, 21.0)
    read, write = os.pipe()
    os.close(read)
    run = [sys.executable, "-m", "ftae", *command.split()]
    result = subprocess.run(run, stdout=write, stderr=subprocess.PIPE, cwd=tmp_path, check=False)
    os.close(write)
    assert (result.returncode, result.stderr) == (1, b"")


def test_nothing_is_written_into_a_file_that_has_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    code = "import ftae.__main__ as m, os; m._open_streams(); f = open('file', 'w'); os.write(1, b'said'); print('x')"
    shell(f'{sys.executable} -c "{code}" >&- 2>&- <&-', tmp_path)
    assert (tmp_path / "file").read_text() == ""


def test_a_name_that_is_no_text_is_printed(tmp_path: Path) -> None:
    name = os.fsdecode(b"gr\xfcn")
    make_search(tmp_path / "searches" / "small", 20.0, 21.0)
    (tmp_path / "searches" / "small").rename(tmp_path / "searches" / name)
    for command in ("list", "list --json", "best 'searches/'*", "show 'searches/'*", "status searches/*"):
        result = shell(f"FTAE {command}".replace("'", ""), tmp_path)
        assert (result.returncode, result.stderr) == (0, b""), command
    assert b"gr\\udcfcn" in shell("FTAE list", tmp_path).stdout
    missing = shell("FTAE best $'w\\xfcst'", tmp_path)
    assert (missing.returncode, missing.stderr.count(b"\n")) == (1, 1)
    assert b"'w\\udcfcst' in searches; choose one of gr\\udcfcn" in missing.stderr


@pytest.mark.parametrize(
    "arguments", [["train", "production.yaml", "--out"], ["train", "production.yaml", "--storage"]]
)
def test_a_folder_whose_name_is_no_text_is_not_begun(ftae: Ftae, arguments: list[str]) -> None:
    result = ftae(*arguments, os.fsdecode(b"gr\xfcn"))
    assert (result.status, result.out) == (1, "")
    assert "gr\\xfc" in result.err
    assert result.err.endswith(": the name of a folder to write to must be UTF-8\n")
    assert not Path("runs").exists()


def test_the_version_is_told(ftae: Ftae) -> None:
    assert ftae("--version") == Result(0, f"ftae {__version__}\n", "")
