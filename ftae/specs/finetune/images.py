"""What files of images mean, which of them belong together, and how they are degraded."""

import math
import re
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ftae.specs.reading.base import Positive, Spec
from ftae.specs.reading.problems import quoted

Value = Annotated[float, Field(allow_inf_nan=False)]
Percent = Annotated[float, Field(ge=0.0, le=100.0)]
CHOICES = ("bits", "window", "percentile", "dtype_range", "per_image")


class Intensity(Spec):
    """The meaning of the values in image files, one of five ways to say it. Images are then kept with 16 bits.

    The model gets black as 0 and white as 1 (-1 and 1, where it wants that); values outside are clipped.
    """

    bits: Annotated[int, Field(ge=8, le=16)] | None = None
    """Number of bits in use, such as 12: 0 is black, the largest number is white."""
    window: tuple[Value, Value] | None = None
    """The values that become black and white: -1000 and 1000 for a CT in HU."""
    percentile: tuple[Percent, Percent] | None = None
    """The percentiles, such as 0.5 and 99.5, of the values of the training images that become black and white."""
    dtype_range: bool = False
    """All values that the type of the file can have: -32768 to 32767 for int16. Not for floats."""
    per_image: Literal["minmax", "zscore"] | None = None
    """Scale each image by itself, from its least to its largest value, or from 3 standard deviations below its mean to
    3 above it. Values then have no unit that images share."""
    unit: str | None = None
    """The name of the unit of the values, such as HU, for reports."""
    measured: tuple[Value, Value] | None = None
    """What ``percentile`` or ``dtype_range`` found on the training images, which exports and production runs keep."""

    @model_validator(mode="after")
    def _is_one_of_them(self) -> Self:
        given = [name for name in CHOICES if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            raise ValueError(
                "must have one of bits (those in use, such as 12), window ([LOW, HIGH]), percentile ([LOW, HIGH]), "
                f"dtype_range (true) and per_image (minmax or zscore), got {', '.join(given) or 'none'}"
            )
        for name in ("window", "percentile", "measured"):
            pair = getattr(self, name)
            if pair is not None and pair[0] >= pair[1]:
                raise ValueError(f"{name} must be [LOW, HIGH] with LOW below HIGH, got {quoted(list(pair))}")
        if self.measured is not None and self.percentile is None and not self.dtype_range:
            raise ValueError(f"measured has no effect on {given[0]}: say a window, got {quoted(list(self.measured))}")
        if self.unit is not None and self.per_image is not None:
            raise ValueError("unit has no effect: per_image gives each image a unit of its own")
        return self

    @property
    def is_measured(self) -> bool:
        """Whether black and white depend on the images, but are the same for all."""
        return self.percentile is not None or self.dtype_range

    @property
    def is_known(self) -> bool:
        """Whether black and white need not be measured."""
        return not self.is_measured or self.measured is not None

    @property
    def levels(self) -> tuple[float, float] | None:
        """The values that are black and white; None where only the files tell."""
        return self.measured or self.said

    @property
    def said(self) -> tuple[float, float] | None:
        """As ``levels``, but None for what is measured, also where that is known by now."""
        return self.window or (None if self.bits is None else (0.0, 2.0**self.bits - 1))

    def decides_pixels(self) -> dict[str, object]:
        """A JSON value of what the pixels of decoded images depend on: what was measured counts as a window."""
        given = self.model_dump(mode="json", exclude={"unit", "measured"})
        found = {"percentile": None, "dtype_range": False, "window": self.measured and list(self.measured)}
        return given if self.measured is None else given | found


class Groups(Spec):
    """Which images belong together, such as all of one patient: one of three ways to say it.

    The images of a group are either all trained on or all held out.
    """

    column: str | None = None
    """The column of ``metadata.csv`` or ``metadata.jsonl``, in the folder of the images, that names the group. Of
    shards: their column, or the key in the files ``json`` of samples."""
    path: str | None = None
    """A regular expression with one group, which finds the name of the group in the path of a file below the folder:
    ``"(patient[0-9]+)"``."""
    tag: str | None = None
    """The keyword of a DICOM tag, such as ``PatientID``."""

    @field_validator("path")
    @classmethod
    def _has_one_group(cls, path: str | None) -> str | None:
        try:
            if path is None or re.compile(path).groups == 1:
                return path
            raise ValueError(f"must have one group in parentheses, which finds the name, got {quoted(path)}")
        except re.error as error:
            raise ValueError(f"must be a regular expression ({error}), got {quoted(path)}") from error

    @model_validator(mode="after")
    def _is_one_of_them(self) -> Self:
        given = [name for name in ("column", "path", "tag") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                "must have one of column (of metadata.csv or shards), path (a regular expression) and tag (of DICOM), "
                f"got {', '.join(given) or 'none'}"
            )
        return self


class Slices(Spec):
    """The slices of NIfTI volumes that are samples. Volumes are turned so that axes are those of the body."""

    axis: Literal["sagittal", "coronal", "axial"]
    """The plane of the slices."""
    min_foreground: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    """Slices with a smaller share of foreground are left out. Foreground is brighter than the background: more than a
    tenth of the way from the 1st to the 99th percentile of the volume."""


class Tiles(Spec):
    """Squares that are cut from large images, each a sample."""

    size: Annotated[int, Field(ge=8, le=4096)]
    """Pixels a side."""
    stride: Positive | None = None
    """Pixels from one tile to the next, ``size`` by default; less than that, they overlap. The last tile ends at the
    border."""
    min_foreground: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Tiles with a smaller share of foreground are left out: of pixels brighter than a tenth of the way from the 1st to
    the 99th percentile of the image."""

    @field_validator("stride")
    @classmethod
    def _leaves_no_gaps(cls, stride: int | None, info: ValidationInfo) -> int | None:
        if stride is not None and stride > info.data.get("size", stride):
            raise ValueError(
                f"must be at most size ({info.data['size']}), or parts of images would be lost, got {stride}"
            )
        return stride


class Blocks(Spec):
    """Squares that are painted mid-grey, chosen at random from a grid."""

    share: Annotated[float, Field(gt=0.0, lt=1.0)]
    """Share of the squares of the grid."""
    size: Positive
    """Pixels a side of one square."""


class Degradation(Spec):
    """How images are degraded, in this order; the model learns to give back the clean images."""

    blur: Annotated[float, Field(ge=0.0)] = 0.0
    """Sigma of a Gaussian blur, in pixels."""
    noise: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Sigma of Gaussian noise, in the [0, 1] range."""
    jpeg: Annotated[int, Field(ge=1, le=100)] | None = None
    """Quality of JPEG compression; 100 is best."""
    blocks: Annotated[Blocks | None, Field(validate_default=True)] = None
    """Parts of the image that are removed."""

    @field_validator("blocks")
    @classmethod
    def _does_something(cls, blocks: Blocks | None, info: ValidationInfo) -> Blocks | None:
        others = [info.data.get(name, True) for name in ("blur", "noise", "jpeg")]  # an invalid one is not off
        if blocks is None and not any(others):
            raise ValueError("nothing is degraded: give blur, noise, jpeg or blocks, or leave degrade out")
        return blocks

    def blur_radius(self) -> int:
        """Pixels on each side that a blurred pixel depends on: 3 sigma, rounded up."""
        return math.ceil(3.0 * self.blur)

    def __str__(self) -> str:
        parts = [f"{name} {value:g}" for name in ("blur", "noise", "jpeg") if (value := getattr(self, name))]
        if self.blocks is not None:
            parts.append(f"{self.blocks.share:.0%} in blocks of {self.blocks.size} pixels")
        return ", ".join(parts)
