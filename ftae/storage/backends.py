"""Where a search lives: a folder that every node sees, or an object store that each machine mirrors."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock

from ftae.errors import FtaeError
from ftae.storage.journal import FILE_NAME as JOURNAL
from ftae.wording import did_you_mean


class FolderStore:
    """The files of one search below ``folder``. Nothing is copied: every node sees what any node writes."""

    appends_atomically = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def name(self) -> str:
        return self.folder.name

    def exists(self) -> bool:
        return (self.folder / JOURNAL).exists()

    def refresh(self) -> None:
        """Nothing to do: ``folder`` is the search itself."""

    def replicate(self, offset: int, line: bytes) -> bool:
        """Returns False: the journal in ``folder`` is the only one."""
        return False

    def push(self, path: str) -> None:
        """Nothing to do: what lies in ``folder`` is stored already."""

    def fetch(self, path: str) -> Path:
        return self.folder / path

    def release(self, path: str) -> None:
        """Nothing to do: there is no local copy to drop."""

    def remove(self, path: str) -> None:
        remove_file_or_folder(self.folder / path)

    def names(self, path: str) -> list[str]:
        folder = self.folder / path
        return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []

    def create(self, path: str, data: bytes) -> bool:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with file.open("xb") as new:
                new.write(data)
        except FileExistsError:
            return False
        return True

    def write(self, path: str, data: bytes) -> None:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}.tmp")
        try:
            temporary.write_bytes(data)
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)

    def read(self, path: str) -> bytes | None:
        try:
            return (self.folder / path).read_bytes()
        except FileNotFoundError:
            return None


def remove_file_or_folder(path: Path) -> None:
    """Delete ``path``, which need not exist."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


JOURNAL_PIECES = "journal"


# The schemes whose client can create an object only if there is none yet, each with the package that provides it.
CLIENTS = {"s3": "ftae[s3]", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}


class ObjectStore:
    """The files of one search below ``url``; ``folder`` is this machine's mirror of them."""

    appends_atomically = False

    def __init__(self, url: str, mirror: Path) -> None:
        self.url, self.folder = url, mirror
        self._mirror = FolderStore(mirror)
        self._fs, self._root = filesystem(url)
        mirror.mkdir(parents=True, exist_ok=True)

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    def exists(self) -> bool:
        return bool(self.names(JOURNAL_PIECES))

    def refresh(self) -> None:
        with FileLock(self.folder / f".{JOURNAL}.lock"), (self.folder / JOURNAL).open("a+b") as file:
            end = _cut_to_complete_lines(file)
            if end and not self._has_same_first_event(file):
                end = file.truncate(0)
                self.release("trials")
            names = [name for name in self.names(JOURNAL_PIECES) if name.isdecimal()]  # some stores list a folder mark
            pieces = {int(name): f"{self._root}/{JOURNAL_PIECES}/{name}" for name in names}
            missing = {begin: key for begin, key in sorted(pieces.items()) if begin >= end}
            with os_errors():
                contents = self._fs.cat(list(missing.values())) if missing else {}
            for begin, key in missing.items():
                if begin != file.seek(0, os.SEEK_END):
                    raise FtaeError(f"{self.url}/{JOURNAL_PIECES}: the part before byte {begin} is missing")
                file.write(contents[key])

    def _has_same_first_event(self, mirrored: BinaryIO) -> bool:
        """Whether the mirror is of this search, not of a deleted one with the same name."""
        mirrored.seek(0)
        return mirrored.readline() == self._read_piece(0)

    def replicate(self, offset: int, line: bytes) -> bool:
        if not self.create(f"{JOURNAL_PIECES}/{offset:015d}", line) and self._read_piece(offset) != line:
            raise FtaeError(f"{self.url} was taken over by another ftae driver; this one ends")
        return True

    def _read_piece(self, offset: int) -> bytes | None:
        # A server may carry out a request and still answer with an error. The client then repeats the request.
        return self.read(f"{JOURNAL_PIECES}/{offset:015d}")

    def push(self, path: str) -> None:
        local = self.folder / path
        files = sorted(p for p in local.rglob("*") if p.is_file()) if local.is_dir() else [local]
        for file in files:
            self.write(str(file.relative_to(self.folder)), file.read_bytes())

    def fetch(self, path: str) -> Path:
        with os_errors():
            keys = self._fs.find(f"{self._root}/{path}")
        for key in keys:
            name = key.removeprefix(f"{self._root}/")
            data = None if (self.folder / name).exists() else self.read(name)
            if data is not None:
                self._mirror.write(name, data)
        return self.folder / path

    def release(self, path: str) -> None:
        self._mirror.remove(path)

    def remove(self, path: str) -> None:
        remove_file_or_folder(self.folder / path)
        with os_errors(), contextlib.suppress(FileNotFoundError):
            self._fs.rm(f"{self._root}/{path}", recursive=True)

    def names(self, path: str) -> list[str]:
        with os_errors():
            try:
                keys = self._fs.ls(f"{self._root}/{path}", detail=False, refresh=True)
            except FileNotFoundError:
                return []
        return sorted(key.rstrip("/").rpartition("/")[2] for key in keys)

    def create(self, path: str, data: bytes) -> bool:
        with os_errors():
            try:
                self._fs.pipe_file(f"{self._root}/{path}", data, mode="create")
            except OSError as error:
                # Some servers give no reason for the refusal, or refuse after they have created the object.
                if not isinstance(error, FileExistsError) and self.read(path) is None:
                    raise
                return False
        return True

    def write(self, path: str, data: bytes) -> None:
        with os_errors():
            self._fs.pipe_file(f"{self._root}/{path}", data)

    def read(self, path: str) -> bytes | None:
        with os_errors():
            try:
                return bytes(self._fs.cat_file(f"{self._root}/{path}"))
            except FileNotFoundError:
                return None


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's filesystem for a URL, and the path in it. Credentials come from the environment.

    Raises:
        FtaeError: a store of this kind cannot keep two drivers apart, or its client is not installed.
    """
    scheme = url.partition("://")[0]
    if scheme not in CLIENTS:
        choices = ", ".join(f"{name}://" for name in CLIENTS)
        raise FtaeError(
            f"search.storage must be a folder, or the URL of an object store by one of {choices}, got {scheme}://..."
            f"{did_you_mean(scheme, CLIENTS)}; elsewhere two drivers could write the same search"
        )
    return opened_url(url, "search.storage")


def opened_url(url: str, what: str) -> tuple[Any, str]:
    """fsspec's filesystem for a URL of ``CLIENTS``, and the path in it; messages call it ``what``.

    Raises:
        FtaeError: its client is not installed, or the URL has no meaning for it.
    """
    scheme = url.partition("://")[0]
    try:
        import fsspec

        fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        raise FtaeError(f"{what}: {scheme}:// needs pip install '{CLIENTS[scheme]}' ({error})") from error
    except ValueError as error:
        raise FtaeError(f"{what} {scheme}://...: {error}") from error
    return fs, root


@contextlib.contextmanager
def os_errors() -> Iterator[None]:
    """Turns the errors of object store clients, which have types of their own, into OSError."""
    try:
        yield
    except (OSError, FtaeError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def _cut_to_complete_lines(file: BinaryIO) -> int:
    """Drop a half-written last line; returns the new length in bytes."""
    file.seek(0)
    end = file.read().rfind(b"\n") + 1
    file.truncate(end)
    return end
