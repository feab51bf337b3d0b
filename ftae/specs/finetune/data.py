"""The data of a run: one spec for each source of images."""

import math
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, ValidationInfo, create_model, field_validator

from ftae.specs.finetune.data_spec import DataSpec, Replayed, normal_classes
from ftae.specs.finetune.images import Intensity
from ftae.specs.reading.base import absolute


class ImageFolder(DataSpec):
    """A folder of images; its sub-folders, if any, are the labels."""

    source: Literal["image_folder"] = "image_folder"
    train: str
    """The folder with the training images."""
    intensity: Intensity | None = None
    """The meaning of the values of 16-bit grey images; by default all 16 bits are in use."""

    @property
    def grey_levels(self) -> tuple[int, int] | None:
        return None if self.intensity is None else self.intensity.levels

    @property
    def most_bits(self) -> int | None:
        return None if self.intensity is None else self.intensity.bits

    def image_folders(self) -> dict[str, str]:
        val = {"data.val": self.val} if isinstance(self.val, str) else {}
        return {"data.train": self.train, **val, **super().image_folders()}

    def with_absolute_paths(self) -> Self:
        val = absolute(self.val) if isinstance(self.val, str) else self.val
        return super().with_absolute_paths().model_copy(update={"train": absolute(self.train), "val": val})


class Archive(ImageFolder):
    """Images in an archive: a zip, an LMDB, or TFRecords of StyleGAN; labels are those of the archive, if any.

    Of images in several sizes, as StyleGAN's, the smallest size is read that need not be enlarged.
    """

    source: Literal["archive"] = "archive"  # type: ignore[assignment]
    train: str
    """The archive with the training images: a file, or the folder of an LMDB or of TFRecords."""


class TwoSided(ImageFolder):
    """The fields of the sources of A and B, whose files may lie in two folders."""

    inputs: str | None = None
    """The folder with A, where ``train`` has B; null where ``train`` has both."""
    val_inputs: Annotated[str | None, Field(validate_default=True)] = None
    """The folder with A, where ``val`` is a folder with B."""

    @field_validator("inputs")
    @classmethod
    def _is_another_folder(cls, inputs: str | None, info: ValidationInfo) -> str | None:
        if inputs is not None and inputs == info.data.get("train"):
            raise ValueError(f"must be another folder than train; leave it out where train has both, got {inputs}")
        return inputs

    @field_validator("val_inputs")
    @classmethod
    def _belongs_to_a_folder(cls, val_inputs: str | None, info: ValidationInfo) -> str | None:
        if "inputs" not in info.data or "val" not in info.data:
            return val_inputs
        is_needed = info.data["inputs"] is not None and isinstance(info.data["val"], str)
        if is_needed and val_inputs is None:
            raise ValueError("must be the folder with A for the val folder, as inputs is for train")
        if val_inputs is not None and not is_needed:
            raise ValueError("has no effect, it needs inputs and a val folder")
        return val_inputs

    def input_folders(self) -> dict[str, str]:
        """The folders with A, by the leaves that name them, in the order of those with B; empty if files hold both."""
        folders = {"data.inputs": self.inputs, "data.val_inputs": self.val_inputs}
        return {leaf: folder for leaf, folder in folders.items() if folder is not None}

    def image_folders(self) -> dict[str, str]:
        return {**super().image_folders(), **self.input_folders()}

    def with_absolute_paths(self) -> Self:
        folders = {leaf.removeprefix("data."): absolute(folder) for leaf, folder in self.input_folders().items()}
        return super().with_absolute_paths().model_copy(update=folders)


class Pairs(TwoSided):
    """Pairs of images: the model gets A and learns to give B. Sub-folders, if any, are the labels.

    Without ``inputs``, every file holds a pair side by side: A is its left half, B its right half. With ``inputs``, A
    and B are files of the same name and size in two folders; only the suffix may differ.
    """

    paired = True
    source: Literal["pairs"] = "pairs"  # type: ignore[assignment]
    direction: Literal["a_to_b", "b_to_a"] = "a_to_b"
    """``b_to_a`` swaps A and B of files that hold both."""

    @field_validator("direction")
    @classmethod
    def _files_hold_both(cls, direction: str, info: ValidationInfo) -> str:
        if direction == "b_to_a" and info.data.get("inputs") is not None:
            raise ValueError("b_to_a has no effect on two folders: swap inputs and train")
        return direction


