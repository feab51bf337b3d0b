"""TFRecords, as StyleGAN and StyleGAN2 keep images: a file for each size, with raw pixels, and a file of labels.

A record is: its length (8 bytes), a checksum of the length (4), the data, a checksum of the data (4). The data are the
protobuf message ``tf.train.Example``, of which two kinds of fields are read here.
"""

import math
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ftae.engine.data.archives.images import ArchiveImages, cannot_read, nearest_size
from ftae.engine.data.files.decoding import UnreadableImage
from ftae.errors import FtaeError

_LEVEL = re.compile(r"(?P<base>.+)-r(?P<level>\d\d)\.tfrecords")  # of images of 2^level pixels a side
_PATTERN = "*.tfrecords"
Record = tuple[int, int]  # where its data begin, and how many bytes they are


def is_tfrecords(path: Path) -> bool:
    return any(path.glob(_PATTERN)) if path.is_dir() else ".tfrecord" in path.name and path.is_file()


def open_tfrecords(path: Path, side: int) -> ArchiveImages:
    """All images of one file, or of that file of a folder which fits ``side``; named by their numbers.

    Raises:
        FtaeError: the package google-crc32c is missing, the file is cut off or damaged, or labels do not fit.
    """
    file, size, notes = _of_folder(path, side) if path.is_dir() else (path, None, ())
    checksum = _checksum(file)
    records = _records(file, checksum)
    if not records:
        raise FtaeError(f"{file} holds no images: it has no records")

    def read(name: str) -> bytes:
        return _image(_example(file, int(name), records[int(name)], checksum))

    names = tuple(f"{i:08d}" for i in range(len(records)))
    named = _LEVEL.fullmatch(file.name)
    labels = file.with_name(f"{named['base']}-rxx.labels") if named else None
    paths = (file, labels) if labels is not None and labels.is_file() else (file,)
    files = ArchiveImages(path, names, None, (), notes, read_image=read, paths=paths, size=size)
    return files if len(paths) == 1 else files.labelled(_load_labels(paths[1]), paths[1].name)


def _of_folder(folder: Path, side: int) -> tuple[Path, int, tuple[str, ...]]:
    found = [match for path in sorted(folder.glob(_PATTERN)) if (match := _LEVEL.fullmatch(path.name))]
    if len({match["base"] for match in found}) != 1:
        raise FtaeError(
            f"{folder} must hold the files NAME-rXX{_PATTERN[1:]} of one data set, found "
            f"{', '.join(sorted({match['base'] for match in found})) or 'none'}; name one file instead of the folder"
        )
    files = {2 ** int(match["level"]): folder / match[0] for match in found}
    size, notes = nearest_size(list(files), side)
    return files[size], size, notes


def _load_labels(path: Path) -> object:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise FtaeError(f"{path} must hold an array of labels as NumPy saves it: {error}") from error


# ------------------------------------------------------------------------------------------------ records


def _checksum(file: Path) -> Callable[[bytes], int]:
    """CRC32C, rotated by 15 bits with a constant added: a file may then hold checksums that are data themselves."""
    try:
        import google_crc32c
    except ImportError as error:
        raise FtaeError(f"{file} needs the package google-crc32c: pip install 'ftae[tfrecords]'") from error

    def masked(data: bytes) -> int:
        crc: int = google_crc32c.value(data)
        return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

    return masked


def _records(path: Path, checksum: Callable[[bytes], int]) -> list[Record]:
    """All records; only their lengths are read."""
    records: list[Record] = []
    try:
        end = path.stat().st_size
        with path.open("rb", buffering=0) as file:
            at = 0
            while at < end:
                file.seek(at)
                head = file.read(12)
                whole = f"{path}: record {len(records)}"
                if len(head) < 12:
                    raise FtaeError(f"{whole} was cut off, as the file was. Copy it again")
                length, crc = struct.unpack("<QI", head)
                if crc != checksum(head[:8]):
                    raise FtaeError(
                        f"{whole} has a length that does not match its checksum: the file is damaged, compressed, or "
                        "no TFRecord file"
                    )
                if at + length + 16 > end:
                    raise FtaeError(f"{whole} was cut off, as the file was. Copy it again")
                records.append((at + 12, length))
                at += length + 16
    except OSError as error:
        raise cannot_read(path, error) from error
    return records


def _example(path: Path, number: int, record: Record, checksum: Callable[[bytes], int]) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(record[0])
            data, crc = file.read(record[1]), file.read(4)
    except OSError as error:
        raise cannot_read(path, error) from error
    if len(crc) < 4 or struct.unpack("<I", crc)[0] != checksum(data):
        raise UnreadableImage(f"the data of record {number} do not match their checksum")
    return data


# ------------------------------------------------------------------------------------------------ examples


def _image(example: bytes) -> bytes:
    """The image file in an example; raw pixels become one, so that all images are decoded in one way."""
    try:
        features = _features(memoryview(example))
        if "image/encoded" in features:
            return _bytes(features["image/encoded"])
        shape, pixels = _integers(features["shape"]), _bytes(features["data"])
    except (ValueError, LookupError, StopIteration) as error:
        raise UnreadableImage("no Example with shape and data, or with image/encoded") from error
    if len(shape) != 3 or shape[0] not in (1, 3) or math.prod(shape) != len(pixels) or not pixels:
        raise UnreadableImage(
            f"its shape {shape} must be [channels, height, width] of its {len(pixels):,} bytes, with 1 or 3 channels"
        )
    channels, height, width = shape
    rows = np.frombuffer(pixels, dtype=np.uint8).reshape(shape).transpose(1, 2, 0)
    return b"P%d %d %d 255\n" % (6 if channels == 3 else 5, width, height) + rows.tobytes()  # PPM or PGM


def _features(example: memoryview) -> dict[str, memoryview]:
    """The messages ``Feature`` of an example, by name."""
    entries = [entry for features in _all(example, 1) for entry in _all(features, 1)]
    return {bytes(next(_all(entry, 1))).decode(): next(_all(entry, 2)) for entry in entries}


def _bytes(feature: memoryview) -> bytes:
    (value,) = (bytes(value) for values in _all(feature, 1) for value in _all(values, 1))
    return value


def _integers(feature: memoryview) -> list[int]:
    numbers: list[int] = []
    for values in _all(feature, 3):
        for _, value in _fields(values):
            if isinstance(value, int):
                numbers.append(value)
                continue
            at = 0  # packed
            while at < len(value):
                number, at = _varint(value, at)
                numbers.append(number)
    return numbers


def _all(message: memoryview, number: int) -> Iterator[memoryview]:
    """The values of one field that are bytes or messages."""
    return (value for key, value in _fields(message) if key == number and not isinstance(value, int))


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a protobuf message in order, each as its number and value.

    Raises:
        ValueError, IndexError: it is none.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        size = {1: 8, 5: 4}.get(kind)
        if kind == 2:
            size, at = _varint(message, at)
        if size is None or at + size > len(message):
            raise ValueError(f"a field of kind {kind} that does not fit")
        yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the lowest first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number of more than 64 bits")
