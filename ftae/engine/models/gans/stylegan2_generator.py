"""The generator of StyleGAN2 (Karras et al. 2020). Parameters have the names of NVIDIA's PyTorch files."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ftae.engine.models.autoencoder import Encoding, NoiseFn
from ftae.engine.models.gans.layers import FIRST_SIDE, Dense, Resampling, activate, doubled, sides, widths
from ftae.engine.models.staged_model import Stage

EPSILON = 1e-8
MAPPING_LR = 0.01  # the share of the learning rate that the mapping network learns with
W_AVG_DECAY = 0.995  # a batch


class StyleGan2GeneratorNet(nn.Module):
    """z (B, latent_dim) - mapping - w (B, style_dim) - synthesis - images (B, C, R, R) in about [-1, 1], not clamped.

    ``style_mixing``: the share of images whose later layers take the w of a second z, in training.

    Raises:
        FtaeError: ``resolution`` is no power of two from 8 on, or exceeds ``channel_base``.
    """

    image_range = (-1.0, 1.0)

    def __init__(
        self,
        *,
        channels_in: int,
        resolution: int,
        channel_base: int = 16384,
        channel_max: int = 512,
        latent_dim: int = 512,
        style_dim: int = 512,
        mapping_layers: int = 8,
        style_mixing: float = 0.9,
    ) -> None:
        super().__init__()
        self.style_mixing = style_mixing
        self.noise_dim = latent_dim
        self.num_styles = 2 * len(sides(resolution))
        self.mapping = MappingNet(latent_dim, style_dim, mapping_layers)
        self.synthesis = SynthesisNet(widths(resolution, channel_base, channel_max), style_dim, channels_in)

    def encode(self, z: Tensor, labels: Tensor | None = None, noise: NoiseFn | None = None) -> Encoding:
        """z (B, latent_dim), standard normal, to w (B, style_dim); ``labels`` and ``noise`` are not used."""
        return Encoding(self.mapping(z))

    def decode(self, w: Tensor, labels: Tensor | None = None) -> Tensor:
        """w (B, style_dim), or one for each layer (B, num_styles, style_dim), to images (B, C, R, R).

        Noise maps are fresh from torch's global generator in training mode, and the stored ones in eval mode.
        """
        styles = w if w.ndim == 3 else w[:, None].expand(-1, self.num_styles, -1)
        # The mode of the network decides, not that of a block: noise of a frozen block is an input, too.
        images: Tensor = self.synthesis(styles, fresh_noise=self.training)
        return images

    def run(self, z: Tensor, labels: Tensor | None = None, noise: NoiseFn | None = None) -> tuple[Encoding, Tensor]:
        """The w of z (B, latent_dim), and images (B, C, R, R).

        In training mode styles are mixed, so that w is (B, num_styles, style_dim), and the average of w moves. In eval
        mode it is ``decode`` of ``encode``.
        """
        w = self.mapping(z)
        if self.training:
            self.mapping.track(w)
            w = self._mixed(w, self.mapping(torch.randn_like(z)))
        return Encoding(w), self.decode(w)

    def truncated(self, w: Tensor, psi: float) -> Tensor:
        """``w`` moved towards the average of w: psi 1 leaves it, psi 0 gives the average."""
        return self.mapping.w_avg.lerp(w, psi)

    def stages(self) -> list[Stage]:
        """All stages in data-flow order: the mapping, then the blocks from coarse to fine."""
        blocks = (Stage(f"synthesis.{name[1:]}", "synthesis", (block,)) for name, block in self.synthesis.items())
        return [Stage("mapping", "mapping", (self.mapping,)), *blocks]

    def _mixed(self, first: Tensor, second: Tensor) -> Tensor:
        """(B, num_styles, style_dim): ``first``, and ``second`` behind a random layer of a random choice of images."""
        batch, device = len(first), first.device
        crossover = torch.randint(1, self.num_styles, (batch, 1), device=device)
        behind = torch.arange(self.num_styles, device=device) >= crossover
        is_mixed = torch.rand(batch, 1, device=device) < self.style_mixing
        return torch.where((behind & is_mixed)[..., None], second[:, None], first[:, None])


class MappingNet(nn.Module):
    """z (B, latent_dim) to w (B, style_dim); ``w_avg`` (style_dim,) is a moving average of w."""

    w_avg: Tensor

    def __init__(self, latent_dim: int, style_dim: int, layers: int) -> None:
        super().__init__()
        self.layers = layers
        for i in range(layers):
            self.add_module(f"fc{i}", Dense(style_dim if i else latent_dim, style_dim, lr_multiplier=MAPPING_LR))
        self.register_buffer("w_avg", torch.zeros(style_dim))

    def forward(self, z: Tensor) -> Tensor:
        x = z * torch.rsqrt(z.square().mean(dim=1, keepdim=True) + EPSILON)
        for i in range(self.layers):
            x = activate(self.get_submodule(f"fc{i}")(x))
        return x

    def track(self, w: Tensor) -> None:
        """Move ``w_avg`` towards the mean of ``w`` (B, style_dim); not in eval mode, as of a frozen mapping."""
        if self.training:
            self.w_avg.lerp_(w.detach().mean(dim=0).to(self.w_avg.dtype), 1.0 - W_AVG_DECAY)


class SynthesisNet(nn.ModuleDict):
    """A block for each side, 4 to R. ``widths``: channels by side."""

    def __init__(self, widths: dict[int, int], style_dim: int, channels_in: int) -> None:
        befores = [0, *widths.values()]
        super().__init__(
            {
                f"b{side}": SynthesisBlock(side, before, width, style_dim, channels_in)
                for (side, width), before in zip(widths.items(), befores, strict=False)
            }
        )

    def forward(self, styles: Tensor, *, fresh_noise: bool) -> Tensor:
        """Styles (B, num_styles, style_dim) to images (B, C, R, R); ``fresh_noise``: not the stored noise maps."""
        x: Tensor | None = None
        images: Tensor | None = None
        for i, block in enumerate(self.values()):
            # A block shares the style of its last layer, to RGB, with the first layer of the next.
            own = styles[:, max(0, 2 * i - 1) : 2 * i + 2].unbind(dim=1)
            x, images = block(x, images, own, fresh_noise)
        assert images is not None
        return images


class SynthesisBlock(Resampling):
    """Doubles the features and the images, and adds to the images; the block of side 4 begins with a constant."""

    def __init__(self, side: int, before: int, width: int, style_dim: int, channels_in: int) -> None:
        super().__init__()
        self.is_first = side == FIRST_SIDE
        if self.is_first:
            self.const = nn.Parameter(torch.randn(width, side, side))
        else:
            self.conv0 = StyledConv(side, before, width, style_dim, doubles=True)
        self.conv1 = StyledConv(side, width, width, style_dim)
        self.torgb = ToRgb(width, channels_in, style_dim)

    def forward(
        self, x: Tensor | None, images: Tensor | None, styles: tuple[Tensor, ...], fresh_noise: bool
    ) -> tuple[Tensor, Tensor]:
        """Features (B, width, r, r) and images (B, C, r, r) of the side r, of those of the block before, if any.

        ``styles``: those of its layers, (B, style_dim) each.
        """
        *inner, last = styles
        x = self.const.expand(last.shape[0], -1, -1, -1) if x is None else self.conv0(x, inner[0], fresh_noise)
        x = self.conv1(x, inner[-1], fresh_noise)
        added = self.torgb(x, last)
        return x, added if images is None else doubled(images) + added


class StyledConv(Resampling):
    """A 3x3 convolution whose input is scaled by a style and whose output is demodulated, noise, a leaky ReLU."""

    noise_const: Tensor

    def __init__(self, side: int, before: int, width: int, style_dim: int, *, doubles: bool = False) -> None:
        super().__init__()
        self.doubles = doubles
        self.affine = Dense(style_dim, before, bias=1.0)
        self.weight = nn.Parameter(torch.randn(width, before, 3, 3))
        self.register_buffer("noise_const", torch.randn(side, side))
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, style: Tensor, fresh_noise: bool) -> Tensor:
        """Features (B, before, r, r) and a style (B, style_dim) to (B, width, r, r), or twice that side."""
        scales = self.affine(style)
        x = self._convolved(x * scales[:, :, None, None]) * demodulation(self.weight, scales)[:, :, None, None]
        side = x.shape[-1]
        noise = torch.randn(x.shape[0], 1, side, side, device=x.device) if fresh_noise else self.noise_const
        return activate(x + noise * self.noise_strength + self.bias[:, None, None])

    def _convolved(self, x: Tensor) -> Tensor:
        if not self.doubles:
            return F.conv2d(x, self.weight, padding=1)
        # Zeros between the pixels would take three quarters of the brightness.
        return 4 * self.smooth(F.conv_transpose2d(x, self.weight.transpose(0, 1), stride=2), padding=1)


def demodulation(weight: Tensor, scales: Tensor) -> Tensor:
    """Factors (B, O) that give the weights (O, I, k, k), scaled by (B, I), unit norm for each output, in fp32."""
    with torch.autocast(weight.device.type, enabled=False):  # bf16 has too few digits for sums of squares
        return torch.rsqrt(scales.float().square() @ weight.float().square().sum(dim=(2, 3)).T + EPSILON)


class ToRgb(nn.Module):
    """A 1x1 convolution to image channels whose input is scaled by a style, without demodulation."""

    def __init__(self, width: int, channels_in: int, style_dim: int) -> None:
        super().__init__()
        self.affine = Dense(style_dim, width, bias=1.0)
        self.weight = nn.Parameter(torch.randn(channels_in, width, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels_in))
        self.scale = width**-0.5

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Features (B, width, r, r) and a style (B, style_dim) to images (B, C, r, r)."""
        scales = self.affine(style) * self.scale
        return F.conv2d(x * scales[:, :, None, None], self.weight, self.bias)
