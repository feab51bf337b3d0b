"""The source of pairs of images: both in one file, side by side, or in two folders under the same name."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from ftae.engine.data.files.decoding import (
    Array,
    UnreadableImage,
    quiet_pillow,
    read_bytes,
    stored_shape,
    stored_type,
    upright_size,
)
from ftae.engine.data.files.listing import MOST_NAMED, ImageFiles, legible, list_images
from ftae.engine.data.files.values import decode_file, decode_pair
from ftae.engine.data.image_folder import ImageFolderSource, file_labels, folder_notes, levels_of
from ftae.engine.data.source_base import ListedImages, Listing, Part, shuffled
from ftae.engine.data.survey import NUM_GLANCED, Survey, check_levels, survey_folder
from ftae.errors import FtaeError
from ftae.specs.finetune.data_spec import DataSpec
from ftae.specs.finetune.sources.two_sided import Pairs
from ftae.wording import count

PAIRS_VERSION = 1  # raise it when the same files would give other pixels


@dataclass(frozen=True)
class SideBySide:
    """Files that hold both images of a pair: A on the left and B on the right, or the other way round."""

    files: ImageFiles
    is_swapped: bool

    @property
    def all_files(self) -> tuple[ImageFiles, ...]:
        return (self.files,)

    def decode(self, name: str, spec: DataSpec) -> tuple[Array, Array]:
        """The input and the image to give. Raises as ``ListedImages.decode``."""
        left, right = decode_pair(read_bytes(self.files.root / name), spec)
        return (right, left) if self.is_swapped else (left, right)

    def check_sizes(self, names: Iterable[str]) -> None:
        """Refuse files that cannot be halved."""
        sizes = [(name, size) for name in names if (size := _size(self.files.root / name)) is not None]
        wrong = [
            f"{legible(name)} ({width}x{height})" for name, (width, height) in sizes if width % 2 or width <= height
        ]
        if wrong:
            raise FtaeError(
                f"{self.files.root}: a pair side by side has an even width, larger than its height; not so "
                f"{_named(wrong, len(sizes))}; images in two folders are named by data.inputs and data.train"
            )


@dataclass(frozen=True)
class TwoFolders:
    """Files with B, and in another folder those with A, of the same names but for the suffix.

    Raises:
        FtaeError: a file has no partner, or several.
    """

    files: ImageFiles
    inputs: ImageFiles

    def __post_init__(self) -> None:
        given, wanted = (_by_stem(files) for files in (self.inputs, self.files))
        for here, there, files in ((given, wanted, self.files), (wanted, given, self.inputs)):
            if alone := sorted(here.keys() - there.keys()):
                raise FtaeError(
                    f"images of the same name, apart from the suffix, are a pair: {files.root} has no partner for "
                    f"{_named([legible(here[stem]) for stem in alone], len(here))}"
                )

    @cached_property
    def _partners(self) -> dict[str, str]:
        given = _by_stem(self.inputs)
        return {name: given[_stem(name)] for name in self.files.names}

    def partner(self, name: str) -> str:
        """The file with the input of the model, for that with the image to give."""
        return self._partners[name]

    @property
    def all_files(self) -> tuple[ImageFiles, ...]:
        return (self.files, self.inputs)

    def decode(self, name: str, spec: DataSpec) -> tuple[Array, Array]:
        """The input and the image to give. Raises as ``ListedImages.decode``."""
        partner = self.inputs.root / self._partners[name]
        try:
            given = decode_file(read_bytes(partner), spec)
        except UnreadableImage as error:
            raise UnreadableImage(f"of its partner {legible(str(partner))}: {error}") from error
        return given, decode_file(read_bytes(self.files.root / name), spec)

    def check_sizes(self, names: Iterable[str]) -> None:
        """Refuse pairs of different sizes, which would be cut differently."""
        partners = [(self.files.root / name, self.inputs.root / self._partners[name]) for name in names]
        sizes = [(path.name, _size(path), _size(partner)) for path, partner in partners]
        wrong = [
            f"{legible(name)} ({own[0]}x{own[1]}, input {other[0]}x{other[1]})"
            for name, own, other in sizes
            if own is not None and other is not None and own != other
        ]
        if wrong:
            raise FtaeError(
                f"{self.files.root} and {self.inputs.root}: the images of a pair must have the same size; not so "
                f"{_named(wrong, len(sizes))}"
            )


FilePairs = SideBySide | TwoFolders


class PairsSource(ImageFolderSource):
    """``data.train`` and, where ``data.val`` names a folder, that folder, each with its folder of inputs, if any."""

    spec: Pairs

    @cached_property
    def _pairs(self) -> tuple[FilePairs, ...]:
        inputs = [list_images(Path(folder).expanduser()) for folder in self.spec.input_folders().values()]
        if not inputs:
            return tuple(SideBySide(files, self.spec.direction == "b_to_a") for files in self._files)
        return tuple(TwoFolders(files, given) for files, given in zip(self._files, inputs, strict=True))

    def parts(self) -> tuple[Part, ...]:
        surveys = [[survey_folder(files) for files in pairs.all_files] for pairs in self._pairs]
        check_levels([survey for found in surveys for survey in found], self.spec, ", ".join(self.folders))
        return tuple(_part(pairs, found, self.spec) for pairs, found in zip(self._pairs, surveys, strict=True))

    def check_listed(self) -> Listing:
        """Opens all files of small folders, and some of large ones."""
        listing = super().check_listed()
        for pairs in self._pairs:
            pairs.check_sizes(shuffled(pairs.files.names)[:NUM_GLANCED])
        return listing

    def opened_folders(self) -> list[tuple[str, ImageFiles]]:
        return [(str(files.root), files) for pairs in self._pairs for files in pairs.all_files]


def pairs_part(folder: str, spec: DataSpec) -> Part:
    """All pairs of any folder whose files hold both images, in the size and colour of ``spec``, which is of pairs.

    Raises:
        FtaeError: as ``folder_part``, or a file cannot be halved.
    """
    pairs = SideBySide(list_images(Path(folder).expanduser()), isinstance(spec, Pairs) and spec.direction == "b_to_a")
    survey = survey_folder(pairs.files)
    check_levels([survey], spec, folder)
    return _part(pairs, [survey], spec)


def _part(pairs: FilePairs, surveys: Sequence[Survey], spec: DataSpec) -> Part:
    is_swapped = isinstance(pairs, SideBySide) and pairs.is_swapped
    return Part(
        ["pairs", PAIRS_VERSION, is_swapped, [survey.content for survey in surveys]],
        lambda: _listed(pairs, spec),
        pixel_key=[survey.pixel_key(spec) for survey in surveys],
        unusable=pairs.files.unusable,
        notes=[
            note
            for files, survey in zip(pairs.all_files, surveys, strict=True)
            for note in folder_notes(str(files.root), files, survey, spec)
        ],
    )


def _listed(pairs: FilePairs, spec: DataSpec) -> ListedImages:
    """Raises FtaeError where sizes do not fit; files that cannot be opened are left to ``decode``."""
    names = shuffled(pairs.files.names)
    pairs.check_sizes(names)

    def decode(i: int) -> Array:
        return np.concatenate(pairs.decode(names[i], spec), axis=2)

    return ListedImages(
        names,
        stored_shape(spec),
        decode,
        file_labels(pairs.files, names),
        pairs.files.class_names,
        kind=stored_type(spec),
        levels=levels_of(spec),
    )


def _size(path: Path) -> tuple[int, int] | None:
    """Width and height; None where the file is no image, of which decoding will tell."""
    try:
        with quiet_pillow():
            return upright_size(read_bytes(path))
    except UnreadableImage:
        return None


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _by_stem(files: ImageFiles) -> dict[str, str]:
    counts = Counter(map(_stem, files.names))
    if twice := [legible(name) for name in files.names if counts[_stem(name)] > 1]:
        raise FtaeError(
            f"{files.root}: images of pairs must differ in their names before the suffix; not so "
            f"{_named(twice, len(files.names))}"
        )
    return {_stem(name): name for name in files.names}


def _named(names: Sequence[str], total: int) -> str:
    more = ", ..." if len(names) > MOST_NAMED else ""
    return f"{len(names)} of {count(total, 'file')}: {', '.join(names[:MOST_NAMED])}{more}"
