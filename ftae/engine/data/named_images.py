"""The names of stored images: those that scores and reconstructions are told by."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ftae.engine.data.builtin_sources import content_of, source_of
from ftae.engine.data.cache import StoredImages, stored_images
from ftae.engine.data.checks import folder_notes, skipped_message
from ftae.engine.data.dataset import ImageSet, image_key, load_dataset, normal_first, parted, stored_folder
from ftae.engine.data.decoding import image_shape
from ftae.engine.data.listing import ImageFiles, list_images
from ftae.engine.data.sources import Source, folder_source, num_held_out
from ftae.engine.data.survey import Survey, check_levels, surveyed
from ftae.errors import FtaeError
from ftae.specs.finetune.data import AnyData, DataSpec, Digits, ImageFolder, Photos, Shapes


@dataclass(frozen=True)
class Names:
    """Of images in order: of a folder the paths below it. ``classes``: those of each, None where there are none."""

    images: tuple[str, ...]
    classes: tuple[str, ...] | None

    def from_number(self, first: int) -> "Names":
        return Names(self.images[first:], self.classes and self.classes[first:])


@dataclass(frozen=True)
class NamedImages:
    """Images and their names, those of ``anomalies`` (of ``data.anomaly_classes``; None where there are none) last.

    The labels of ``images`` index ``class_names``. ``notes``: what the user should know of the files, a line each.
    """

    images: ImageSet
    anomalies: ImageSet | None
    names: Names
    class_names: tuple[str, ...] | None
    notes: tuple[str, ...] = ()


def named_folder(path: str, spec: DataSpec) -> NamedImages:
    """All images of a folder, in the size and colour that ``spec`` gives them.

    Raises:
        FtaeError: it holds none that can be read, ``spec`` does not say what its values are, or the cache cannot be
            written.
    """
    files = list_images(Path(path).expanduser())
    survey = surveyed(files)
    check_levels([survey], spec, path)
    return _named_folder(path, files, survey, spec)


def _named_folder(path: str, files: ImageFiles, survey: Survey, spec: DataSpec) -> NamedImages:
    stored, _ = stored_folder(files, survey, spec)
    named = _named(folder_source(files, spec), stored, spec)
    skipped = sorted([*stored.skipped, *files.unusable])
    notes = folder_notes(path, files, survey, spec)
    return replace(named, notes=(skipped_message(skipped), *notes) if skipped else notes)


def validation_names(spec: AnyData) -> Names | None:
    """The names of the validation images of ``load_dataset(spec)``, in order, the anomalies behind the others.

    None where the cache holds images whose files are no longer there, or no longer the same. Of the
    built-in sources a name is the number of the image there.
    """
    if not isinstance(spec, ImageFolder):
        return _held_out(_named_builtin(spec), spec.val)
    now = spec.model_copy(update={"fingerprint": None})
    try:
        if spec.fingerprint not in (None, load_dataset(now).fingerprint):
            return None
    except FtaeError:
        return None
    path = spec.val if isinstance(spec.val, str) else spec.train
    files = list_images(Path(path).expanduser())
    named = _named_folder(path, files, surveyed(files), spec)
    return named.names if isinstance(spec.val, str) else _held_out(named, spec.val)


def _held_out(named: NamedImages, share: float) -> Names:
    return named.names.from_number(len(named.images) - num_held_out(len(named.images), share))


def _named_builtin(spec: Digits | Photos | Shapes) -> NamedImages:
    source = source_of(spec)
    ordered = normal_first(source, spec.anomaly_classes)
    stored = stored_images(image_key(content_of(spec), spec), image_shape(spec), lambda: ordered)
    return _named(source, stored, spec)


def _named(source: Source, stored: StoredImages, spec: DataSpec) -> NamedImages:
    source = normal_first(source, spec.anomaly_classes)
    normal, others = parted(stored, spec.anomaly_classes)
    classes = None
    if stored.labels is not None and stored.class_names is not None:
        classes = tuple(stored.class_names[label] for label in stored.labels)
    names = Names(_without(source.names, stored.skipped), classes)
    assert len(names.images) == len(stored.images)
    anomalies = ImageSet(others, None) if len(others) else None
    return NamedImages(ImageSet(normal.images, normal.labels), anomalies, names, normal.class_names)


def _without(names: Sequence[str], skipped: Sequence[str]) -> tuple[str, ...]:
    """``names`` but for those with an entry "name: reason"; a name may itself hold a colon."""
    known = set(names)
    for entry in skipped:
        ends = [i for i in range(len(entry)) if entry.startswith(": ", i)]
        known.discard(next(entry[:end] for end in reversed(ends) if entry[:end] in known))
    return tuple(name for name in names if name in known)
