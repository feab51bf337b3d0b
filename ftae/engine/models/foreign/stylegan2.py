"""StyleGAN2 in the names of NVIDIA's PyTorch files, which are ftae's: networks from their tensors."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ftae.engine.models.foreign.network import Network
from ftae.engine.models.gans.layers import Resampling, sides, widths
from ftae.engine.models.gans.stylegan2_discriminator import StyleGan2DiscriminatorNet
from ftae.engine.models.gans.stylegan2_generator import StyleGan2GeneratorNet
from ftae.engine.models.pretrained.weights import fill
from ftae.errors import FtaeError

FILTER, AVERAGE = "resample_filter", "mapping.w_avg"
AVERAGED = 10_000  # z for the average of w, where a file has none


@torch.no_grad()
def generator(state: Mapping[str, Tensor]) -> Network:
    """The generator with these tensors. Where they lack the average of w, it is computed.

    Raises:
        FtaeError: they are of no such generator, or of one that ftae does not have.
    """
    if any(name.startswith("mapping.embed.") for name in state):
        raise FtaeError("its generator is conditioned on labels; ftae has none that is")
    side = _resolution(state, "synthesis.b")
    channels = {s: len(_tensor(state, f"synthesis.b{s}.conv1.weight", 4)) for s in sides(side)}
    first = _tensor(state, "mapping.fc0.weight", 2)
    options = {
        **_channels(channels),
        "latent_dim": first.shape[1],
        "style_dim": first.shape[0],
        "mapping_layers": sum(name.startswith("mapping.fc") and name.endswith(".weight") for name in state),
    }
    facts = {"channels_in": len(_tensor(state, f"synthesis.b{side}.torgb.weight", 4)), "resolution": side}
    found = Network.new(StyleGan2GeneratorNet, options, facts)
    assert isinstance(found.net, StyleGan2GeneratorNet)
    average = found.net.mapping.w_avg
    _load(found.net, {AVERAGE: average, **state}, "its generator")
    if AVERAGE not in state:
        z = torch.randn(AVERAGED, first.shape[1], generator=torch.Generator().manual_seed(0))
        average.copy_(found.net.mapping(z).mean(dim=0))
    return found


def discriminator(state: Mapping[str, Tensor]) -> Network:
    """The discriminator with these tensors. Raises as ``generator``."""
    side = _resolution(state, "b")
    channels = {s: len(_tensor(state, f"b{s}.conv{'' if s == 4 else 0}.weight", 4)) for s in sides(side)}
    facts = {"channels_in": _tensor(state, f"b{side}.fromrgb.weight", 4).shape[1], "resolution": side}
    found = Network.new(StyleGan2DiscriminatorNet, _channels(channels), facts)
    _load(found.net, state, "its discriminator")
    return found


def check_filter(name: str, kernel: Tensor) -> None:
    """Raises FtaeError if ``kernel``, of any scale, is not that of [1, 3, 3, 1]."""
    expected = Resampling().resample_filter
    if kernel.shape != expected.shape or not torch.allclose(kernel / kernel.sum(), expected, atol=1e-6):
        raise FtaeError(f"{name} is another filter than that of [1, 3, 3, 1], which is all that ftae has")


def _load(net: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load all of ``state``; a filter that it lacks is the one of the network."""
    for name, tensor in state.items():
        if name.endswith(FILTER):
            check_filter(name, tensor)
    filters = {name: tensor for name, tensor in net.state_dict().items() if name.endswith(FILTER)}
    fill(net, filters | dict(state), what)


def _resolution(state: Mapping[str, Tensor], prefix: str) -> int:
    """The side of the images, by the names of the blocks."""
    found = [name.removeprefix(prefix).partition(".")[0] for name in state if name.startswith(prefix)]
    numbers = [int(side) for side in found if side.isdecimal()]
    if not numbers:
        raise FtaeError(
            f"it holds no StyleGAN2: no tensor is called {prefix}..., the first are {', '.join([*state][:3])}"
        )
    return max(numbers)


def _tensor(state: Mapping[str, Tensor], name: str, ndim: int) -> Tensor:
    tensor = state.get(name)
    if tensor is None or tensor.ndim != ndim:
        found = "is missing" if tensor is None else f"has the shape {tuple(tensor.shape)}"
        raise FtaeError(f"it holds no whole StyleGAN2: {name} {found}")
    return tensor


def _channels(found: dict[int, int]) -> dict[str, int]:
    """``channel_base`` and ``channel_max`` for channels by side."""
    most = max(found.values())
    resolution = max(found)
    base = max((side * number for side, number in found.items() if number < most), default=most * resolution)
    if base < resolution or widths(resolution, base, most) != found:
        raise FtaeError(f"its channels by image side are {found}; ftae has min(channel_base / side, channel_max)")
    return {"channel_base": base, "channel_max": most}
