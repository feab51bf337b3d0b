"""How images are degraded before the model gets them; the model learns to give back the clean images."""

import math
from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator

from ftae.specs.reading.base import Positive, Spec


class Blocks(Spec):
    """Squares that are painted mid-grey, chosen at random from a grid."""

    share: Annotated[float, Field(gt=0.0, lt=1.0)]
    """Share of the squares of the grid."""
    size: Positive
    """Pixels a side of one square."""


class Degradation(Spec):
    """What is done to an image, in this order; at least one of these."""

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
