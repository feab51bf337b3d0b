"""The terms of the training loss: weight, needs and description of each."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from ftae.specs.finetune import needs
from ftae.specs.finetune.needs import Need
from ftae.specs.reading.base import Fraction, Spec, Weight
from ftae.specs.reading.schema import Governed, Role, roles_in


@dataclass(frozen=True)
class Term(Role):
    """The field is the weight of the loss term that has its name; ``needs`` are those of the term."""

    needs: tuple[Need, ...] = ()


class Losses(Spec):
    """Weights of the loss terms; 0 turns a term off.

    Each term is a mean over elements, computed in fp32. Pixel terms compare images in the range of the model; ``bce``,
    ``ssim``, ``ms_ssim``, ``lpips`` and ``vgg`` in [0, 1].
    """

    mse: Annotated[Weight, Term((needs.targets,))] = 0.0
    """Mean squared error of pixels."""
    l1: Annotated[Weight, Term((needs.targets,))] = 0.0
    """Mean absolute error of pixels."""
    huber: Annotated[Weight, Term((needs.targets,))] = 0.0
    """Huber loss of pixels: quadratic up to ``huber_delta``, linear beyond."""
    bce: Annotated[Weight, Term((needs.targets, needs.bounded_output, needs.unit_values))] = 0.0
    """Binary cross-entropy of pixels in [0, 1]."""
    kl: Annotated[Weight, Term((needs.posterior,))] = 0.0
    """Divergence of the posterior from the prior, per latent element. Times image elements over latent elements it is
    the summed weight with which Stable Diffusion's autoencoder was trained."""
    tv: Annotated[Weight, Term((needs.resolution(2),))] = 0.0
    """Total variation of the reconstruction (Rudin et al. 1992)."""
    edge: Annotated[Weight, Term((needs.targets, needs.resolution(2)))] = 0.0
    """Mean absolute difference of the image gradients (Mathieu et al. 2016)."""
    ssim: Annotated[Weight, Term((needs.targets, needs.resolution(16)))] = 0.0
    """1 - structural similarity (Wang et al. 2004)."""
    ms_ssim: Annotated[Weight, Term((needs.targets, needs.resolution(176)))] = 0.0
    """1 - structural similarity over five scales (Wang et al. 2003)."""
    lpips: Annotated[Weight, Term((needs.targets, needs.perceptual))] = 0.0
    """Perceptual distance (Zhang et al. 2018), with any network of ``perceptual``."""
    vgg: Annotated[Weight, Term((needs.targets, needs.perceptual, needs.vgg16))] = 0.0
    """Distance of VGG16 features (Johnson et al. 2016)."""
    ce: Annotated[Weight, Term((needs.labels, needs.latents))] = 0.0
    """Cross-entropy of a classification head on the pooled latents; a weight above 0 adds the head."""
    latent_anchor: Annotated[Weight, Term((needs.reference, needs.latents))] = 0.0
    """Mean squared distance of the latents from those of the pretrained model."""
    l2_sp: Annotated[Weight, Term((needs.reference,))] = 0.0
    """Mean squared distance of the trainable weights from their pretrained values (Li et al. 2018)."""
    commitment: Annotated[Weight, Term((needs.codes,))] = 0.0
    """Draws the encoder towards the codes; the weight is the beta of VQ-VAE (van den Oord et al. 2017)."""
    codebook: Annotated[Weight, Term((needs.codes, needs.gradient_codebook))] = 0.0
    """Draws the codes towards the encoder."""
    adversarial: Annotated[Weight, Term((needs.another_term,))] = 0.0
    """Whether the discriminator (``finetune.discriminator``) tells reconstructions from real images."""
    cycle: Annotated[Weight, Term((needs.both_ways,))] = 0.0
    """Mean absolute difference of an image from what it is after both directions (Zhu et al. 2017)."""
    identity: Annotated[Weight, Term((needs.both_ways,))] = 0.0
    """Mean absolute change of images that are on the side of the outputs already. It keeps colours, and forbids what
    must change them."""
    path_length: Annotated[Weight, Governed("losses.adversarial")] = 0.0
    """Of StyleGAN2 alone: weight of the path length regularisation (Karras et al. 2020), which is computed in every
    fourth step; 2 in the paper. It makes interpolations smooth, and is rarely wanted in fine-tuning."""
    huber_delta: Annotated[float, Field(gt=0.0), Governed("losses.huber")] = 0.1
    """The error at which ``huber`` becomes linear."""
    kl_warmup_fraction: Annotated[Fraction, Governed("losses.kl")] = 0.0
    """The share of the budget over which the weight of ``kl``, or ``kl_capacity``, rises linearly from 0."""
    kl_capacity: Annotated[Annotated[float, Field(gt=0.0)] | None, Governed("losses.kl")] = None
    """With a number of nats per image, ``kl`` is the distance of the divergence from it (Burgess et al. 2018)."""

    TERMS: ClassVar[dict[str, tuple[Need, ...]]]
    """The names of all terms, with their needs."""

    def weights(self) -> dict[str, float]:
        """The enabled terms with their weights, in a fixed order."""
        return {term: getattr(self, term) for term in self.TERMS if getattr(self, term) > 0.0}


Losses.TERMS = {name: term.needs for name, term in roles_in(Losses, Term).items()}
