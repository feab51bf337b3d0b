"""Shards that hold whole files: tar, and zip. A file is read by its place, by one request."""

import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial

from ftae.engine.data.archives.zip import METHODS, MOST_BYTES
from ftae.engine.data.files.decoding import UnreadableImage
from ftae.engine.data.shards.blocks import Blocks
from ftae.engine.data.shards.places import Shard, ShardFiles, cannot_read
from ftae.engine.data.shards.samples import Choice, Entry, Found, images_of
from ftae.errors import FtaeError

_LOCAL = struct.Struct("<4sHHHHHIIIHH")  # the header before a file in a zip


def index_tar(files: ShardFiles, shard: Shard, choice: Choice) -> list[Found]:
    """The images of a tar; ``offset`` and ``length`` are those of their bytes.

    Raises:
        FtaeError: the file cannot be read or is damaged, or as ``images_of``.
    """
    try:
        with files.open(shard) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            return images_of(_tar_entries(tar), choice, shard.path)
    except tarfile.TarError as error:
        raise FtaeError(f"{shard.path} is no tar, or was cut off, compressed or damaged: {error}") from error
    except OSError as error:
        raise cannot_read(shard, error) from error


def _tar_entries(tar: tarfile.TarFile) -> Iterator[Entry]:
    for member in tar:
        if member.isreg() and not member.issparse():
            yield Entry(member.name, member.offset_data, member.size, partial(_content, tar, member))


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = tar.extractfile(member)
    assert content is not None  # of a regular file
    return content.read()


def read_tar(files: ShardFiles | Blocks, shard: Shard, offset: int, length: int) -> bytes:
    """The file at ``offset``.

    Raises:
        FtaeError: it cannot be read now.
        UnreadableImage: the tar was cut off.
    """
    data = files.read(shard, offset, length)
    if len(data) < length:
        raise UnreadableImage("the shard was cut off")
    return data


def index_zip(files: ShardFiles, shard: Shard, choice: Choice) -> list[Found]:
    """The images of a zip; ``offset`` is that of the header before a file, ``length`` its size there.

    Raises:
        FtaeError: the file cannot be read, is damaged, encrypted or compressed otherwise, or as ``images_of``.
    """
    try:
        with files.open(shard) as file, zipfile.ZipFile(file) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
            for info in infos:
                if info.flag_bits & 1 or info.compress_type not in METHODS:
                    raise FtaeError(f"{shard.path}: files in a zip must be stored or deflated, without a password")
            entries = (
                Entry(info.filename, info.header_offset, info.compress_size, partial(archive.read, info))
                for info in infos
            )
            return images_of(entries, choice, shard.path)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, zlib.error) as error:
        raise FtaeError(f"{shard.path} is no zip, or was cut off or damaged: {error}") from error
    except OSError as error:
        raise cannot_read(shard, error) from error


def read_zip(files: ShardFiles | Blocks, shard: Shard, offset: int, length: int) -> bytes:
    """The file whose header is at ``offset``. Raises as ``read_tar``."""
    head = files.read(shard, offset, _LOCAL.size)
    if len(head) < _LOCAL.size:
        raise UnreadableImage("the shard was cut off")
    mark, _, _, method, _, _, checksum, _, _, name, extra = _LOCAL.unpack(head)
    data = files.read(shard, offset + _LOCAL.size + name + extra, length)
    if mark != b"PK\3\4" or len(data) < length:
        raise UnreadableImage("damaged in the shard")
    try:
        content = data if method == zipfile.ZIP_STORED else zlib.decompressobj(-15).decompress(data, MOST_BYTES)
    except zlib.error as error:
        raise UnreadableImage(f"damaged in the shard: {error}") from error
    if checksum and zlib.crc32(content) != checksum:  # 0 where it follows the file
        raise UnreadableImage("its bytes do not match their checksum")
    return content
