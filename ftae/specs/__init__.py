"""Descriptions of runs and searches, built in Python or read from files: pydantic and yaml only.

    SearchSpec(
        name="digits",
        finetune=FinetuneSpec(
            model=ConvVae(pretrained="models/digits"),
            data=Digits(resolution=32),
            losses=Losses(mse=1.0, kl=1e-4),
            optimizer=Optimizer(lr=1e-3),
            max_steps=2000,
        ),
        search_space={"optimizer.lr": Range(low=1e-5, high=1e-2, log=True)},
        objective=Objective(metric="val/psnr", direction="maximize"),
    )

Every section may also be a dict, as it stands in a file.
"""

from ftae.specs.finetune.augmentation import AugmentSpec
from ftae.specs.finetune.discriminator import DiscriminatorSpec
from ftae.specs.finetune.generators import CycleGan, Dcgan, ResnetTranslator, StyleGan2, UnetTranslator
from ftae.specs.finetune.images import Blocks, Degradation, Intensity
from ftae.specs.finetune.losses import Losses
from ftae.specs.finetune.metrics import METRICS, Metric
from ftae.specs.finetune.models import (
    AsymmetricAutoencoderKl,
    AutoencoderDc,
    AutoencoderKl,
    AutoencoderKlFlux2,
    AutoencoderTiny,
    ConvAe,
    ConvCvae,
    ConvVae,
    CustomModel,
    CustomStages,
    HierarchicalVae,
    MlpCvae,
    MlpVae,
    Scaling,
    VqModel,
    VqVae,
    VqVae2,
)
from ftae.specs.finetune.networks import FeatureNet, PerceptualNet
from ftae.specs.finetune.optimization import Optimizer, Schedule
from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.finetune.sources.arrays import Arrays
from ftae.specs.finetune.sources.builtin import DigitDomains, DigitEdges, Digits, Photos, Shapes
from ftae.specs.finetune.sources.folders import Archive, ImageFolder, Shards
from ftae.specs.finetune.sources.two_sided import Pairs, Unpaired
from ftae.specs.search.distributions import Choices, Distribution, Range
from ftae.specs.search.objective import Constraint, Goal, Objective, Objectives
from ftae.specs.search.resources import Resources
from ftae.specs.search.search import ProductionSpec, SearchSpec
from ftae.specs.search.settings import Asha, Confirm, Fifo, Forecast, SearchSettings, Tracking

__all__ = [
    "METRICS",
    "Archive",
    "Arrays",
    "Asha",
    "AsymmetricAutoencoderKl",
    "AugmentSpec",
    "AutoencoderDc",
    "AutoencoderKl",
    "AutoencoderKlFlux2",
    "AutoencoderTiny",
    "Blocks",
    "Choices",
    "Confirm",
    "Constraint",
    "ConvAe",
    "ConvCvae",
    "ConvVae",
    "CustomModel",
    "CustomStages",
    "CycleGan",
    "Dcgan",
    "Degradation",
    "DigitDomains",
    "DigitEdges",
    "Digits",
    "DiscriminatorSpec",
    "Distribution",
    "FeatureNet",
    "Fifo",
    "FinetuneSpec",
    "Forecast",
    "Goal",
    "HierarchicalVae",
    "ImageFolder",
    "Intensity",
    "Losses",
    "Metric",
    "MlpCvae",
    "MlpVae",
    "Objective",
    "Objectives",
    "Optimizer",
    "Pairs",
    "PerceptualNet",
    "Photos",
    "ProductionSpec",
    "Range",
    "ResnetTranslator",
    "Resources",
    "Scaling",
    "Schedule",
    "SearchSettings",
    "SearchSpec",
    "Shapes",
    "Shards",
    "StyleGan2",
    "Tracking",
    "UnetTranslator",
    "Unpaired",
    "VqModel",
    "VqVae",
    "VqVae2",
]
