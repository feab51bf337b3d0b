"""The files of an image folder: finding and naming them, and keeping them apart from output folders."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from ftae.engine.data.files import dicom, nifti
from ftae.engine.data.files.decoding import Array, read_bytes
from ftae.engine.data.files.threads import chunks, in_order
from ftae.engine.data.files.values import Values, decode_file, read_frame
from ftae.errors import FtaeError
from ftae.specs.finetune.data_spec import DataSpec
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
    *dicom.SUFFIXES, *nifti.SUFFIXES,
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
STATS_AT_ONCE = 256  # files that one thread asks for: on a network each takes a millisecond
MOST_NAMED = 5  # suffixes or names in one message


@dataclass(frozen=True)
class ImageFiles:
    """The images below ``root``: sorted relative names, and the sub-folders that are their classes.

    ``unusable``: names of images that are no regular files, each as "name: reason". ``notes``: what else was left out.
    ``labels``: the class of each image, empty where there are none; None where the names tell. ``groups``: a digest of
    the group of each image; None where every image is by itself. Images that lie elsewhere than in a folder are a
    subclass of this.
    """

    root: Path
    names: tuple[str, ...]
    class_names: tuple[str, ...] | None
    unusable: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    labels: Mapping[str, str] | None = None
    groups: Mapping[str, str] | None = None

    def class_of(self, name: str) -> str | None:
        """The class of an image; None where it has none."""
        if self.labels is not None:
            return self.labels.get(name)
        return None if self.class_names is None else name.split("/")[0]

    @property
    def key(self) -> list[Any]:
        """A JSON value that labels and groups depend on beside the names; empty where the names tell all."""
        labels = None if self.labels is None else [self.class_names, [self.class_of(name) for name in self.names]]
        groups = None if self.groups is None else ["groups", [self.groups[name] for name in self.names]]
        return [key for key in (labels, groups) if key is not None]

    @property
    def content(self) -> str | None:
        """The fingerprint of names and bytes, where it is known without reading them; None where it is not."""
        return None

    @property
    def reads_at_once(self) -> int | None:
        """How many files are read at once; None for as many as there are processors, about."""
        return None

    def reading_order(self, names: Sequence[str]) -> Any:
        """The indices of ``names``, int64 (N,), in the order in which they are read fastest; None if all are alike."""
        return None

    def read(self, name: str) -> bytes:
        """The content of one image file; in any thread.

        Raises:
            FtaeError: it cannot be read now.
            UnreadableImage: it is damaged where it is stored.
        """
        return read_bytes(self.root / name)

    def decode(self, name: str, spec: DataSpec) -> Array:
        """One image as ``decode_file`` gives it; in any thread. Raises as ``read`` and ``decode_file``."""
        return decode_file(self.read(name), spec)

    def values(self, name: str, spec: DataSpec) -> Values:
        """The values of one image, (H, W, bands), in the type of the file. Raises as ``decode``."""
        return read_frame(self.read(name), spec).values

    def read_in_order(self) -> "ImageFiles":
        """The same files, for a reader that takes all of them, about in ``reading_order``."""
        return self

    def whole(self) -> "ImageFiles":
        """The files that these images are in."""
        return self

    def stamp(self) -> Iterable[Any]:
        """JSON values, of which one changes whenever the content of an image may have changed; no image is read.

        Raises:
            FtaeError: a file has gone.
        """

        def stamps(names: Sequence[str]) -> list[Any]:
            return [[name, *file_stamp(f"{self.root}/{name}")] for name in names]

        yield str(self.root.resolve())
        for some in in_order(stamps, chunks(self.names, STATS_AT_ONCE)):
            yield from some

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


def file_stamp(path: Path | str) -> list[int]:
    """Size, mtime and ctime of a file.

    Raises:
        FtaeError: the file has gone.
    """
    try:
        stat = os.stat(path)  # noqa: PTH116  # making a Path takes longer than asking for the file
    except OSError as error:
        raise FtaeError(f"cannot read the image {path}: {error.strerror}") from error
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def list_images(root: Path) -> ImageFiles:
    """The images in ``root`` and its sub-folders, which are their classes.

    Raises:
        FtaeError: as ``find_images``, or images lie both directly in the folder and in sub-folders.
    """
    return find_images(root).labelled_by_folders()


def find_images(root: Path) -> ImageFiles:
    """The images in ``root`` and its sub-folders, links followed; without classes.

    Hidden files and folders, those that operating systems put beside images, and whatever is no regular file are
    left out.

    Raises:
        FtaeError: the folder does not exist, cannot be read or holds no images.
    """
    if root.is_file():
        raise FtaeError(f"{root} is a file; expected a folder of images. {ARCHIVE_ADVICE}")
    if not root.is_dir():
        raise FtaeError(f"there is no image folder {root} (looked from {Path.cwd()})")
    found = Found()
    _walk(root, "", frozenset(), found)
    names, unusable, notes = found.sorted_out(root)
    return ImageFiles(root, names, None, unusable, notes)


@dataclass
class Found:
    """What a walk found.

    ``hidden``: how often each name was left out; ``irregular``: the reason, by name; ``dicom``: the files of DICOM
    without its suffix.
    """

    files: list[str] = field(default_factory=list)
    hidden: Counter[str] = field(default_factory=Counter)
    irregular: dict[str, str] = field(default_factory=dict)
    dicom: set[str] = field(default_factory=set)

    def sorted_out(self, root: Path) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        """``names``, ``unusable`` and ``notes`` of ``ImageFiles``.

        Raises:
            FtaeError: there are no images.
        """
        names = sorted(name for name in self.files if _is_image(name) or name in self.dicom)
        others = [name for name in self.files if not _is_image(name) and name not in self.dicom]
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
            if _is_bare_dicom(folder / name):
                found.dicom.add(prefix + name)
        else:
            found.irregular[prefix + name] = "a link to nothing" if entry.is_symlink() else "not a regular file"


def _is_bare_dicom(path: Path) -> bool:
    """Whether a file is of DICOM; only files without a suffix are opened, and those named by a UID, such as 1.2.840.

    DICOMDIR is a list of files.
    """
    if path.name == "DICOMDIR" or not (path.suffix == "" or path.suffix[1:].isdigit()):
        return False
    try:
        with path.open("rb") as file:
            return dicom.is_dicom(file.read(132))
    except OSError:
        return False


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
