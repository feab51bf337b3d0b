"""The networks beside the model: perceptual network, feature network and discriminator."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from ftae.specs.reading.base import Fraction, Positive, Spec, Weight, absolute


class NetworkSpec(Spec):
    """A torchvision network. ``weights``: its state dict, as torchvision offers it (.pth) or as .safetensors."""

    weights: str

    FILES: ClassVar[dict[str, str]]  # of each net, the file that torchvision would download
    net: str

    def missing(self) -> str | None:
        """That the file is not there, and how to get it; None where it is."""
        if Path(self.weights).expanduser().is_file():
            return None
        file = self.FILES[self.net]
        return (
            f"{self.weights} is not a file. ftae downloads no weights: fetch {file} of torchvision where there is a "
            f"network, with: curl -LO https://download.pytorch.org/models/{file}"
        )

    def with_absolute_paths(self) -> "NetworkSpec":
        """The same with an absolute path."""
        return self.model_copy(update={"weights": str(Path(self.weights).expanduser().absolute())})


class PerceptualNet(NetworkSpec):
    """What ``lpips`` (any of them) and ``vgg`` (vgg16) compare images by."""

    net: Literal["vgg16", "alexnet", "squeezenet"]
    FILES: ClassVar[dict[str, str]] = {
        "vgg16": "vgg16-397923af.pth",
        "alexnet": "alexnet-owt-7be5be79.pth",
        "squeezenet": "squeezenet1_1-b8a52dc0.pth",
    }
    # Pixels a side of which the last layer still has one value.
    LEAST: ClassVar[dict[str, int]] = {"vgg16": 16, "alexnet": 31, "squeezenet": 17}

    @property
    def least_resolution(self) -> int:
        return self.LEAST[self.net]


class FeatureNet(NetworkSpec):
    """What ``rfid`` and ``kid`` take the features of images from. Their values are not those of published FIDs."""

    net: Literal["inception_v3", "resnet18", "resnet50"]
    FILES: ClassVar[dict[str, str]] = {
        "inception_v3": "inception_v3_google-0cc3c7bd.pth",
        "resnet18": "resnet18-f37072fd.pth",
        "resnet50": "resnet50-11ad3fa6.pth",
    }


Beta = Annotated[float, Field(ge=0.0, lt=1.0)]


class DiscriminatorSpec(Spec):
    """A PatchGAN (Isola et al. 2017) and its training; it plays no part where ``losses.adversarial`` is 0.

    ``depth`` strided convolutions, the first ``channels`` wide, then two that are not; ``norm`` is spectral
    (Miyato et al. 2018) or group normalisation. ``pretrained``: a state dict of one (``.safetensors``, ``.pt``).
    The model sees the term from ``start_fraction`` of the budget on, its weight raised linearly over
    ``ramp_fraction``; for ``warmup_fraction`` before that the discriminator is trained alone. Its learning
    rate follows the run's schedule over its own time; ``max_grad_norm`` clips its own gradient.

    ``adaptive``: the term is scaled so that its gradient at the last trainable decoder weight is as large as
    that of all other terms (Esser et al. 2021, eq. 7), by at most ``max_adaptive_weight``.

    ``r1``: gamma of gamma/2 * E||grad||^2 (Mescheder et al. 2018), summed over the pixels of a real image in the
    model's range, of its mean logit. ``lecam``: weight of Tseng et al. 2021. Both are of the discriminator's loss.
    """

    loss: Literal["hinge", "non_saturating"] = "hinge"
    norm: Literal["spectral", "group"] = "spectral"
    channels: Positive = 64
    depth: Annotated[int, Field(ge=1, le=6)] = 2
    pretrained: str | None = None
    lr: Annotated[float, Field(gt=0.0)] = 2.0e-4
    betas: tuple[Beta, Beta] = (0.5, 0.9)
    max_grad_norm: Annotated[float, Field(gt=0.0)] | None = 1.0
    start_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    ramp_fraction: Fraction = 0.1
    warmup_fraction: Fraction = 0.1
    adaptive: bool = True
    max_adaptive_weight: Annotated[float, Field(gt=0.0)] = 100.0
    r1: Weight = 0.0
    lecam: Weight = 0.0

    @field_validator("ramp_fraction", "warmup_fraction")
    @classmethod
    def _lies_in_the_budget(cls, value: float, info: ValidationInfo) -> float:
        start = info.data.get("start_fraction", 0.0)
        if info.field_name == "ramp_fraction" and start + value > 1.0:
            raise ValueError(f"must end within the budget, start_fraction {start:g} + {value:g} is more than 1")
        if info.field_name == "warmup_fraction" and value > start:
            raise ValueError(f"must be at most start_fraction ({start:g}), which it comes before, got {value:g}")
        return value

    @field_validator("max_adaptive_weight")
    @classmethod
    def _setting_has_effect(cls, value: float, info: ValidationInfo) -> Any:
        default = cls.model_fields["max_adaptive_weight"].default
        if info.data.get("adaptive") is False and value != default:
            raise ValueError("has no effect where adaptive is false")
        return value

    @property
    def least_resolution(self) -> int:
        """The smallest image that it gives a logit for: the two last convolutions take a pixel each."""
        return 3 << self.depth

    @property
    def begin_fraction(self) -> float:
        """Where its own training begins."""
        return self.start_fraction - self.warmup_fraction

    def share(self, progress: float) -> float:
        """The share of its weight that the term has at ``progress`` (0..1) of the budget; 0: it is not there."""
        if progress < self.start_fraction:
            return 0.0
        passed = progress - self.start_fraction
        return min(1.0, passed / self.ramp_fraction) if self.ramp_fraction > 0.0 else 1.0

    def with_absolute_paths(self) -> "DiscriminatorSpec":
        """The same with an absolute path to its weights."""
        return self if self.pretrained is None else self.model_copy(update={"pretrained": absolute(self.pretrained)})

    def from_the_start(self) -> "DiscriminatorSpec":
        """The same with everything there at step 0, as it takes the most time and memory."""
        return self.model_copy(update={"start_fraction": 0.0, "ramp_fraction": 0.0, "warmup_fraction": 0.0})


def not_shared(workers: int) -> str:
    """Why several workers cannot train a run with the adversarial term."""
    return (
        f"{workers} workers cannot share losses.adversarial: its discriminator is trained by one process alone, "
        "use one worker, or leave the term at 0"
    )
