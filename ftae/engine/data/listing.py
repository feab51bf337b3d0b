"""The files of an image folder: finding and naming them, and keeping them apart from output folders."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from ftae.engine.data.decoding import read_bytes
from ftae.errors import FtaeError
from ftae.wording import count


def as_text(name: str) -> str:
    """The name as valid Unicode: bytes that are not UTF-8 become escapes such as ``\\xfc``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def legible(name: str) -> str:
    """The name for a message: as ``as_text``, with control characters escaped, so that it stays on one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in as_text(name))


def check_output(out: Path, folders: Mapping[str, str], *, writes_folders: bool = True) -> None:
    """Keep the output folder ``out`` apart from folders of images.

    Args:
        folders: each by the name that messages give it.
        writes_folders: whether sub-folders will be made in ``out``, which then must not contain images either.

    Raises:
        FtaeError: one lies in the other; or the name of ``out`` is not UTF-8, as the names of weights must be.
    """
    if as_text(str(out)) != str(out):
        raise FtaeError(f"{legible(str(out))}: the name of a folder to write to must be UTF-8")
    here = out.expanduser().resolve()
    for name, folder in folders.items():
        there = Path(folder).expanduser().resolve()
        if here.is_relative_to(there) or (writes_folders and there.is_relative_to(here)):
            raise FtaeError(
                f"{out} must be apart from {folder} ({name}), neither inside the other: files written there would be "
                "taken for its images. Choose another folder"
            )


# The formats that people keep images in, of those that Pillow reads.
# fmt: off
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif",
    ".avif", ".avifs", ".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".qoi",
)

# Files that usually accompany images and are left out silently; all other kinds are counted in a note.
ACCOMPANYING = (
    ".txt", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".toml", ".ini", ".md", ".rst", ".html",
    ".log", ".db", ".py", ".ipynb", ".sh", ".lock", ".md5", ".sha256",
)

# fmt: on
SYSTEM = {"@eadir", "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "#recycle"}
ARCHIVES = (".zip", ".mdb", ".tfrecords")
ARCHIVE_ADVICE = "source: archive reads images in a zip, an LMDB or TFRecords"
MOST_NAMED = 5  # suffixes or names in one message


@dataclass(frozen=True)
class ImageFiles:
    """The images below ``root``: sorted relative names, and the sub-folders that are their classes.

    ``unusable``: names of images that are no regular files, each as "name: reason". ``notes``: what else was left out.
    Images that lie elsewhere than in a folder are a subclass of this.
    """

    root: Path
    names: tuple[str, ...]
    class_names: tuple[str, ...] | None
    unusable: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def class_of(self, name: str) -> str | None:
        """The class of an image; None where the folder has no classes."""
        return None if self.class_names is None else name.split("/")[0]

    @property
    def label_key(self) -> Any:
        """A JSON value that labels depend on beside the names; None where the names tell them."""
        return None

    def read(self, name: str) -> bytes:
        """The content of one image file; in any thread.

        Raises:
            FtaeError: it cannot be read now.
            UnreadableImage: it is damaged where it is stored.
        """
        return read_bytes(self.root / name)

    def stamp(self) -> list[Any]:
        """A JSON value that changes whenever the content of an image may have changed; no image is read.

        Raises:
            FtaeError: a file has gone.
        """
        return [str(self.root.resolve()), *([name, *file_stamp(self.root / name)] for name in self.names)]

    def labelled_by_folders(self) -> Self:
        """With the sub-folders in the names as classes.

        Raises:
            FtaeError: some images lie in sub-folders and others do not.
        """
        in_classes = [n for n in self.names if "/" in n]
        if in_classes and len(in_classes) < len(self.names):
            directly = next(n for n in self.names if "/" not in n)
            raise FtaeError(
                f"{self.root} holds {count(len(self.names) - len(in_classes), 'image')} directly "
                f"({legible(directly)}, ...) and {len(in_classes)} in sub-folders ({legible(in_classes[0])}, ...). "
                "Sub-folders are the labels: put every image in one, or none"
            )
        return replace(self, class_names=tuple(sorted({n.split("/")[0] for n in in_classes})) or None)


def file_stamp(path: Path) -> list[int]:
    """Size, mtime and ctime of a file.

    Raises:
        FtaeError: the file has gone.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise FtaeError(f"cannot read the image {path}: {error.strerror}") from error
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def list_images(root: Path) -> ImageFiles:
    """Find the images in ``root`` and its sub-folders, links followed.

    Hidden files and folders, those that operating systems put beside images, and whatever is no regular file are
    left out.

    Raises:
        FtaeError: the folder does not exist, cannot be read or holds no images, or images lie both directly in it and
            in sub-folders.
    """
    if root.is_file():
        raise FtaeError(f"{root} is a file; expected a folder of images. {ARCHIVE_ADVICE}")
    if not root.is_dir():
        raise FtaeError(f"there is no image folder {root} (looked from {Path.cwd()})")
    found = Found()
    _walk(root, "", frozenset(), found)
    names, unusable, notes = found.sorted_out(root)
    return ImageFiles(root, names, None, unusable, notes).labelled_by_folders()


