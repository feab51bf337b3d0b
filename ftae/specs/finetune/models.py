"""The model of a run: one spec a family, with its own options and the facts the checks need."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, JsonValue, Tag, ValidationInfo, field_validator

from ftae.specs.reading.base import Spec, Weight
from ftae.specs.reading.problems import matching

Size = Annotated[int, Field(ge=1, le=2**16)]  # of a layer; how much of it fits is a question of the machine


class ModelSpec(Spec):
    """What every family shares.

    ``pretrained``: a local folder (diffusers format, or written by ``ftae train``), or a hub id: ``owner/name``,
    or ``owner/name@revision``. A run takes the commit that it finds, and keeps to it.
    """

    pretrained: str | None = None

    # Facts of the family, which no file sets: whether the encoder gives a distribution (None where only
    # the module itself can tell), whether outputs always lie inside the image range, as BCE needs, and
    # whether it is conditioned on labels.
    has_posterior: ClassVar[bool | None] = False
    bounded_output: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    # Whether it quantises, and which options a pretrained model may have had otherwise.
    has_codes: ClassVar[bool] = False
    revisable: ClassVar[frozenset[str]] = frozenset()

    @property
    def gradient_codebook(self) -> bool | None:
        """Whether its codes are trained by gradient; None where only the pretrained model can tell."""
        return False


class FixedResolution(ModelSpec):
    """What the families that are built for one resolution share.

    ``resolution_adapters``: how many pairs of stages wrap the network, one stage on either side; each pair doubles
    the resolution that the model takes: 1 makes a pretrained model of 64 pixels take 128. Adapters of the pretrained
    model are kept, the others are new; untrained they resize. ``None`` keeps the number of the pretrained model.
    """

    resolution_adapters: Annotated[int, Field(ge=0, le=4)] | None = None


class MlpVae(FixedResolution):
    """The classic fully connected VAE: 784-400-20 for 28x28 grey images (Kingma & Welling 2013).

    ``None`` takes the pretrained model's value, or the default: hidden 400, latent_dim 20.
    """

    family: Literal["mlp_vae"]
    hidden: Size | None = None
    latent_dim: Size | None = None
    has_posterior: ClassVar[bool | None] = True
    bounded_output: ClassVar[bool] = True


class ConvAe(ModelSpec):
    """Fully convolutional autoencoder of strided convolutions; takes any multiple of 2**depth.

    ``None`` takes the pretrained model's value, or the default: channels 32, depth 2, latent_channels 8.
    """

    family: Literal["conv_ae"]
    channels: Size | None = None
    depth: Annotated[int, Field(ge=1, le=6)] | None = None
    latent_channels: Size | None = None
    bounded_output: ClassVar[bool] = True


class ConvVae(FixedResolution):
    """VAE of strided convolutions around a linear bottleneck; its resolution is fixed.

    ``None`` takes the pretrained model's value, or the default: channels 32, depth 2, latent_dim 32.
    """

    family: Literal["conv_vae"]
    channels: Size | None = None
    depth: Annotated[int, Field(ge=1, le=6)] | None = None
    latent_dim: Size | None = None
    has_posterior: ClassVar[bool | None] = True
    bounded_output: ClassVar[bool] = True


class MlpCvae(MlpVae):
    """``mlp_vae`` whose encoder and decoder also see the label (Sohn et al. 2015)."""

    family: Literal["mlp_cvae"]  # type: ignore[assignment]
    needs_labels: ClassVar[bool] = True


class ConvCvae(ConvVae):
    """``conv_vae`` whose encoder and decoder also see the label (Sohn et al. 2015)."""

    family: Literal["conv_cvae"]  # type: ignore[assignment]
    needs_labels: ClassVar[bool] = True


class HierarchicalVae(FixedResolution):
    """VAE with a group of latents at each of ``depth`` halvings, whose prior it learns (Vahdat & Kautz 2020).

    ``None`` takes the pretrained model's value, or the default: channels 32, depth 2, latent_channels 4.
    """

    family: Literal["hierarchical_vae"]
    channels: Size | None = None
    depth: Annotated[int, Field(ge=1, le=6)] | None = None
    latent_channels: Size | None = None
    has_posterior: ClassVar[bool | None] = True
    bounded_output: ClassVar[bool] = True


class Quantized(ModelSpec):
    """What the families with codebooks of their own share: strided convolutions around vector quantisers.

    ``codebook``: ``ema`` moves each code to the mean of the vectors that chose it, ``gradient`` trains it by
    ``losses.codebook``. ``ema_decay``, a batch; ``dead_code_threshold``: a code that fewer vectors of a batch
    choose (a moving average) becomes one of them; 0 is never. ``None`` takes the pretrained model's value, or
    the default: channels 32, depth 2, codebook_size 128, code_dim 16, ema, ema_decay 0.99,
    dead_code_threshold 0.
    """

    channels: Size | None = None
    depth: Annotated[int, Field(ge=1, le=6)] | None = None
    codebook_size: Annotated[int, Field(ge=2, le=2**20)] | None = None
    code_dim: Size | None = None
    codebook: Literal["ema", "gradient"] | None = None
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    dead_code_threshold: Weight | None = None
    bounded_output: ClassVar[bool] = True
    has_codes: ClassVar[bool] = True
    revisable: ClassVar[frozenset[str]] = frozenset({"ema_decay", "dead_code_threshold"})

    @field_validator("ema_decay", "dead_code_threshold")
    @classmethod
    def _setting_has_effect(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("codebook") == "gradient":
            raise ValueError("has no effect on a gradient codebook, it needs codebook: ema")
        return value

    @property
    def gradient_codebook(self) -> bool | None:
        if self.codebook is None and self.pretrained is not None:
            return None
        return self.codebook == "gradient"


class VqVae(Quantized):
    """VQ-VAE (van den Oord et al. 2017), fully convolutional: takes any multiple of 2**depth."""

    family: Literal["vq_vae"]


class VqVae2(Quantized):
    """VQ-VAE-2 of two levels (Razavi et al. 2019), fully convolutional: takes any multiple of 2**(depth + 1)."""

    family: Literal["vq_vae_2"]


class DiffusersModel(ModelSpec):
    """A pretrained diffusers autoencoder; ``subfolder`` is ``vae`` inside a whole pipeline.

    ``pretrained`` may also be a file of weights that has the ``config.json`` of its model beside it.
    """

    pretrained: str
    subfolder: str | None = None


class AutoencoderKl(DiffusersModel):
    """diffusers' AutoencoderKL, the VAE of Stable Diffusion; images in [-1, 1]."""

    family: Literal["autoencoder_kl"]
    has_posterior: ClassVar[bool | None] = True


