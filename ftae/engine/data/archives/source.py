"""The source of images in archives, and the table of the formats."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ftae.engine.data.archives.images import ArchiveImages, cannot_read, check_names
from ftae.engine.data.archives.lmdb import is_lmdb, open_lmdb
from ftae.engine.data.archives.tfrecords import is_tfrecords, open_tfrecords
from ftae.engine.data.archives.zip import is_zip, open_zip
from ftae.engine.data.image_folder import ImageFolderSource, files_part
from ftae.engine.data.source_base import Part
from ftae.errors import FtaeError
from ftae.specs.finetune.data_spec import DataSpec


@dataclass(frozen=True)
class Format:
    """``fits``: whether a path is an archive of this format. ``open``: its images, those of the size for a side."""

    fits: Callable[[Path], bool]
    open: Callable[[Path, int], ArchiveImages]


# A new format is a module with these two functions, and a line here.
FORMATS = {
    "zip": Format(is_zip, open_zip),
    "LMDB": Format(is_lmdb, open_lmdb),
    "TFRecords": Format(is_tfrecords, open_tfrecords),
}


class ArchiveSource(ImageFolderSource):
    """``data.train`` and, where ``data.val`` names an archive, that archive."""

    def list_images(self, folder: str) -> ArchiveImages:
        return open_archive(Path(folder).expanduser(), max(self.spec.decoded_size))


def archive_part(archive: str, spec: DataSpec) -> Part:
    """All images of any archive, in the size and colour of ``spec``. Raises as ``open_archive`` and ``files_part``."""
    return files_part(archive, open_archive(Path(archive).expanduser(), max(spec.decoded_size)), spec)


def is_archive(path: Path) -> bool:
    return _format_of(path) is not None


def open_archive(path: Path, side: int) -> ArchiveImages:
    """The images of an archive; of several sizes the smallest of at least ``side`` pixels.

    Raises:
        FtaeError: it does not exist, is of no known format, cannot be read, or holds no images.
    """
    if not path.exists():
        raise FtaeError(f"there is no archive {path} (looked from {Path.cwd()})")
    if (kind := _format_of(path)) is None:
        advice = "; source: image_folder reads a folder of images" if path.is_dir() else ""
        raise FtaeError(f"{path} is no archive of the kinds that ftae reads: {', '.join(FORMATS)}{advice}")
    files = kind.open(path, side)
    check_names(files)
    return files


def _format_of(path: Path) -> Format | None:
    try:
        return next((kind for kind in FORMATS.values() if kind.fits(path)), None)
    except OSError as error:
        raise cannot_read(path, error) from error
