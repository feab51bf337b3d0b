"""The source of two domains without partners: two folders of images, or four with those for validation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ftae.engine.data.checks import check_enough_to_split, skipped_message
from ftae.engine.data.files.decoding import Array, UnreadableImage, read_bytes, stored_shape, stored_type
from ftae.engine.data.files.listing import ImageFiles, legible, list_images
from ftae.engine.data.files.values import decode_file
from ftae.engine.data.image_folder import ImageFolderSource, folder_notes, levels_of
from ftae.engine.data.pairs import TwoFolders
from ftae.engine.data.source_base import ListedImages, Listing, Part, num_held_out, shuffled
from ftae.engine.data.survey import NUM_GLANCED, Survey, check_levels, survey_folder
from ftae.specs.finetune.data_spec import DataSpec
from ftae.specs.finetune.sources.two_sided import Unpaired

DOMAINS_VERSION = 1  # raise it when the same files would give other pixels


@dataclass(frozen=True)
class Domain:
    """Some images of one domain, in the order in which they are stored."""

    files: ImageFiles
    names: tuple[str, ...]

    def path(self, i: int) -> Path:
        """Image ``i``; counting begins again where there are no more."""
        return self.files.root / self.names[i % len(self.names)]


@dataclass(frozen=True)
class Sides:
    """Images of A and of B that are stored together, one of each a row; the shorter side is repeated."""

    a: Domain
    b: Domain

    @property
    def longer(self) -> Domain:
        return self.a if len(self.a.names) > len(self.b.names) else self.b

    def decode(self, i: int, spec: DataSpec) -> Array:
        """The channels of A, then those of B. Raises as ``ListedImages.decode``."""
        images = []
        for side in (self.a, self.b):
            path = side.path(i)
            try:
                images.append(decode_file(read_bytes(path), spec))
            except UnreadableImage as error:
                if side is self.longer:  # whose names stand in messages
                    raise
                raise UnreadableImage(f"{legible(str(path))}, which is beside it: {error}") from error
        return np.concatenate(images, axis=2)


class UnpairedSource(ImageFolderSource):
    """Training and validation images of both domains.

    Training draws the inputs and the images to imitate by permutations of their own, so that it does not matter which
    of them share a row. In validation a row is what is compared, if anything is.
    """

    spec: Unpaired

    @property
    def folders(self) -> tuple[str, ...]:
        return tuple(str(sides.longer.files.root) for sides in (self._train, self._val))

    @cached_property
    def _listed_folders(self) -> dict[str, ImageFiles]:
        return {name: list_images(Path(root).expanduser()) for name, root in self.spec.side_folders().items()}

    @cached_property
    def _train(self) -> Sides:
        return Sides(*(self._domain(name, slice(self._first_held_out(name))) for name in ("trainA", "trainB")))

    @cached_property
    def _val(self) -> Sides:
        """As many images of either side as the shorter one has."""
        if self.spec.val_paired:
            pairs = self._val_pairs()
            names = shuffled(pairs.files.names)
            return Sides(Domain(pairs.inputs, tuple(map(pairs.partner, names))), Domain(pairs.files, names))
        if isinstance(self.spec.val, str):
            sides = [self._domain(name, slice(None)) for name in ("testA", "testB")]
        else:
            sides = [self._domain(name, slice(self._first_held_out(name), None)) for name in ("trainA", "trainB")]
        least = min(len(side.names) for side in sides)
        return Sides(*(replace(side, names=side.names[:least]) for side in sides))

    def _val_pairs(self) -> TwoFolders:
        return TwoFolders(self._listed_folders["testB"], self._listed_folders["testA"])

    def _domain(self, name: str, chosen: slice) -> Domain:
        files = self._listed_folders[name]
        return Domain(files, shuffled(files.names)[chosen])

    def _first_held_out(self, name: str) -> int:
        """The number of training images of a folder: the others are held out, if ``val`` is a share."""
        number = len(self._listed_folders[name].names)
        if isinstance(self.spec.val, str):
            return number
        check_enough_to_split(number, self.spec.val)
        return number - num_held_out(number, self.spec.val)

    def class_names(self) -> None:
        return None

    def num_images(self) -> tuple[int, ...]:
        return tuple(len(sides.longer.names) for sides in (self._train, self._val))

    def parts(self) -> tuple[Part, ...]:
        surveys = [survey_folder(files) for _, files in self.opened_folders()]
        check_levels(surveys, self.spec, ", ".join(self.spec.side_folders().values()))
        return (
            self._part("train", self._train, surveys, self._notes(surveys)),
            self._part("val", self._val, surveys, ()),
        )

    def _part(self, name: str, sides: Sides, surveys: Sequence[Survey], notes: Sequence[str]) -> Part:
        spec = self.spec
        numbers = [len(side.names) for side in (sides.a, sides.b)]
        content = [spec.source, DOMAINS_VERSION, name, spec.val_paired, numbers, [survey.content for survey in surveys]]
        listed = ListedImages(
            sides.longer.names,
            stored_shape(spec),
            lambda i: sides.decode(i, spec),
            kind=stored_type(spec),
            levels=levels_of(spec),
        )
        return Part(
            content,
            lambda: listed,
            pixel_key=[survey.pixel_key(spec) for survey in surveys],
            notes=notes,
        )

    def _notes(self, surveys: Sequence[Survey]) -> list[str]:
        """What the user should know of all folders."""
        notes = []
        for (folder, files), survey in zip(self.opened_folders(), surveys, strict=True):
            if files.unusable:
                notes.append(f"{folder}: {skipped_message(files.unusable)}")
            notes += folder_notes(folder, files, survey, self.spec)
        return notes

    def check_listed(self) -> Listing:
        """Opens all files of small folders, and some of large ones."""
        if self.spec.val_paired:
            self._val_pairs().check_sizes(self._val.b.names[:NUM_GLANCED])
        return Listing((), num_val=len(self._val.b.names), val_labelled=False, notes=self._glance())

    def opened_folders(self) -> list[tuple[str, ImageFiles]]:
        return [(str(files.root), files) for files in self._listed_folders.values()]