class AsymmetricAutoencoderKl(DiffusersModel):
    """diffusers' AsymmetricAutoencoderKL (Zhu et al. 2023), without a mask to inpaint; images in [-1, 1]."""

    family: Literal["asymmetric_autoencoder_kl"]
    has_posterior: ClassVar[bool | None] = True


class AutoencoderDc(DiffusersModel):
    """diffusers' AutoencoderDC (DC-AE, Chen et al. 2024), without a posterior; images in [-1, 1]."""

    family: Literal["autoencoder_dc"]


class AutoencoderTiny(DiffusersModel):
    """diffusers' AutoencoderTiny (TAESD); images in [-1, 1]."""

    family: Literal["autoencoder_tiny"]


class VqModel(DiffusersModel):
    """diffusers' VQModel, the VQGAN of latent diffusion; images in [-1, 1]. Its codes are trained by gradient."""

    family: Literal["vq_model"]
    has_codes: ClassVar[bool] = True

    @property
    def gradient_codebook(self) -> bool | None:
        return True


class CustomStages(Spec):
    """Sub-modules and parameters of a user's model, in data-flow order, by dotted name."""

    encoder: tuple[str, ...] = ()
    bottleneck: tuple[str, ...] = ()
    decoder: tuple[str, ...] = ()


def _named_range(value: Any) -> Any:
    """A pair of numbers as the range that it is."""
    pairs = {(0, 1): "0..1", (-1, 1): "-1..1"}
    is_pair = isinstance(value, list | tuple) and all(type(end) in (int, float) for end in value)
    return pairs.get(tuple(value), value) if is_pair else value


class CustomModel(ModelSpec):
    """A user's own module: ``family`` is the ``package.module:attr`` that builds it.

    The attribute is called with ``kwargs`` and returns a module with ``encode`` and ``decode``, or
    with ``forward`` alone. ``encode`` returns latents, or ``(mean, logvar)``. ``pretrained`` is a
    state dict: ``.safetensors``, or ``.pt`` loaded with ``weights_only``. ``image_range`` may also be
    written as a pair of numbers.
    """

    family: Annotated[str, matching(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", "written package.module:attr")]
    kwargs: dict[str, JsonValue] = {}
    stages: CustomStages | None = None
    image_range: Annotated[Literal["0..1", "-1..1"], BeforeValidator(_named_range)]
    has_posterior: ClassVar[bool | None] = None


def _family(value: Any) -> str | None:
    """The tag of a model; error messages take the key's name from this function's."""
    family = value.get("family") if isinstance(value, dict) else getattr(value, "family", None)
    return "package.module:attr" if isinstance(family, str) and ":" in family else family


AnyModel = Annotated[
    Annotated[MlpVae, Tag("mlp_vae")]
    | Annotated[ConvAe, Tag("conv_ae")]
    | Annotated[ConvVae, Tag("conv_vae")]
    | Annotated[MlpCvae, Tag("mlp_cvae")]
    | Annotated[ConvCvae, Tag("conv_cvae")]
    | Annotated[HierarchicalVae, Tag("hierarchical_vae")]
    | Annotated[VqVae, Tag("vq_vae")]
    | Annotated[VqVae2, Tag("vq_vae_2")]
    | Annotated[AutoencoderKl, Tag("autoencoder_kl")]
    | Annotated[AsymmetricAutoencoderKl, Tag("asymmetric_autoencoder_kl")]
    | Annotated[AutoencoderTiny, Tag("autoencoder_tiny")]
    | Annotated[AutoencoderDc, Tag("autoencoder_dc")]
    | Annotated[VqModel, Tag("vq_model")]
    | Annotated[CustomModel, Tag("package.module:attr")],
    Discriminator(_family),
]
