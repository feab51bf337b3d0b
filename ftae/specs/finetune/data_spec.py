"""What the specs of all sources of images share."""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator

from ftae.specs.finetune.images import Degradation, Intensity
from ftae.specs.reading.base import Positive, Spec
from ftae.specs.reading.problems import Problem, one_of, quoted, refusal
from ftae.specs.reading.schema import KeepsValidation, Means


def normal_classes(names: Iterable[str], anomalies: Sequence[str]) -> tuple[str, ...]:
    """The class names that are not among ``anomalies``, in their order.

    Raises:
        ValueError: an anomaly is not among the names, or no other name is left.
    """
    names = tuple(names)
    for name in anomalies:
        if name not in names:
            raise ValueError(f"data.anomaly_classes {one_of(sorted(names), name)}")
    normal = tuple(name for name in names if name not in anomalies)
    if names and not normal:
        raise ValueError("data.anomaly_classes names all classes, no image is left to train on")
    return normal


ClassName = Annotated[str, Field(coerce_numbers_to_str=True)]
Side = Annotated[int, Field(ge=8, le=4096)]
Share = Annotated[float, Field(gt=0.0, lt=1.0)]


def _kind_of_val(given: Any) -> str:
    """YAML reads 1e-1 as text, which must not become the name of a folder."""
    if isinstance(given, str):
        return "share" if re.fullmatch(r"[-+.0-9]+(e[-+]?[0-9]+)?", given, re.IGNORECASE) else "folder"
    if isinstance(given, bool):
        return "folder"
    return "count" if isinstance(given, int) else "share"


ShareOrCount = Annotated[
    Annotated[Share, Tag("share")] | Annotated[Positive, Tag("count")], Discriminator(_kind_of_val)
]
Held = Annotated[
    Annotated[Share, Tag("share")] | Annotated[Positive, Tag("count")] | Annotated[str, Tag("folder")],
    Discriminator(_kind_of_val),
]
_by_number = Discriminator(lambda given: "size" if isinstance(given, list | tuple) else "side")
Extent = Annotated[Annotated[Side, Tag("side")] | Annotated[tuple[Side, Side], Tag("size")], _by_number]
Length = Annotated[int, Field(ge=1, le=2**20)]
ArrayExtent = Annotated[Annotated[Length, Tag("side")] | Annotated[tuple[Length, Length], Tag("size")], _by_number]
Size = tuple[int, int]
"""Height and width in pixels."""


def size_of(resolution: int | Size) -> Size:
    """Height and width of a side, or of both as they are."""
    return resolution if isinstance(resolution, tuple) else (resolution, resolution)


def shown(value: Any) -> str:
    """A value as files have it: a pair is a list."""
    return str(list(value)) if isinstance(value, tuple) else str(value)


