"""What keeps a model from being trained by several workers: an image whose result depends on the others."""

import torch
from torch import nn

from ftae.errors import FtaeError

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def check_rows_apart(model: nn.Module) -> None:
    """Refuse a model, in training mode, that mixes the images of a batch.

    Raises:
        FtaeError: it has batch normalisation or dropout that is trained.
    """
    for name, module in model.named_modules():
        draws = isinstance(module, DROPOUTS) and module.p > 0.0
        if module.training and (draws or isinstance(module, BATCH_NORMS)):
            raise FtaeError(_refusal(f"{name.removeprefix('net.')} ({type(module).__name__}) works on whole batches"))


class Buffers:
    """Those of a model, as they were: each process would move its own (the codebook of a VQ model, say)."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._before = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def check(self) -> None:
        """Refuse a model whose buffers move.

        Raises:
            FtaeError: one has.
        """
        for name, buffer in self._model.named_buffers():
            if not torch.equal(buffer, self._before[name]):
                raise FtaeError(_refusal(f"the buffer {name.removeprefix('net.')} moves with the images it has seen"))


def _refusal(reason: str) -> str:
    return f"{reason}: several workers would not train as one does. Freeze its stage, or use one worker"
