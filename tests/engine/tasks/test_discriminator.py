"""The discriminator: its logits, its normalisation, its weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ftae.engine.tasks.discriminator import Discriminator, build_discriminator
from ftae.errors import FtaeError
from ftae.specs.finetune.discriminator import DiscriminatorSpec


def images(seed: int, count: int = 4) -> Tensor:
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


def built(seed: int = 0, **fields: Any) -> Discriminator:
    return build_discriminator(DiscriminatorSpec(**{"channels": 4} | fields), channels=1, resolution=16, seed=seed)


def numbers(discriminator: Discriminator) -> dict[str, list[float]]:
    return {name: tensor.flatten().tolist() for name, tensor in discriminator.state_dict().items()}


@pytest.mark.parametrize("norm", ["spectral", "group"])
@pytest.mark.parametrize(("resolution", "depth", "side"), [(8, 1, 2), (16, 2, 2), (12, 2, 1), (32, 3, 2), (64, 3, 6)])
def test_it_takes_small_images(norm: Any, resolution: int, depth: int, side: int) -> None:
    net = build_discriminator(DiscriminatorSpec(norm=norm, channels=4, depth=depth), channels=3, resolution=16, seed=0)
    assert net(torch.rand(2, 3, resolution, resolution)).shape == (2, 1, side, side)
    assert resolution >= DiscriminatorSpec(depth=depth).least_resolution


@pytest.mark.parametrize("norm", ["spectral", "group"])
def test_images_of_a_batch_do_not_affect_each_other(norm: Any) -> None:
    net = build_discriminator(DiscriminatorSpec(norm=norm, channels=4), channels=1, resolution=16, seed=0).eval()
    whole = net(images(0))
    assert torch.allclose(net(images(0)[:1]), whole[:1], atol=1e-6)
    assert whole.std() > 0


def test_spectral_normalisation_bounds_every_convolution() -> None:
    torch.manual_seed(0)
    net = build_discriminator(DiscriminatorSpec(channels=8), channels=1, resolution=16, seed=0).train()
    for _ in range(30):
        net(images(0))
    convs = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    norms = [torch.linalg.matrix_norm(conv.weight.flatten(1), 2).item() for conv in convs]
    assert norms == pytest.approx([1.0] * 4, rel=0.05)


def test_its_stages_are_its_convolutions_in_order() -> None:
    net = built(depth=2, norm="group")
    assert [stage.name for stage in net.stages] == ["conv_0", "conv_1", "conv_2", "conv_3"]
    kinds = [[type(module).__name__ for module in stage.modules] for stage in net.stages]
    middle = ["Conv2d", "GroupNorm", "LeakyReLU"]
    assert kinds == [["Conv2d", "LeakyReLU"], middle, middle, ["Conv2d"]]


def test_logits_are_fp32_whatever_the_network_computes_in() -> None:
    net = built().eval()
    exact, rounded = (net.judge(images(0), bf16=bf16) for bf16 in (False, True))
    assert exact.dtype == rounded.dtype == torch.float32
    assert torch.equal(exact, net(images(0)))
    assert not torch.equal(exact, rounded)


def test_it_is_drawn_from_the_seed_and_leaves_the_generators_alone() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, again, other = (numbers(built(seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


def test_pretrained_weights_are_loaded_or_the_file_is_named(tmp_path: Path) -> None:
    saved = built(seed=7)
    torch.save(saved.net.state_dict(), tmp_path / "d.pt")
    assert numbers(built(pretrained=str(tmp_path / "d.pt"))) == numbers(saved)
    with pytest.raises(FtaeError, match=r"discriminator\.pretrained: .*none\.pt does not exist"):
        built(pretrained=str(tmp_path / "none.pt"))
    with pytest.raises(FtaeError, match=r"discriminator\.pretrained: .*d\.pt does not hold a state dict of the model"):
        built(pretrained=str(tmp_path / "d.pt"), channels=8)
