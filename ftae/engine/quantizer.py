"""Vector quantisation (van den Oord et al. 2017): each latent vector becomes the nearest code of a codebook."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ftae.engine.autoencoder import Codes
from ftae.errors import FtaeError


class Quantizer(nn.Module):
    """A codebook of ``codebook_size`` codes of ``code_dim`` numbers.

    ``codebook`` ``ema``: each code follows the mean of the vectors that chose it (ibid., appendix A.1), by
    ``ema_decay`` (None: 0.99) a batch, in training mode alone; one that fewer than ``dead_code_threshold``
    (None: 0) vectors of a batch choose, as a moving average, becomes a random vector of the batch
    (Dhariwal et al. 2020, section 3). ``gradient``: the codes are parameters, which the loss term ``codebook``
    trains.

    Raises:
        FtaeError: a setting of a moving average for a codebook that is none.
    """

    def __init__(
        self,
        *,
        codebook_size: int,
        code_dim: int,
        codebook: str,
        ema_decay: float | None,
        dead_code_threshold: float | None,
    ) -> None:
        from vector_quantize_pytorch import VectorQuantize  # takes seconds

        super().__init__()
        self.by_gradient = codebook == "gradient"
        for name, value in (("ema_decay", ema_decay), ("dead_code_threshold", dead_code_threshold)):
            if self.by_gradient and value is not None:
                raise FtaeError(f"model.{name} has no effect on a codebook that is trained by gradient; leave it out")
        self.nearest = VectorQuantize(
            dim=code_dim,
            codebook_size=codebook_size,
            decay=0.99 if ema_decay is None else ema_decay,
            threshold_ema_dead_code=dead_code_threshold or 0.0,
            learnable_codebook=self.by_gradient,
            ema_update=not self.by_gradient,
            accept_image_fmap=True,
            commitment_weight=0.0,  # the terms are computed here, unweighted
            rotation_trick=False,
            sync_codebook=False,
        )

    def forward(self, encoded: Tensor) -> tuple[Tensor, Codes]:
        """Vectors (B, code_dim, h, w) -> the nearest codes, in fp32, and what was chosen."""
        with torch.autocast(encoded.device.type, enabled=False):  # bf16 would mix up near codes
            encoded = encoded.float()
            codes, indices, _ = self.nearest(encoded.detach())
            num_codes = self.nearest.codebook_size
            return chosen(encoded, codes, indices.flatten(1), num_codes, by_gradient=self.by_gradient)


def chosen(
    encoded: Tensor, codes: Tensor, indices: Tensor, num_codes: int, *, by_gradient: bool
) -> tuple[Tensor, Codes]:
    """``codes`` with the gradient of ``encoded`` (straight-through, ibid., section 3.2), and their ``Codes``."""
    latents = codes.detach() + (encoded - encoded.detach())  # exactly the codes: the bracket is 0
    commitment = F.mse_loss(encoded, codes.detach())
    codebook = F.mse_loss(codes, encoded.detach()) if by_gradient else None
    return latents, Codes(indices, num_codes, commitment, codebook)
