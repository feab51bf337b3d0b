"""The models that make other images than they get: translators, and generators of noise."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ftae.specs.finetune.model_spec import ModelSpec, Size
from ftae.specs.reading.schema import Revisable

TWO_WAY_FAMILIES, GENERATOR_FAMILIES = ("cyclegan",), ("dcgan", "stylegan2")


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


class CycleGan(ResnetTranslator):
    """The two generators of CycleGAN (Zhu et al. 2017): ``resnet_translator`` from A to B, and from B to A."""

    family: Literal["cyclegan"] = "cyclegan"  # type: ignore[assignment]
    both_ways: ClassVar[bool] = True


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
