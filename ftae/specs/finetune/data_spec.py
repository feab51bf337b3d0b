"""What the specs of all sources of images share."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import Field, ValidationInfo, field_validator

from ftae.specs.finetune.images import Degradation
from ftae.specs.reading.base import Positive, Spec
from ftae.specs.reading.problems import Problem, one_of, quoted, refusal
from ftae.specs.reading.schema import KeepsValidation


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


class DataSpec(Spec):
    """The fields that all sources share. Images are square, grey or RGB, with 8 bits a channel.

    Each source declares four facts, which no file sets: ``has_labels`` (None where only the images can tell),
    ``has_factors``, whether the factors of variation of its images are known, ``paired``, whether an image has a
    partner: the model gets the one and learns to give the other, and ``unpaired``, whether its images are of two
    domains, between which the model learns to translate without partners.
    """

    has_labels: ClassVar[bool | None] = None
    has_factors: ClassVar[bool] = False
    paired: ClassVar[bool] = False
    unpaired: ClassVar[bool] = False
    if TYPE_CHECKING:
        source: str  # each source has its own name here

    resolution: Annotated[int, Field(ge=8, le=4096)]
    """Pixels a side of the images that the model gets."""
    color: Literal["rgb", "grey"] = "rgb"
    """Colour of the images; files in other colours are converted."""
    # The number comes first in the union: YAML reads 1e-1 as text, which must not become the name of a folder.
    val: Annotated[Annotated[float, Field(gt=0.0, lt=1.0)] | str, Field(union_mode="left_to_right")] = 0.1
    """Share of the images that is held out for validation, always the same images; or a folder (archive) of its own."""
    random_crop_from: Positive | None = None
    """Decode at this side and train on random crops of ``resolution``; validation takes the centre."""
    flip: Annotated[bool, KeepsValidation()] = False
    """Mirror training images left-right at random."""
    fingerprint: str | None = None
    """The images must be those with this fingerprint; a search sets it for its trials. Images that are in the cache
    of the machine count, even where their files have changed since."""
    degrade: Degradation | None = None
    """The model gets degraded images and is compared with the clean ones; of pairs, only the input is degraded."""
    labelled_fraction: Annotated[float, Field(gt=0.0, le=1.0), KeepsValidation()] = 1.0
    """Share of the training images of each class that keeps its label, at least one. The images are always the same,
    and those of a smaller share are among those of a larger one."""
    anomaly_classes: tuple[ClassName, ...] = ()
    """Classes whose images are never trained on; validation measures them apart."""
    replay: Annotated["AnyReplayed | None", Field(discriminator="source")] = None
    """Images of the domain that the model comes from, mixed into every training batch."""

    @field_validator("random_crop_from")
    @classmethod
    def _crop_has_room(cls, side: int | None, info: ValidationInfo) -> int | None:
        resolution = info.data.get("resolution")
        if side is not None and resolution is not None and side <= resolution:
            raise ValueError(f"must be larger than resolution ({resolution}) to have an effect, got {side}")
        return side

    @field_validator("labelled_fraction", "anomaly_classes")
    @classmethod
    def _labels_are_there(cls, value: Any, info: ValidationInfo) -> Any:
        if cls.has_labels is False and value != cls.model_fields[str(info.field_name)].default:
            (source,) = get_args(cls.model_fields["source"].annotation)
            raise ValueError(f"has no effect, {source} has no labels, got {quoted(value)}")
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
        if degrade.blur_radius() >= resolution:
            found.append((("blur",), f"3 sigma must be less than resolution ({resolution}), got {degrade.blur:g}"))
        if degrade.blocks is not None and degrade.blocks.size >= resolution:
            rule = f"must be less than resolution ({resolution}), got {degrade.blocks.size}"
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
                ((name,), f"must be that of data ({own[name]}), got {quoted(getattr(replay, name))}")
                for name in differing
            )
        return replay

    def with_absolute_paths(self) -> Self:
        """The same images with absolute paths."""
        return self if self.replay is None else self.model_copy(update={"replay": self.replay.with_absolute_paths()})

    @property
    def decoded_side(self) -> int:
        """Pixels a side of the decoded arrays."""
        return self.random_crop_from or self.resolution

    @property
    def channels(self) -> int:
        """Channels of the images: 3 or 1."""
        return 3 if self.color == "rgb" else 1

    @property
    def stored_channels(self) -> int:
        """Channels of the decoded arrays; two images are one array, first the channels of the input of the model."""
        return 2 * self.channels if self.paired or self.unpaired else self.channels

    @property
    def truly_paired(self) -> bool:
        """Whether a validation image is the one that the model should make of its input."""
        return not self.unpaired

    @property
    def grey_levels(self) -> tuple[int, int] | None:
        """The values of 16-bit grey images that are black and white; None where the file does not say."""
        return None

    @property
    def most_bits(self) -> int | None:
        """The largest number of bits that values of 16-bit grey images have; None where the file does not say."""
        return None

    def image_folders(self) -> dict[str, str]:
        """The folders with the images, by the leaves that name them."""
        replayed = {} if self.replay is None else self.replay.image_folders()
        return {leaf.replace("data.", "data.replay.", 1): folder for leaf, folder in replayed.items()}


class Replayed(DataSpec):
    """Images of another domain, mixed into the training batches of the data that they belong to."""

    share: Annotated[float, Field(ge=0.0, lt=1.0), KeepsValidation()]
    """Share of the images of every batch; 0 only measures what the model still knows of that domain."""

    @field_validator("labelled_fraction", "anomaly_classes", "replay")
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
