"""Files that hold several samples: pages, frames, slices of a volume, and tiles that are cut from an image.

A sample is named by its file and its place in it, such as ``scan.nii.gz#0017``.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

from ftae.engine.data.files.decoding import Array, Frame
from ftae.engine.data.files.dicom import SUFFIXES as DICOM
from ftae.engine.data.files.groups import group_digest
from ftae.engine.data.files.listing import MOST_NAMED, ImageFiles, legible
from ftae.engine.data.files.nifti import SUFFIXES as NIFTI
from ftae.engine.data.files.places import Found, Place, Reader, find_samples, levels_said, open_samples
from ftae.engine.data.files.values import Values, stored
from ftae.engine.data.stores.folder import cache_folder, digest_of_all, make_once
from ftae.errors import FtaeError
from ftae.specs.finetune.data_spec import DataSpec
from ftae.specs.finetune.sources.folders import ImageFolder
from ftae.specs.finetune.sources.two_sided import TwoSided
from ftae.wording import count

SAMPLES_VERSION = 1  # raise it when the same files would give other samples
MOST_OPEN = 4  # files that are kept in memory, whose samples follow each other


@dataclass(frozen=True, kw_only=True)
class SampledFiles(ImageFiles):
    """Samples as ``spec`` takes them from ``files``. ``places``: the file and the place of each sample.

    Names without a place are files that are one sample.
    """

    files: ImageFiles
    places: Mapping[str, tuple[str, Place]]
    spec: ImageFolder
    recent: "Recent" = field(compare=False)

    @property
    def key(self) -> list[Any]:
        return [*super().key, _key(self.spec)]

    def whole(self) -> ImageFiles:
        return self.files

    def read(self, name: str) -> bytes:
        return self.files.read(name)

    def stamp(self) -> Iterable[Any]:
        yield _key(self.spec)
        yield from self.files.stamp()

    def decode(self, name: str, spec: DataSpec) -> Array:
        return stored(self._frame(name), spec) if name in self.places else super().decode(name, spec)

    def values(self, name: str, spec: DataSpec) -> Values:
        return self._frame(name).values if name in self.places else super().values(name, spec)

    def _frame(self, name: str) -> Frame:
        file, place = self.places[name]
        return self.recent.reader(file)(place)


@dataclass
class _Slot:
    lock: Lock = field(default_factory=Lock)
    reader: Reader | None = None


class Recent:
    """The files that were opened last; each is opened by one thread, while others wait for it."""

    def __init__(self, open_file: Callable[[str], Reader]) -> None:
        self._open = open_file
        self._slots: dict[str, _Slot] = {}
        self._lock = Lock()

    def reader(self, file: str) -> Reader:
        """What reads the samples of a file. Raises as opening it does."""
        with self._lock:
            slot = self._slots.pop(file, None) or _Slot()
            self._slots[file] = slot
            while len(self._slots) > MOST_OPEN:
                self._slots.pop(next(iter(self._slots)))
        with slot.lock:
            slot.reader = slot.reader or self._open(file)
            return slot.reader


def sampled(files: ImageFiles, spec: DataSpec) -> ImageFiles:
    """The samples in ``files``, as ``spec`` says; ``files`` as they are where each is one sample.

    The samples of a file are one group where no groups are named.

    Raises:
        FtaeError: it is not said which slices of volumes are samples, no sample is left, or a file cannot be read.
    """
    if not isinstance(spec, ImageFolder) or isinstance(spec, TwoSided):
        return files
    _check_volumes(files, spec)
    if not (names := [name for name in files.names if _may_hold_several(name, spec)]):
        return files
    found = _remembered(files, names, spec)
    if not found.places and not found.unusable:
        note = ("data.pages: each has no effect: every file has one page",) if spec.pages == "each" else ()
        return replace(files, notes=(*files.notes, *note))
    places = {f"{file}#{label}": (file, tuple(place)) for file, of in found.places.items() for label, place in of}
    files_of = {name: name for name in files.names if name not in {*found.places, *found.unusable}}
    files_of |= {name: file for name, (file, _) in places.items()}
    if not files_of:
        raise FtaeError(f"{files.root} holds no sample that data.{_setting(spec)} keeps{_reasons(found)}")
    return SampledFiles(
        files.root,
        tuple(sorted(files_of)),
        files.class_names,
        (*files.unusable, *(f"{name}: {reason}" for name, reason in sorted(found.unusable.items()))),
        (*files.notes, *_notes(found, spec, has_groups=files.groups is not None)),
        None if files.labels is None else {name: files.labels[file] for name, file in files_of.items()},
        _groups(files, files_of) if places else files.groups,
        files=files,
        places=places,
        spec=spec,
        recent=Recent(lambda file: open_samples(files.read(file), spec)),
    )


def _groups(files: ImageFiles, files_of: Mapping[str, str]) -> Mapping[str, str]:
    """Those of the files; or else each file is one."""
    if files.groups is None:
        return {name: group_digest(file) for name, file in files_of.items()}
    return {name: files.groups[file] for name, file in files_of.items()}


def _remembered(files: ImageFiles, names: Sequence[str], spec: ImageFolder) -> Found:
    """What the files hold; they are opened again only where one has changed."""
    folder = cache_folder() / "samples" / digest_of_all([_key(spec), *files.stamp()])

    def write(partial: Path) -> None:
        (partial / "samples.json").write_text(json.dumps(vars(find_samples(files, names, spec))))

    make_once(folder, 64 * len(names), write)
    return Found(**json.loads((folder / "samples.json").read_text()))


def _may_hold_several(name: str, spec: ImageFolder) -> bool:
    lower = name.lower()
    bare = "." not in Path(name).name or Path(name).suffix[1:].isdigit()  # of DICOM, or it would not be listed
    return spec.tiles is not None or spec.pages == "each" or bare or lower.endswith((*DICOM, *NIFTI))


def check_slices(files: ImageFiles, spec: ImageFolder) -> None:
    """Refuse ``data.slices`` for a run's own files without volumes; other files, to evaluate on, may be of any kind.

    Raises:
        FtaeError: it has no effect.
    """
    if spec.slices is not None and not any(name.lower().endswith(NIFTI) for name in files.names):
        raise FtaeError(f"data.slices has no effect: {files.root} holds no NIfTI volumes ({', '.join(NIFTI)})")


def _check_volumes(files: ImageFiles, spec: ImageFolder) -> None:
    volumes = [name for name in files.names if name.lower().endswith(NIFTI)]
    if spec.slices is None and spec.tiles is None and volumes:
        raise FtaeError(
            f"{files.root} holds {count(len(volumes), 'volume')} ({legible(volumes[0])}, ...): say by data.slices: "
            "{axis: axial}, or sagittal, or coronal, which slices are samples"
        )


def _setting(spec: ImageFolder) -> str:
    return "tiles" if spec.tiles is not None else "slices" if spec.slices is not None else "pages"


def _reasons(found: Found) -> str:
    named = [f"{legible(name)}: {reason}" for name, reason in sorted(found.unusable.items())]
    return f" ({'; '.join(named[:MOST_NAMED])}{'; ...' if len(named) > MOST_NAMED else ''})" if named else ""


def _notes(found: Found, spec: ImageFolder, *, has_groups: bool) -> list[str]:
    number = sum(map(len, found.places.values()))
    if not number:
        return []
    kind = {"tiles": "tiles", "slices": "slices", "pages": "pages or frames"}[_setting(spec)]
    notes = [f"{count(len(found.places), 'file')} of {number} {kind}, each a sample"]
    if found.left_out:
        notes.append(f"{found.left_out} {kind} with less foreground than data.{_setting(spec)}.min_foreground left out")
    if not has_groups:
        notes.append("all samples of a file are a group, on one side of the split; data.groups names larger ones")
    return notes


def _key(spec: ImageFolder) -> Any:
    fields = spec.model_dump(mode="json", include={"pages", "slices", "tiles"})
    pictures = None if spec.meaning is not None or spec.chosen_bands is not None else spec.color
    return ["samples", SAMPLES_VERSION, fields, pictures, levels_said(spec)]