class Unpaired(TwoSided):
    """Images of two domains, A and B, that have no partners. Their numbers may differ; sub-folders mean nothing.

    Without ``inputs``, ``train`` is a folder with the sub-folders trainA and trainB, and ``val``, unless it is a share
    of each, one with testA and testB. With ``inputs``, ``train`` and ``val`` are folders of B.
    """

    unpaired = True
    has_labels = False
    source: Literal["unpaired"] = "unpaired"  # type: ignore[assignment]
    val_paired: bool = False
    """Validation images of A and B with the same name are the same picture, in the one domain and in the other: metrics
    may compare a translation with it."""

    @field_validator("val_paired")
    @classmethod
    def _has_names_to_compare(cls, val_paired: bool, info: ValidationInfo) -> bool:
        if val_paired and isinstance(info.data.get("val"), float):
            raise ValueError("needs val folders, in which pictures of the same name are a pair; val is a share")
        return val_paired

    @property
    def truly_paired(self) -> bool:
        return self.val_paired

    def side_folders(self) -> dict[str, str]:
        """The folders with the images, by what they hold: ``trainA`` and ``trainB``, ``testA`` and ``testB``."""
        held_out = isinstance(self.val, str)
        if self.inputs is not None:
            named = {"trainA": self.inputs, "trainB": self.train, "testA": self.val_inputs, "testB": self.val}
            return {name: str(folder) for name, folder in named.items() if held_out or name.startswith("train")}
        return {
            name: f"{root.rstrip('/')}/{name}"
            for root, names in ((self.train, ("trainA", "trainB")), (self.val, ("testA", "testB")))
            if isinstance(root, str)
            for name in names
        }

    def image_folders(self) -> dict[str, str]:
        leaves = {"trainA": "data.inputs", "trainB": "data.train", "testA": "data.val_inputs", "testB": "data.val"}
        return {leaves[name]: folder for name, folder in self.side_folders().items()}


class BuiltinData(DataSpec):
    """The fields of the sources that need no files."""

    val: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """Share of the images that is held out for validation, always the same images."""


class Digits(BuiltinData):
    """scikit-learn's 1,797 handwritten digits (8x8, enlarged), labelled 0-9."""

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
    num_patches: Annotated[int, Field(ge=10)] = 1000
    """Number of patches."""


# What varies in a drawn shape, and the number of its values.
SHAPE_KINDS = ("square", "circle", "triangle")
SHAPE_FACTORS = {"kind": len(SHAPE_KINDS), "size": 4, "x": 8, "y": 8, "brightness": 4}


class Shapes(BuiltinData):
    """Drawn squares, circles and triangles of known size, place and brightness, labelled by their kind."""

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


# All sources. Each can be replayed, too: its spec for that is derived from this list.
AnyData = Annotated[
    ImageFolder | Archive | Pairs | Unpaired | Digits | DigitEdges | DigitDomains | Photos | Shapes,
    Field(discriminator="source"),
]

_SOURCES: tuple[type[DataSpec], ...] = get_args(get_args(AnyData)[0])
PAIRED_SOURCES, UNPAIRED_SOURCES = (
    frozenset(str(kind.model_fields["source"].default) for kind in _SOURCES if getattr(kind, fact))
    for fact in ("paired", "unpaired")
)


def _replayed(source: type[DataSpec]) -> Any:
    """The spec of replayed images of a source."""
    name, doc = f"Replayed{source.__name__}", f"Replayed images: the fields of ``{source.__name__}``, and their share."
    derived: Any = create_model(name, __base__=(source, Replayed), __doc__=doc, __module__=__name__)
    globals()[name] = derived  # where pickle looks for it
    return derived


AnyReplayed: Any = reduce(or_, map(_replayed, _SOURCES))

for _spec in (DataSpec, BuiltinData, *_SOURCES, Replayed, *get_args(AnyReplayed)):
    _spec.model_rebuild()
