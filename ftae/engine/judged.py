"""What the metrics see: the batches of an evaluation, and the subject of it all."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ftae.engine.autoencoder import Autoencoder, Encoding
from ftae.engine.companions import Companions
from ftae.engine.data import ImageSet
from ftae.engine.prefix import Prefix
from ftae.specs.finetune import FinetuneSpec


@dataclass(frozen=True)
class EvalInputs:
    """One validation batch: fp32 (B, C, H, W) in [0, 1], reconstructions clamped; ``given``: what the model saw.

    ``factors``: int64 (B, F), the values that the images were made of; None where these are not known.
    """

    target: Tensor
    given: Tensor
    reconstruction: Tensor
    encoding: Encoding
    logits: Tensor | None
    labels: Tensor | None
    factors: Tensor | None = None


@dataclass(frozen=True)
class Subject:
    """What is judged, and what some metrics hold it against; ``anomalies``: the images to tell from the normal ones.

    ``prefix``: what runs the model on their batches; None where nothing of it is stored.
    """

    autoencoder: Autoencoder
    spec: FinetuneSpec
    companions: Companions
    train: ImageSet
    device: torch.device
    anomalies: ImageSet | None = None
    prefix: Prefix | None = None
