"""Arrays of numbers: vectors, series and images."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator

from ftae.specs.finetune.data_spec import ArrayExtent, DataSpec, shown, size_of
from ftae.specs.finetune.images import Degradation, Value
from ftae.specs.reading.base import Positive, absolute

_Normalisation = Annotated[
    Annotated[Literal["standard", "minmax", "robust", "percentile"], Tag("name")]
    | Annotated[tuple[Value, Value], Tag("window")],
    Discriminator(lambda given: "window" if isinstance(given, list | tuple) else "name"),
]
# The field that says where in a file the array is, by the suffix of the file.
INSIDE = {".npz": "member", ".parquet": "columns", ".h5": "dataset", ".hdf5": "dataset"}


def _suffix(file: str) -> str:
    return Path(file).suffix.lower()


class Arrays(DataSpec):
    """Numbers in a file: images, series of several channels, or vectors. The first axis is that of the samples.

    A sample is kept as float32, (C, H, W) for the model: a series is (channels, 1, length), a vector (1, 1, length).
    """

    of_floats = True
    source: Literal["arrays"] = "arrays"
    train: str
    """The file with the training samples: ``.npy``, ``.npz``, ``.parquet``, ``.h5`` or ``.hdf5`` (of the extra
    ``hdf5``)."""
    resolution: ArrayExtent
    """[HEIGHT, WIDTH] of images, [1, LENGTH] of series and vectors. The array must have it: nothing is resized."""
    num_channels: Positive = 1
    """Channels of an image or of a series."""
    layout: Literal["hwc", "chw", "hw", "cs", "d"]
    """The axes of a sample: of an image (height, width, channels), of a series (channels, steps), or of a vector."""
    normalise: _Normalisation
    """What becomes 0 and 1, for each channel, or each feature of a vector: ``[LOW, HIGH]`` as given, or measured on the
    training samples: 4 standard deviations on either side of the mean (``standard``), 4 interquartile ranges on either
    side of the median (``robust``), the least and the largest value (``minmax``), or the percentiles 0.5 and 99.5
    (``percentile``). Values outside are not clipped."""
    member: Annotated[str | None, Field(validate_default=True)] = None
    """The array in an ``.npz``."""
    columns: Annotated[Annotated[tuple[str, ...], Field(min_length=1)] | None, Field(validate_default=True)] = None
    """The columns of a ``.parquet`` that are the features of a vector; or the one that has lists."""
    dataset: Annotated[str | None, Field(validate_default=True)] = None
    """The path of the array in an ``.h5``."""
    labels: str | None = None
    """The class of each sample: a column of the ``.parquet``, or an ``.npy`` beside any other file."""
    groups: str | None = None
    """The group of each sample, such as a patient, given like ``labels``: none is on both sides of the split."""
    split: Literal["hash", "time"] = "hash"
    """Which samples ``val`` holds out: any, or ``time``: the last ones."""

    @field_validator("color")
    @classmethod
    def _has_no_color(cls, color: str) -> str:
        if color != "rgb":
            raise ValueError("has no effect on arrays, which have num_channels: leave it out")
        return color

    @field_validator("layout")
    @classmethod
    def _layout_fits(cls, layout: str, info: ValidationInfo) -> str:
        data = info.data
        if layout in ("hw", "d") and data.get("num_channels", 1) != 1:
            raise ValueError(f"{layout} has no channels, num_channels is {data['num_channels']}")
        if layout not in ("cs", "d"):
            return layout
        if "resolution" in data and size_of(data["resolution"])[0] != 1:
            raise ValueError(f"{layout} needs a resolution of [1, LENGTH], got {shown(data['resolution'])}")
        if data.get("flip") or data.get("random_crop_from") is not None:
            raise ValueError(f"{layout} is neither mirrored nor cropped: leave flip and random_crop_from out")
        return layout

    @field_validator("normalise")
    @classmethod
    def _window_is_open(cls, normalise: Any) -> Any:
        if isinstance(normalise, tuple) and normalise[0] >= normalise[1]:
            raise ValueError(f"must be [LOW, HIGH] with LOW below HIGH, got {list(normalise)}")
        return normalise

    @field_validator("degrade")
    @classmethod
    def _keeps_numbers(cls, degrade: Degradation | None) -> Degradation | None:
        if degrade is not None and degrade.jpeg is not None:
            raise ValueError("jpeg is for images of 8 bits, not for arrays")
        return degrade

    @field_validator("train")
    @classmethod
    def _is_readable(cls, train: str) -> str:
        if _suffix(train) not in (".npy", *INSIDE):
            raise ValueError(f"must end in .npy, {', '.join(INSIDE)}, got {train}")
        return train

    @field_validator("member", "columns", "dataset")
    @classmethod
    def _is_found_in_the_file(cls, value: Any, info: ValidationInfo) -> Any:
        if "train" not in info.data:
            return value
        suffix = _suffix(info.data["train"])
        wanted = INSIDE.get(suffix) == info.field_name
        if wanted and value is None:
            raise ValueError(f"must say where in the {suffix} the array is")
        if value is not None and not wanted:
            raise ValueError(f"has no effect on {suffix}")
        return value

    @field_validator("labels", "groups", "split")
    @classmethod
    def _belongs_to_the_split(cls, value: Any, info: ValidationInfo) -> Any:
        data, name = info.data, info.field_name
        if name == "split" and value == "time" and (isinstance(data.get("val"), str) or data.get("groups")):
            raise ValueError("time has no effect: a val file, or groups, say what is held out")
        if name == "groups" and value is not None and not isinstance(data.get("val", 0.1), float):
            raise ValueError("has no effect: it needs val as a share")
        apart = value is not None and name != "split" and _suffix(data.get("train", "")) != ".parquet"
        if apart and _suffix(value) != ".npy":
            raise ValueError(f"must be an .npy with a value for each sample, got {value}")
        if apart and isinstance(data.get("val"), str):
            raise ValueError("has no values for a val file: hold out a share, or use columns of .parquet files")
        return value

    @property
    def channels(self) -> int:
        return self.num_channels

    def _files_beside(self) -> dict[str, str]:
        """The files with one value for each sample, by their fields."""
        named = {name: getattr(self, name) for name in ("labels", "groups")}
        return {name: file for name, file in named.items() if file is not None and _suffix(file) == ".npy"}

    def image_folders(self) -> dict[str, str]:
        val = {"data.val": self.val} if isinstance(self.val, str) else {}
        beside = {f"data.{name}": file for name, file in self._files_beside().items()}
        return {"data.train": self.train, **val, **beside, **super().image_folders()}

    def with_absolute_paths(self) -> Self:
        val = absolute(self.val) if isinstance(self.val, str) else self.val
        beside = {name: absolute(file) for name, file in self._files_beside().items()}
        return super().with_absolute_paths().model_copy(update={"train": absolute(self.train), "val": val, **beside})
