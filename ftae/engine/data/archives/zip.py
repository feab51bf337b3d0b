"""Zip archives: labels are those of StyleGAN's ``dataset.json``, or else the sub-folders."""

import json
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any
from zipfile import BadZipFile, ZipFile, ZipInfo

from ftae.engine.data.archives.images import ArchiveImages, cannot_read
from ftae.engine.data.files.decoding import UnreadableImage
from ftae.engine.data.files.listing import Found, hidden_as, legible
from ftae.errors import FtaeError
from ftae.wording import count

LABELS = "dataset.json"
MOST_BYTES = 2**29  # of one image file: the largest that Pillow decodes has 179 million pixels of 3 colours
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def is_zip(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) in (b"PK\3\4", b"PK\5\6") or path.suffix.lower() == ".zip"


def open_zip(path: Path, side: int) -> ArchiveImages:
    """All images of a zip archive, at any depth; ``side`` does not matter.

    Raises:
        FtaeError: the archive is damaged or encrypted, holds no images, or ``dataset.json`` is not as StyleGAN's.
    """
    members = _Members(path)
    _check_open(path, members.infos)
    names, unusable, notes = _found(members.infos).sorted_out(path)
    files = ArchiveImages(path, names, None, unusable, notes, read_image=members.read, paths=(path,))
    if LABELS not in (info.filename for info in members.infos):
        return files.labelled_by_folders()
    labels = _labels(path, members)
    if labels is None:  # sub-folders only hold down the number of images in each
        return files.unlabelled()
    if without := [name for name in names if name not in labels]:
        raise FtaeError(
            f"{path}: {LABELS} has no label for {len(without)} of {count(len(names), 'image')} "
            f"({legible(without[0])}, ...)"
        )
    return files.labelled([labels[name] for name in names], LABELS)


class _Members:
    """The members of an open zip archive. Several threads may read: one after another, as they share one file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()
        try:
            self._zip = ZipFile(path)
        except OSError as error:
            raise cannot_read(path, error) from error
        except (BadZipFile, NotImplementedError, ValueError, EOFError) as error:
            raise FtaeError(f"{path} is no zip archive, or was cut off or damaged: {error}") from error
        self.infos = [info for info in self._zip.infolist() if not info.is_dir()]

    def read(self, name: str) -> bytes:
        """Raises as ``ImageFiles.read``."""
        try:
            with self._lock:
                return self._zip.read(name)
        except (BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
            raise UnreadableImage(f"damaged in the archive: {error}") from error
        except OSError as error:
            raise cannot_read(self._path, error) from error


def _check_open(path: Path, infos: Sequence[ZipInfo]) -> None:
    if encrypted := [info.filename for info in infos if info.flag_bits & 1]:
        raise FtaeError(
            f"{path} is encrypted ({legible(encrypted[0])}, ...): ftae takes no passwords. Pack the images without one"
        )


def _found(infos: Sequence[ZipInfo]) -> Found:
    found, hidden = Found(), set()
    for info in infos:
        folders = info.filename.split("/")
        for depth, part in enumerate(folders, 1):
            if part not in (".", "..") and (why := hidden_as(part)):
                hidden.add(("/".join(folders[:depth]), why))
                break
        else:
            if reason := _fault(info):
                found.irregular[info.filename] = reason
            else:
                found.files.append(info.filename)
    found.hidden.update(why for _, why in hidden)
    return found


def _fault(info: ZipInfo) -> str | None:
    if info.file_size > MOST_BYTES:
        return f"claims {info.file_size:,} bytes, more than {MOST_BYTES:,}"
    if info.compress_type not in METHODS:
        return f"compressed by method {info.compress_type} of zip; ftae reads what is stored or deflated"
    return None


def _labels(path: Path, members: _Members) -> dict[str, Any] | None:
    """The label of each name in ``dataset.json``; None where it says that there are none."""
    try:
        if fault := next(map(_fault, (info for info in members.infos if info.filename == LABELS))):
            raise FtaeError(f"{path}: {LABELS} {fault}")
        labels = json.loads(members.read(LABELS))["labels"]
        return None if labels is None else {str(name): label for name, label in labels}
    except (UnreadableImage, ValueError, TypeError, LookupError, RecursionError) as error:
        rule = 'must be {"labels": [[NAME, NUMBER or VECTOR], ...]} or {"labels": null}'
        raise FtaeError(f"{path}: {LABELS} {rule}; it cannot be read so: {error}") from error
