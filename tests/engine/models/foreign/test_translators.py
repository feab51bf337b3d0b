"""Translators of CycleGAN and Pix2Pix: ftae's networks make the images that theirs made, and theirs read its files."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import built, images_for, spec_of
from torch import Tensor, nn

from ftae.engine.models.foreign.convert import convert
from ftae.engine.models.pretrained.weights import load_state, save_state
from ftae.engine.tasks.discriminator import alternating, apart, build_discriminator, discriminator_of
from ftae.errors import FtaeError
from ftae.specs.finetune.discriminator import DiscriminatorSpec


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


# -------------------------------------------------------------------------- their networks read ftae's files

RESNET = {"family": "resnet_translator", "channels": 4, "blocks": 3}
UNET = {"family": "unet_translator", "channels": 4, "depth": 3}
AFFINE = partial(nn.InstanceNorm2d, affine=True)


class Patches(nn.Module):
    """Their discriminator of three strided convolutions, normalised by instance, for images of ``channels``."""

    def __init__(self, channels: int, norm: Any = nn.InstanceNorm2d) -> None:
        super().__init__()
        conv = partial(nn.Conv2d, kernel_size=4, padding=1)
        self.model = nn.Sequential(
            conv(channels, 4, stride=2), nn.LeakyReLU(0.2),
            conv(4, 8, stride=2), norm(8), nn.LeakyReLU(0.2),
            conv(8, 16, stride=2), norm(16), nn.LeakyReLU(0.2),
            conv(16, 32, stride=1), norm(32), nn.LeakyReLU(0.2),
            conv(32, 1, stride=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return out


def filled(net: nn.Module, file: Path, prefix: str = "") -> nn.Module:
    """``net`` with the tensors of a file that have ``prefix``."""
    state = {name.removeprefix(prefix): t for name, t in load_file(file).items() if name.startswith(prefix)}
    net.load_state_dict(state, strict=True)
    return net.eval()


def drawn(net: nn.Module) -> None:
    """Draw all parameters anew, so that none is the 0 or 1 that it begins with."""
    for parameter in net.parameters():
        parameter.normal_(0.0, 0.3)


@torch.no_grad()
@pytest.mark.parametrize(("model", "theirs"), [(RESNET, Resnet), (UNET, lambda: Unet(norm=AFFINE))])
def test_their_translator_reads_a_model_folder(
    model: dict[str, Any], theirs: Callable[[], nn.Module], tmp_path: Path
) -> None:
    ours = built(model)
    drawn(ours.net)
    ours.save(tmp_path)
    images = images_for(ours)
    found = filled(theirs(), tmp_path / "model.safetensors")
    torch.testing.assert_close(found(images), ours.run(images)[1], atol=1e-5, rtol=1e-5)
    again = built(model | {"pretrained": str(tmp_path)}, seed=1)
    assert torch.equal(again.run(images)[1], ours.run(images)[1])


@torch.no_grad()
def test_both_directions_have_the_names_of_their_networks(tmp_path: Path) -> None:
    model = {**RESNET, "family": "cyclegan"}
    ours = built(model)
    ours.save(tmp_path)
    file, images = tmp_path / "model.safetensors", images_for(ours)
    there, back = (filled(Resnet(), file, f"netG_{name}.") for name in "AB")
    assert ours.reverse is not None
    torch.testing.assert_close(there(images), ours.run(images)[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(back(images), ours.reverse(images), atol=1e-5, rtol=1e-5)
    again = built(model | {"pretrained": str(tmp_path)}, seed=1)
    assert again.reverse is not None
    assert torch.equal(again.reverse(images), ours.reverse(images))


@torch.no_grad()
@pytest.mark.parametrize("model", [RESNET, UNET, {**RESNET, "family": "cyclegan"}], ids=lambda model: model["family"])
def test_a_folder_with_the_names_of_the_network_itself_is_read(model: dict[str, Any], tmp_path: Path) -> None:
    """As earlier versions wrote it."""
    ours = built(model)
    drawn(ours.net)
    ours.save(tmp_path)
    save_file(ours.net.state_dict(), tmp_path / "model.safetensors")
    again, images = built(model | {"pretrained": str(tmp_path)}, seed=1), images_for(ours)
    assert torch.equal(again.run(images)[1], ours.run(images)[1])


def discriminator(norm: str, pretrained: Path | None = None, seed: int = 0) -> nn.Module:
    file = None if pretrained is None else str(pretrained)
    spec = DiscriminatorSpec.model_validate({"norm": norm, "channels": 4, "depth": 3, "pretrained": file})
    return build_discriminator(spec, channels=6, resolution=24, seed=seed).eval()


@torch.no_grad()
def test_their_discriminator_reads_the_file_beside_a_model_and_the_reverse(tmp_path: Path) -> None:
    ours, images = discriminator("instance"), torch.randn(2, 6, 24, 24)
    save_state(ours.net, tmp_path, "discriminator.safetensors")  # type: ignore[arg-type]
    theirs = filled(Patches(6), tmp_path / "discriminator.safetensors")
    torch.testing.assert_close(theirs(images), ours(images), atol=1e-5, rtol=1e-5)
    torch.save(Patches(6).state_dict(), tmp_path / "latest_net_D.pth")
    theirs.load_state_dict(torch.load(tmp_path / "latest_net_D.pth", weights_only=True))
    again = discriminator("instance", tmp_path / "latest_net_D.pth")
    torch.testing.assert_close(again(images), theirs(images), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("norm", ["spectral", "group", "instance"])
def test_a_discriminator_has_their_places_whatever_its_norm(norm: str, tmp_path: Path) -> None:
    ours, images = discriminator(norm), torch.randn(2, 6, 24, 24)
    save_state(ours.net, tmp_path, "discriminator.safetensors")  # type: ignore[arg-type]
    saved = load_file(tmp_path / "discriminator.safetensors")
    norms = {f"model.{place}" for place in (3, 6, 9)} if norm == "group" else set()
    assert {".".join(name.split(".")[:2]) for name in saved} == {f"model.{place}" for place in (0, 2, 5, 8, 11)} | norms
    for file in ("discriminator.safetensors", "own.safetensors"):  # checkpoints have the network's own names
        save_file(ours.net.state_dict(), tmp_path / "own.safetensors")  # type: ignore[union-attr, operator]
        assert torch.equal(discriminator(norm, tmp_path / file, seed=1)(images), ours(images))


@torch.no_grad()
def test_discriminators_of_two_domains_are_named_after_the_translators_that_they_judge(tmp_path: Path) -> None:
    settings = {"norm": "instance", "channels": 4, "depth": 3}
    spec = spec_of({**RESNET, "family": "cyclegan"}, discriminator=settings, **{"data.resolution": 24})
    both = discriminator_of(spec).eval()
    save_state(both.net, tmp_path, "discriminator.safetensors")
    b, a = torch.randn(2, 2, 3, 24, 24).unbind()
    of_b, of_a = apart(both(alternating(b, a)))
    for name, images, expected in (("A", b, of_b), ("B", a, of_a)):  # A is of the translator from A to B
        theirs = filled(Patches(3), tmp_path / "discriminator.safetensors", f"netD_{name}.")
        torch.testing.assert_close(theirs(images), expected, atol=1e-5, rtol=1e-5)
    load_state(both.net, tmp_path / "discriminator.safetensors")
    assert torch.equal(apart(both(alternating(b, a)))[0], of_b)
