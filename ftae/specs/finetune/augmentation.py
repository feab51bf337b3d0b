"""What is done at random to all images that a discriminator sees."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from ftae.specs.reading.base import Fraction, Spec
from ftae.specs.reading.schema import Governed, without_effect

PolicyPart = Literal["flip", "translation", "geometry", "color", "cutout"]
# Of each augmentation, the parts that it knows and those that it has by default.
PARTS: dict[str, tuple[PolicyPart, ...]] = {
    "diffaugment": ("color", "translation", "cutout"),
    "ada": ("flip", "translation", "geometry", "color", "cutout"),
}
DEFAULTS: dict[str, tuple[PolicyPart, ...]] = {
    "none": (),
    "diffaugment": PARTS["diffaugment"],
    "ada": ("flip", "translation", "geometry", "color"),
}


class AugmentSpec(Spec):
    """Augmentation of real and generated images alike, so that a discriminator of few images cannot learn them by
    heart.

    Below about 30,000 images it helps.
    """

    name: Literal["none", "diffaugment", "ada"] = "none"
    """``diffaugment`` changes every image (Zhao et al. 2020); ``ada`` changes each with a probability that rises while
    the discriminator overfits (Karras et al. 2020)."""
    policy: Annotated[
        Annotated[tuple[PolicyPart, ...], Field(min_length=1)] | None,
        Governed("discriminator.augment.name", ("diffaugment", "ada")),
    ] = None
    """What is changed: ``color``, ``translation``, ``cutout``, and of ``ada`` also ``flip`` (left-right) and
    ``geometry`` (scale, anisotropy, a shift by parts of a pixel). null is all but the ``cutout`` of ``ada``."""
    turns: Annotated[bool, Governed("discriminator.augment.name", ("ada",))] = False
    """Whether ``geometry`` also turns images. A generator then learns to turn them, unless they have no upright."""
    target: Annotated[Fraction, Governed("discriminator.augment.name", ("ada",))] = 0.6
    """The mean sign of the logits of training images above which the probability rises, and below which it falls."""
    speed_fraction: Annotated[
        Annotated[float, Field(gt=0.0, le=1.0)], Governed("discriminator.augment.name", ("ada",))
    ] = 0.1
    """The share of the budget in which the probability could rise from 0 to 1; it is at most 0.8."""

    @field_validator("policy", "turns", "target", "speed_fraction")
    @classmethod
    def _setting_has_effect(cls, value: Any, info: ValidationInfo) -> Any:
        if (idle := without_effect(cls, value, info)) is not None:
            raise ValueError(f"has no effect where name is {info.data['name']}, it needs {' or '.join(idle.values)}")
        return value

    @field_validator("policy")
    @classmethod
    def _parts_are_known(cls, policy: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
        name = info.data.get("name")
        unknown = [part for part in policy or () if name in PARTS and part not in PARTS[name]]
        if unknown:
            raise ValueError(f"{name} has no {unknown[0]}, it has {', '.join(PARTS[str(name)])}")
        return policy

    @field_validator("turns")
    @classmethod
    def _images_are_moved(cls, turns: bool, info: ValidationInfo) -> bool:
        policy = info.data.get("policy")
        if turns and policy is not None and "geometry" not in policy:
            raise ValueError("has no effect, policy has no geometry")
        return turns

    @property
    def parts(self) -> tuple[PolicyPart, ...]:
        """What is changed."""
        return DEFAULTS[self.name] if self.policy is None else self.policy
