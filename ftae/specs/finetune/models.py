"""The model of a run: one spec for each family, here those of the autoencoders, and the table of all."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, JsonValue, Tag, ValidationInfo, field_validator

from ftae.specs.finetune.generators import CycleGan, Dcgan, ResnetTranslator, StyleGan2, UnetTranslator
from ftae.specs.finetune.model_spec import Depth, FixedResolution, ModelSpec, Size
from ftae.specs.reading.base import Spec, Weight
from ftae.specs.reading.problems import matching
from ftae.specs.reading.schema import Revisable


class MlpVae(FixedResolution):
    """The classic fully connected VAE: 784-400-20 for 28x28 grey images (Kingma & Welling 2013)."""

    family: Literal["mlp_vae"] = "mlp_vae"
    hidden: Size | None = None
    """Width of the hidden layers; 400 by default."""
    latent_dim: Size | None = None
    """Number of latents; 20 by default."""
    has_posterior: ClassVar[bool | None] = True
    bounded_output: ClassVar[bool] = True


class ConvAe(ModelSpec):
    """Fully convolutional autoencoder of strided convolutions; takes any multiple of 2**depth."""

    family: Literal["conv_ae"] = "conv_ae"
    channels: Size | None = None
    """Channels of the first convolution; 32 by default."""
    depth: Depth | None = None
    """Number of halvings; 2 by default."""
    latent_channels: Size | None = None
    """Channels of the latents; 8 by default."""
    bounded_output: ClassVar[bool] = True


class ConvVae(FixedResolution):
    """VAE of strided convolutions around a linear bottleneck, for one resolution."""

    family: Literal["conv_vae"] = "conv_vae"
    channels: Size | None = None
    """Channels of the first convolution; 32 by default."""
    depth: Depth | None = None
    """Number of halvings; 2 by default."""
    latent_dim: Size | None = None
    """Number of latents; 32 by default."""
    has_posterior: ClassVar[bool | None] = True
    bounded_output: ClassVar[bool] = True


class MlpCvae(MlpVae):
    """``mlp_vae`` whose encoder and decoder also get the label (Sohn et al. 2015)."""

    family: Literal["mlp_cvae"] = "mlp_cvae"  # type: ignore[assignment]
    needs_labels: ClassVar[bool] = True


class ConvCvae(ConvVae):
    """``conv_vae`` whose encoder and decoder also get the label (Sohn et al. 2015)."""

    family: Literal["conv_cvae"] = "conv_cvae"  # type: ignore[assignment]
    needs_labels: ClassVar[bool] = True


class HierarchicalVae(FixedResolution):
    """VAE with a group of latents at each halving and a learned prior (Vahdat & Kautz 2020)."""

    family: Literal["hierarchical_vae"] = "hierarchical_vae"
    channels: Size | None = None
    """Channels of the first convolution; 32 by default."""
    depth: Depth | None = None
    """Number of halvings; 2 by default."""
    latent_channels: Size | None = None
    """Channels of each group of latents; 4 by default."""
    has_posterior: ClassVar[bool | None] = True
    bounded_output: ClassVar[bool] = True


class Quantized(ModelSpec):
    """The fields of the families with their own codebooks: strided convolutions around vector quantisers."""

    channels: Size | None = None
    """Channels of the first convolution; 32 by default."""
    depth: Depth | None = None
    """Number of halvings; 2 by default."""
    codebook_size: Annotated[int, Field(ge=2, le=2**20)] | None = None
    """Number of codes; 128 by default."""
    code_dim: Size | None = None
    """Length of a code; 16 by default."""
    codebook: Literal["ema", "gradient"] | None = None
    """How codes are trained: ``ema`` moves each code to the mean of the vectors that chose it, ``gradient`` trains it
    by ``losses.codebook``. ``ema`` by default."""
    ema_decay: Annotated[Annotated[float, Field(ge=0.0, lt=1.0)] | None, Revisable()] = None
    """Decay of the moving averages per batch; 0.99 by default."""
    dead_code_threshold: Annotated[Weight | None, Revisable()] = None
    """A code that fewer vectors of a batch choose (a moving average) is replaced by one of them; 0, the default, never
    replaces one."""
    bounded_output: ClassVar[bool] = True
    has_codes: ClassVar[bool] = True

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

    family: Literal["vq_vae"] = "vq_vae"


class VqVae2(Quantized):
    """VQ-VAE-2 of two levels (Razavi et al. 2019), fully convolutional: takes any multiple of 2**(depth + 1)."""

    family: Literal["vq_vae_2"] = "vq_vae_2"


class DiffusersModel(ModelSpec):
    """A pretrained autoencoder of diffusers."""

    pretrained: str
    """A local folder in diffusers format, a hub id (``owner/name`` or ``owner/name@revision``), or a file of weights.
    The ``config.json`` of its model must lie beside a file; ``autoencoder_kl``, ``autoencoder_kl_flux2`` and
    ``vq_model`` need none."""
    subfolder: str | None = None
    """The folder of the autoencoder inside a whole pipeline, such as ``vae``."""


class Scaling(Spec):
    """How a diffusion model takes latents: ``(latents - shift) * factor``."""

    factor: Annotated[float, Field(gt=0.0)]
    """``scaling_factor`` in diffusers' ``config.json``."""
    shift: float | None = None
    """``shift_factor`` in diffusers' ``config.json``."""


