"""Where a command may write: never among images that are read, which what it writes would become."""

from collections.abc import Mapping
from pathlib import Path

from ftae.engine.names import as_text, legible
from ftae.errors import FtaeError


def check_output(out: Path, folders: Mapping[str, str], *, writes_folders: bool = True) -> None:
    """Hold the folder ``out`` apart from ``folders`` of images, each under the name that its message gives it.

    ``writes_folders``: sub-folders are made in it, so that it must not hold images either.

    Raises:
        FtaeError: one lies in the other; or the name of ``out`` is not UTF-8, as those of weights must be.
    """
    if as_text(str(out)) != str(out):
        raise FtaeError(f"{legible(str(out))}: the name of a folder to write to must be UTF-8")
    here = out.expanduser().resolve()
    for name, folder in folders.items():
        there = Path(folder).expanduser().resolve()
        if here.is_relative_to(there) or (writes_folders and there.is_relative_to(here)):
            raise FtaeError(
                f"{out} must be apart from {folder} ({name}), neither inside the other: what is written there would "
                "be taken for its images. Choose another folder"
            )
