"""A look into files of images: sides, channels, bits and ranges, and what of them a file must say."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ftae.engine.data.files.decoding import UnreadableImage, quiet_pillow, upright_size
from ftae.engine.data.files.listing import ImageFiles
from ftae.engine.data.files.traits import HIGH, HU
from ftae.engine.data.files.values import Values
from ftae.engine.data.source_base import shuffled
from ftae.engine.data.survey import survey_some
from ftae.errors import FtaeError
from ftae.specs.finetune.data_spec import DataSpec

BITS = (8, 10, 12, 14, 16)  # that cameras and scanners have
MOST_OPENED, MOST_READ = 200, 24  # images of each folder whose head, and whose values, are read


@dataclass(frozen=True)
class Look:
    """What was seen. ``sides``: the short side of each image opened; ``size``: (H, W) where all have the same.

    ``kinds``: the types of the values; ``bands``: the most bands of a file; ``ends``: the least and the largest value;
    ``has_colors``: of three equal bands an image is grey. ``classes``: the sub-folders. ``measures``: the values are
    measurements, of DICOM or NIfTI, which have no black and white; ``hu``: they are HU.
    """

    sides: tuple[int, ...]
    size: tuple[int, int] | None
    kinds: frozenset[str]
    bands: int
    ends: tuple[float, float]
    has_colors: bool
    classes: tuple[str, ...]
    measures: bool = False
    hu: bool = False

    @property
    def channels(self) -> int:
        if self.bands in (1, 2):
            return 1
        if self.bands > 4:
            return self.bands
        return 3 if self.has_colors else 1

    def of_tiles(self, side: int) -> "Look":
        """The same of squares that are cut from the images."""
        return replace(self, sides=(side,), size=(side, side))

    def settings(self, *, shares_values: bool) -> tuple[dict[str, Any], dict[str, str]]:
        """What ``data`` must say of the values, and why. ``shares_values``: two sides have the same meaning."""
        fields: dict[str, Any] = {}
        why: dict[str, str] = {}
        low, high = self.ends
        if self.bands > 4:
            fields["bands"], why["bands"] = self.bands, f"files have {self.bands} bands; or a list such as [3, 2, 1]"
        if self.kinds <= {"uint8"} and not self.measures:
            return fields, why
        kind = "/".join(sorted(self.kinds))
        seen = f"files hold {kind} from {low:g} to {high:g}, of those looked at"
        if self.hu:
            fields["intensity"] = {"window": [-1000, 1000], "unit": "HU"}
            why["intensity"] = f"{seen}, in HU: from air to bone; [-160, 240] is soft tissue"
        elif self.kinds <= {"uint8", "uint16"} and not self.measures:
            bits = next(bits for bits in BITS if high < 2**bits)
            fields["intensity"] = {"bits": bits}
            why["intensity"] = f"{seen}; if black and white are known values: {{window: [LOW, HIGH]}}"
        elif shares_values:
            fields["intensity"], why["intensity"] = {"window": [low, high]}, f"{seen}, which become black and white"
        else:
            fields["intensity"] = {"percentile": [0.5, 99.5]}
            why["intensity"] = f"{seen}; if black and white are known values, such as HU: {{window: [LOW, HIGH]}}"
        return fields, why

    def least_side(self, share: float) -> int:
        """The side that ``share`` of the images have at least."""
        return sorted(self.sides)[int((1.0 - share) * (len(self.sides) - 1))]


def look_at_files(folders: Sequence[ImageFiles], spec: DataSpec, *, halved: bool) -> Look:
    """Open some images of each folder, as ``spec`` takes them. ``halved``: each file holds two images side by side.

    Raises:
        FtaeError: none of them can be read.
    """
    sizes: list[tuple[int, int]] = []
    values: list[Values] = []
    with quiet_pillow():
        for files in folders:
            most = MOST_OPENED if files.whole() is files else MOST_READ  # a sample in a file has no head of its own
            for i, name in enumerate(shuffled(files.names)[:most]):
                try:
                    read = files.values(name, spec) if i < MOST_READ else None
                    width, height = upright_size(files.read(name)) if read is None else (read.shape[1], read.shape[0])
                except UnreadableImage:  # is named when all images are decoded; some are read by their values alone
                    continue
                sizes.append((height, width // 2 if halved else width))
                values += [] if read is None else [read]
    if not values:
        raise FtaeError(f"no image of {', '.join(str(files.root) for files in folders)} can be read")
    classes = {name for files in folders for name in files.class_names or ()}
    wholes = [files.whole() for files in folders]
    traits = {trait for files in wholes for trait in survey_some(files, shuffled(files.names)[:MOST_READ]).groups}
    return Look(
        sides=tuple(map(min, sizes)),
        size=sizes[0] if len(set(sizes)) == 1 else None,
        kinds=frozenset(str(each.dtype) for each in values),
        bands=max(each.shape[2] for each in values),
        ends=(float(min(_finite(each).min() for each in values)), float(max(_finite(each).max() for each in values))),
        has_colors=any(each.shape[2] >= 3 and bool((each[..., :1] != each[..., 1:3]).any()) for each in values),
        classes=tuple(sorted(classes)),
        measures=HIGH in traits,
        hu=HU in traits,
    )


def _finite(values: Values) -> Values:
    numbers = values.astype(np.float64)
    found: Values = numbers[np.isfinite(numbers)]
    return found if found.size else np.zeros(1)