class AutoencoderKl(DiffusersModel):
    """diffusers' AutoencoderKL, the VAE of Stable Diffusion; images in [-1, 1]."""

    family: Literal["autoencoder_kl"] = "autoencoder_kl"
    scaling: Literal["sd", "sdxl", "sd3", "flux"] | Scaling | None = None
    """Whose latents those of a file without a ``config.json`` are: Stable Diffusion 1 or 2, SDXL, Stable Diffusion 3,
    Flux.1, or another ``{factor, shift}``. Required for such a file, which does not say it; training does not depend on
    it, exported models do."""
    has_posterior: ClassVar[bool | None] = True
    SCALINGS: ClassVar[dict[str, Scaling]] = {
        "sd": Scaling(factor=0.18215),
        "sdxl": Scaling(factor=0.13025),
        "sd3": Scaling(factor=1.5305, shift=0.0609),
        "flux": Scaling(factor=0.3611, shift=0.1159),
    }


class AutoencoderKlFlux2(DiffusersModel):
    """diffusers' AutoencoderKLFlux2, the VAE of Flux.2; images in [-1, 1]."""

    family: Literal["autoencoder_kl_flux2"] = "autoencoder_kl_flux2"
    has_posterior: ClassVar[bool | None] = True


class AsymmetricAutoencoderKl(DiffusersModel):
    """diffusers' AsymmetricAutoencoderKL (Zhu et al. 2023), without a mask to inpaint; images in [-1, 1]."""

    family: Literal["asymmetric_autoencoder_kl"] = "asymmetric_autoencoder_kl"
    has_posterior: ClassVar[bool | None] = True


class AutoencoderDc(DiffusersModel):
    """diffusers' AutoencoderDC (DC-AE, Chen et al. 2024), without a posterior; images in [-1, 1]."""

    family: Literal["autoencoder_dc"] = "autoencoder_dc"


class AutoencoderTiny(DiffusersModel):
    """diffusers' AutoencoderTiny (TAESD); images in [-1, 1]."""

    family: Literal["autoencoder_tiny"] = "autoencoder_tiny"


class VqModel(DiffusersModel):
    """diffusers' VQModel, the VQGAN of latent diffusion, whose codes are trained by gradient; images in [-1, 1]."""

    family: Literal["vq_model"] = "vq_model"
    has_codes: ClassVar[bool] = True

    @property
    def gradient_codebook(self) -> bool | None:
        return True


class CustomStages(Spec):
    """Sub-modules and parameters of a user's model by dotted name, in data-flow order."""

    encoder: tuple[str, ...] = ()
    """Those of the encoder."""
    bottleneck: tuple[str, ...] = ()
    """Those between encoder and decoder."""
    decoder: tuple[str, ...] = ()
    """Those of the decoder."""


def _named_range(value: Any) -> Any:
    """A pair of numbers as the name of the range."""
    pairs = {(0, 1): "0..1", (-1, 1): "-1..1"}
    is_pair = isinstance(value, list | tuple) and all(type(end) in (int, float) for end in value)
    return pairs.get(tuple(value), value) if is_pair else value


class CustomModel(ModelSpec):
    """A user's own module, with ``encode`` and ``decode``, with ``forward`` alone, or with nothing but the children
    ``encoder`` and ``decoder``.

    What encodes returns latents, ``(mean, logvar)`` or a distribution, what decodes the reconstruction: alone, in a
    tuple, in a dict, or in another object such as the outputs of diffusers. ``pretrained`` is a state dict:
    ``.safetensors``, or ``.pt``, of which only tensors are read.
    """

    family: Annotated[str, matching(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", "written package.module:attr")]
    """``package.module:attr``: the class or function that builds the module."""
    kwargs: dict[str, JsonValue] = {}
    """The keyword arguments that it is called with."""
    stages: CustomStages | None = None
    """The stages of the module; by default its children in order."""
    image_range: Annotated[Literal["0..1", "-1..1"], BeforeValidator(_named_range)]
    """The range of the images that the module takes and gives; may be written as a pair of numbers."""
    has_posterior: ClassVar[bool | None] = None


def _family(value: Any) -> str | None:
    """The tag of a model; the name of this function gives messages the name of the key."""
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
    | Annotated[UnetTranslator, Tag("unet_translator")]
    | Annotated[ResnetTranslator, Tag("resnet_translator")]
    | Annotated[Dcgan, Tag("dcgan")]
    | Annotated[StyleGan2, Tag("stylegan2")]
    | Annotated[CycleGan, Tag("cyclegan")]
    | Annotated[AutoencoderKl, Tag("autoencoder_kl")]
    | Annotated[AutoencoderKlFlux2, Tag("autoencoder_kl_flux2")]
    | Annotated[AsymmetricAutoencoderKl, Tag("asymmetric_autoencoder_kl")]
    | Annotated[AutoencoderTiny, Tag("autoencoder_tiny")]
    | Annotated[AutoencoderDc, Tag("autoencoder_dc")]
    | Annotated[VqModel, Tag("vq_model")]
    | Annotated[CustomModel, Tag("package.module:attr")],
    Discriminator(_family),
]
