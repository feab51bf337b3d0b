"""The model of a run: one spec a family, with its own options and the facts the checks need."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, JsonValue, Tag

from ftae.specs.base import Positive, Spec
from ftae.specs.problems import matching


class ModelSpec(Spec):
    """What every family shares.

    ``pretrained``: a local folder (diffusers format, or written by ``ftae train``), or a hub id.
    """

    pretrained: str | None = None

    # Facts of the family, which no file sets: whether the encoder gives a distribution (None where only
    # the module itself can tell), whether outputs always lie inside the image range, as BCE needs, and
    # whether it is conditioned on labels.
    has_posterior: ClassVar[bool | None] = False
    bounded_output: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False


class FixedResolution(ModelSpec):
    """What the families that are built for one resolution share.

    ``outer_stages``: how many stages stand around the network on either side, each of which doubles the
    resolution that the model takes: 1 makes a pretrained model of 64 pixels take 128. What the pretrained
    model has of them is kept, the others are new; untrained they resize. ``None`` keeps what it has.
    """

    outer_stages: Annotated[int, Field(ge=0, le=4)] | None = None


class MlpVae(FixedResolution):
    """The classic fully connected VAE: 784-400-20 for 28x28 grey images (Kingma & Welling 2013).

    ``None`` takes the pretrained model's value, or the default: hidden 400, latent_dim 20.
    """

    family: Literal["mlp_vae"]
    hidden: Positive | None = None
    latent_dim: Positive | None = None
    has_posterior: ClassVar[bool | None] = True
    bounded_output: ClassVar[bool] = True


class ConvAe(ModelSpec):
    """Fully convolutional autoencoder of strided convolutions; takes any multiple of 2**depth.

    ``None`` takes the pretrained model's value, or the default: channels 32, depth 2, latent_channels 8.
    """

    family: Literal["conv_ae"]
    channels: Positive | None = None
    depth: Annotated[int, Field(ge=1, le=6)] | None = None
    latent_channels: Positive | None = None
    bounded_output: ClassVar[bool] = True


class ConvVae(FixedResolution):
    """VAE of strided convolutions around a linear bottleneck; its resolution is fixed.

    ``None`` takes the pretrained model's value, or the default: channels 32, depth 2, latent_dim 32.
    """

    family: Literal["conv_vae"]
    channels: Positive | None = None
    depth: Annotated[int, Field(ge=1, le=6)] | None = None
    latent_dim: Positive | None = None
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
    channels: Positive | None = None
    depth: Annotated[int, Field(ge=1, le=6)] | None = None
    latent_channels: Positive | None = None
    has_posterior: ClassVar[bool | None] = True
    bounded_output: ClassVar[bool] = True


class DiffusersModel(ModelSpec):
    """A pretrained diffusers autoencoder; ``subfolder`` is ``vae`` inside a whole pipeline."""

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


class CustomStages(Spec):
    """Sub-modules of a user's model, in data-flow order, by dotted name."""

    encoder: tuple[str, ...] = ()
    bottleneck: tuple[str, ...] = ()
    decoder: tuple[str, ...] = ()


class CustomModel(ModelSpec):
    """A user's own module: ``family`` is the ``package.module:attr`` that builds it.

    The attribute is called with ``kwargs`` and returns a module with ``encode`` and ``decode``, or
    with ``forward`` alone. ``encode`` returns latents, or ``(mean, logvar)``. ``pretrained`` is a
    state dict: ``.safetensors``, or ``.pt`` loaded with ``weights_only``.
    """

    family: Annotated[str, matching(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", "written package.module:attr")]
    kwargs: dict[str, JsonValue] = {}
    stages: CustomStages | None = None
    image_range: Literal["0..1", "-1..1"]
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
    | Annotated[AutoencoderKl, Tag("autoencoder_kl")]
    | Annotated[AsymmetricAutoencoderKl, Tag("asymmetric_autoencoder_kl")]
    | Annotated[AutoencoderTiny, Tag("autoencoder_tiny")]
    | Annotated[AutoencoderDc, Tag("autoencoder_dc")]
    | Annotated[CustomModel, Tag("package.module:attr")],
    Discriminator(_family),
]
