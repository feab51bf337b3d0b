"""Single files of weights with nothing beside them: the tensors of the autoencoder inside, and a configuration that
follows from their shapes.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from ftae.engine.models.pretrained.compvis import GROUPS, to_diffusers
from ftae.engine.models.pretrained.weights import check_content, note, read_state, without_wrappers
from ftae.engine.process import first_line
from ftae.errors import FtaeError
from ftae.specs.finetune.models import Scaling

FROM_SHAPES = ("autoencoder_kl", "autoencoder_kl_flux2", "vq_model")  # the families that shapes describe

_SAMPLE_SIZE = 512  # pixels from which diffusers may tile images
_FIRST = "encoder.conv_in.weight"
_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "quantize.", "bn.")


def read_autoencoder(file: Path) -> dict[str, Tensor]:
    """The tensors of the only autoencoder in a file, under diffusers' names.

    They may have CompVis' names or diffusers', and any prefix, as in a whole checkpoint of Stable Diffusion. What is
    not of the autoencoder is left out; in a ``.safetensors`` it is not even read. No code in the file is run.

    Raises:
        FtaeError: the file is damaged, could run code, or does not hold exactly one autoencoder.
    """
    if check_content(file) == "safetensors":
        try:
            with safe_open(file, framework="pt") as content:
                names = _chosen(content.keys(), file)
                return to_diffusers({name: content.get_tensor(key) for name, key in names.items()})
        except FtaeError:
            raise
        except Exception as error:  # the reader raises anything on a broken file
            raise FtaeError(f"model.pretrained: {file} is damaged or cut short ({first_line(error)})") from error
    return choose_autoencoder(read_state(file), file)


def choose_autoencoder(content: Mapping[Any, Any], file: Path) -> dict[str, Tensor]:
    """What ``read_autoencoder`` finds in the content of a file; raises as it does."""
    tensors = _flat(content)
    return to_diffusers({name: tensors[key] for name, key in _chosen(tensors, file).items()})


def _flat(content: Mapping[Any, Any], prefix: str = "", depth: int = 2) -> dict[str, Tensor]:
    """The tensors of nested mappings, by dotted names."""
    found: dict[str, Tensor] = {}
    for key, value in content.items():
        if isinstance(value, Tensor):
            found[f"{prefix}{key}"] = value
        elif isinstance(value, Mapping) and depth:
            found |= _flat(value, f"{prefix}{key}.", depth - 1)
    return found


def _chosen(keys: Iterable[str], file: Path) -> dict[str, str]:
    """The tensors of the autoencoder: their names without the prefix -> their names in the file."""
    names = {without_wrappers(key): key for key in keys}
    prefixes = [name.removesuffix(_FIRST) for name in names if name == _FIRST or name.endswith(f".{_FIRST}")]
    if not prefixes:
        raise FtaeError(
            f"model.pretrained: {file} holds no autoencoder that can be read without its config.json: none of its "
            f"{len(names)} tensors is {_FIRST}; it has {', '.join([*names][:3])}, ..."
        )
    # Authors evaluate with averaged weights, where there are both.
    prefixes = [prefix for prefix in prefixes if "ema" in prefix.lower()] or prefixes
    if len(prefixes) > 1:
        raise FtaeError(
            f"model.pretrained: {file} holds several autoencoders, under {', '.join(map(repr, prefixes))}; "
            "save the state_dict of one of them by itself"
        )
    inside = {name.removeprefix(prefixes[0]): key for name, key in names.items() if name.startswith(prefixes[0])}
    chosen = {name: key for name, key in inside.items() if name.startswith(_PARTS)}
    if others := [name for name in inside if name not in chosen]:
        note(f"model.pretrained: {file}: {len(others)} tensors beside the autoencoder are left out: {others[0]}, ...")
    return chosen


# ------------------------------------------------------------------------------------------------- configuration


def config_from_shapes(family: str, state: Mapping[str, Tensor], scaling: Scaling | None, file: Path) -> dict[str, Any]:
    """The configuration in which diffusers builds the network of ``state``.

    Raises:
        FtaeError: a tensor is missing that it follows from, or the normalisation must have another number of groups
            than that of published models.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in state:
            raise FtaeError(f"model.pretrained: {file} does not hold a state dict of the model: 1 missing ({name})")
        return tuple(state[name].shape)

    down, up = _count(state, "encoder.down_blocks"), _count(state, "decoder.up_blocks")
    widths = [shape(f"encoder.down_blocks.{i}.resnets.0.conv2.weight")[0] for i in range(down)]
    if any(width % GROUPS for width in widths):
        raise FtaeError(
            f"model.pretrained: {file} has layers of {', '.join(map(str, widths))} channels, which are no multiples of "
            f"{GROUPS}: its shapes do not say how it is normalised. Put the config.json of its model beside it"
        )
    config = {
        "in_channels": shape(_FIRST)[1],
        "out_channels": shape("decoder.conv_out.weight")[0],
        "block_out_channels": widths,
        "down_block_types": [_kind(state, f"encoder.down_blocks.{i}", "DownEncoderBlock2D") for i in range(down)],
        "up_block_types": [_kind(state, f"decoder.up_blocks.{i}", "UpDecoderBlock2D") for i in range(up)],
        "layers_per_block": _count(state, "encoder.down_blocks.0.resnets"),
        "latent_channels": shape("decoder.conv_in.weight")[1],
        "mid_block_add_attention": "encoder.mid_block.attentions.0.to_q.weight" in state,
        "norm_num_groups": GROUPS,
    }
    if family == "vq_model":
        codes, length = shape("quantize.embedding.weight")
        # Neither taming transformers nor latent diffusion scales codes.
        return config | {"num_vq_embeddings": codes, "vq_embed_dim": length, "scaling_factor": 1.0}
    config |= {f"use_{name}": f"{name}.weight" in state for name in ("quant_conv", "post_quant_conv")}
    if family == "autoencoder_kl_flux2":
        decoder_widths = [shape(f"decoder.up_blocks.{i}.resnets.0.conv2.weight")[0] for i in reversed(range(up))]
        return config | ({} if decoder_widths == widths else {"decoder_block_out_channels": decoder_widths})
    assert scaling is not None
    return config | {"scaling_factor": scaling.factor, "shift_factor": scaling.shift, "sample_size": _SAMPLE_SIZE}


def _count(names: Mapping[str, Tensor], parent: str) -> int:
    """How many children ``parent`` has."""
    return len({name[len(parent) + 1 :].partition(".")[0] for name in names if name.startswith(f"{parent}.")})


def _kind(names: Mapping[str, Tensor], block: str, kind: str) -> str:
    return f"Attn{kind}" if f"{block}.attentions.0.to_q.weight" in names else kind
