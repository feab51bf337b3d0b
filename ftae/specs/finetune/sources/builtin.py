"""Images that need no files: digits, photographs, drawn shapes."""

import math
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from ftae.specs.finetune.data_spec import DataSpec, Share, ShareOrCount, normal_classes


class BuiltinData(DataSpec):
    """The fields of the sources that need no files."""

    val: ShareOrCount = 0.2
    """Share or number of the images that are held out for validation, always the same images."""


class Digits(BuiltinData):
    """scikit-learn's 1,797 handwritten digits (8x8, enlarged), labelled 0-9."""

    square = True
    has_labels = True
    source: Literal["digits"] = "digits"
    color: Literal["rgb", "grey"] = "grey"
    """Colour of the images."""
    classes: Annotated[tuple[Annotated[int, Field(ge=0, le=9)], ...], Field(min_length=1)] = tuple(range(10))
    """The digits to keep; ``anomaly_classes`` are among them."""
    shift: Literal["none", "invert", "rotate", "noise"] = "none"
    """Makes another domain of the same digits."""

    @field_validator("classes")
    @classmethod
    def _holds_the_anomalies(cls, classes: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        normal_classes([str(digit) for digit in classes], info.data.get("anomaly_classes", ()))
        return classes


class DigitEdges(Digits):
    """Pairs of edges and digits: the model gets the edges of a digit of ``digits`` and learns to give the digit."""

    paired = True
    source: Literal["digit_edges"] = "digit_edges"  # type: ignore[assignment]


class DigitDomains(Digits):
    """Two domains without partners: A are the digits of ``digits``, B digits that ``shift`` changes.

    Training draws from either by itself; in validation, B has the digits of A, so that metrics may compare.
    """

    unpaired = True
    has_labels = False
    source: Literal["digit_domains"] = "digit_domains"  # type: ignore[assignment]
    shift: Literal["invert", "rotate", "noise"] = "invert"
    """What makes B of digits."""

    @property
    def truly_paired(self) -> bool:
        return True


class Photos(BuiltinData):
    """Patches of scikit-learn's two photographs (427x640), cut at ``resolution``; without labels.

    Validation patches come from the right-hand ``val`` share of each photograph, training patches from the rest, so
    the two never overlap.
    """

    has_labels = False
    source: Literal["photos"] = "photos"
    val: Share = 0.2
    """Share of the width of the photographs, and of the patches, that is held out for validation."""
    num_patches: Annotated[int, Field(ge=10)] = 1000
    """Number of patches."""


# What varies in a drawn shape, and the number of its values.
SHAPE_KINDS = ("square", "circle", "triangle")
SHAPE_FACTORS = {"kind": len(SHAPE_KINDS), "size": 4, "x": 8, "y": 8, "brightness": 4}


class Shapes(BuiltinData):
    """Drawn squares, circles and triangles of known size, place and brightness, labelled by their kind."""

    square = True
    has_labels = True
    has_factors = True
    source: Literal["shapes"] = "shapes"
    color: Literal["rgb", "grey"] = "grey"
    """Colour of the images."""
    num_images: Annotated[int, Field(ge=10, le=math.prod(SHAPE_FACTORS.values()))] = 3072
    """Number of different images; there are 3,072."""

    @field_validator("anomaly_classes")
    @classmethod
    def _are_kinds(cls, anomalies: tuple[str, ...]) -> tuple[str, ...]:
        normal_classes(SHAPE_KINDS, anomalies)
        return anomalies


BUILTIN = (Digits, DigitEdges, DigitDomains, Photos, Shapes)
