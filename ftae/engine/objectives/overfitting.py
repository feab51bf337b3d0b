"""Whether a discriminator knows its training images by heart."""

import math

import torch
from torch import Tensor

from ftae.engine.data.batches import val_batches
from ftae.engine.objectives.eval_batch import EvalBatch, EvalContext
from ftae.specs.finetune.metrics import METRICS

TRAIN_IMAGES = 2000  # at most


class DiscriminatorOverfit:
    """r_v of Karras et al. (2020, eq. 1): (E D(train) - E D(val)) / (E D(train) - E D(fake)), within [-1, 1]."""

    def __init__(self, context: EvalContext) -> None:
        self._context = context
        self._val: list[Tensor] = []
        self._made: list[Tensor] = []
        self._count = 0

    def update(self, x: EvalBatch) -> None:
        self._count += len(x.target)
        for found, images in ((self._val, x.target), (self._made, x.reconstruction)):
            if (logits := self._context.judge(images)) is not None:
                found.append(logits)

    def compute(self) -> float:
        """The value; 0 as long as training images look no more real than those of the model; NaN for too few images."""
        if self._count < METRICS["d_overfit"].least_images:
            return math.nan
        if not self._made:
            return 0.0
        train, val, made = (
            self._of_training_images(),
            float(torch.cat(self._val).mean()),
            float(torch.cat(self._made).mean()),
        )
        return max(-1.0, min(1.0, (train - val) / (train - made))) if train > made else 0.0

    def _of_training_images(self) -> float:
        context, spec = self._context, self._context.spec
        images = context.train.subset(slice(TRAIN_IMAGES))
        batches = val_batches(images, spec.data, batch_size=spec.batch_size, device=context.device)
        found = [logits for batch in batches if (logits := context.judge(batch.images)) is not None]
        return float(torch.cat(found).mean())
