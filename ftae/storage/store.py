"""Where a search lives: a folder that every node sees, or an object store mirrored on each machine.

Everything below a search is named by its path, such as ``trials/0003/images/step-00000040.png``. In a
folder that path is the file. In an object store (``s3://bucket/prefix``, through fsspec) it is a key, and
``Store.folder`` is a mirror in the local cache: what is to last is pushed, what is to be read is fetched.

An object store cannot append, so the journal is one object an event, named by the byte at which it begins;
such an object can only be created, never replaced, so two drivers cannot both go on from the same byte.
"""

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

from filelock import FileLock

from ftae.errors import FtaeError
from ftae.wording import did_you_mean

JOURNAL = "journal.jsonl"

JOURNAL_PIECES = "journal"

# Those whose client creates an object only where there is none, each with what installs it.
CLIENTS = {"s3": "ftae[s3]", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}

Role = Literal["driver", "worker", "reader"]


class Store:
    """A search in a folder. Nothing is copied: what is written there is seen by all nodes."""

    takes_lines_together = True  # of a journal: several in one write, all or none

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def name(self) -> str:
        return self.folder.name

    def exists(self) -> bool:
        """Whether a search ever began here."""
        return (self.folder / JOURNAL).exists()

    def refresh(self) -> None:
        """Bring the mirror's journal up to date."""

    def replicate(self, offset: int, line: bytes) -> bool:
        """Make the journal's line that begins at byte ``offset`` last elsewhere than in ``folder``, if it is to."""
        return False

    def push(self, below: str) -> None:
        """Make the file or folder ``below`` last; a folder's files in the order of their names."""

    def fetch(self, below: str) -> Path:
        """Have the file or folder ``below`` here, as far as it exists; returns where."""
        return self.folder / below

    def release(self, below: str) -> None:
        """This machine is done with ``below``."""

    def remove(self, below: str) -> None:
        """Delete the file or folder ``below`` for good."""
        _remove(self.folder / below)

    def names(self, below: str) -> list[str]:
        """What lies directly in the folder ``below``."""
        path = self.folder / below
        return sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []

    def create(self, below: str, data: bytes) -> bool:
        """Write ``below`` if it does not exist; whether it did not."""
        path = self.folder / below
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("xb") as file:
                file.write(data)
        except FileExistsError:
            return False
        return True

    def write(self, below: str, data: bytes) -> None:
        """Write ``below``, replacing it as a whole."""
        path = self.folder / below
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def read(self, below: str) -> bytes | None:
        """The content of ``below``; None if it does not exist."""
        try:
            return (self.folder / below).read_bytes()
        except FileNotFoundError:
            return None


