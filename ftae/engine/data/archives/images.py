"""What every archive of images becomes: image files by name, with the labels that the archive has."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from ftae.engine.data.files.listing import MOST_NAMED, ImageFiles, file_stamp, legible
from ftae.errors import FtaeError
from ftae.wording import count

# A root or a drive at the beginning, and a step up anywhere, on any system.
_ESCAPES = re.compile(r"^[/\\]|^[A-Za-z]:[/\\]|(^|[/\\])\.\.([/\\]|$)")


@dataclass(frozen=True, kw_only=True)
class ArchiveImages(ImageFiles):
    """The images of the archive ``root``; names are the archive's own and lead to no file.

    ``read_image``: gives the content of an image file, by name; raises as ``ImageFiles.read``. ``paths``: the files of
    the archive. ``size``: which of its sizes these images are.
    """

    read_image: Callable[[str], bytes]
    paths: tuple[Path, ...]
    size: int | None = None

    def read(self, name: str) -> bytes:
        return self.read_image(name)

    def stamp(self) -> list[Any]:
        return [str(self.root.resolve()), self.size, *([path.name, *file_stamp(path)] for path in self.paths)]

    def labelled(self, values: Any, where: str) -> Self:
        """With ``values`` as labels, one for each name: whole numbers, or vectors of one 1 and zeros.

        Other vectors are no classes: the images have no labels then, and a note says so.

        Raises:
            FtaeError: ``values`` are no labels; ``where`` names them.
        """
        try:
            array = np.array(values, dtype=np.float64)
        except (ValueError, TypeError) as error:
            raise FtaeError(f"{self.root}: {where} must have numbers, or vectors of one length, as labels") from error
        if array.ndim not in (1, 2) or len(array) != len(self.names) or not np.isfinite(array).all():
            raise FtaeError(
                f"{self.root}: {where} must have a finite number or vector for each of "
                f"{count(len(self.names), 'image')}, its shape is {list(array.shape)}"
            )
        if array.size == 0:
            return self.unlabelled()
        if array.ndim == 2 and not (((array == 0) | (array == 1)).all() and (array.sum(axis=1) == 1).all()):
            note = f"the vectors of {array.shape[1]} numbers in {where} name no classes: images have no labels"
            return replace(self.unlabelled(), notes=(*self.notes, note))
        if array.ndim == 1 and (array != np.rint(array)).any():
            raise FtaeError(f"{self.root}: labels in {where} must be whole numbers, or vectors of one 1 and zeros")
        classes = (array if array.ndim == 1 else array.argmax(axis=1)).astype(np.int64)
        labels = dict(zip(self.names, map(str, classes.tolist()), strict=True))
        return replace(self, labels=labels, class_names=tuple(map(str, np.unique(classes).tolist())))

    def unlabelled(self) -> Self:
        """Without labels, whatever the names are."""
        return replace(self, labels={}, class_names=None)


def check_names(files: ImageFiles) -> None:
    """Names are unique, and none would lead out of a folder if it were taken for a path.

    Raises:
        FtaeError: they are not.
    """
    if twice := [name for name, number in Counter(files.names).items() if number > 1]:
        raise FtaeError(f"{files.root} holds two images of one name: {_some(twice)}")
    if escaping := [name for name in files.names if _ESCAPES.search(name)]:
        raise FtaeError(
            f"{files.root}: the name of an image must be a path below a folder, without a root and '..'; not so "
            f"{_some(escaping)}. Pack the images anew from inside their folder"
        )


def nearest_size(sizes: list[int], side: int) -> tuple[int, tuple[str, ...]]:
    """The smallest of an archive's sizes that need not be enlarged to ``side``, or else the largest; and a note."""
    size = min((size for size in sizes if size >= side), default=max(sizes))
    if len(sizes) == 1:
        return size, ()
    return size, (f"of the sizes {', '.join(map(str, sorted(sizes)))} that it holds, {size} is read",)


def cannot_read(path: Path, error: OSError) -> FtaeError:
    """The error of an archive that may be readable tomorrow."""
    return FtaeError(f"cannot read the archive {path}: {error.strerror or error}")


def _some(names: list[str]) -> str:
    return ", ".join(map(legible, names[:MOST_NAMED])) + (", ..." if len(names) > MOST_NAMED else "")
