"""LMDB environments: several sizes and a length as StyleGAN2 of rosinality keeps them, or a key for each image."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from ftae.engine.data.archives.images import ArchiveImages, cannot_read, nearest_size
from ftae.engine.data.files.decoding import UnreadableImage
from ftae.errors import FtaeError

if TYPE_CHECKING:
    from lmdb import Environment, Transaction

DATA = "data.mdb"
MAGIC = b"\xde\xc0\xef\xbe"  # after the 16 bytes that begin a page

# LMDB forbids opening a file twice in one process.
_environments: "WeakValueDictionary[Path, Environment]" = WeakValueDictionary()
_opening = Lock()


def is_lmdb(path: Path) -> bool:
    if path.is_dir():
        return (path / DATA).is_file()
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(20)[16:] == MAGIC or path.suffix.lower() in (".mdb", ".lmdb")


def open_lmdb(path: Path, side: int) -> ArchiveImages:
    """All images of an LMDB; of several sizes, those that fit ``side``.

    Raises:
        FtaeError: the package lmdb is missing, or the file is damaged or empty.
    """
    data = path / DATA if path.is_dir() else path
    environment = _opened(data)
    notes: tuple[str, ...] = ()
    with _damage_told(data), environment.begin() as transaction:
        length, sizes, size = transaction.get(b"length"), _sizes(transaction), None
        if length is not None and sizes:
            size, notes = nearest_size(sizes, side)
            names = dict(_numbered(data, length, size, environment.stat()["entries"]))
        else:
            names = dict(_keys(transaction))
    if not names:
        raise FtaeError(f"{path} holds no images: the LMDB is empty")

    def read(name: str) -> bytes:
        with _damage_told(data), environment.begin() as transaction:
            content = transaction.get(names[name])
        if content is None:
            raise UnreadableImage(f"the LMDB has no key {names[name].decode()}")
        return bytes(content)

    files = ArchiveImages(path, tuple(sorted(names)), None, (), notes, read_image=read, paths=(data,), size=size)
    return files.labelled_by_folders()


def _opened(data: Path) -> "Environment":
    try:
        import lmdb
    except ImportError as error:
        raise FtaeError(f"{data} needs the package lmdb: pip install 'ftae[lmdb]'") from error
    with _opening:
        key = data.resolve()
        if (environment := _environments.get(key)) is None:
            with _damage_told(data):
                environment = lmdb.open(str(data), subdir=False, readonly=True, lock=False, create=False)
            _check_whole(data, environment)
            _environments[key] = environment
    return environment


@contextmanager
def _damage_told(data: Path) -> Iterator[None]:
    import lmdb

    try:
        yield
    except lmdb.Error as error:
        raise FtaeError(f"{data} is no LMDB, or is damaged: {error}") from error


def _check_whole(data: Path, environment: Any) -> None:
    """Reading a page beyond the end of a file would end the process."""
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    try:
        size = data.stat().st_size
    except OSError as error:
        raise cannot_read(data, error) from error
    if size < needed:
        raise FtaeError(f"{data} was cut off: it has {size:,} of {needed:,} bytes. Copy it again")


def _keys(transaction: "Transaction") -> Iterator[tuple[str, bytes]]:
    for key in transaction.cursor().iternext(keys=True, values=False):
        yield bytes(key).decode("utf-8", "surrogateescape"), bytes(key)


def _sizes(transaction: "Transaction") -> list[int]:
    """The sizes in keys such as ``256-00000``."""
    cursor, sizes = transaction.cursor(), []
    found = cursor.first()
    while found:
        size, dash, _ = bytes(cursor.key()).partition(b"-")
        if dash and size.isdigit():
            sizes.append(int(size))
        # The next key that begins otherwise: "." follows "-".
        found = cursor.set_range(size + b".") if dash else cursor.next()
    return sizes


def _numbered(data: Path, length: bytes, size: int, entries: int) -> Iterator[tuple[str, bytes]]:
    """Names are the numbers alone: so an image has the same name, and the same place in the split, in every size."""
    if not length.isdigit() or int(length) > entries:
        raise FtaeError(f"{data}: length must be the number of images, at most {entries:,}, got {length[:20]!r}")
    return ((f"{i:05d}", f"{size}-{i:05d}".encode()) for i in range(int(length)))
