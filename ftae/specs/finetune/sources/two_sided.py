"""Images of two sides: pairs, and two domains without pairs."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator

from ftae.specs.finetune.images import Intensity
from ftae.specs.finetune.sources.folders import ImageFolder
from ftae.specs.reading.base import absolute
from ftae.specs.reading.problems import quoted


class TwoSided(ImageFolder):
    """The fields of the sources of A and B, whose files may lie in two folders."""

    inputs: str | None = None
    """The folder with A, where ``train`` has B; null where ``train`` has both."""
    val_inputs: Annotated[str | None, Field(validate_default=True)] = None
    """The folder with A, where ``val`` is a folder with B."""

    @field_validator("groups", "label_column", "pages", "slices", "tiles")
    @classmethod
    def _is_of_single_images(cls, value: Any, info: ValidationInfo) -> Any:
        if value != cls.model_fields[str(info.field_name)].default:
            raise ValueError(f"is of single images, not of {cls.own_name()}, got {quoted(value)}")
        return value

    @field_validator("intensity")
    @classmethod
    def _is_the_same_for_both(cls, intensity: Intensity | None) -> Intensity | None:
        if intensity is not None and intensity.is_measured:
            raise ValueError("must have bits, a window or per_image where images have two sides, which share it")
        return intensity

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


TWO_SIDED = (Pairs, Unpaired)
