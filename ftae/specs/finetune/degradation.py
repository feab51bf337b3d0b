"""How images are degraded before a model is given them, which is to give them back clean."""

import math
from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator

from ftae.specs.reading.base import Positive, Spec


class Blocks(Spec):
    """Squares of ``size`` pixels, ``share`` of all in the grid of them, that are made mid-grey."""

    share: Annotated[float, Field(gt=0.0, lt=1.0)]
    size: Positive


class Degradation(Spec):
    """What is done to an image, in this order; at least one of it.

    ``blur``: sigma of a Gaussian in pixels. ``noise``: sigma of Gaussian noise, of the [0, 1] range.
    ``jpeg``: quality of a compression, 100 the best. ``blocks``: parts that are cut out.
    """

    blur: Annotated[float, Field(ge=0.0)] = 0.0
    noise: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    jpeg: Annotated[int, Field(ge=1, le=100)] | None = None
    blocks: Annotated[Blocks | None, Field(validate_default=True)] = None

    @field_validator("blocks")
    @classmethod
    def _does_something(cls, blocks: Blocks | None, info: ValidationInfo) -> Blocks | None:
        others = [info.data.get(name, True) for name in ("blur", "noise", "jpeg")]  # a faulty one was meant
        if blocks is None and not any(others):
            raise ValueError("nothing is degraded: give blur, noise, jpeg or blocks, or leave degrade out")
        return blocks

    def blur_radius(self) -> int:
        """Pixels to each side that a blurred pixel depends on: 3 sigma, rounded up."""
        return math.ceil(3.0 * self.blur)

    def __str__(self) -> str:
        parts = [f"{name} {value:g}" for name in ("blur", "noise", "jpeg") if (value := getattr(self, name))]
        if self.blocks is not None:
            parts.append(f"{self.blocks.share:.0%} in blocks of {self.blocks.size} pixels")
        return ", ".join(parts)
