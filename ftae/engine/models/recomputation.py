"""Stages whose activations are computed again in the backward pass instead of being kept: gradient checkpointing.

The word checkpoint means a file here, so this one is in the name of the setting alone.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ftae.engine.models.staged_model import StagedModel


@contextmanager
def recomputed_stages(models: Iterable[StagedModel]) -> Iterator[None]:
    """Forward passes inside the block keep what goes into each module of a stage, and its random state.

    The backward pass, inside or after the block, computes the rest again, to the same bits. Nothing is computed again
    of stages that get no gradient.
    """
    with ExitStack() as restored:
        for model in models:
            for stage in model.stages:
                for module in stage.modules:
                    restored.enter_context(_recomputed(module))
        yield


@contextmanager
def _recomputed(module: nn.Module) -> Iterator[None]:
    forward, is_own = module.forward, "forward" in vars(module)
    module.forward = partial(checkpoint, forward, use_reentrant=False, context_fn=partial(_contexts, module))
    try:
        yield
    finally:
        if is_own:
            module.forward = forward
        else:
            del module.forward


def _contexts(module: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Those of the forward pass, which begins now, and of every time when it is computed again."""
    return nullcontext(), EarlierBuffers(module)


class EarlierBuffers(AbstractContextManager[None]):
    """Inside the block a module has the buffers that it has when this is made; may be entered again and again.

    Running statistics and codes move in a forward pass in training mode: they must move once a step, and spectral
    norms depend on what they were before.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._before = self._copies() if module.training else []

    def __enter__(self) -> None:
        self._after = self._copies() if self._before else []
        self._set(self._before)

    def __exit__(self, *_: object) -> None:
        self._set(self._after)

    def _copies(self) -> list[Tensor]:
        return [buffer.clone() for buffer in self._module.buffers()]

    def _set(self, values: list[Tensor]) -> None:
        for buffer, value in zip(self._module.buffers(), values, strict=False):
            # Through ``data``, or autograd would take it for a change of what the backward pass needs.
            buffer.data.copy_(value)