@dataclass
class Found:
    """What a walk found. ``hidden``: how often each name was left out; ``irregular``: the reason, by name."""

    files: list[str] = field(default_factory=list)
    hidden: Counter[str] = field(default_factory=Counter)
    irregular: dict[str, str] = field(default_factory=dict)

    def sorted_out(self, root: Path) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        """``names``, ``unusable`` and ``notes`` of ``ImageFiles``.

        Raises:
            FtaeError: there are no images.
        """
        names = sorted(name for name in self.files if _is_image(name))
        others = [name for name in self.files if not _is_image(name)]
        unusable = sorted(f"{name}: {reason}" for name, reason in self.irregular.items() if _is_image(name))
        if not names:
            named = "".join(f"; {legible(name)}" for name in unusable)
            advice = f". {ARCHIVE_ADVICE}" if any(name.lower().endswith(ARCHIVES) for name in others) else ""
            raise FtaeError(
                f"{root} holds no images: looked for {' '.join(SUFFIXES)} in it and its sub-folders, "
                f"found {count(len(others), 'other file')}{_suffixes(others)}{named}{advice}"
            )
        return tuple(names), tuple(unusable), _notes(others, self.hidden)


def hidden_as(name: str) -> str | None:
    """What a note calls a hidden entry of a folder, or one of an operating system; None for any other ``name``."""
    if name.startswith("._"):
        return "._*"
    return name if name.startswith(".") or name.lower() in SYSTEM else None


def _walk(folder: Path, prefix: str, above: frozenset[Path], found: Found) -> None:
    real = folder.resolve()
    if real in above:  # a link back to it, which would lead round in circles
        return
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        raise FtaeError(f"cannot read the folder {folder}: {error.strerror}") from error
    for entry in entries:
        name = entry.name
        if hidden := hidden_as(name):
            found.hidden[hidden] += 1
            continue
        try:
            is_folder, is_file = entry.is_dir(), entry.is_file()
        except OSError as error:
            found.irregular[prefix + name] = error.strerror or str(error)
            continue
        if is_folder:
            _walk(folder / name, f"{prefix}{name}/", above | {real}, found)
        elif is_file:
            found.files.append(prefix + name)
        else:
            found.irregular[prefix + name] = "a link to nothing" if entry.is_symlink() else "not a regular file"


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _notes(others: Iterable[str], hidden: Counter[str]) -> tuple[str, ...]:
    notes = []
    foreign = [name for name in others if not name.lower().endswith(ACCOMPANYING)]
    if foreign:
        notes.append(f"{count(len(foreign), 'file')} of other kinds left out{_suffixes(foreign)}")
    if hidden:
        notes.append(f"left out as hidden or of an operating system: {_counted(hidden)}")
    return tuple(notes)


def _suffixes(names: Iterable[str]) -> str:
    counts = Counter(Path(name).suffix.lower() or "without suffix" for name in names)
    return f": {_counted(counts)}" if counts else ""


def _counted(counts: Counter[str]) -> str:
    named = [f"{legible(name)} {number}" for name, number in sorted(counts.items(), key=lambda c: (-c[1], c[0]))]
    return ", ".join(named[:MOST_NAMED]) + (", ..." if len(named) > MOST_NAMED else "")
