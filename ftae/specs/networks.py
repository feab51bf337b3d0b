"""Networks that others trained, which loss terms and metrics look through; their weights come from a local file."""

from pathlib import Path
from typing import ClassVar, Literal

from ftae.specs.base import Spec


class NetworkSpec(Spec):
    """A torchvision network. ``weights``: its state dict, as torchvision offers it (.pth) or as .safetensors."""

    weights: str

    FILES: ClassVar[dict[str, str]]  # of each net, the file that torchvision would download
    net: str

    def missing(self) -> str | None:
        """That the file is not there, and how to get it; None where it is."""
        if Path(self.weights).expanduser().is_file():
            return None
        file = self.FILES[self.net]
        return (
            f"{self.weights} is not a file. ftae downloads no weights: fetch {file} of torchvision where there is a "
            f"network, with: curl -LO https://download.pytorch.org/models/{file}"
        )

    def located(self) -> "NetworkSpec":
        """The same with an absolute path."""
        return self.model_copy(update={"weights": str(Path(self.weights).expanduser().absolute())})


class PerceptualNet(NetworkSpec):
    """What ``lpips`` (any of them) and ``vgg`` (vgg16) compare images by."""

    net: Literal["vgg16", "alexnet", "squeezenet"]
    FILES: ClassVar[dict[str, str]] = {
        "vgg16": "vgg16-397923af.pth",
        "alexnet": "alexnet-owt-7be5be79.pth",
        "squeezenet": "squeezenet1_1-b8a52dc0.pth",
    }
    # Pixels a side of which the last layer still has one value.
    LEAST: ClassVar[dict[str, int]] = {"vgg16": 16, "alexnet": 31, "squeezenet": 17}

    @property
    def least_resolution(self) -> int:
        return self.LEAST[self.net]


class FeatureNet(NetworkSpec):
    """What ``rfid`` and ``kid`` take the features of images from. Their values are not those of published FIDs."""

    net: Literal["inception_v3", "resnet18", "resnet50"]
    FILES: ClassVar[dict[str, str]] = {
        "inception_v3": "inception_v3_google-0cc3c7bd.pth",
        "resnet18": "resnet18-f37072fd.pth",
        "resnet50": "resnet50-11ad3fa6.pth",
    }
