"""The names of CompVis' code, of taming transformers, latent diffusion, Stable Diffusion and Flux, for the tensors of
diffusers' AutoencoderKL, AutoencoderKLFlux2 and VQModel.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

GROUPS = 32  # of every normalisation

# CompVis' parts of a name and diffusers'; # is a number, which counts from the other end below ``up``.
_PARTS = (
    ("down.#.block.#", "down_blocks.#.resnets.#"),
    ("down.#.attn.#", "down_blocks.#.attentions.#"),
    ("down.#.downsample", "down_blocks.#.downsamplers.0"),
    ("up.#.block.#", "up_blocks.#.resnets.#"),
    ("up.#.attn.#", "up_blocks.#.attentions.#"),
    ("up.#.upsample", "up_blocks.#.upsamplers.0"),
    ("mid.block_1", "mid_block.resnets.0"),
    ("mid.block_2", "mid_block.resnets.1"),
    ("mid.attn_1", "mid_block.attentions.0"),
    ("norm_out", "conv_norm_out"),
    ("nin_shortcut", "conv_shortcut"),
)
_OF_ATTENTION = (("norm", "group_norm"), ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0"))
_EARLIER = (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))  # diffusers before 0.17
_INSIDE = ("encoder.quant_conv.", "quant_conv."), ("decoder.post_quant_conv.", "post_quant_conv.")  # Flux.2


def to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under diffusers' names. Names of diffusers, today's and earlier ones, may be among them."""
    levels = _levels(state, "up")
    found = {}
    for name, tensor in state.items():
        for theirs, ours in _INSIDE:
            name = name.replace(theirs, ours) if name.startswith(theirs) else name
        name = _renamed(name, _PARTS, levels)
        if ".attentions." in name:
            name = _renamed(name, (*_OF_ATTENTION, *_EARLIER), levels)
            tensor = tensor.flatten(1) if tensor.ndim > 2 else tensor  # theirs are convolutions of 1x1
        found[name] = tensor
    return found


def from_diffusers(state: Mapping[str, Tensor], *, flux2: bool = False) -> dict[str, Tensor]:
    """The tensors under CompVis' names. ``flux2``: as Flux.2 has them, with the quant convs inside."""
    levels = _levels(state, "up_blocks")
    found = {}
    for name, tensor in state.items():
        if ".attentions." in name:
            name = _renamed(name, [(ours, theirs) for theirs, ours in _OF_ATTENTION], levels)
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        name = _renamed(name, [(ours, theirs) for theirs, ours in _PARTS], levels)
        for theirs, ours in _INSIDE if flux2 else ():
            name = name.replace(ours, theirs) if name.startswith(ours) else name
        found[name] = tensor
    return found


def _levels(names: Iterable[str], up: str) -> int:
    numbers = (re.match(rf"decoder\.{up}\.(\d+)\.", name) for name in names)
    return 1 + max((int(match[1]) for match in numbers if match), default=0)


def _renamed(name: str, parts: Iterable[tuple[str, str]], levels: int) -> str:
    """``name`` with the first of each pair replaced by the second."""
    for old, new in parts:
        pattern = re.escape(old).replace(r"\#", r"(\d+)")
        if match := re.search(rf"(?:^|(?<=\.)){pattern}(?=\.|$)", name):
            numbers = [int(number) for number in match.groups()]
            if old.startswith("up") and numbers:
                numbers[0] = levels - 1 - numbers[0]
            name = name[: match.start()] + new.replace("#", "{}").format(*numbers) + name[match.end() :]
    return name
