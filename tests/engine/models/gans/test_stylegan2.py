"""StyleGAN2: the networks have the properties that the paper states, and the sizes of the published ones."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ftae.engine.models.gans.layers import Resampling, doubled
from ftae.engine.models.gans.stylegan2_discriminator import StyleGan2DiscriminatorNet, with_deviation
from ftae.engine.models.gans.stylegan2_generator import StyledConv, StyleGan2GeneratorNet, demodulation
from ftae.errors import FtaeError

SMALL = {"channels_in": 3, "resolution": 16, "channel_base": 64, "channel_max": 8}


def generator() -> StyleGan2GeneratorNet:
    torch.manual_seed(0)
    net = StyleGan2GeneratorNet(**SMALL, latent_dim=8, style_dim=8, mapping_layers=2)
    for name, parameter in net.named_parameters():
        if name.endswith("noise_strength"):
            nn.init.constant_(parameter, 0.1)
    return net.eval()


def discriminator() -> StyleGan2DiscriminatorNet:
    torch.manual_seed(0)
    return StyleGan2DiscriminatorNet(**SMALL)


def millions(net: nn.Module) -> float:
    return round(sum(p.numel() for p in net.parameters()) / 1e6, 2)


@pytest.mark.parametrize(
    ("resolution", "channel_base", "sizes"),
    [(1024, 32768, [30.37, 28.79, 29.01]), (256, 16384, [24.77, 23.19, 24.0]), (64, 16384, [23.82, 22.24, 23.41])],
)
def test_sizes_are_those_of_the_published_networks(resolution: int, channel_base: int, sizes: list[float]) -> None:
    common = {"channels_in": 3, "resolution": resolution, "channel_base": channel_base}
    with torch.device("meta"):
        nets = [
            StyleGan2GeneratorNet(**common),
            StyleGan2GeneratorNet(**common, mapping_layers=2),
            StyleGan2DiscriminatorNet(**common),
        ]
    assert [millions(net) for net in nets] == sizes


def test_demodulated_weights_have_unit_norm() -> None:
    weight, scales = torch.randn(5, 3, 3, 3), torch.randn(2, 3)
    weights = weight * scales[:, None, :, None, None] * demodulation(weight, scales)[:, :, None, None, None]
    torch.testing.assert_close(weights.square().sum(dim=(2, 3, 4)), torch.ones(2, 5))


@pytest.mark.parametrize("doubles", [False, True])
def test_scaled_inputs_and_outputs_equal_a_convolution_with_weights_of_each_image(doubles: bool) -> None:
    torch.manual_seed(0)
    layer = StyledConv(16 if doubles else 8, 6, 4, 5, doubles=doubles)
    x, style = torch.randn(3, 6, 8, 8), torch.randn(3, 5)
    weights = layer.weight * layer.affine(style)[:, None, :, None, None]
    weights = weights / weights.square().sum(dim=(2, 3, 4), keepdim=True).sqrt()
    if doubles:  # zeros between the pixels, a convolution (not a correlation), the filter
        spread = torch.zeros(3, 6, 15, 15)
        spread[..., ::2, ::2] = x
        wide = by_image(F.pad(spread, (2, 2, 2, 2)), weights.flip(3, 4))
        taps = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 64
        dense = 4 * F.conv2d(F.pad(wide, (1, 1, 1, 1)), taps.expand(4, 1, 4, 4), groups=4)
    else:
        dense = by_image(F.pad(x, (1, 1, 1, 1)), weights)
    found = layer(x, style, fresh_noise=False)
    torch.testing.assert_close(found, F.leaky_relu(dense, 0.2) * 2**0.5, atol=1e-5, rtol=1e-5)


def by_image(x: Tensor, weights: Tensor) -> Tensor:
    """One grouped convolution: x (B, I, H, W) with weights (B, O, I, k, k)."""
    batch = len(x)
    return F.conv2d(x.flatten(0, 1)[None], weights.flatten(0, 1), groups=batch)[0].unflatten(0, (batch, -1))


def test_the_filter_keeps_a_constant_image_and_doubles_or_halves_its_side() -> None:
    ones = torch.ones(1, 2, 8, 8)
    inside = slice(1, -1)
    assert torch.equal(doubled(ones)[..., inside, inside], torch.ones(1, 2, 14, 14))
    halved = Resampling().smooth(ones, padding=1)[..., ::2, ::2]
    assert halved.shape == (1, 2, 4, 4)
    assert torch.equal(halved[..., inside, inside], torch.ones(1, 2, 2, 2))


def test_doubled_images_are_those_with_zeros_between_their_pixels_filtered() -> None:
    images, spread = torch.randn(2, 3, 4, 4), torch.zeros(2, 3, 8, 8)
    spread[..., ::2, ::2] = images
    torch.testing.assert_close(doubled(images), 4 * Resampling().smooth(F.pad(spread, (2, 1, 2, 1)), padding=0))


def test_the_gradients_of_the_filter_are_right_twice() -> None:
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    filtering = Resampling().double()
    assert torch.autograd.gradcheck(lambda x: filtering.smooth(x, 2), x)
    assert torch.autograd.gradgradcheck(lambda x: filtering.smooth(x, 1), x)


def test_every_parameter_is_in_one_stage_and_gets_a_gradient() -> None:
    g, d = generator().train(), discriminator()
    _, images = g.run(torch.randn(4, 8))
    F.softplus(-d(images)).mean().backward()
    assert [s.name for s in g.stages()] == ["mapping", "synthesis.4", "synthesis.8", "synthesis.16"]
    assert [s.name for s in d.stages()] == ["from_rgb", "block.16", "block.8", "epilogue"]
    for net in (g, d):
        in_stages = [p for stage in net.stages() for p in stage.parameters()]
        assert len(in_stages) == len(set(in_stages)) == len(list(net.parameters()))
        assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in in_stages)


@torch.no_grad()
def test_in_eval_mode_running_is_decoding_what_was_encoded() -> None:
    g, z = generator(), torch.randn(3, 8)
    before = g.mapping.w_avg.clone()
    encoding, images = g.run(z)
    assert torch.equal(images, g.decode(g.encode(z).latents))
    assert torch.equal(images, g.decode(encoding.latents[:, None].expand(-1, g.num_styles, -1)))
    assert torch.equal(g.mapping.w_avg, before)


@torch.no_grad()
def test_training_mixes_styles_draws_noise_and_moves_the_average() -> None:
    g, z = generator().train(), torch.randn(16, 8)
    expected = 0.005 * g.encode(z).latents.mean(0)
    encoding, images = g.run(z)
    torch.testing.assert_close(g.mapping.w_avg, expected)
    styles = encoding.latents
    first = g.encode(z).latents
    assert torch.equal(styles[:, 0], first)
    assert 8 <= int((styles[:, -1] != first).any(dim=1).sum()) <= 16
    assert not torch.equal(g.decode(styles), images)  # other noise


@torch.no_grad()
def test_without_strength_noise_changes_nothing() -> None:
    g = generator().train()
    for block in g.synthesis.values():
        for name, parameter in block.named_parameters():
            if name.endswith("noise_strength"):
                parameter.zero_()
    w = torch.randn(2, 8)
    assert torch.equal(g.decode(w), g.decode(w))


def test_truncation_moves_w_to_its_average() -> None:
    g, w = generator(), torch.randn(2, 8)
    g.mapping.w_avg.fill_(3.0)
    torch.testing.assert_close(g.truncated(w, 1.0), w)
    torch.testing.assert_close(g.truncated(w, 0.5), (w + 3.0) / 2)


def test_a_penalty_on_the_gradient_by_the_images_reaches_every_weight() -> None:
    d = discriminator()
    images = torch.rand(4, 3, 16, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(d(images).sum(), images, create_graph=True)
    gradient.square().sum().backward()
    without = {name for name, p in d.named_parameters() if p.grad is None or not p.grad.any()}
    assert without <= {name for name, _ in d.named_parameters() if name.endswith("bias")}


@pytest.mark.parametrize("batch", [1, 2, 5, 6, 8])
def test_the_deviation_is_that_within_groups_of_four_at_most(batch: int) -> None:
    x = torch.randn(batch, 2, 4, 4)
    found = with_deviation(x)
    assert torch.equal(found[:, :2], x)
    groups = -(-batch // 4)
    for i in range(batch):
        group = x[i % groups :: groups]
        assert len(group) >= min(batch, 2)
        expected = (group.var(dim=0, correction=0) + 1e-8).sqrt().mean()
        torch.testing.assert_close(found[i, 2], expected.expand(4, 4))


@pytest.mark.parametrize("resolution", [4, 24])
def test_other_resolutions_are_refused(resolution: int) -> None:
    with pytest.raises(FtaeError, match=f"power of two from 8 on, got {resolution}"):
        StyleGan2GeneratorNet(channels_in=3, resolution=resolution)


def test_a_base_that_leaves_no_channels_is_refused() -> None:
    with pytest.raises(FtaeError, match="channel_base must be at least the resolution, 16, got 8"):
        StyleGan2DiscriminatorNet(channels_in=3, resolution=16, channel_base=8)
