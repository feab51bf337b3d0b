"""What image files hold before decoding: sizes, bits, pages, and the fingerprint of their content.

A survey finds what would be lost or go wrong silently. It is made while the bytes are read for the fingerprint, and
cached with it.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageFile

from ftae.engine.data.cache import cache_folder, digest, make_once
from ftae.engine.data.decoding import (
    ALL_LEVELS,
    UnreadableImage,
    correct_transparency,
    is_grey16,
    opened,
    quiet_pillow,
    raw_mode,
)
from ftae.engine.data.listing import ImageFiles, legible
from ftae.errors import FtaeError
from ftae.specs.finetune.data_spec import DataSpec
from ftae.wording import count

NUM_GLANCED = 200  # images that ``validate`` opens of each folder

# Traits of a single image: the number of frames; of bands; the bits of a channel; the largest value of 16-bit grey;
# a transparent value that Pillow confuses with another.
FRAMES, BANDS, DEEP, GREY16, CLEAR = "frames", "bands", "deep", "grey16", "clear"


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
        if frames := self.groups.get(FRAMES):
            notes.append(f"only the first of up to {frames.largest} frames or pages is used: {_which(frames)}")
        if bands := self.groups.get(BANDS):
            notes.append(f"only the first bands of up to {bands.largest} are used: {_which(bands)}")
        if spec.grey_levels is not None and GREY16 not in self.groups:
            notes.append("data.intensity has no effect: no image is grey of 16 bits")
        if deep := self.groups.get(DEEP):
            notes.append(f"{_have(deep.count, 'image')} {deep.largest} bits a channel; ftae keeps the upper 8")
        if (grey := self.groups.get(GREY16)) and spec.grey_levels is None:
            notes.append(f"{_have(grey.count, 'grey image')} 16 bits; ftae keeps the upper 8")
        total, small = sum(self.short_sides.values()), self._num_smaller(spec.decoded_side)
        if 2 * small > total:
            which = f"all {total} images" if small == total else f"{small} of {total} images"
            which, verb = (which, "are") if total > 1 else ("the only image", "is")
            notes.append(f"{which} {verb} smaller than {spec.decoded_side} pixels and {verb} enlarged")
        return notes

    def _num_smaller(self, side: int) -> int:
        return sum(number for short, number in self.short_sides.items() if short < side)

    def pixel_key(self, spec: DataSpec) -> list[Any]:
        """What the decoded pixels depend on beside bytes, size and colour; empty for ordinary images."""
        key: list[Any] = []
        if GREY16 in self.groups and spec.grey_levels not in (None, ALL_LEVELS):
            key.append(["levels", spec.grey_levels])
        return [*key, CLEAR] if CLEAR in self.groups else key


def check_levels(surveys: Iterable[Survey], spec: DataSpec, where: str) -> None:
    """Refuse 16-bit grey images whose range is unclear: it is not guessed.

    Args:
        surveys: those of all folders of a data set, which messages call ``where``.

    Raises:
        FtaeError: the values of the set leave the upper half of 16 bits empty and ``spec`` does not say what
            they are, or they are larger than the bits that it names.
    """
    groups = [survey.groups[GREY16] for survey in surveys if GREY16 in survey.groups]
    if not groups:
        return
    largest, number = max(group.largest for group in groups), sum(group.count for group in groups)
    bits = max(largest.bit_length(), 8)
    found = f"{where}: the largest value of {count(number, 'grey image')} of 16 bits is {largest}"
    if spec.grey_levels is None and bits < 16:
        raise FtaeError(
            f"{found}, which looks like {bits} bits: read as 16 bits, images would be {2 ** (16 - bits)} times too "
            f"dark. Say what the values are by data.intensity: {{bits: {bits}}}, or {{window: [LOW, HIGH]}} for what "
            "is to be black and white, or {bits: 16} for images that really are that dark"
        )
    if spec.most_bits is not None and bits > spec.most_bits:
        raise FtaeError(f"{found}, more than data.intensity.bits: {spec.most_bits} can hold; say {{bits: {bits}}}")


def _which(group: Group) -> str:
    others = ", ..." if group.count > 1 else ""
    return f"{count(group.count, 'file')} ({legible(group.name)}{others})"


def _have(number: int, noun: str) -> str:
    return f"{count(number, noun)} {'has' if number == 1 else 'have'}"


# ----------------------------------------------------------------------------------------- opening files


def survey_folder(files: ImageFiles) -> Survey:
    """The survey of all ``files``, with the fingerprint of their relative names and bytes.

    The bytes are read again only where the size, mtime or ctime of a file has changed.

    Raises:
        FtaeError: a file cannot be read, or the cache cannot be written.
    """
    folder = cache_folder() / "contents" / digest(files.stamp())

    def write(partial: Path) -> None:
        survey = _survey(files, files.names)
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
        collected.add(name, _traits(data))
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


def _survey(files: ImageFiles, names: Sequence[str]) -> Survey:
    def open_file(name: str) -> tuple[str, _Traits]:
        try:
            data = files.read(name)
        except UnreadableImage as damaged:
            return str(damaged), {}
        return hashlib.blake2b(data).hexdigest(), _traits(data)

    collected, hashes = _Collected(), []
    with quiet_pillow(), ThreadPoolExecutor() as pool:
        for name, (content, traits) in zip(names, pool.map(open_file, names), strict=True):
            hashes.append((name, content))
            collected.add(name, traits)
    return Survey(collected.short_sides, collected.groups, digest(hashes))


_Traits = dict[str, int]
_SIDE = "side"


@dataclass
class _Collected:
    short_sides: Counter[int] = field(default_factory=Counter)
    groups: dict[str, Group] = field(default_factory=dict)

    def add(self, name: str, traits: _Traits) -> None:
        for trait, value in traits.items():
            if trait == _SIDE:
                self.short_sides[value] += 1
                continue
            group = self.groups.get(trait, Group(0, name, value))
            self.groups[trait] = Group(group.count + 1, group.name, max(group.largest, value))


def _traits(data: bytes) -> _Traits:
    """The traits of one file; empty where it cannot be read, which is reported when it is decoded."""
    try:
        with opened(data) as image:
            traits = {_SIDE: min(image.size)}
            if image.format != "MPO" and (frames := getattr(image, "n_frames", 1)) > 1:  # MPO: a camera's previews
                traits[FRAMES] = frames
            if (bands := getattr(image, "tag_v2", {}).get(277, 1)) > len(image.getbands()):
                traits[BANDS] = bands
            if (bits := _bits_a_channel(image, data)) > 8:
                traits[DEEP] = bits
            if correct_transparency(image):
                traits[CLEAR] = 1
            if is_grey16(image):
                traits[GREY16] = int(np.asarray(image).max())
            return traits
    except UnreadableImage:
        return {}


def _bits_a_channel(image: ImageFile.ImageFile, data: bytes) -> int:
    """The bits that the file has where Pillow gives 8. 16-bit grey, which Pillow gives whole, counts as 8."""
    raw, *arguments = raw_mode(image)
    if is_grey16(image):
        return 8
    if ";16" in str(raw) and not str(raw).startswith("BGR"):  # BGR;16 has 16 bits for the whole pixel
        return 16
    if image.format == "PPM" and any(isinstance(a, int) and a > 255 for a in arguments):
        return 16
    if image.format == "JPEG2000":
        return _byte_after(data, b"\xff\x4f\xff\x51", 38) % 128 + 1  # Ssiz: bits - 1; the highest bit means signed
    return _byte_after(data, b"pixi", 5) if image.format == "AVIF" else 8


def _byte_after(data: bytes, mark: bytes, distance: int) -> int:
    at = data.find(mark)
    return data[at + len(mark) + distance] if 0 <= at < len(data) - len(mark) - distance else 0
