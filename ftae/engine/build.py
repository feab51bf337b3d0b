"""From a spec to a model ready to train: weights loaded, head attached, stages frozen, shapes checked."""

import random
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ftae.engine.autoencoder import Autoencoder, ClassificationHead, Encoding, Group
from ftae.engine.discriminator import build_discriminator
from ftae.engine.families import build_autoencoder
from ftae.engine.optim import build_optimizer
from ftae.engine.prefix_plan import PrefixPlan, num_images, plan_prefixes
from ftae.engine.vision_networks import check_weights
from ftae.errors import FtaeError, one_message
from ftae.specs import needs
from ftae.specs.finetune import FinetuneSpec
from ftae.specs.losses import Losses
from ftae.specs.metrics import METRICS
from ftae.specs.overrides import apply_overrides
from ftae.specs.search import SearchSpec


def device_of(spec: FinetuneSpec) -> torch.device:
    """Where a run takes place.

    Raises:
        FtaeError: a GPU is asked for by name and there is none.
    """
    there = torch.cuda.is_available()
    if spec.device == "cuda" and not there:
        raise FtaeError("device: cuda is asked for, but torch sees no GPU here; set it to auto or cpu")
    return torch.device("cuda" if there and spec.device != "cpu" else "cpu")


def build_model(spec: FinetuneSpec, num_classes: int | None) -> Autoencoder:
    """The model of ``spec`` on the CPU, in eval mode. New weights are drawn from ``spec.seed``.

    ``num_classes``: labels of the data, None where it has none.

    Raises:
        FtaeError: the weights do not load, the model cannot take the images, a freeze or multiplier
            pattern matches nothing, nothing is left to train, or ``ce`` is asked for without labels.
    """
    return prepared(*new_model(spec, num_classes), spec, num_classes)


@one_message("the model cannot be built", passing=(OSError,))
def new_model(spec: FinetuneSpec, num_classes: int | None) -> tuple[Autoencoder, Encoding]:
    """The model as it was given, or drawn, and what it says of a grey image. Seeds the random generators."""
    random.seed(spec.seed)
    np.random.seed(spec.seed)
    torch.manual_seed(spec.seed)
    autoencoder = build_autoencoder(spec.model, spec.data, num_classes).eval()
    return autoencoder, _check_shapes(autoencoder, spec, num_classes)


@one_message("the model cannot be prepared", passing=(OSError,))
def prepared(autoencoder: Autoencoder, encoding: Encoding, spec: FinetuneSpec, num_classes: int | None) -> Autoencoder:
    """What ``new_model`` gave, with the head that the losses ask for, and with its stages frozen."""
    _check_posterior(encoding, spec)
    _check_codebook(encoding, spec)
    if spec.losses.ce > 0.0:
        if num_classes is None:
            raise FtaeError("losses.ce needs labels: put the images of each class into a sub-folder of data.train")
        autoencoder.add_head(ClassificationHead(encoding.latents, num_classes))
    autoencoder.freeze(spec.freeze_depth, spec.freeze)
    return autoencoder


@torch.no_grad()
def _check_shapes(autoencoder: Autoencoder, spec: FinetuneSpec, num_classes: int | None) -> Encoding:
    """Run one grey image through; returns what the encoder says of it."""
    shape = (spec.data.channels, spec.data.resolution, spec.data.resolution)
    labels = None if num_classes is None else torch.zeros(1, dtype=torch.int64)
    with one_message(f"the model cannot take images of shape {shape}"):
        images = autoencoder.to_range(torch.full((1, *shape), 0.5))
        encoding = autoencoder.encode(images, labels)
        output = autoencoder.decode(encoding.latents, labels)
    if encoding.latents.ndim < 2 or len(encoding.latents) != 1:
        raise FtaeError(
            f"the model's encode must give latents of shape (B, ...), got {tuple(encoding.latents.shape)} for one image"
        )
    if output.shape != images.shape:
        raise FtaeError(
            f"the model gives {tuple(output.shape[1:])} for images of {tuple(images.shape[1:])}; "
            "choose a data.resolution that it gives back unchanged"
        )
    return encoding


def _check_posterior(encoding: Encoding, spec: FinetuneSpec) -> None:
    """What only the module itself can tell: the specs have checked the other families."""
    needing = [f"metrics: {name}" for name in spec.metrics if needs.posterior in METRICS[name].needs]
    needing += [f"losses.{term}" for term in spec.losses.weights() if needs.posterior in Losses.TERMS[term]]
    if needing and encoding.posterior is None:
        raise FtaeError(f"{needing[0]} needs a posterior: {spec.model.family}'s encode must return (mean, logvar)")


