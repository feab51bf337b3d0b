"""FAMILIES: from a spec to a model ready to train. A family is one entry of the table."""

from collections.abc import Callable
from typing import Any

import torch

from ftae.engine.models.autoencoder import Autoencoder, ClassificationHead, Encoding
from ftae.engine.models.builtin.conv_mlp import ConvAeNet, ConvCvaeNet, ConvVaeNet, MlpCvaeNet, MlpVaeNet
from ftae.engine.models.builtin.family import builtin_family
from ftae.engine.models.builtin.hierarchical import HierarchicalVaeNet
from ftae.engine.models.builtin.translators import CycleGanNet, ResnetTranslatorNet, UnetTranslatorNet
from ftae.engine.models.builtin.vector_quantized import VqVae2Net, VqVaeNet
from ftae.engine.models.custom import custom_family
from ftae.engine.models.diffusers_families import (
    asymmetric_autoencoder_kl,
    autoencoder_dc,
    autoencoder_kl,
    autoencoder_kl_flux2,
    autoencoder_tiny,
    vq_model,
)
from ftae.engine.models.gans.dcgan import DcganGeneratorNet
from ftae.engine.models.gans.stylegan2_generator import StyleGan2GeneratorNet
from ftae.engine.process import keep_random_state, seed_generators
from ftae.errors import FtaeError, one_message
from ftae.specs.finetune import needs
from ftae.specs.finetune.data_spec import DataSpec
from ftae.specs.finetune.losses import Losses
from ftae.specs.finetune.metrics import METRICS
from ftae.specs.finetune.models import AnyModel, CustomModel
from ftae.specs.finetune.run import FinetuneSpec

CUSTOM = "package.module:attr"  # stands for every family that is a user's own module

# Model spec, data spec, number of classes or None -> the model, with its pretrained weights, on the CPU in fp32.
FAMILIES: dict[str, Callable[[Any, DataSpec, int | None], Autoencoder]] = {
    "mlp_vae": builtin_family(MlpVaeNet),
    "conv_ae": builtin_family(ConvAeNet),
    "conv_vae": builtin_family(ConvVaeNet),
    "mlp_cvae": builtin_family(MlpCvaeNet),
    "conv_cvae": builtin_family(ConvCvaeNet),
    "hierarchical_vae": builtin_family(HierarchicalVaeNet),
    "vq_vae": builtin_family(VqVaeNet),
    "vq_vae_2": builtin_family(VqVae2Net),
    "unet_translator": builtin_family(UnetTranslatorNet),
    "resnet_translator": builtin_family(ResnetTranslatorNet),
    "dcgan": builtin_family(DcganGeneratorNet),
    "stylegan2": builtin_family(StyleGan2GeneratorNet),
    "cyclegan": builtin_family(CycleGanNet),
    "autoencoder_kl": autoencoder_kl,
    "autoencoder_kl_flux2": autoencoder_kl_flux2,
    "asymmetric_autoencoder_kl": asymmetric_autoencoder_kl,
    "autoencoder_tiny": autoencoder_tiny,
    "autoencoder_dc": autoencoder_dc,
    "vq_model": vq_model,
    CUSTOM: custom_family,
}


def build_autoencoder(model: AnyModel, data: DataSpec, num_classes: int | None) -> Autoencoder:
    """The model of a spec, with its pretrained weights, on the CPU in fp32. New weights are drawn as torch draws.

    ``num_classes``: number of labels in the data, None where it has none.

    Raises:
        FtaeError: the weights cannot be found or do not fit.
    """
    family = CUSTOM if isinstance(model, CustomModel) else model.family
    autoencoder = FAMILIES[family](model, data, num_classes)
    if autoencoder.channels not in (None, data.channels):
        raise FtaeError(
            f"the model takes {autoencoder.channels} image channels, but the data have {data.channels}; "
            + _channel_advice(autoencoder.channels or 0)
        )
    return autoencoder


def _channel_advice(channels: int) -> str:
    color = {1: "grey", 3: "rgb"}.get(channels)
    return f"set data.bands to {channels}" if color is None else f"set data.color to {color}"