class ObjectStore(Store):
    """A search in an object store; ``folder`` is this machine's mirror of it."""

    takes_lines_together = False

    def __init__(self, url: str, mirror: Path) -> None:
        super().__init__(mirror)
        self.url = url
        self._fs, self._root = _filesystem(url)
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
            end = _cut_to_lines(file)
            if end and not self._mirrors(file):
                end = file.truncate(0)
                self.release("trials")
            names = [name for name in self.names(JOURNAL_PIECES) if name.isdecimal()]  # no mark of a folder
            pieces = {int(name): f"{self._root}/{JOURNAL_PIECES}/{name}" for name in names}
            missing = {begin: key for begin, key in sorted(pieces.items()) if begin >= end}
            with _as_os_error():
                contents = self._fs.cat(list(missing.values())) if missing else {}
            for begin, key in missing.items():
                if begin != file.seek(0, os.SEEK_END):
                    raise FtaeError(f"{self.url}/{JOURNAL_PIECES}: the part before byte {begin} is missing")
                file.write(contents[key])

    def _mirrors(self, file: BinaryIO) -> bool:
        """Whether a mirror's journal is of this search, not of one of its name that was deleted."""
        file.seek(0)
        return file.readline() == self._read_piece(0)

    def replicate(self, offset: int, line: bytes) -> bool:
        if not self.create(f"{JOURNAL_PIECES}/{offset:015d}", line) and self._read_piece(offset) != line:
            raise FtaeError(f"{self.url} was taken over by another ftae driver; this one ends")
        return True

    def _read_piece(self, offset: int) -> bytes | None:
        # A request that was answered with an error may have been carried out, and is then sent again.
        return self.read(f"{JOURNAL_PIECES}/{offset:015d}")

    def push(self, below: str) -> None:
        path = self.folder / below
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            self.write(str(file.relative_to(self.folder)), file.read_bytes())

    def fetch(self, below: str) -> Path:
        path = self.folder / below
        with _as_os_error():
            keys = self._fs.find(f"{self._root}/{below}")
        for key in keys:
            file = self.folder / key.removeprefix(f"{self._root}/")
            data = None if file.exists() else self.read(key.removeprefix(f"{self._root}/"))
            if data is not None:
                Store.write(self, str(file.relative_to(self.folder)), data)
        return path

    def release(self, below: str) -> None:
        _remove(self.folder / below)

    def remove(self, below: str) -> None:
        _remove(self.folder / below)
        with _as_os_error(), contextlib.suppress(FileNotFoundError):
            self._fs.rm(f"{self._root}/{below}", recursive=True)

    def names(self, below: str) -> list[str]:
        with _as_os_error():
            try:
                keys = self._fs.ls(f"{self._root}/{below}", detail=False, refresh=True)
            except FileNotFoundError:
                return []
        return sorted(key.rstrip("/").rpartition("/")[2] for key in keys)

    def create(self, below: str, data: bytes) -> bool:
        with _as_os_error():
            try:
                self._fs.pipe_file(f"{self._root}/{below}", data, mode="create")
            except OSError as error:
                # Not every server says that this is why it refused, or that it did what it was asked.
                if not isinstance(error, FileExistsError) and self.read(below) is None:
                    raise
                return False
        return True

    def write(self, below: str, data: bytes) -> None:
        with _as_os_error():
            self._fs.pipe_file(f"{self._root}/{below}", data)

    def read(self, below: str) -> bytes | None:
        with _as_os_error():
            try:
                return bytes(self._fs.cat_file(f"{self._root}/{below}"))
            except FileNotFoundError:
                return None


def is_url(storage: str) -> bool:
    """Whether searches are kept in an object store, not in a folder."""
    return "://" in storage


def open_store(storage: str, name: str, role: Role) -> Store:
    """The place of one search below ``storage``, a folder or the URL of an object store.

    Each ``role`` has a mirror of its own on a machine, since each writes other parts of it.

    Raises:
        FtaeError: it is no object store that can hold searches, or its package is missing.
    """
    if not is_url(storage):
        return Store(Path(storage).expanduser().absolute() / name)
    url = f"{storage.rstrip('/')}/{name}"
    cache = Path(os.environ.get("FTAE_CACHE") or "~/.cache/ftae").expanduser()
    return ObjectStore(url, cache / "searches" / hashlib.blake2b(url.encode(), digest_size=8).hexdigest() / role)


def searches_in(storage: str) -> list[str]:
    """The names of the searches below ``storage``."""
    if not is_url(storage):
        return sorted(path.parent.name for path in Path(storage).expanduser().glob(f"*/{JOURNAL}"))
    fs, root = _filesystem(storage.rstrip("/"))
    with _as_os_error():
        found = fs.glob(f"{root}/*/{JOURNAL_PIECES}/{0:015d}")
    return sorted(key.split("/")[-3] for key in found)


def _filesystem(url: str) -> tuple[Any, str]:
    """fsspec's filesystem for a URL, and the path in it. Credentials come from the environment.

    Raises:
        FtaeError: no driver could hold a search there against others, or the client is not installed.
    """
    scheme = url.partition("://")[0]
    if scheme not in CLIENTS:
        choices = ", ".join(f"{name}://" for name in CLIENTS)
        raise FtaeError(
            f"search.storage must be a folder, or the URL of an object store by one of {choices}, got {scheme}://..."
            f"{did_you_mean(scheme, CLIENTS)}; elsewhere two drivers could write the same search"
        )
    try:
        import fsspec

        fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        raise FtaeError(f"search.storage: {scheme}:// needs pip install '{CLIENTS[scheme]}' ({error})") from error
    except ValueError as error:
        raise FtaeError(f"search.storage {scheme}://...: {error}") from error
    return fs, root


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    """Clients of object stores raise errors of their own when the network or the server fails."""
    try:
        yield
    except (OSError, FtaeError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def _cut_to_lines(file: BinaryIO) -> int:
    """Drop a half-written last line; returns where the file ends then."""
    file.seek(0)
    end = file.read().rfind(b"\n") + 1
    file.truncate(end)
    return end


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