def _check_codebook(encoding: Encoding, spec: FinetuneSpec) -> None:
    """What only the pretrained model can tell."""
    if spec.losses.codebook > 0.0 and any(codes.codebook is None for codes in encoding.codes):
        raise FtaeError(
            f"losses.codebook needs a codebook that is trained by gradient, that of {spec.model.pretrained} is a "
            "moving average"
        )


@dataclass(frozen=True)
class StageSummary:
    """``new`` and ``idle`` as a ``Stage`` has them; without a pretrained model none is called new.

    ``num_trainable``: parameters that are trained; ``num_came_frozen``: those that the module itself has frozen.
    """

    name: str
    group: Group
    num_parameters: int
    num_trainable: int
    num_came_frozen: int
    trainable: bool
    new: bool
    idle: bool


@dataclass(frozen=True)
class ModelSummary:
    """What a configuration trains. Bytes are of one full-state checkpoint on disk.

    ``num_latents``: numbers an image is encoded into.
    ``codebooks``: the number of codes of each; ``gradient_codebooks``: they are trained by gradient, not a
    moving average. ``prefix``: what of it would be stored, of about as many images as there are.
    """

    stages: tuple[StageSummary, ...]
    checkpoint_bytes: int
    num_latents: int
    codebooks: tuple[int, ...]
    gradient_codebooks: bool
    prefix: PrefixPlan

    @property
    def num_parameters(self) -> int:
        return sum(stage.num_parameters for stage in self.stages)

    @property
    def num_trainable(self) -> int:
        return sum(stage.num_trainable for stage in self.stages)

    @property
    def new_stages(self) -> list[str]:
        return [stage.name for stage in self.stages if stage.new]


def summarize(spec: FinetuneSpec, num_classes: int | None) -> ModelSummary:
    """Build the model of ``spec`` and say what of it would be trained. Raises as ``build_model``."""
    check_weights(spec)
    autoencoder = build_model(spec, num_classes)
    build_optimizer(autoencoder, spec.optimizer)  # a multiplier that matches nothing is an error here
    trainable, tuned = autoencoder.trainable_stages(), spec.model.pretrained is not None
    stages = tuple(
        StageSummary(
            stage.name,
            stage.group,
            num_parameters=_count(stage.parameters()),
            num_trainable=_count(p for p in stage.parameters() if p.requires_grad),
            num_came_frozen=_count(filter(autoencoder.came_frozen, stage.parameters())),
            trainable=stage in trainable,
            new=stage.new and tuned,
            idle=stage.idle,
        )
        for stage in autoencoder.stages
    )
    moving = sum(stage.num_trainable for stage in stages)
    state = sum(t.numel() * t.element_size() for t in autoencoder.state_dict().values())
    copies = {"sgd": 1 if spec.optimizer.momentum else 0}.get(spec.optimizer.name, 2)
    copies += spec.ema_half_life_fraction is not None
    state += 0 if spec.losses.adversarial == 0.0 else _discriminator_bytes(spec)
    encoding = _check_shapes(autoencoder, spec, num_classes)
    return ModelSummary(
        stages,
        checkpoint_bytes=state + 4 * moving * copies,
        num_latents=encoding.latents.numel(),
        codebooks=tuple(codes.num_codes for codes in encoding.codes),
        gradient_codebooks=any(codes.codebook is not None for codes in encoding.codes),
        prefix=plan_prefixes(autoencoder, spec, lambda: num_images(spec.data)),
    )


def check_search(search: SearchSpec, num_classes: int | None) -> ModelSummary:
    """Build the base configuration, and the ends of every range that shapes or freezes the model.

    Returns the summary of the base configuration, with a discriminator if any trial may have one.

    Raises:
        FtaeError: one of them cannot be built; the message names the leaf and the value.
    """
    most = search.search_space.get("losses.adversarial")
    with_all = {} if most is None else {"losses.adversarial": max(most.corners())}
    summary = summarize(apply_overrides(search.finetune, with_all), num_classes)
    for path, distribution in search.search_space.items():
        if path.split(".")[0] not in ("model", "freeze", "freeze_depth"):
            continue
        for value in distribution.corners():
            try:
                build_model(search.trial_spec({path: value}), num_classes)
            except FtaeError as error:
                raise FtaeError(f"search_space.{path}: with {value!r}: {error}") from error
    return summary


def _discriminator_bytes(spec: FinetuneSpec) -> int:
    """Of its weights and its optimizer's two averages in a checkpoint."""
    weights: list[Tensor] = list(build_discriminator(spec).state_dict().values())
    return 3 * sum(t.numel() * t.element_size() for t in weights)


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)
