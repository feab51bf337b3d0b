"""FAMILIES: from a model spec to an ``Autoencoder``. A family is one entry of the table at the foot."""

from collections.abc import Callable
from typing import Any

from ftae.engine.autoencoder import Autoencoder
from ftae.engine.conditional import ConvCvaeNet, MlpCvaeNet
from ftae.engine.custom_family import custom_family
from ftae.engine.diffusers_families import (
    asymmetric_autoencoder_kl,
    autoencoder_dc,
    autoencoder_kl,
    autoencoder_tiny,
    vq_model,
)
from ftae.engine.hierarchical import HierarchicalVaeNet
from ftae.engine.networks import ConvAeNet, ConvVaeNet, MlpVaeNet
from ftae.engine.own_families import own_family
from ftae.engine.quantized_networks import VqVae2Net, VqVaeNet
from ftae.errors import FtaeError
from ftae.specs.data import DataSpec
from ftae.specs.models import AnyModel, CustomModel


def build_autoencoder(model: AnyModel, data: DataSpec, num_classes: int | None) -> Autoencoder:
    """The model of a spec, with its pretrained weights, on the CPU in fp32.

    ``num_classes``: labels of the data, None where it has none.

    Raises:
        FtaeError: the weights cannot be found or do not fit.
    """
    if isinstance(model, CustomModel):
        autoencoder = custom_family(model)
    else:
        autoencoder = FAMILIES[model.family](model, data, num_classes)
    if autoencoder.channels not in (None, data.channels):
        raise FtaeError(
            f"the model takes {autoencoder.channels} image channels, but data.color {data.color!r} gives "
            f"{data.channels}; set data.color to {'grey' if autoencoder.channels == 1 else 'rgb'}"
        )
    return autoencoder


FAMILIES: dict[str, Callable[[Any, DataSpec, int | None], Autoencoder]] = {
    "mlp_vae": own_family(MlpVaeNet),
    "conv_ae": own_family(ConvAeNet),
    "conv_vae": own_family(ConvVaeNet),
    "mlp_cvae": own_family(MlpCvaeNet),
    "conv_cvae": own_family(ConvCvaeNet),
    "hierarchical_vae": own_family(HierarchicalVaeNet),
    "vq_vae": own_family(VqVaeNet),
    "vq_vae_2": own_family(VqVae2Net),
    "autoencoder_kl": autoencoder_kl,
    "asymmetric_autoencoder_kl": asymmetric_autoencoder_kl,
    "autoencoder_tiny": autoencoder_tiny,
    "autoencoder_dc": autoencoder_dc,
    "vq_model": vq_model,
}