class DataSpec(Spec):
    """The fields that all sources share.

    Each source declares six facts, which no file sets: ``has_labels`` (None where only the images can tell),
    ``has_factors``, whether the factors of variation of its images are known, ``paired``, whether an image has a
    partner: the model gets the one and learns to give the other, ``unpaired``, whether its images are of two
    domains, between which the model learns to translate without partners, ``square``, whether they have no other
    shape, and ``of_floats``, whether its samples are kept as float32, whose values may lie outside [0, 1].
    """

    has_labels: ClassVar[bool | None] = None
    has_factors: ClassVar[bool] = False
    paired: ClassVar[bool] = False
    unpaired: ClassVar[bool] = False
    square: ClassVar[bool] = False
    of_floats: ClassVar[bool] = False
    if TYPE_CHECKING:
        source: str  # each source has its own name here

    resolution: Extent
    """Pixels a side of the images that the model gets; or [HEIGHT, WIDTH] of images that are not square."""
    color: Literal["rgb", "grey"] = "rgb"
    """Colour of the images; files in other colours are converted."""
    val: Held = 0.1
    """Share or number of the images that are held out for validation, always the same images; or a folder (archive) of
    its own."""
    random_crop_from: Extent | None = None
    """Decode at this side, or at [HEIGHT, WIDTH], and train on random crops of ``resolution``; validation takes the
    centre."""
    flip: Annotated[bool, KeepsValidation()] = False
    """Mirror training images left-right at random."""
    fingerprint: str | None = None
    """The images must be those with this fingerprint; a search sets it for its trials. Images that are in the cache
    of the machine count, even where their files have changed since."""
    cache_gb: Annotated[Annotated[float, Field(ge=0.0)] | None, Means()] = None
    """Disk space, in 1e9 bytes, that the decoded images of a set may take. Of a larger set, or one that the disk has no
    room for, each image is decoded when it is needed, and those that were used last are kept; null leaves it to the
    disk."""
    degrade: Degradation | None = None
    """The model gets degraded images and is compared with the clean ones; of pairs, only the input is degraded."""
    labelled_fraction: Annotated[float, Field(gt=0.0, le=1.0), KeepsValidation()] = 1.0
    """Share of the training images of each class that keeps its label, at least one. The images are always the same,
    and those of a smaller share are among those of a larger one."""
    anomaly_classes: tuple[ClassName, ...] = ()
    """Classes whose images are never trained on; validation measures them apart."""
    replay: Annotated["AnyReplayed | None", Field(discriminator="source")] = None
    """Images of the domain that the model comes from, mixed into every training batch."""

    @field_validator("resolution", "random_crop_from")
    @classmethod
    def _one_number_of_squares(cls, given: int | Size | None) -> int | Size | None:
        return given[0] if isinstance(given, tuple) and given[0] == given[1] else given

    @field_validator("resolution")
    @classmethod
    def _may_be_oblong(cls, resolution: int | Size) -> int | Size:
        if cls.square and isinstance(resolution, tuple):
            raise ValueError(f"must be one number, the images of {cls.own_name()} are square, got {list(resolution)}")
        return resolution

    @field_validator("random_crop_from")
    @classmethod
    def _crop_has_room(cls, given: int | Size | None, info: ValidationInfo) -> int | Size | None:
        resolution = info.data.get("resolution")
        if given is None or resolution is None:
            return given
        size, room = size_of(resolution), size_of(given)
        if room == size or room[0] < size[0] or room[1] < size[1]:
            raise ValueError(
                f"must be larger than resolution ({shown(resolution)}) to have an effect, got {shown(given)}"
            )
        return given

    @field_validator("labelled_fraction", "anomaly_classes")
    @classmethod
    def _labels_are_there(cls, value: Any, info: ValidationInfo) -> Any:
        if cls.has_labels is False and value != cls.model_fields[str(info.field_name)].default:
            raise ValueError(f"has no effect, {cls.own_name()} has no labels, got {quoted(value)}")
        return value

    @field_validator("degrade")
    @classmethod
    def _degradation_fits(cls, degrade: Degradation | None, info: ValidationInfo) -> Degradation | None:
        resolution = info.data.get("resolution")
        found: list[Problem] = []
        if degrade is None or resolution is None:
            return degrade
        if cls.unpaired:
            raise ValueError("has no effect on images of two domains, which the model gets as they are")
        side = min(size_of(resolution))
        if degrade.blur_radius() >= side:
            found.append((("blur",), f"3 sigma must be less than resolution ({side}), got {degrade.blur:g}"))
        if degrade.blocks is not None and degrade.blocks.size >= side:
            rule = f"must be less than resolution ({side}), got {degrade.blocks.size}"
            found.append((("blocks", "size"), rule))
        if found:
            raise refusal(found)
        return degrade

    @field_validator("replay", mode="before")
    @classmethod
    def _replayed_alike(cls, replay: Any, info: ValidationInfo) -> Any:
        """Replayed images take resolution and colour from the data."""
        shared = {name: info.data[name] for name in ("resolution", "color") if name in info.data}
        return {**shared, **replay} if isinstance(replay, dict) else replay

    @field_validator("replay")
    @classmethod
    def _can_be_mixed(cls, replay: "Replayed | None", info: ValidationInfo) -> "Replayed | None":
        own = {name: info.data[name] for name in ("resolution", "color") if name in info.data}
        if replay is not None and (cls.unpaired or replay.unpaired):
            raise ValueError("has no effect: images of two domains are neither replayed nor mixed with others")
        if replay is not None and replay.paired != cls.paired:
            raise ValueError(f"must be of pairs where data is, and only there, got {replay.source}")
        differing = [name for name, value in own.items() if replay is not None and getattr(replay, name) != value]
        if differing:
            raise refusal(
                ((name,), f"must be that of data ({shown(own[name])}), got {quoted(getattr(replay, name))}")
                for name in differing
            )
        return replay

    def with_absolute_paths(self) -> Self:
        """The same images with absolute paths."""
        return self if self.replay is None else self.model_copy(update={"replay": self.replay.with_absolute_paths()})

    @property
    def size(self) -> Size:
        """Height and width of the images that the model gets."""
        return size_of(self.resolution)

    @property
    def decoded_size(self) -> Size:
        """Height and width of the decoded arrays."""
        return size_of(self.random_crop_from or self.resolution)

    @property
    def margins(self) -> Size:
        """Rows and columns of a decoded array that a crop leaves out."""
        return self.decoded_size[0] - self.size[0], self.decoded_size[1] - self.size[1]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that the model gets."""
        return self.channels, *self.size

    @property
    def channels(self) -> int:
        """Channels of the images: 3 or 1, or the number of ``bands``."""
        return 3 if self.color == "rgb" else 1

    @property
    def chosen_bands(self) -> tuple[int, ...] | None:
        """The bands of files that are the channels; None for colours."""
        return None

    @property
    def stacks_pages(self) -> bool:
        """Whether the pages of a file are the bands of one image."""
        return False

    @property
    def meaning(self) -> Intensity | None:
        """What the values in the files mean; None for images of 8 bits, whose values are 0 to 255."""
        return None

    @property
    def stored_channels(self) -> int:
        """Channels of the decoded arrays; two images are one array, first the channels of the input of the model."""
        return 2 * self.channels if self.paired or self.unpaired else self.channels

    @property
    def truly_paired(self) -> bool:
        """Whether a validation image is the one that the model should make of its input."""
        return not self.unpaired

    def with_levels(self, levels: tuple[float, float] | None) -> Self:
        """With the measured values of black and white, where the file leaves these to its images."""
        return self

    @classmethod
    def own_name(cls) -> str:
        """The name of the source in files."""
        (source,) = get_args(cls.model_fields["source"].annotation)
        return str(source)

    def image_folders(self) -> dict[str, str]:
        """The folders with the images, by the leaves that name them."""
        replayed = {} if self.replay is None else self.replay.image_folders()
        return {leaf.replace("data.", "data.replay.", 1): folder for leaf, folder in replayed.items()}


class Replayed(DataSpec):
    """Images of another domain, mixed into the training batches of the data that they belong to."""

    share: Annotated[float, Field(ge=0.0, lt=1.0), KeepsValidation()]
    """Share of the images of every batch; 0 only measures what the model still knows of that domain."""

    @field_validator("labelled_fraction", "anomaly_classes", "replay", "label_column", check_fields=False)
    @classmethod
    def _belongs_to_the_data(cls, value: Any, info: ValidationInfo) -> Any:
        if value != cls.model_fields[str(info.field_name)].default:
            raise ValueError("has no effect on replayed images: they are trained on, without labels")
        return value

    def rows(self, batch_size: int) -> int:
        """The number of replayed images in a batch; at least one image of a batch is not replayed."""
        return min(round(self.share * batch_size), batch_size - 1)


if TYPE_CHECKING:
    AnyReplayed = Replayed  # at run time the union of all, which ``data`` makes
