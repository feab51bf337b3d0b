"""Translators of CycleGAN and Pix2Pix: ftae's networks make the images that theirs made."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import built, images_for
from torch import Tensor, nn

from ftae.engine.models.foreign.convert import convert
from ftae.errors import FtaeError


class Residual(nn.Module):
    def __init__(self, width: int, dropout: bool) -> None:
        super().__init__()
        between = [nn.Dropout(0.5)] if dropout else []
        self.conv_block = nn.Sequential(
            *_padded(width, width, 3), nn.InstanceNorm2d(width), nn.ReLU(), *between,
            *_padded(width, width, 3), nn.InstanceNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv_block(x)
        return out


def _padded(before: int, after: int, kernel: int) -> list[nn.Module]:
    return [nn.ReflectionPad2d(kernel // 2), nn.Conv2d(before, after, kernel)]


class Resnet(nn.Module):
    def __init__(self, *, dropout: bool = False, norm: Any = nn.InstanceNorm2d) -> None:
        super().__init__()
        up = {"stride": 2, "padding": 1, "output_padding": 1}
        self.model = nn.Sequential(
            *_padded(3, 4, 7), norm(4), nn.ReLU(),
            nn.Conv2d(4, 8, 3, stride=2, padding=1), norm(8), nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1), norm(16), nn.ReLU(),
            *(Residual(16, dropout) for _ in range(3)),
            nn.ConvTranspose2d(16, 8, 3, **up), norm(8), nn.ReLU(),
            nn.ConvTranspose2d(8, 4, 3, **up), norm(4), nn.ReLU(),
            *_padded(4, 3, 7), nn.Tanh(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return out


INNERMOST = "model.model.1.model.3.model.1.bias"  # of the convolution that no norm follows


class Level(nn.Module):
    """A level of the U-Net around an inner one; ``norm`` makes the layers of a norm."""

    def __init__(self, outer: int, width: int, inner: nn.Module | None, norm: Any, *, outermost: bool = False) -> None:
        super().__init__()
        self.outermost = outermost
        down = nn.Conv2d(3 if outermost else outer, width, 4, stride=2, padding=1)
        up = nn.ConvTranspose2d(width * (1 if inner is None else 2), outer, 4, stride=2, padding=1)
        if outermost:
            layers = [down, inner, nn.ReLU(), up, nn.Tanh()]
        elif inner is None:
            layers = [nn.LeakyReLU(0.2), down, nn.ReLU(), up, norm(outer)]
        else:
            layers = [nn.LeakyReLU(0.2), down, norm(width), inner, nn.ReLU(), up, norm(outer), nn.Dropout(0.5)]
        self.model = nn.Sequential(*layers)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return out if self.outermost else torch.cat([x, out], 1)


class Unet(nn.Module):
    def __init__(self, *, norm: Any = nn.InstanceNorm2d) -> None:
        super().__init__()
        self.model = Level(8, 16, None, norm)
        self.model = Level(4, 8, self.model, norm)
        self.model = Level(3, 4, self.model, norm, outermost=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return out


@torch.no_grad()
@pytest.mark.parametrize(
    ("build", "family", "options"),
    [
        (Resnet, "resnet_translator", {"channels": 4, "blocks": 3}),
        (lambda: Resnet(dropout=True), "resnet_translator", {"channels": 4, "blocks": 3}),
        (Unet, "unet_translator", {"channels": 4, "depth": 3, "dropout": 0.0}),
    ],
)
def test_a_translator_makes_the_same_images(
    build: Callable[[], nn.Module], family: str, options: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    theirs = build().eval()
    # PyTorch before 0.4 stored statistics that an instance norm never used.
    torch.save(theirs.state_dict() | {"model.2.running_mean": torch.zeros(4)}, tmp_path / "latest_net_G_A.pth")
    found = convert(tmp_path / "latest_net_G_A.pth", tmp_path / "out", licence="BSD")
    assert (found.family, found.networks) == (family, ("model",))
    assert json.loads((tmp_path / "out/ftae_model.json").read_text())["options"] == options
    model = built({"family": family, "pretrained": str(tmp_path / "out")})
    images = images_for(model)
    torch.testing.assert_close(model.run(images)[1], theirs(images), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_unet_normalised_by_batch_does_what_its_authors_test_does(tmp_path: Path) -> None:
    """That is in training mode, one image at a time, without dropout."""
    torch.manual_seed(0)
    theirs = Unet(norm=nn.BatchNorm2d).train()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.normal_(1.0, 0.2)
            module.bias.normal_(0.0, 0.2)
        if isinstance(module, nn.Dropout):
            module.eval()
    state = {name: t for name, t in theirs.state_dict().items() if not _is_bias_before_a_norm(theirs, name)}
    torch.save(state, tmp_path / "latest_net_G.pth")
    convert(tmp_path / "latest_net_G.pth", tmp_path / "out", licence="BSD")
    model = built({"family": "unet_translator", "pretrained": str(tmp_path / "out")})
    images = images_for(model)
    expected = torch.cat([theirs(image[None]) for image in images])
    torch.testing.assert_close(model.run(images)[1], expected, atol=1e-5, rtol=1e-5)


def _is_bias_before_a_norm(net: nn.Module, name: str) -> bool:
    """Their convolutions have none there; a norm takes it away in any case."""
    module = net.get_submodule(name.rpartition(".")[0])
    outermost = ("model.model.0.bias", "model.model.3.bias")
    is_convolution = isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    return name.endswith(".bias") and is_convolution and name not in (*outermost, INNERMOST)


def test_a_residual_generator_normalised_by_batch_is_refused(tmp_path: Path) -> None:
    torch.save(Resnet(norm=nn.BatchNorm2d).state_dict(), tmp_path / "latest_net_G.pth")
    with pytest.raises(FtaeError, match="normalised by batch; that of ftae is by instance"):
        convert(tmp_path / "latest_net_G.pth", tmp_path / "out", licence="BSD")


def test_layers_that_ftae_lacks_are_named(tmp_path: Path) -> None:
    state = Resnet().state_dict()
    state["model.27.weight"] = torch.ones(1)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(FtaeError, match=r"1 unexpected \(model.27.weight\)"):
        convert(tmp_path / "x.pth", tmp_path / "out", licence="BSD")
