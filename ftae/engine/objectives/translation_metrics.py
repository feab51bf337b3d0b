"""Metrics of translators: what they change, and what a model of both directions gives back."""

from collections.abc import Callable

from torch import Tensor

from ftae.engine.models.autoencoder import Autoencoder
from ftae.engine.objectives.eval_batch import EvalBatch, EvalContext

PerImage = Callable[[EvalBatch], Tensor]  # -> (B,)


def change(x: EvalBatch) -> Tensor:
    """The mean absolute difference of input and output of each image: (B,)."""
    return _l1(x.reconstruction, x.given)


def cycle_l1_of(context: EvalContext) -> PerImage:
    """The mean absolute error of each row after both directions, the mean of A and B."""
    model = context.autoencoder

    def values(x: EvalBatch) -> Tensor:
        assert x.cycled is not None
        return (_l1(x.cycled, x.given) + _l1(_there(model, _back(model, x.target)), x.target)) / 2

    return values


def identity_l1_of(context: EvalContext) -> PerImage:
    """The mean absolute change of each row by the direction that leads to its own side, the mean of A and B."""
    model = context.autoencoder
    return lambda x: (_l1(_there(model, x.target), x.target) + _l1(_back(model, x.given), x.given)) / 2


def _there(model: Autoencoder, images: Tensor) -> Tensor:
    """What images in [0, 1] become on the side of the outputs."""
    _, made = model.run(model.to_range(images))
    return model.to_unit(made).float().clamp(0.0, 1.0)


def _back(model: Autoencoder, images: Tensor) -> Tensor:
    assert model.reverse is not None
    return model.to_unit(model.reverse(model.to_range(images))).float().clamp(0.0, 1.0)


def _l1(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs().flatten(1).mean(1)
