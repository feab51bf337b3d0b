"""The model of a run: one spec for each family, with its options and the facts that checks need.

An option that is None takes the value of the pretrained model, or the default of the family.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, JsonValue, Tag, ValidationInfo, field_validator

from ftae.specs.reading.base import Spec, Weight
from ftae.specs.reading.problems import matching
from ftae.specs.reading.schema import Revisable, fields_with

Size = Annotated[int, Field(ge=1, le=2**16)]  # of a layer; whether it fits into memory, the machine decides
Depth = Annotated[int, Field(ge=1, le=6)]


class ModelSpec(Spec):
    """The fields and facts that all families share."""

    pretrained: str | None = None
    """Where the weights come from: a local folder (in diffusers format, or written by ftae), or a hub id
    ``owner/name`` or ``owner/name@revision``, of which a run keeps the commit that it finds. None: from scratch."""

    has_posterior: ClassVar[bool | None] = False
    """Whether the encoder gives a distribution; None where only the module itself can tell."""
    bounded_output: ClassVar[bool] = False
    """Whether outputs always lie inside the image range, as binary cross-entropy needs."""
    needs_labels: ClassVar[bool] = False
    """Whether the model is conditioned on labels."""
    has_codes: ClassVar[bool] = False
    """Whether the encoder chooses from a codebook."""
    has_latents: ClassVar[bool] = True
    """Whether the model is an autoencoder, whose latents alone give the reconstruction; a translator is none."""
    takes_noise: ClassVar[bool] = False
    """Whether the model is a generator, which makes images of noise."""
    has_styles: ClassVar[bool] = False
    """Whether a generator maps its noise to styles first."""
    both_ways: ClassVar[bool] = False
    """Whether the model translates from A to B and from B to A, and learns that from images without partners."""

    @property
    def gradient_codebook(self) -> bool | None:
        """Whether the codes are trained by gradient; None where only the pretrained model can tell."""
        return False

    @property
    def revisable(self) -> frozenset[str]:
        """The options that may differ from those of the pretrained model."""
        return frozenset(fields_with(type(self), Revisable))


class FixedResolution(ModelSpec):
    """The fields of the families that are built for one resolution."""

    resolution_adapters: Annotated[int, Field(ge=0, le=4)] | None = None
    """How many pairs of stages wrap the network, one stage on either side. Each pair doubles the resolution that the
    model takes: 1 makes a pretrained model of 64 pixels take 128. Adapters of the pretrained model are kept, the others
    are new; untrained they only resize. None keeps the number of the pretrained model."""


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


class Translator(ModelSpec):
    """The fields and facts of the families that make another image of an image, without latents in between."""

    channels: Size | None = None
    """Channels of the first convolution; 64 by default."""
    bounded_output: ClassVar[bool] = True
    has_latents: ClassVar[bool] = False


class UnetTranslator(Translator):
    """The U-Net of Pix2Pix (Isola et al. 2017); takes any multiple of 2**depth, images in [-1, 1].

    Normalised by instance, as batch normalisation is for the paper's batches of one image.
    """

    family: Literal["unet_translator"] = "unet_translator"
    depth: Annotated[int, Field(ge=1, le=8)] | None = None
    """Number of halvings; 4 by default, 8 in the paper, for images of 256 pixels."""
    dropout: Annotated[Annotated[float, Field(ge=0.0, lt=1.0)] | None, Revisable()] = None
    """Probability of dropout in the first three decoder stages, in training alone; 0.5 by default."""


class ResnetTranslator(Translator):
    """The residual generator of Johnson et al. (2016) and CycleGAN; takes any multiple of 4, images in [-1, 1]."""

    family: Literal["resnet_translator"] = "resnet_translator"
    blocks: Annotated[int, Field(ge=1, le=64)] | None = None
    """Number of residual blocks; 6 by default, CycleGAN has 9 from 256 pixels on."""


class Generator(ModelSpec):
    """The fields and facts of the families that make images of noise, each for one resolution, a power of two."""

    latent_dim: Size | None = None
    """Length of the noise; that of the family by default."""
    has_latents: ClassVar[bool] = False
    takes_noise: ClassVar[bool] = True


class Dcgan(Generator):
    """The generator of DCGAN (Radford et al. 2015): transposed convolutions, batch normalisation; images in [-1, 1]."""

    family: Literal["dcgan"] = "dcgan"
    channels: Size | None = None
    """Channels of the last hidden layer, from which the width doubles towards the noise; 64 by default."""
    bounded_output: ClassVar[bool] = True


class StyleGan2(Generator):
    """The generator of StyleGAN2 (Karras et al. 2020), without labels; images in [-1, 1]."""

    family: Literal["stylegan2"] = "stylegan2"
    style_dim: Size | None = None
    """Length of a style, which the mapping makes of the noise; 512 by default."""
    mapping_layers: Annotated[int, Field(ge=1, le=16)] | None = None
    """Number of layers of the mapping; 8 by default."""
    channel_base: Annotated[int, Field(ge=1, le=2**20)] | None = None
    """Channels times the side of a stage, up to ``channel_max``; 16384 by default, 32768 in the paper."""
    channel_max: Size | None = None
    """The most channels of a stage; 512 by default."""
    style_mixing: Annotated[Annotated[float, Field(ge=0.0, le=1.0)] | None, Revisable()] = None
    """Probability, in training alone, that the stages behind a random one get the style of other noise; 0.9 by
    default."""
    has_styles: ClassVar[bool] = True


class CycleGan(ResnetTranslator):
    """The two generators of CycleGAN (Zhu et al. 2017): ``resnet_translator`` from A to B, and from B to A."""

    family: Literal["cyclegan"] = "cyclegan"  # type: ignore[assignment]
    both_ways: ClassVar[bool] = True


TWO_WAY_FAMILIES = ("cyclegan",)


class DiffusersModel(ModelSpec):
    """A pretrained autoencoder of diffusers."""

    pretrained: str
    """A local folder in diffusers format, a hub id (``owner/name`` or ``owner/name@revision``), or a file of weights
    that has the ``config.json`` of its model beside it."""
    subfolder: str | None = None
    """The folder of the autoencoder inside a whole pipeline, such as ``vae``."""


class AutoencoderKl(DiffusersModel):
    """diffusers' AutoencoderKL, the VAE of Stable Diffusion; images in [-1, 1]."""

    family: Literal["autoencoder_kl"] = "autoencoder_kl"
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
    """A user's own module, with ``encode`` and ``decode``, or with ``forward`` alone.

    ``encode`` returns latents, or ``(mean, logvar)``. ``pretrained`` is a state dict: ``.safetensors``, or ``.pt``,
    of which only tensors are read.
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
    | Annotated[AsymmetricAutoencoderKl, Tag("asymmetric_autoencoder_kl")]
    | Annotated[AutoencoderTiny, Tag("autoencoder_tiny")]
    | Annotated[AutoencoderDc, Tag("autoencoder_dc")]
    | Annotated[VqModel, Tag("vq_model")]
    | Annotated[CustomModel, Tag("package.module:attr")],
    Discriminator(_family),
]

GENERATOR_FAMILIES = ("dcgan", "stylegan2")
