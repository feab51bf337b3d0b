"""What is done to images before the model gets them: grey levels of 16 bits, and degradation."""

import math
from typing import Annotated, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ftae.specs.reading.base import Positive, Spec
from ftae.specs.reading.problems import quoted

Grey16 = Annotated[int, Field(ge=0, le=65535)]


class Intensity(Spec):
    """The meaning of the values of 16-bit grey images: ``bits`` or ``window``, one of the two."""

    bits: Annotated[int, Field(ge=8, le=16)] | None = None
    """Number of bits in use, such as 12."""
    window: tuple[Grey16, Grey16] | None = None
    """The values that become black and white; values outside are clipped."""

    @model_validator(mode="after")
    def _is_one_of_two(self) -> Self:
        if (self.bits is None) == (self.window is None):
            raise ValueError("must have bits (those in use, such as 12) or window ([LOW, HIGH]), one of the two")
        if self.window is not None and self.window[0] >= self.window[1]:
            raise ValueError(f"window must be [LOW, HIGH] with LOW below HIGH, got {quoted(list(self.window))}")
        return self

    @property
    def levels(self) -> tuple[int, int]:
        """The values that are black and white."""
        return self.window or (0, 2 ** (self.bits or 16) - 1)


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
