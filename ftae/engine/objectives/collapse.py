"""Collapse indicators: numbers that fall to 0 once a model has collapsed. They are no metrics: no report shows them."""

from ftae.engine.objectives.eval_batch import EvalBatch, FirstRows
from ftae.engine.objectives.image_measures import ImagePairs
from ftae.engine.objectives.latent_metrics import ActiveUnits
from ftae.engine.objectives.metrics import Metric
from ftae.errors import Reason
from ftae.specs.finetune.run import FinetuneSpec

ACTIVE_SHARE = 0.01

POSITION_IMAGES = 2000  # most images on which the codes of positions are compared


class CollapseDetector:
    """The indicators of a run, each by the reason for which the run fails once it falls to 0.

    Active units where the model has a posterior, active positions where it has codes, explained variance where it
    trains against a discriminator.
    """

    def __init__(self, spec: FinetuneSpec) -> None:
        self._indicators: dict[str, Metric] = {}
        if spec.losses.adversarial > 0.0:
            self._indicators[Reason.BLOW_UP] = ExplainedVariance()

    def update(self, x: EvalBatch) -> None:
        if x.encoding.posterior is not None:
            self._indicators.setdefault("posterior collapse", ActiveUnits())
        if x.encoding.codes:
            self._indicators.setdefault("codebook collapse", ActivePositions())
        for indicator in self._indicators.values():
            indicator.update(x)

    def compute(self) -> dict[str, float]:
        return {reason: indicator.compute() for reason, indicator in self._indicators.items()}


class ActivePositions:
    """Number of positions where more than 1 % of the first images have another code than the commonest one there.

    With several codebooks, the least of their numbers. At 0 the latents hardly tell one image from another. Usage of
    the codebook does not show that: at the borders, where convolutions see padding, a collapsed model still uses
    another code than inside.
    """

    def __init__(self) -> None:
        self._levels: list[FirstRows] = []

    def update(self, x: EvalBatch) -> None:
        self._levels = self._levels or [FirstRows(POSITION_IMAGES) for _ in x.encoding.codes]
        for level, codes in zip(self._levels, x.encoding.codes, strict=True):
            level.update(codes.indices.int())

    def compute(self) -> float:
        levels = (level.rows() for level in self._levels)
        others = [level.ne(level.mode(dim=0).values).double().mean(0) for level in levels]
        return float(min(share.gt(ACTIVE_SHARE).sum() for share in others))


class ExplainedVariance:
    """Share of the variance of pixels within images that the reconstructions explain.

    0 where reconstructions are no better than one colour an image, its mean.
    """

    def __init__(self) -> None:
        self._error = self._variance = 0.0

    def update(self, x: ImagePairs) -> None:
        flat = x.target.mean((2, 3), keepdim=True)
        self._error += float((x.reconstruction - x.target).double().square().sum())
        self._variance += float((flat - x.target).double().square().sum())

    def compute(self) -> float:
        return max(0.0, 1.0 - self._error / self._variance) if self._variance > 0.0 else 0.0
