"""The weights of the training loss, and what each term needs."""

from typing import Annotated, ClassVar

from pydantic import Field

from ftae.specs.finetune import needs
from ftae.specs.reading.base import Fraction, Spec, Weight


class Losses(Spec):
    """Weights of the loss terms; 0 is off. Each term is a mean over elements, computed in fp32.

    Pixel terms compare in the model's own image range; ``bce``, ``ssim``, ``ms_ssim``,
    ``lpips`` and ``vgg`` in [0, 1]. ``kl`` is per
    latent element (times image elements over latent elements it is the summed weight of Stable
    Diffusion's training); with ``kl_capacity``, a number of nats an image that the warm-up raises from 0,
    it is the distance from that. ``ce`` adds a classification head on the pooled latents. ``latent_anchor``
    and ``l2_sp`` hold latents and weights near those of the pretrained model. ``commitment`` (the beta of
    VQ-VAE) draws the encoder to the codes, ``codebook`` the codes to the encoder. ``adversarial`` brings a
    discriminator (``finetune.discriminator``).
    """

    mse: Weight = 0.0
    l1: Weight = 0.0
    huber: Weight = 0.0
    bce: Weight = 0.0
    kl: Weight = 0.0
    tv: Weight = 0.0
    edge: Weight = 0.0
    ssim: Weight = 0.0
    ms_ssim: Weight = 0.0
    lpips: Weight = 0.0
    vgg: Weight = 0.0
    ce: Weight = 0.0
    latent_anchor: Weight = 0.0
    l2_sp: Weight = 0.0
    commitment: Weight = 0.0
    codebook: Weight = 0.0
    adversarial: Weight = 0.0
    huber_delta: Annotated[float, Field(gt=0.0)] = 0.1
    kl_warmup_fraction: Fraction = 0.0
    kl_capacity: Annotated[float, Field(gt=0.0)] | None = None

    TERMS: ClassVar[dict[str, tuple[needs.Need, ...]]] = {
        "mse": (),
        "l1": (),
        "huber": (),
        "bce": (needs.bounded_output,),
        "kl": (needs.posterior,),
        "tv": (),
        "edge": (),
        "ssim": (needs.resolution(16),),
        "ms_ssim": (needs.resolution(176),),
        "lpips": (needs.perceptual,),
        "vgg": (needs.perceptual, needs.vgg16),
        "ce": (needs.labels,),
        "latent_anchor": (needs.reference,),
        "l2_sp": (needs.reference,),
        "commitment": (needs.codes,),
        "codebook": (needs.codes, needs.gradient_codebook),
        "adversarial": (needs.another_term,),
    }

    def weights(self) -> dict[str, float]:
        """The enabled terms with their weights, in a fixed order."""
        return {term: getattr(self, term) for term in self.TERMS if getattr(self, term) > 0.0}
