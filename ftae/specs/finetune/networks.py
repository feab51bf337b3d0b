"""The networks beside the model: perceptual network, feature network and discriminator."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator

from ftae.specs.finetune.models import TWO_WAY_FAMILIES
from ftae.specs.reading.base import Fraction, Positive, Spec, Weight, absolute
from ftae.specs.reading.schema import Governed


class NetworkSpec(Spec):
    """A network of torchvision with weights from a file."""

    weights: str
    """Its state dict, as torchvision offers it (``.pth``) or as ``.safetensors``."""

    net: str
    FILES: ClassVar[dict[str, str]]
    """For each net, the file that torchvision would download."""

    def missing(self) -> str | None:
        """Says that the file is missing and how to get it; None where it is there."""
        if Path(self.weights).expanduser().is_file():
            return None
        file = self.FILES[self.net]
        return (
            f"{self.weights} is not a file. ftae downloads no weights: fetch {file} of torchvision where there is a "
            f"network, with: curl -LO https://download.pytorch.org/models/{file}"
        )

    def with_absolute_paths(self) -> Self:
        """The same network with an absolute path."""
        return self.model_copy(update={"weights": absolute(self.weights)})


class PerceptualNet(NetworkSpec):
    """The network with which ``lpips`` (any of them) and ``vgg`` (vgg16) compare images."""

    net: Literal["vgg16", "alexnet", "squeezenet"]
    """The name of the network in torchvision."""
    FILES: ClassVar[dict[str, str]] = {
        "vgg16": "vgg16-397923af.pth",
        "alexnet": "alexnet-owt-7be5be79.pth",
        "squeezenet": "squeezenet1_1-b8a52dc0.pth",
    }
    # Pixels a side with which the last layer still has one value.
    LEAST: ClassVar[dict[str, int]] = {"vgg16": 16, "alexnet": 31, "squeezenet": 17}

    @property
    def least_resolution(self) -> int:
        """The smallest resolution that the network takes."""
        return self.LEAST[self.net]


class FeatureNet(NetworkSpec):
    """The network that gives features for ``rfid`` and ``kid``, whose values differ from published ones."""

    net: Literal["inception_v3", "resnet18", "resnet50"]
    """The name of the network in torchvision."""
    FILES: ClassVar[dict[str, str]] = {
        "inception_v3": "inception_v3_google-0cc3c7bd.pth",
        "resnet18": "resnet18-f37072fd.pth",
        "resnet50": "resnet50-11ad3fa6.pth",
    }


Beta = Annotated[float, Field(ge=0.0, lt=1.0)]


class DiscriminatorSpec(Spec):
    """A PatchGAN (Isola et al. 2017) and its training; it has an effect only where ``losses.adversarial`` is on.

    Two convolutions without stride follow the ``depth`` strided ones. The learning rate follows the schedule of the
    run over the time in which the discriminator is trained.
    """

    loss: Literal["hinge", "non_saturating", "lsgan"] = "hinge"
    """The adversarial loss: hinge (Lim & Ye 2017), cross-entropy (Goodfellow et al. 2014), or least squares (Mao et al.
    2017)."""
    norm: Literal["spectral", "group"] = "spectral"
    """Spectral (Miyato et al. 2018) or group normalisation."""
    channels: Positive = 64
    """Channels of the first convolution."""
    depth: Annotated[int, Field(ge=1, le=6)] = 2
    """Number of strided convolutions."""
    conditional: bool | None = None
    """Whether it sees the input of the model beside each image (Mirza & Osindero 2014); null: if the data are pairs."""
    pretrained: str | None = None
    """A state dict of such a discriminator (``.safetensors`` or ``.pt``)."""
    lr: Annotated[float, Field(gt=0.0)] = 2.0e-4
    """Learning rate of Adam."""
    betas: tuple[Beta, Beta] = (0.5, 0.9)
    """Decay rates of Adam."""
    max_grad_norm: Annotated[float, Field(gt=0.0)] | None = 1.0
    """Clips the norm of the discriminator's gradient; null does not clip."""
    start_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """The share of the budget after which the term is part of the model's loss."""
    ramp_fraction: Fraction = 0.1
    """The share of the budget over which the weight of the term then rises linearly."""
    warmup_fraction: Fraction = 0.1
    """The share of the budget, before the start, in which the discriminator alone is trained."""
    adaptive: bool = True
    """Scales the term so that its gradient at the last trainable decoder weight is as large as that of all other terms
    together (Esser et al. 2021, eq. 7)."""
    max_adaptive_weight: Annotated[float, Field(gt=0.0), Governed("discriminator.adaptive")] = 100.0
    """The largest factor by which ``adaptive`` scales the term."""
    r1: Weight = 0.0
    """Gamma of the gradient penalty gamma/2 * E||grad||^2 (Mescheder et al. 2018) in the discriminator's loss: the
    gradient of the mean logit of a real image, summed over its pixels in the range of the model."""
    lecam: Weight = 0.0
    """Weight of the LeCam penalty (Tseng et al. 2021) in the discriminator's loss."""
    pool_size: Annotated[Annotated[int, Field(ge=0)], Governed("model.family", TWO_WAY_FAMILIES)] = 50
    """Outputs of each direction that are kept to be shown again later (Shrivastava et al. 2017); 0 keeps none."""

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
        """The smallest image that gives a logit: the two last convolutions take a pixel each."""
        return 3 << self.depth

    @property
    def begin_fraction(self) -> float:
        """The share of the budget after which the discriminator is trained."""
        return self.start_fraction - self.warmup_fraction

    def share(self, progress: float) -> float:
        """The share of its weight that the term has at ``progress`` (0..1) of the budget; 0 before it starts."""
        if progress < self.start_fraction:
            return 0.0
        passed = progress - self.start_fraction
        return min(1.0, passed / self.ramp_fraction) if self.ramp_fraction > 0.0 else 1.0

    def with_absolute_paths(self) -> "DiscriminatorSpec":
        """The same discriminator with an absolute path to its weights."""
        return self if self.pretrained is None else self.model_copy(update={"pretrained": absolute(self.pretrained)})

    def from_the_start(self) -> "DiscriminatorSpec":
        """The same discriminator with everything in use at step 0, where a step takes the most time and memory."""
        return self.model_copy(update={"start_fraction": 0.0, "ramp_fraction": 0.0, "warmup_fraction": 0.0})


# The defaults beside a model that translates both ways, which are those of Zhu et al. (2017) and of training from the
# first step on: its weights balance its terms as they are.
TWO_WAY: dict[str, Any] = {
    "loss": "lsgan",
    "betas": (0.5, 0.999),
    "max_grad_norm": None,
    "start_fraction": 0.0,
    "ramp_fraction": 0.0,
    "warmup_fraction": 0.0,
    "adaptive": False,
}


def not_shared(workers: int) -> str:
    """Why several workers cannot train a run with the adversarial term."""
    return (
        f"{workers} workers cannot share losses.adversarial: its discriminator is trained by one process alone, "
        "use one worker, or leave the term at 0"
    )