def build_model(spec: FinetuneSpec, num_classes: int | None) -> Autoencoder:
    """The model of ``spec`` on the CPU, in eval mode, with its head and its frozen stages.

    New weights are drawn from ``spec.seed``; the random generators of the process are left as they were.
    ``num_classes``: number of labels in the data, None where it has none.

    Raises:
        FtaeError: the weights do not load, the model cannot take the images, a freeze pattern matches nothing,
            nothing is left to train, or ``ce`` is asked for without labels.
    """
    with keep_random_state():
        return build_seeded_model(spec, num_classes)


def build_seeded_model(spec: FinetuneSpec, num_classes: int | None) -> Autoencoder:
    """``build_model`` for a run: it seeds the random generators of the process, which training then goes on with."""
    return prepare_model(*new_model(spec, num_classes), spec, num_classes)


@one_message("the model cannot be built", passing=(OSError,))
def new_model(spec: FinetuneSpec, num_classes: int | None) -> tuple[Autoencoder, Encoding]:
    """The untuned model, and its encoding of a grey image. Seeds the random generators of the process."""
    seed_generators(spec.seed)
    autoencoder = build_autoencoder(spec.model, spec.data, num_classes).eval()
    return autoencoder, check_shapes(autoencoder, spec, num_classes)


@one_message("the model cannot be prepared", passing=(OSError,))
def prepare_model(
    autoencoder: Autoencoder, encoding: Encoding, spec: FinetuneSpec, num_classes: int | None
) -> Autoencoder:
    """Add the head that the losses ask for to the result of ``new_model``, and freeze stages."""
    _check_posterior(encoding, spec)
    _check_codebook(encoding, spec)
    if spec.losses.ce > 0.0:
        if num_classes is None:
            raise FtaeError("losses.ce needs labels: put the images of each class into a sub-folder of data.train")
        autoencoder.add_head(ClassificationHead(encoding.latents, num_classes))
    autoencoder.freeze(spec.freeze_depth, spec.freeze)
    return autoencoder


@torch.no_grad()
def check_shapes(autoencoder: Autoencoder, spec: FinetuneSpec, num_classes: int | None) -> Encoding:
    """Run one grey image, or the noise of all zeros, through the model; returns its encoding.

    Raises:
        FtaeError: the model cannot take the image, or gives one of another shape than those of the data.
    """
    shape = spec.data.shape
    labels = None if num_classes is None else torch.zeros(1, dtype=torch.int64)
    with one_message(f"the model cannot take images of shape {shape}"):
        encoding, output = autoencoder.run(autoencoder.example_input(shape), labels)
    if encoding.latents.ndim < 2 or len(encoding.latents) != 1:
        raise FtaeError(
            f"the model's encode must give latents of shape (B, ...), got {tuple(encoding.latents.shape)} for one image"
        )
    if output.shape != (1, *shape):
        raise FtaeError(
            f"the model gives {tuple(output.shape[1:])} for images of {shape}; "
            "choose a data.resolution that it gives back unchanged"
        )
    return encoding


def _check_posterior(encoding: Encoding, spec: FinetuneSpec) -> None:
    """Only the user's module itself shows whether it has a posterior; the specs have checked all other families."""
    needing = [f"metrics: {name}" for name in spec.metrics if needs.posterior in METRICS[name].needs]
    needing += [f"losses.{term}" for term in spec.losses.weights() if needs.posterior in Losses.TERMS[term]]
    if needing and encoding.posterior is None:
        raise FtaeError(f"{needing[0]} needs a posterior: {spec.model.family}'s encode must return (mean, logvar)")


def _check_codebook(encoding: Encoding, spec: FinetuneSpec) -> None:
    """Only the pretrained model shows how its codebook is trained."""
    if spec.losses.codebook > 0.0 and any(codes.codebook is None for codes in encoding.codes):
        raise FtaeError(
            f"losses.codebook needs a codebook that is trained by gradient, that of {spec.model.pretrained} is a "
            "moving average"
        )
