"""Images that are decoded all at once: an array on the disk, each row an image."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ftae.engine.data.files.decoding import Array, UnreadableImage, quiet_pillow
from ftae.engine.data.files.listing import legible
from ftae.engine.data.files.threads import in_order
from ftae.engine.data.source_base import ListedImages
from ftae.errors import FtaeError
from ftae.wording import count

logger = logging.getLogger(__name__)


def write_array(folder: Path, listed: ListedImages) -> tuple[list[int], list[str]]:
    """Decode all images into ``images.npy``, and note their digests in ``digests.npy``.

    Returns the numbers of the images that could be decoded, in their order, and the others, each as "name: reason".

    Raises:
        FtaeError: no image can be decoded.
    """
    logger.info("decoding %d images (%.0f MB) into %s", len(listed.names), listed.num_bytes / 1e6, folder.parent)
    skipped: dict[int, str] = {}
    digests = np.zeros(len(listed.names), dtype="<u8")
    size = listed.num_bytes // len(listed.names)
    with quiet_pillow(), (folder / "images.npy").open("w+b") as file:
        _write_header(file, len(listed.names), listed)
        start = file.tell()
        for i, decoded in _decode_all(listed):
            if isinstance(decoded, UnreadableImage):
                skipped[i] = f"{listed.names[i]}: {decoded}"
            else:
                assert decoded.shape == listed.shape
                assert decoded.dtype == listed.kind
                pixels = np.ascontiguousarray(decoded).data
                file.seek(start + i * size)
                file.write(pixels)
                digests[i] = int.from_bytes(hashlib.blake2b(pixels, digest_size=8).digest(), "little")
        kept = [i for i in range(len(listed.names)) if i not in skipped]
        if not kept:
            first = legible(skipped[0])
            raise FtaeError(f"no image can be decoded, {count(len(skipped), 'file')} tried; the first: {first}")
        _close_gaps(file, start, size, kept)
        _write_header(file, len(kept), listed)
    np.save(folder / "digests.npy", digests[kept])
    return kept, sorted(skipped.values())


def _decode_all(listed: ListedImages) -> Iterator[tuple[int, Array | UnreadableImage]]:
    """The number of each image and the image, in the order in which they are read fastest."""

    decode_one = listed.decode_in_order or listed.decode

    def decode(i: int) -> tuple[int, Array | UnreadableImage]:
        try:
            return i, decode_one(i)
        except UnreadableImage as unreadable:
            return i, unreadable

    order = range(len(listed.names)) if listed.reading_order is None else listed.reading_order.tolist()
    return in_order(decode, order, threads=listed.reads_at_once)


def _close_gaps(file: BinaryIO, start: int, size: int, kept: Sequence[int]) -> None:
    """Move the rows that were written to the front, in their order."""
    for new, old in enumerate(kept):
        if new != old:
            file.seek(start + old * size)
            row = file.read(size)
            file.seek(start + new * size)
            file.write(row)
    file.truncate(start + len(kept) * size)


def _write_header(file: BinaryIO, num_images: int, listed: ListedImages) -> None:
    """Write the header of the array; numpy pads it, so that it can be replaced by one for fewer images."""
    file.seek(0)
    header = {"descr": listed.kind.str, "fortran_order": False, "shape": (num_images, *listed.shape)}
    np.lib.format.write_array_header_1_0(file, header)
