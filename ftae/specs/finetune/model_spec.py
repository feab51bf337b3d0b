"""What all families share: their fields, and the facts that checks need.

An option that is None takes the value of the pretrained model, or the default of the family.
"""

from typing import Annotated, ClassVar

from pydantic import Field

from ftae.specs.reading.base import Spec
from ftae.specs.reading.schema import Revisable, fields_with

Size = Annotated[int, Field(ge=1, le=2**16)]  # of a layer; whether it fits into memory, the machine decides
Depth = Annotated[int, Field(ge=1, le=6)]


class ModelSpec(Spec):
    """The fields and facts that all families share."""

    pretrained: str | None = None
    """Where the weights come from: a local folder (in diffusers format, or written by ftae), or a hub id
    ``owner/name`` or ``owner/name@revision``, of which a run keeps the commit that it finds. None: from scratch."""

    has_posterior: ClassVar[bool | None] = False
    """Whether the encoder gives a distribution; None where only the module itself can tell."""
    bounded_output: ClassVar[bool] = False
    """Whether outputs always lie inside the image range, as binary cross-entropy needs."""
    needs_labels: ClassVar[bool] = False
    """Whether the model is conditioned on labels."""
    has_codes: ClassVar[bool] = False
    """Whether the encoder chooses from a codebook."""
    has_latents: ClassVar[bool] = True
    """Whether the model is an autoencoder, whose latents alone give the reconstruction; a translator is none."""
    takes_noise: ClassVar[bool] = False
    """Whether the model is a generator, which makes images of noise."""
    has_styles: ClassVar[bool] = False
    """Whether a generator maps its noise to styles first."""
    both_ways: ClassVar[bool] = False
    """Whether the model translates from A to B and from B to A, and learns that from images without partners."""

    @property
    def gradient_codebook(self) -> bool | None:
        """Whether the codes are trained by gradient; None where only the pretrained model can tell."""
        return False

    @property
    def revisable(self) -> frozenset[str]:
        """The options that may differ from those of the pretrained model."""
        return frozenset(fields_with(type(self), Revisable))


class FixedResolution(ModelSpec):
    """The fields of the families that are built for one resolution."""

    resolution_adapters: Annotated[int, Field(ge=0, le=4)] | None = None
    """How many pairs of stages wrap the network, one stage on either side. Each pair doubles the resolution that the
    model takes: 1 makes a pretrained model of 64 pixels take 128. Adapters of the pretrained model are kept, the others
    are new; untrained they only resize. None keeps the number of the pretrained model."""
