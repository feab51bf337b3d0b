"""The frozen networks beside the model: perceptual network and feature network."""

from pathlib import Path
from typing import ClassVar, Literal, Self

from ftae.specs.reading.base import Spec, absolute


class NetworkSpec(Spec):
    """A network of torchvision with weights from a file."""

    weights: str
    """Its state dict, as torchvision offers it (``.pth``) or as ``.safetensors``."""

    net: str
    FILES: ClassVar[dict[str, str]]
    """For each net, the file that torchvision would download."""

    def missing(self) -> str | None:
        """Says that the file is missing and how to get it; None where it is there."""
        if Path(self.weights).expanduser().is_file():
            return None
        file = self.FILES[self.net]
        return (
            f"{self.weights} is not a file. ftae downloads no weights: fetch {file} of torchvision where there is a "
            f"network, with: curl -LO https://download.pytorch.org/models/{file}"
        )

    def with_absolute_paths(self) -> Self:
        """The same network with an absolute path."""
        return self.model_copy(update={"weights": absolute(self.weights)})


class PerceptualNet(NetworkSpec):
    """The network with which ``lpips`` (any of them) and ``vgg`` (vgg16) compare images."""

    net: Literal["vgg16", "alexnet", "squeezenet"]
    """The name of the network in torchvision."""
    FILES: ClassVar[dict[str, str]] = {
        "vgg16": "vgg16-397923af.pth",
        "alexnet": "alexnet-owt-7be5be79.pth",
        "squeezenet": "squeezenet1_1-b8a52dc0.pth",
    }
    # Pixels a side with which the last layer still has one value.
    LEAST: ClassVar[dict[str, int]] = {"vgg16": 16, "alexnet": 31, "squeezenet": 17}

    @property
    def least_resolution(self) -> int:
        """The smallest resolution that the network takes."""
        return self.LEAST[self.net]


class FeatureNet(NetworkSpec):
    """The network that gives the features by which images are compared as sets; values differ from published ones."""

    weights: str
    """The state dict of the network, as torchvision offers it (``.pth``) or as ``.safetensors``. For ``encoder`` a
    folder that ``ftae train`` or ``ftae export`` wrote."""
    net: Literal["inception_v3", "resnet18", "resnet50", "encoder"]
    """The name of the network in torchvision; or ``encoder``, that of an autoencoder of ftae, whose pooled latents are
    the features: for images far from photographs."""
    FILES: ClassVar[dict[str, str]] = {
        "inception_v3": "inception_v3_google-0cc3c7bd.pth",
        "resnet18": "resnet18-f37072fd.pth",
        "resnet50": "resnet50-11ad3fa6.pth",
    }

    def missing(self) -> str | None:
        """Says that the network is missing and how to get it; None where it is there."""
        if self.net != "encoder":
            return super().missing()
        if Path(self.weights).expanduser().is_dir():
            return None
        return f"{self.weights} is not a folder that ftae train or ftae export wrote (see pretrain_digit_features.yaml)"
