"""Single files of weights with nothing beside them, in each layout that people have."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2, VQModel
from safetensors.torch import save_file
from tiny_diffusers import as_compvis
from torch import Tensor

from ftae.engine.models.diffusers_loading import load_network
from ftae.engine.models.pretrained.compvis import from_diffusers
from ftae.errors import FtaeError
from ftae.specs.finetune.models import Scaling

State = dict[str, Tensor]

WIDTHS = {
    "block_out_channels": (32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "sample_size": 512,
}
ATTENTION = {
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
}
# Name of a model -> its family, its network, model.scaling.
MODELS: dict[str, tuple[str, Callable[[], Any], Any]] = {
    "Stable Diffusion": ("autoencoder_kl", lambda: AutoencoderKL(**WIDTHS, scaling_factor=0.18215), "sd"),
    "SDXL": ("autoencoder_kl", lambda: AutoencoderKL(**WIDTHS, scaling_factor=0.13025), "sdxl"),
    "Flux.1": (
        "autoencoder_kl",
        lambda: AutoencoderKL(
            **WIDTHS,
            latent_channels=16,
            use_quant_conv=False,
            use_post_quant_conv=False,
            scaling_factor=0.3611,
            shift_factor=0.1159,
        ),
        "flux",
    ),
    "an LDM with attention at a level, one channel and two layers": (
        "autoencoder_kl",
        lambda: AutoencoderKL(
            **WIDTHS | ATTENTION, in_channels=1, out_channels=1, layers_per_block=2, scaling_factor=0.9
        ),
        Scaling(factor=0.9),
    ),
    "without attention": (
        "autoencoder_kl",
        lambda: AutoencoderKL(**WIDTHS, mid_block_add_attention=False, scaling_factor=0.5, shift_factor=0.0),
        Scaling(factor=0.5, shift=0.0),
    ),
    "Flux.2": ("autoencoder_kl_flux2", lambda: AutoencoderKLFlux2(**WIDTHS | {"sample_size": 1024}), None),
    "Flux.2, small decoder": (
        "autoencoder_kl_flux2",
        lambda: AutoencoderKLFlux2(**WIDTHS | {"sample_size": 1024}, decoder_block_out_channels=(32, 32)),
        None,
    ),
    "VQGAN": (
        "vq_model",
        lambda: VQModel(
            **WIDTHS | ATTENTION | {"sample_size": 32},
            latent_channels=8,
            vq_embed_dim=4,
            num_vq_embeddings=24,
            scaling_factor=1.0,
        ),
        None,
    ),
}


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def earlier(state: State) -> State:
    """The names that diffusers gave attention in its first versions."""
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def renamed(name: str) -> str:
        for new, old in names.items():
            name = name.replace(f".{new}.", f".{old}.")
        return name

    return {renamed(name): tensor for name, tensor in state.items()}


def with_quant_convs_inside(state: State) -> State:
    names = {"quant_conv.": "encoder.quant_conv.", "post_quant_conv.": "decoder.post_quant_conv."}
    moved = {
        f"{names.get(n[: n.index('.') + 1], '')}{n.split('.', 1)[1]}": t for n, t in state.items() if "quant_c" in n
    }
    return {name: tensor for name, tensor in state.items() if "quant_c" not in name} | moved


UNET = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(3)}
LOSS = {"loss.discriminator.main.0.weight": torch.zeros(3), "loss.logvar": torch.zeros(())}
LAYOUTS: dict[str, Callable[[State], dict[str, Any]]] = {
    "CompVis": as_compvis,
    "CompVis with losses": lambda s: as_compvis(s) | LOSS,
    "whole checkpoint": lambda s: UNET | under("first_stage_model.", as_compvis(s)),
    "vae.": lambda s: UNET | under("vae.", as_compvis(s)),
    "DataParallel": lambda s: under("module.", as_compvis(s)),
    "torch.compile": lambda s: under("_orig_mod.", as_compvis(s)),
    "both, inside a model": lambda s: UNET | under("first_stage_model._orig_mod.module.", as_compvis(s)),
    "parts compiled": lambda s: {
        name.replace("encoder.", "encoder._orig_mod.", 1): t for name, t in as_compvis(s).items()
    },
    "diffusers": lambda s: s,
    "diffusers, a first version": earlier,
    "diffusers, vae.": lambda s: under("vae.", s),
    "diffusers, compiled": lambda s: under("_orig_mod.", s),
    "quant convs inside": lambda s: with_quant_convs_inside(as_compvis(s)),
}


def same(state: State, other: State) -> bool:
    return state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)


def made(model: str) -> tuple[str, Any, Any]:
    family, new, scaling = MODELS[model]
    torch.manual_seed(3)
    net = new()
    if family == "autoencoder_kl_flux2":
        net.bn.running_mean.normal_()
    return family, net, scaling


def check_loads(file: Path, model: str) -> None:
    """The file gives the same weights in the same network, and the same configuration, as the folder does."""
    family, net, scaling = made(model)
    net.save_pretrained(file.with_suffix(""))
    expected = load_network(family, str(file.with_suffix("")), None)
    found = load_network(family, str(file), None, scaling)
    assert same(found.state_dict(), expected.state_dict())
    assert not found.training
    assert settings(found) == settings(expected)


def settings(net: Any) -> Any:
    return json.loads(json.dumps({name: value for name, value in net.config.items() if not name.startswith("_")}))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", ["CompVis", "diffusers"])
def test_a_file_of_each_model_gives_what_its_folder_gives(model: str, layout: str, tmp_path: Path) -> None:
    save_file(LAYOUTS[layout](made(model)[1].state_dict()), tmp_path / "one.safetensors")
    check_loads(tmp_path / "one.safetensors", model)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_in_each_layout_gives_what_its_folder_gives(layout: str, tmp_path: Path) -> None:
    state = LAYOUTS[layout](made("Stable Diffusion")[1].state_dict())
    save_file(state, tmp_path / "one.safetensors")
    check_loads(tmp_path / "one.safetensors", "Stable Diffusion")
    torch.save({"state_dict": state, "epoch": 3, "optimizer_states": [{"state": {}}]}, tmp_path / "two.ckpt")
    check_loads(tmp_path / "two.ckpt", "Stable Diffusion")


def test_averaged_weights_come_first(tmp_path: Path) -> None:
    state = made("Stable Diffusion")[1].state_dict()
    torch.save({"model": {name: t + 1 for name, t in state.items()}, "ema": state}, tmp_path / "one.pt")
    check_loads(tmp_path / "one.pt", "Stable Diffusion")
    torch.save({"model": state, "generator": state}, tmp_path / "one.pt")
    assert "holds several autoencoders, under 'model.', 'generator.'" in refused(tmp_path / "one.pt")


def test_half_precision_becomes_full(tmp_path: Path) -> None:
    state = made("SDXL")[1].half().state_dict()
    save_file(as_compvis(state), tmp_path / "one.safetensors")
    found = load_network("autoencoder_kl", str(tmp_path / "one.safetensors"), None, "sdxl").state_dict()
    assert same(found, {name: tensor.float() for name, tensor in state.items()})


def test_names_there_and_back(tmp_path: Path) -> None:
    state = made("an LDM with attention at a level, one channel and two layers")[1].state_dict()
    assert same(from_diffusers(state), as_compvis(state))
    assert "encoder.quant_conv.weight" in from_diffusers(state, flux2=True)


# --------------------------------------------------------------------------------------------------------- refusals


def refused(file: Path, family: str = "autoencoder_kl", scaling: Any = "sd") -> str:
    with pytest.raises(FtaeError) as caught:
        load_network(family, str(file), None, scaling)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(as_compvis(made("Stable Diffusion")[1].state_dict()), tmp_path / "one.safetensors")
    return tmp_path / "one.safetensors"


def rewritten(file: Path, change: Callable[[State], dict[str, Any]]) -> Path:
    save_file(change(as_compvis(made("Stable Diffusion")[1].state_dict())), file)
    return file


def test_the_scaling_is_asked_for_and_has_an_effect(file: Path, tmp_path: Path) -> None:
    assert "model.scaling: required" in refused(file, scaling=None)
    assert "one of sd (0.18215), sdxl (0.13025), sd3 (1.5305), flux (0.3611), or {factor: ...," in refused(
        file, scaling=None
    )
    made("Stable Diffusion")[1].save_pretrained(tmp_path / "folder")
    assert "model.scaling has no effect" in refused(tmp_path / "folder")
    assert "model.scaling has no effect" in refused(tmp_path / "folder" / "diffusion_pytorch_model.safetensors")


def test_a_file_that_is_damaged_or_ruined_is_one_message(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert "is damaged or cut short" in refused(file)
    rewritten(file, lambda s: s | {"decoder.conv_in.bias": torch.full_like(s["decoder.conv_in.bias"], torch.nan)})
    assert "holds values that are not finite, the first in decoder.conv_in.bias" in refused(file)


def test_a_tensor_that_does_not_fit_is_named(file: Path) -> None:
    without = rewritten(file, lambda s: {n: t for n, t in s.items() if n != "decoder.mid.block_1.norm1.weight"})
    assert "1 missing (decoder.mid_block.resnets.0.norm1.weight)" in refused(without)
    more = rewritten(file, lambda s: s | {"decoder.extra.weight": torch.ones(1)})
    assert "1 unexpected (decoder.extra.weight)" in refused(more)
    encoder = rewritten(file, lambda s: {n: t for n, t in s.items() if n.startswith("encoder.")})
    assert "1 missing (decoder.conv_out.weight)" in refused(encoder)
    narrow = rewritten(
        file, lambda s: {n: t[:48] if n == "encoder.down.1.block.0.conv2.weight" else t for n, t in s.items()}
    )
    assert "are no multiples of 32" in refused(narrow)


def test_a_file_of_something_else_is_refused(file: Path) -> None:
    unet = rewritten(file, lambda s: UNET)
    assert "holds no autoencoder that can be read without its config.json" in refused(unet)
    assert "model.diffusion_model.input_blocks.0.0.weight" in refused(unet)
    assert "1 missing (quantize.embedding.weight)" in refused(rewritten(file, dict), "vq_model", None)


def test_objects_in_a_file_are_not_executed(tmp_path: Path) -> None:
    state = as_compvis(made("Stable Diffusion")[1].state_dict())
    torch.save({"state_dict": state, "hyper_parameters": argparse.Namespace(lr=1.0)}, tmp_path / "one.ckpt")
    assert "save net.state_dict() by itself" in refused(tmp_path / "one.ckpt")
