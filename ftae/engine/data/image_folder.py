"""The source of images in a folder, or in two: training and validation. Sub-folders are the labels."""

from collections.abc import Sequence
from dataclasses import replace
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
from ftae.engine.data.files.decoding import Array, image_shape, stored_type
from ftae.engine.data.files.groups import (
    check_groups_apart,
    group_notes,
    groups_by_path,
    groups_by_tag,
    in_stored_order,
    split_names,
)
from ftae.engine.data.files.listing import ImageFiles, find_images, list_images
from ftae.engine.data.files.metadata import groups_by_column, labelled_by_column, metadata_path
from ftae.engine.data.files.samples import check_slices, sampled
from ftae.engine.data.levels import measured
from ftae.engine.data.source_base import (
    EIGHT_BITS,
    Labels,
    Levels,
    ListedImages,
    Listing,
    Part,
    Source,
    shuffled,
)
from ftae.engine.data.survey import NUM_GLANCED, Survey, check_levels, survey_folder, survey_some
from ftae.errors import FtaeError
from ftae.specs.finetune.data_spec import DataSpec
from ftae.specs.finetune.sources.folders import ImageFolder


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
        root, column = Path(folder).expanduser(), self.spec.label_column
        return list_images(root) if column is None else labelled_by_column(find_images(root), column)

    @cached_property
    def _files(self) -> tuple[ImageFiles, ...]:
        listed = [self.list_images(folder) for folder in self.folders]
        for files in listed:
            check_slices(files, self.spec)
        found = tuple(sampled(grouped(files, self.spec), self.spec) for files in listed)
        if len(found) == 2 and self.spec.groups is not None:
            check_groups_apart(*found)
        return found

    def _sides(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The names of training and validation images, without anomalies, in the order of their hashes."""
        if isinstance(self.spec.val, str):
            train, val = (_normal(files, self.spec) for files in self._files)
            return train, val
        train, val = split_names(self._files[0], self.spec.anomaly_classes, self.spec.val)
        return train, val

    def class_names(self) -> tuple[str, ...] | None:
        return self.list_images(self.spec.train).class_names

    def num_images(self) -> tuple[int, ...]:
        return tuple(len(files.names) for files in self._files)

    def parts(self) -> tuple[Part, ...]:
        surveys = [survey_folder(files.whole()) for files in self._files]
        check_levels(surveys, self.spec, ", ".join(self.folders))
        files = self._files[0]
        spec = measured(self.spec, files, self._sides()[0], [surveys[0].content, *files.key])
        return tuple(
            _part(folder, files, survey, spec)
            for folder, files, survey in zip(self.folders, self._files, surveys, strict=True)
        )

    def check_listed(self) -> Listing:
        """Opens all files of a small folder, and some of a large one."""
        spec, train = self.spec, self._files[0]
        check_anomaly_classes(spec, sorted({name for files in self._files for name in files.class_names or ()}))
        if not isinstance(spec.val, str):
            check_enough_to_split(len(_normal(train, spec)), spec.val)
        training, held_out = self._sides()
        if isinstance(spec.val, str):
            val = self._files[1]
            for leaf, folder, names in zip(("data.train", "data.val"), self.folders, (training, held_out), strict=True):
                check_not_empty(leaf, folder, len(names))
            check_val_classes(self.folders[1], _classes(train, training), _classes(val, held_out))
            check_anomalies_found(spec, len(val.names) - len(held_out))
            num_val = len(val.names)
        else:
            num_val = len(train.names) - len(training)
        check_labelled_fraction(spec, train.class_names is not None)
        return Listing(
            train_classes=_classes(train, training),
            num_val=num_val,
            val_labelled=self._files[-1].class_names is not None,
            notes=(*self._glance(), *group_notes(_groups(train, training), _groups(self._files[-1], held_out))),
        )

    def opened_folders(self) -> list[tuple[str, ImageFiles]]:
        """All folders whose files are read, by the names that messages give them."""
        return list(zip(self.folders, self._files, strict=True))

    def _glance(self) -> tuple[str, ...]:
        """What the files themselves tell; of a large folder only the first are opened."""
        notes: list[str] = []
        surveys = []
        for folder, files in self.opened_folders():
            whole = files.whole()
            surveys.append(survey_some(whole, shuffled(whole.names)[:NUM_GLANCED]))
            if files.unusable:
                notes.append(f"{folder}: {skipped_message(files.unusable)}")
            notes += folder_notes(folder, files, surveys[-1], self.spec)
        try:
            check_levels(surveys, self.spec, ", ".join(self.folders))
        except FtaeError as error:
            if all(len(files.whole().names) <= NUM_GLANCED for _, files in self.opened_folders()):
                raise
            notes.append(f"of the first {NUM_GLANCED} images looked at: {error}")
        return tuple(notes)


def folder_part(folder: str, spec: DataSpec) -> Part:
    """All images of any folder, in the size and colour of ``spec``; with a label column, metadata may be missing.

    Raises:
        FtaeError: the folder holds no images, a file cannot be read, or ``spec`` does not say what values mean.
    """
    root, column = Path(folder).expanduser(), spec.label_column if isinstance(spec, ImageFolder) else None
    if column is None:
        return files_part(folder, list_images(root), spec)
    files = find_images(root)
    return files_part(folder, labelled_by_column(files, column) if metadata_path(root) else files, spec)


def files_part(folder: str, files: ImageFiles, spec: DataSpec) -> Part:
    """All of ``files``, which messages call ``folder``. Raises as ``folder_part``."""
    survey = survey_folder(files)
    check_levels([survey], spec, folder)
    return _part(folder, sampled(files, spec), survey, spec)


def folder_notes(folder: str, files: ImageFiles, survey: Survey, spec: DataSpec) -> tuple[str, ...]:
    """All that the user should know of a folder, apart from files that cannot be read."""
    lines = survey.notes(spec)
    were_all_opened = survey.content and files.content is None
    if not were_all_opened and lines and len(files.whole().names) > NUM_GLANCED:
        lines = [f"of the first {NUM_GLANCED} images looked at, {line}" for line in lines]
    return tuple(f"{folder}: {line}" for line in (*files.notes, *lines))


def _part(folder: str, files: ImageFiles, survey: Survey, spec: DataSpec) -> Part:
    return Part(
        [survey.content, *key] if (key := files.key) else survey.content,
        lambda: _listed(files, spec),
        pixel_key=survey.pixel_key(spec),
        unusable=files.unusable,
        notes=folder_notes(folder, files, survey, spec),
    )


def _listed(files: ImageFiles, spec: DataSpec) -> ListedImages:
    names, groups = in_stored_order(files)
    in_order = files.read_in_order()

    def decode(i: int) -> Array:
        return files.decode(names[i], spec)

    def decode_in_order(i: int) -> Array:
        return in_order.decode(names[i], spec)

    return ListedImages(
        names,
        image_shape(spec),
        decode,
        file_labels(files, names),
        files.class_names,
        kind=stored_type(spec),
        levels=levels_of(spec),
        groups=groups,
        reading_order=files.reading_order(names),
        reads_at_once=files.reads_at_once,
        decode_in_order=decode_in_order,
    )


def grouped(files: ImageFiles, spec: ImageFolder) -> ImageFiles:
    """With the groups of ``data.groups``, which those of shards may have with their labels.

    Raises:
        FtaeError: an image has none.
    """
    if spec.groups is None or files.groups is not None:
        return files
    if spec.groups.tag is not None:
        return replace(files, groups=groups_by_tag(files, spec.groups.tag))
    if spec.groups.column is not None:
        return replace(files, groups=groups_by_column(files, spec.groups.column))
    assert spec.groups.path is not None
    return replace(files, groups=groups_by_path(files, spec.groups.path))


def levels_of(spec: DataSpec) -> Levels | None:
    """The values in files that are black and white; None where each image has its own."""
    return EIGHT_BITS if spec.meaning is None else spec.meaning.levels


def file_labels(files: ImageFiles, names: Sequence[str]) -> Labels | None:
    """The index of the class of each image; None where the folder has no classes."""
    if files.class_names is None:
        return None
    index = {name: i for i, name in enumerate(files.class_names)}
    return np.array([index[str(files.class_of(name))] for name in names], dtype=np.int64)


def _normal(files: ImageFiles, spec: DataSpec) -> tuple[str, ...]:
    """The images that are no anomalies, in the order in which they are stored."""
    return shuffled([name for name in files.names if files.class_of(name) not in spec.anomaly_classes])


def _groups(files: ImageFiles, names: Sequence[str]) -> list[str] | None:
    return None if files.groups is None else [files.groups[name] for name in names]


def _classes(files: ImageFiles, names: Sequence[str]) -> tuple[str, ...]:
    """The classes of some of the images, sorted."""
    return tuple(sorted({c for name in names if (c := files.class_of(name)) is not None}))
