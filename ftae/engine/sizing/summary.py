"""Summarizes what a configuration would train: stages, parameters, bytes of a checkpoint."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from ftae.engine.data.sources import num_images
from ftae.engine.frozen_cache.plan import FrozenCachePlan, plan_frozen_caches
from ftae.engine.models.discriminator import build_discriminator
from ftae.engine.models.families import build_model, check_shapes
from ftae.engine.models.staged_model import Group
from ftae.engine.objectives.auxiliary import check_weights
from ftae.engine.tasks.optim import build_optimizer
from ftae.specs.finetune.run import FinetuneSpec


@dataclass(frozen=True)
class StageSummary:
    """One stage. ``new`` and ``idle`` as in ``Stage``, but no stage is new where there is no pretrained model.

    ``num_trainable``: the parameters to train; ``num_came_frozen``: those that the module itself has frozen.
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
    """What a configuration trains.

    ``checkpoint_bytes``: the size of one full-state checkpoint on disk. ``num_latents``: the numbers that one image
    is encoded into. ``codebooks``: the number of codes of each; ``gradient_codebooks``: whether they are trained by
    gradient, not as a moving average. ``frozen_cache``: what would be cached, for an approximate number of images.
    """

    stages: tuple[StageSummary, ...]
    checkpoint_bytes: int
    num_latents: int
    codebooks: tuple[int, ...]
    gradient_codebooks: bool
    frozen_cache: FrozenCachePlan

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
    """Build the model of ``spec`` and summarize what would be trained. Raises as ``build_model``."""
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
    num_trainable = sum(stage.num_trainable for stage in stages)
    state = sum(t.numel() * t.element_size() for t in autoencoder.state_dict().values())
    copies = {"sgd": 1 if spec.optimizer.momentum else 0}.get(spec.optimizer.name, 2)
    copies += spec.ema_half_life_fraction is not None
    state += 0 if spec.losses.adversarial == 0.0 else _discriminator_bytes(spec)
    encoding = check_shapes(autoencoder, spec, num_classes)
    return ModelSummary(
        stages,
        checkpoint_bytes=state + 4 * num_trainable * copies,
        num_latents=encoding.latents.numel(),
        codebooks=tuple(codes.num_codes for codes in encoding.codes),
        gradient_codebooks=any(codes.codebook is not None for codes in encoding.codes),
        frozen_cache=plan_frozen_caches(autoencoder, spec, lambda: num_images(spec.data)),
    )


def _discriminator_bytes(spec: FinetuneSpec) -> int:
    """The bytes of the discriminator in a checkpoint: its weights and the two averages of its optimizer."""
    discriminator = build_discriminator(spec.discriminator, channels=spec.data.channels, seed=spec.seed)
    weights: list[Tensor] = list(discriminator.state_dict().values())
    return 3 * sum(t.numel() * t.element_size() for t in weights)


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)
