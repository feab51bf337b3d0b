"""What image files hold before decoding: sizes, bits, pages, and the fingerprint of their content.

A survey finds what would be lost or go wrong silently. It is made while the bytes are read for the fingerprint, and
cached with it.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ftae.engine.data.files.decoding import UnreadableImage, quiet_pillow
from ftae.engine.data.files.listing import ImageFiles, legible
from ftae.engine.data.files.threads import in_order
from ftae.engine.data.files.traits import (
    BANDS,
    CLEAR,
    DEEP,
    FRAMES,
    GREY16,
    HIGH,
    HU,
    INVERTED,
    LOW,
    SIDE,
    Traits,
    traits_of,
)
from ftae.engine.data.files.values import VALUES_VERSION, reads_values
from ftae.engine.data.source_base import shuffled
from ftae.engine.data.stores.folder import cache_folder, digest_of_all, make_once
from ftae.errors import FtaeError
from ftae.specs.finetune.data_spec import DataSpec
from ftae.specs.finetune.sources.folders import ImageFolder
from ftae.wording import count

NUM_GLANCED = 200  # images that ``validate`` opens of each folder


@dataclass(frozen=True)
class Group:
    """The images with one trait: how many, the name of one of them, and the largest value of the trait."""

    count: int
    name: str
    largest: int


@dataclass(frozen=True)
class Survey:
    """What a set of image files holds.

    ``short_sides``: the number of images by the length of their short side in pixels; only of images that can be
    opened. ``groups``: the images of each trait. ``content``: the fingerprint of names and bytes, empty where only
    some of the files were opened.
    """

    short_sides: Mapping[int, int]
    groups: Mapping[str, Group]
    content: str = ""

    def notes(self, spec: DataSpec) -> list[str]:
        """What the owner of the images should know about their decoding, a line each."""
        notes = []
        pages = spec.pages if isinstance(spec, ImageFolder) else "first"
        if (frames := self.groups.get(FRAMES)) and pages == "first":
            notes.append(f"only the first of up to {frames.largest} frames or pages is used: {_which(frames)}")
        if spec.chosen_bands is None and (bands := self.groups.get(BANDS)):
            notes.append(f"only the first bands of up to {bands.largest} are used: {_which(bands)}")
        said = None if spec.meaning is None else spec.meaning.bits
        if said is not None and said > 8 and self.short_sides and not {GREY16, DEEP} & self.groups.keys():
            notes.append(f"data.intensity says {said} bits, but no image has more than 8")
        whole = "data.intensity: {bits: 16} keeps all"
        if spec.meaning is None and (deep := self.groups.get(DEEP)):
            notes.append(f"{_have(deep.count, 'image')} {deep.largest} bits a channel; the upper 8 are kept, {whole}")
        if spec.meaning is None and (grey := self.groups.get(GREY16)):
            notes.append(f"{_have(grey.count, 'grey image')} 16 bits; the upper 8 are kept, {whole}")
        if (hu := self.groups.get(HU)) and spec.meaning is not None and spec.meaning.unit is None:
            notes.append(f"the values are HU, which data.intensity.unit: HU tells reports: {_which(hu)}")
        if inverted := self.groups.get(INVERTED):
            notes.append(f"the largest value is black (MONOCHROME1), images are inverted: {_which(inverted)}")
        least = min(spec.decoded_size)
        total, small = sum(self.short_sides.values()), self._num_smaller(least)
        if 2 * small > total:
            which = f"all {total} images" if small == total else f"{small} of {total} images"
            which, verb = (which, "are") if total > 1 else ("the only image", "is")
            notes.append(f"{which} {verb} smaller than {least} pixels and {verb} enlarged")
        return notes

    def _num_smaller(self, side: int) -> int:
        return sum(number for short, number in self.short_sides.items() if short < side)

    def pixel_key(self, spec: DataSpec) -> list[Any]:
        """What the decoded pixels depend on beside bytes, size and colour; empty for ordinary images."""
        key: list[Any] = []
        if reads_values(spec):
            meaning = spec.meaning and spec.meaning.decides_pixels()
            stacked = ["pages"] if spec.stacks_pages else []
            key.append(["values", VALUES_VERSION, meaning, spec.chosen_bands, *stacked])
        return [*key, CLEAR] if CLEAR in self.groups else key


def check_levels(surveys: Iterable[Survey], spec: DataSpec, where: str) -> None:
    """Refuse 16-bit grey images whose range is unclear: it is not guessed.

    Args:
        surveys: those of all folders of a data set, which messages call ``where``.

    Raises:
        FtaeError: the values of the set leave the upper half of 16 bits empty, or are of DICOM or NIfTI, and ``spec``
            does not say what they are, or they are larger than the bits that it names.
    """
    surveys = list(surveys)
    _check_said(surveys, spec, where)
    groups = [survey.groups[GREY16] for survey in surveys if GREY16 in survey.groups]
    if not groups:
        return
    largest, number = max(group.largest for group in groups), sum(group.count for group in groups)
    bits = max(largest.bit_length(), 8)
    found = f"{where}: the largest value of {count(number, 'grey image')} of 16 bits is {largest}"
    if spec.meaning is None and bits < 16:
        raise FtaeError(
            f"{found}, which looks like {bits} bits: read as 16 bits, images would be {2 ** (16 - bits)} times too "
            f"dark. Say what the values are by data.intensity: {{bits: {bits}}}, or {{window: [LOW, HIGH]}} for what "
            "is to be black and white, or {bits: 16} for images that really are that dark"
        )
    said = None if spec.meaning is None else spec.meaning.bits
    if said is not None and bits > said:
        raise FtaeError(f"{found}, more than data.intensity.bits: {said} can hold; say {{bits: {bits}}}")


def _check_said(surveys: Sequence[Survey], spec: DataSpec, where: str) -> None:
    groups = [survey.groups for survey in surveys if HIGH in survey.groups]
    if spec.meaning is not None or not groups:
        return
    high, low = max(found[HIGH].largest for found in groups), -max(found[LOW].largest for found in groups)
    number, first = sum(found[HIGH].count for found in groups), legible(groups[0][HIGH].name)
    raise FtaeError(
        f"{where}: {count(number, 'file')} of DICOM or NIfTI ({first}, ...) with values from {low} to {high}, which "
        "have no black and white of their own. Say what is black and white by data.intensity: "
        f"{{window: [{low}, {high}]}}, or "
        "{percentile: [0.5, 99.5]} to measure it on the training images"
    )


def _which(group: Group) -> str:
    others = ", ..." if group.count > 1 else ""
    return f"{count(group.count, 'file')} ({legible(group.name)}{others})"


def _have(number: int, noun: str) -> str:
    return f"{count(number, noun)} {'has' if number == 1 else 'have'}"


# ----------------------------------------------------------------------------------------- opening files


def survey_folder(files: ImageFiles) -> Survey:
    """The survey of all ``files``, with the fingerprint of their relative names and bytes.

    The bytes are read again only where the size, mtime or ctime of a file has changed. Of files whose fingerprint is
    known already, only some are opened.

    Raises:
        FtaeError: a file cannot be read, or the cache cannot be written.
    """
    folder = cache_folder() / "contents" / digest_of_all(files.stamp())

    def write(partial: Path) -> None:
        survey = _survey(files, files.names) if files.content is None else _survey_known(files, files.content)
        (partial / "survey.json").write_text(json.dumps(survey, default=vars))

    make_once(folder, 64, write, is_sound=lambda folder: _read(folder) is not None)
    survey = _read(folder)
    assert survey is not None
    return survey


def survey_some(files: ImageFiles, names: Sequence[str]) -> Survey:
    """The survey of some of ``files``, without a fingerprint.

    Raises:
        FtaeError: a file cannot be read.
    """
    survey = _survey(files, names)
    return Survey(survey.short_sides, survey.groups)


def survey_image(name: str, data: bytes) -> Survey:
    """The survey of one image file."""
    collected = _Collected()
    with quiet_pillow():
        collected.add(name, traits_of(data))
    return Survey(collected.short_sides, collected.groups)


def _read(folder: Path) -> Survey | None:
    """The survey in a folder of the cache; None where it is missing or damaged."""
    try:
        content = json.loads((folder / "survey.json").read_text())
        groups = {trait: Group(**group) for trait, group in content["groups"].items()}
        short_sides = {int(side): number for side, number in content["short_sides"].items()}
        return Survey(short_sides, groups, content["content"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _survey_known(files: ImageFiles, content: str) -> Survey:
    return replace(_survey(files, shuffled(files.names)[:NUM_GLANCED]), content=content)


def _survey(files: ImageFiles, names: Sequence[str]) -> Survey:
    def open_file(name: str) -> tuple[str, Traits]:
        try:
            data = files.read(name)
        except UnreadableImage as damaged:
            return str(damaged), {}
        return hashlib.blake2b(data).hexdigest(), traits_of(data)

    collected = _Collected()

    def hashes() -> Iterator[tuple[str, str]]:
        for name, (content, traits) in zip(names, in_order(open_file, names, threads=files.reads_at_once), strict=True):
            collected.add(name, traits)
            yield name, content

    with quiet_pillow():
        content = digest_of_all(hashes())
    return Survey(collected.short_sides, collected.groups, content)


@dataclass
class _Collected:
    short_sides: Counter[int] = field(default_factory=Counter)
    groups: dict[str, Group] = field(default_factory=dict)

    def add(self, name: str, traits: Traits) -> None:
        for trait, value in traits.items():
            if trait == SIDE:
                self.short_sides[value] += 1
                continue
            group = self.groups.get(trait, Group(0, name, value))
            self.groups[trait] = Group(group.count + 1, group.name, max(group.largest, value))
