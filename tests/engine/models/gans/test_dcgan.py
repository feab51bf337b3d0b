"""DCGAN: the networks have the size and the layers of the paper."""

import pytest
import torch
import torch.nn.functional as F

from ftae.engine.models.gans.dcgan import DcganDiscriminatorNet, DcganGeneratorNet


def test_sizes_are_those_of_the_paper() -> None:
    with torch.device("meta"):
        nets = DcganGeneratorNet(channels_in=3, resolution=64), DcganDiscriminatorNet(channels_in=3, resolution=64)
    assert [round(sum(p.numel() for p in net.parameters()) / 1e6, 2) for net in nets] == [3.58, 2.77]
    assert [s.name for s in nets[0].stages()] == [f"synthesis.{side}" for side in (4, 8, 16, 32, 64)]
    assert [s.name for s in nets[1].stages()] == [*(f"block.{side}" for side in (64, 32, 16, 8)), "epilogue"]


@pytest.mark.parametrize("resolution", [8, 32])
def test_every_parameter_is_in_one_stage_and_gets_a_gradient(resolution: int) -> None:
    g = DcganGeneratorNet(channels_in=1, resolution=resolution, latent_dim=5, channels=4)
    d = DcganDiscriminatorNet(channels_in=1, resolution=resolution, channels=4)
    images = g.decode(g.encode(torch.randn(3, 5)).latents)
    assert images.shape == (3, 1, resolution, resolution)
    assert images.abs().max() <= 1
    logits = d(images)
    assert logits.shape == (3, 1)
    F.softplus(-logits).mean().backward()
    for net in (g, d):
        in_stages = [p for stage in net.stages() for p in stage.parameters()]
        assert len(in_stages) == len(set(in_stages)) == len(list(net.parameters()))
        assert all(p.grad is not None and p.grad.any() for p in in_stages)
