"""The source of images in a folder, or in two: training and validation. Sub-folders are the labels."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from ftae.engine.data.checks import (
    check_anomalies_found,
    check_anomaly_classes,
    check_enough_to_split,
    check_labelled_fraction,
    check_not_empty,
    check_val_classes,
    skipped_message,
)
from ftae.engine.data.decoding import Pixels, decode_image, image_shape
from ftae.engine.data.listing import ImageFiles, list_images
from ftae.engine.data.source_base import Labels, ListedImages, Listing, Part, Source, num_held_out, shuffled
from ftae.engine.data.survey import NUM_GLANCED, Survey, check_levels, survey_folder, survey_some
from ftae.errors import FtaeError
from ftae.specs.finetune.data import ImageFolder
from ftae.specs.finetune.data_spec import DataSpec


class ImageFolderSource(Source[ImageFolder]):
    """``data.train`` and, where ``data.val`` names a folder, that folder."""

    @property
    def folders(self) -> tuple[str, ...]:
        spec = self.spec
        return (spec.train, spec.val) if isinstance(spec.val, str) else (spec.train,)

    @property
    def location(self) -> str:
        return self.spec.train

    def list_images(self, folder: str) -> ImageFiles:
        """The images at ``data.train`` or ``data.val``. Raises as ``parts``."""
        return list_images(Path(folder).expanduser())

    @cached_property
    def _files(self) -> tuple[ImageFiles, ...]:
        return tuple(map(self.list_images, self.folders))

    def class_names(self) -> tuple[str, ...] | None:
        return self.list_images(self.spec.train).class_names

    def num_images(self) -> tuple[int, ...]:
        return tuple(len(files.names) for files in self._files)

    def parts(self) -> tuple[Part, ...]:
        surveys = [survey_folder(files) for files in self._files]
        check_levels(surveys, self.spec, ", ".join(self.folders))
        return tuple(
            _part(folder, files, survey, self.spec)
            for folder, files, survey in zip(self.folders, self._files, surveys, strict=True)
        )

    def check_listed(self) -> Listing:
        """Opens all files of a small folder, and some of a large one."""
        spec, train = self.spec, self._files[0]
        normal = [_normal(files, spec) for files in self._files]
        check_anomaly_classes(spec, sorted({name for files in self._files for name in files.class_names or ()}))
        if len(normal) == 2:
            val = self._files[1]
            for leaf, folder, names in zip(("data.train", "data.val"), self.folders, normal, strict=True):
                check_not_empty(leaf, folder, len(names))
            check_val_classes(self.folders[1], _classes(train, normal[0]), _classes(val, normal[1]))
            check_anomalies_found(spec, len(val.names) - len(normal[1]))
            num_val = len(val.names)
        else:
            assert isinstance(spec.val, float)
            names = normal[0]
            check_enough_to_split(len(names))
            first = len(names) - num_held_out(len(names), spec.val)
            normal = [names[:first], names[first:]]
            num_val = len(train.names) - first
        check_labelled_fraction(spec, train.class_names is not None)
        return Listing(
            train_classes=_classes(train, normal[0]),
            num_val=num_val,
            val_labelled=self._files[-1].class_names is not None,
            notes=self._glance(),
        )

    def opened_folders(self) -> list[tuple[str, ImageFiles]]:
        """All folders whose files are read, by the names that messages give them."""
        return list(zip(self.folders, self._files, strict=True))

    def _glance(self) -> tuple[str, ...]:
        """What the files themselves tell; of a large folder only the first are opened."""
        notes: list[str] = []
        surveys = []
        for folder, files in self.opened_folders():
            surveys.append(survey_some(files, shuffled(files.names)[:NUM_GLANCED]))
            if files.unusable:
                notes.append(f"{folder}: {skipped_message(files.unusable)}")
            notes += folder_notes(folder, files, surveys[-1], self.spec)
        try:
            check_levels(surveys, self.spec, ", ".join(self.folders))
        except FtaeError as error:
            if all(len(files.names) <= NUM_GLANCED for _, files in self.opened_folders()):
                raise
            notes.append(f"of the first {NUM_GLANCED} images looked at: {error}")
        return tuple(notes)


def folder_part(folder: str, spec: DataSpec) -> Part:
    """All images of any folder, in the size and colour of ``spec``.

    Raises:
        FtaeError: the folder holds no images, a file cannot be read, or ``spec`` does not say what values mean.
    """
    return files_part(folder, list_images(Path(folder).expanduser()), spec)


def files_part(folder: str, files: ImageFiles, spec: DataSpec) -> Part:
    """All of ``files``, which messages call ``folder``. Raises as ``folder_part``."""
    survey = survey_folder(files)
    check_levels([survey], spec, folder)
    return _part(folder, files, survey, spec)


def folder_notes(folder: str, files: ImageFiles, survey: Survey, spec: DataSpec) -> tuple[str, ...]:
    """All that the user should know of a folder, apart from files that cannot be read."""
    lines = survey.notes(spec)
    if not survey.content and lines and len(files.names) > NUM_GLANCED:
        lines = [f"of the first {NUM_GLANCED} images looked at, {line}" for line in lines]
    return tuple(f"{folder}: {line}" for line in (*files.notes, *lines))


def _part(folder: str, files: ImageFiles, survey: Survey, spec: DataSpec) -> Part:
    return Part(
        survey.content if files.label_key is None else [survey.content, files.label_key],
        lambda: _listed(files, spec),
        pixel_key=survey.pixel_key(spec),
        unusable=files.unusable,
        notes=folder_notes(folder, files, survey, spec),
    )


def _listed(files: ImageFiles, spec: DataSpec) -> ListedImages:
    names = shuffled(files.names)

    def decode(i: int) -> Pixels:
        return decode_image(files.read(names[i]), spec)

    return ListedImages(names, image_shape(spec), decode, file_labels(files, names), files.class_names)


def file_labels(files: ImageFiles, names: Sequence[str]) -> Labels | None:
    """The index of the class of each image; None where the folder has no classes."""
    if files.class_names is None:
        return None
    index = {name: i for i, name in enumerate(files.class_names)}
    return np.array([index[str(files.class_of(name))] for name in names], dtype=np.int64)


def _normal(files: ImageFiles, spec: DataSpec) -> tuple[str, ...]:
    """The images that are no anomalies, in the order in which they are stored."""
    return shuffled([name for name in files.names if files.class_of(name) not in spec.anomaly_classes])


def _classes(files: ImageFiles, names: Sequence[str]) -> tuple[str, ...]:
    """The classes of some of the images, sorted."""
    return tuple(sorted({c for name in names if (c := files.class_of(name)) is not None}))
