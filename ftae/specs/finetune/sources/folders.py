"""Images in folders, archives and shards."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator

from ftae.specs.finetune.data_spec import DataSpec
from ftae.specs.finetune.images import Groups, Intensity, Slices, Tiles
from ftae.specs.reading.base import Positive, absolute


class ImageFolder(DataSpec):
    """A folder of images; its sub-folders, if any, are the labels."""

    source: Literal["image_folder"] = "image_folder"
    train: str
    """The folder with the training images."""
    intensity: Intensity | None = None
    """The meaning of the values in the files, which are then read and kept with 16 bits; null reads 8 bits."""
    bands: Positive | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    """The bands of the files that are the channels: the first so many, or those in a list, counted from 0. They take
    the place of ``color``."""
    groups: Groups | None = None
    """Which images belong together, such as all of one patient: none are trained on where others are held out."""
    label_column: Annotated[str, Field(min_length=1)] | None = None
    """The column of ``metadata.csv`` or ``metadata.jsonl``, in the folder of the images, that has the labels; null
    takes them from sub-folders."""
    pages: Literal["first", "each", "channels"] = "first"
    """What of files with pages, such as TIFF and GIF, is used: the first page, each as a sample, or all as the bands of
    one image. Each frame of DICOM is a sample in any case."""
    slices: Slices | None = None
    """The slices of NIfTI volumes that are samples."""
    tiles: Tiles | None = None
    """Cut large images into tiles, each a sample."""

    @field_validator("bands")
    @classmethod
    def _replace_the_color(cls, bands: Any, info: ValidationInfo) -> Any:
        if bands is None:
            return bands
        number = bands if isinstance(bands, int) else len(bands)
        if info.data.get("color", "rgb") != "rgb":
            raise ValueError("takes the place of color: leave color out")
        degrade, replay = info.data.get("degrade"), info.data.get("replay")
        if degrade is not None and degrade.jpeg is not None and number not in (1, 3):
            raise ValueError(f"degrade.jpeg needs 1 or 3 channels, got {number}")
        if replay is not None and replay.channels != number:
            raise ValueError(f"must be as many as the channels of replay ({replay.channels}), got {number}")
        return bands

    @field_validator("slices", "tiles")
    @classmethod
    def _are_the_only_samples(cls, value: Any, info: ValidationInfo) -> Any:
        name = str(info.field_name)
        if value is not None and (info.data.get("pages") == "each" or (name == "tiles" and info.data.get("slices"))):
            raise ValueError("cannot be given with another: pages: each, slices and tiles all say what a sample is")
        return value

    @property
    def stacks_pages(self) -> bool:
        return self.pages == "channels"

    @property
    def channels(self) -> int:
        if self.bands is None:
            return super().channels
        return self.bands if isinstance(self.bands, int) else len(self.bands)

    @property
    def meaning(self) -> Intensity | None:
        return self.intensity

    def with_levels(self, levels: tuple[float, float] | None) -> Self:
        if self.intensity is None or self.intensity.is_known or levels is None:
            return self
        return self.model_copy(update={"intensity": self.intensity.model_copy(update={"measured": tuple(levels)})})

    @property
    def chosen_bands(self) -> tuple[int, ...] | None:
        return tuple(range(self.bands)) if isinstance(self.bands, int) else self.bands

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

    @field_validator("groups", "label_column")
    @classmethod
    def _has_no_metadata(cls, value: Any) -> Any:
        if isinstance(value, str) or (value is not None and value.column is not None):
            raise ValueError("needs metadata.csv, which ftae reads in folders alone: unpack the archive")
        return value


class Shards(ImageFolder):
    """Images in shards: tar files as WebDataset names them, Parquet files as Hugging Face has them, or zip files.

    They lie in a folder or an object store, and single images are read from them by their places. Labels are the files
    ``cls`` of samples, the column ``label``, or else the sub-folders in the names of images.
    """

    source: Literal["shards"] = "shards"  # type: ignore[assignment]
    train: str
    """The shards with the training images: a file, a folder, a pattern such as ``train-{000..099}.tar`` or ``*.zip``;
    also as a URL such as ``s3://bucket/folder``. ``val`` may be one, too."""
    image: str | None = None
    """Which image of a sample, where it has several: the suffix in a tar or zip, or the column."""
    label: str | None = None
    """The column of the labels, or their key in the files ``json`` of samples; null takes ``label`` and ``cls``."""

    @field_validator("label_column")
    @classmethod
    def _has_no_metadata(cls, value: str | None) -> str | None:
        if value is not None:
            raise ValueError("is a column of metadata.csv, which shards do not have: data.label names theirs")
        return value


FOLDERS = (ImageFolder, Archive, Shards)
