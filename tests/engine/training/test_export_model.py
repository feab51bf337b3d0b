"""Exported models: the evaluated weights, in a format that other programs read, with the right scale of latents."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2, AutoencoderTiny
from safetensors.torch import load_file
from small_models import assert_same
from tiny_diffusers import save_tiny_kl, save_tiny_models

from ftae.engine.data.batches import train_batch
from ftae.engine.data.dataset import load_dataset
from ftae.engine.models.diffusers_loading import load_network
from ftae.engine.models.families import build_model
from ftae.engine.training.checkpoint import evaluated_weights
from ftae.engine.training.export_model import ExportedModel, export_model
from ftae.engine.training.loop import finetune
from ftae.specs.finetune.run import FinetuneSpec

SCALING, SHIFT = 0.7, 0.25


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small pretrained models: ``kl``, ``shifted`` (with a shift_factor) and ``tiny``."""
    folder = tmp_path_factory.mktemp("export")
    torch.manual_seed(1)
    for name, shift in [("kl", None), ("shifted", SHIFT)]:
        save_tiny_kl(folder / name, scaling_factor=SCALING, shift_factor=shift)
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=2,
    ).save_pretrained(folder / "tiny")
    return folder


def spec_of(model: dict[str, Any], **changes: Any) -> FinetuneSpec:
    fields: dict[str, Any] = {
        "model": model,
        "data": {"source": "digits", "resolution": 16, "color": "rgb", "classes": [0, 1]},
        "losses": {"mse": 1.0},
        "optimizer": {"lr": 1e-2},
        "max_steps": 2,
        "num_evals": 1,
        "metrics": ["psnr"],
        "num_threads": 1,
    }
    return FinetuneSpec.model_validate(fields | changes)


def kl(home: Path, name: str = "kl", **changes: Any) -> FinetuneSpec:
    return spec_of({"family": "autoencoder_kl", "pretrained": str(home / name)}, **changes)


def exported(spec: FinetuneSpec, folder: Path) -> tuple[ExportedModel, Path]:
    *_, last = finetune(spec, folder)
    assert last.checkpoint is not None
    return export_model(spec, folder / last.checkpoint, folder / "model"), folder / last.checkpoint


def all_training_images(spec: FinetuneSpec) -> torch.Tensor:
    data = load_dataset(spec.data)
    batch = train_batch(data.train, spec.data, batch_size=len(data.train), batch=0, seed=0, device="cpu")
    return batch.images * 2 - 1


@pytest.mark.parametrize("freeze", [("encoder", "quant_conv"), ("encoder", "bottleneck")])
def test_a_tuned_decoder_keeps_latents_and_scale(freeze: tuple[str, ...], home: Path, tmp_path: Path) -> None:
    spec = kl(home, freeze=freeze)
    result, _ = exported(spec, tmp_path)
    assert result == ExportedModel(latents_compatible=True, scaling_factor=None)
    before, after = (AutoencoderKL.from_pretrained(folder) for folder in (home / "kl", tmp_path / "model"))
    assert after.config.scaling_factor == SCALING
    images = all_training_images(spec)[:8]
    with torch.no_grad():
        latents = [model.encode(images).latent_dist.parameters for model in (before, after)]
        decoded = [model.decode(latents[0][:, :2]).sample for model in (before, after)]
    assert torch.equal(*latents)
    assert not torch.equal(*decoded)


@pytest.mark.parametrize("name", ["kl", "shifted"])
@pytest.mark.parametrize("freeze", [(), ("encoder", "decoder", "post_quant_conv")])
def test_tuned_latents_get_a_new_scale(name: str, freeze: tuple[str, ...], home: Path, tmp_path: Path) -> None:
    spec = kl(home, name, freeze=freeze)
    result, _ = exported(spec, tmp_path)
    model = AutoencoderKL.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        posterior = model.encode(all_training_images(spec)).latent_dist
    # The variance of a sample of the posterior, over all elements of all training images.
    mean, variance = posterior.mean.double(), posterior.var.double()
    std = (mean.var(correction=0) + variance.mean()).sqrt().item()
    assert not result.latents_compatible
    assert result.scaling_factor == pytest.approx(1 / std, rel=1e-4)
    assert model.config.scaling_factor == result.scaling_factor != SCALING
    if name == "kl":
        assert model.config.shift_factor is None
    else:
        assert model.config.shift_factor == pytest.approx(mean.mean().item(), abs=1e-6) != SHIFT


def test_the_scale_makes_latents_of_unit_variance(home: Path, tmp_path: Path) -> None:
    spec = kl(home, "shifted")
    exported(spec, tmp_path)
    model = AutoencoderKL.from_pretrained(tmp_path / "model")
    torch.manual_seed(0)
    with torch.no_grad():
        latents = model.encode(all_training_images(spec)).latent_dist.sample()
    scaled = (latents - model.config.shift_factor) * model.config.scaling_factor
    assert scaled.mean().item() == pytest.approx(0.0, abs=0.02)
    assert scaled.std().item() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(("freeze", "compatible"), [(("encoder",), True), ((), False)])
def test_an_autoencoder_tiny_gets_a_new_scale_and_shift(
    freeze: tuple[str, ...], compatible: bool, home: Path, tmp_path: Path
) -> None:
    spec = spec_of({"family": "autoencoder_tiny", "pretrained": str(home / "tiny")}, freeze=freeze)
    result, _ = exported(spec, tmp_path)
    model = AutoencoderTiny.from_pretrained(tmp_path / "model")
    assert result.latents_compatible == compatible
    if compatible:
        assert (result.scaling_factor, model.config.scaling_factor, model.config.shift_factor) == (None, 1.0, 0.0)
    else:
        with torch.no_grad():
            latents = model.encode(all_training_images(spec)).latents.double()
        assert model.config.scaling_factor == pytest.approx(1 / latents.std(correction=0).item(), rel=1e-4)
        assert model.config.shift_factor == pytest.approx(latents.mean().item(), abs=1e-6)


def test_statistics_for_each_channel_are_recomputed_and_the_scale_stays(home: Path, tmp_path: Path) -> None:
    save_tiny_kl(tmp_path / "kl", scaling_factor=SCALING, latents_mean=[0.0, 1.0], latents_std=[1.0, 2.0])
    result, _ = exported(kl(tmp_path), tmp_path)
    assert result == ExportedModel(False, None, ("latents_mean", "latents_std"))
    model = AutoencoderKL.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        posterior = model.encode(all_training_images(kl(tmp_path))).latent_dist
    mean, variance = posterior.mean.double(), posterior.var.double()
    assert model.config.scaling_factor == SCALING
    assert model.config.latents_mean == pytest.approx(mean.mean((0, 2, 3)).tolist(), abs=1e-6)
    expected = (mean.var((0, 2, 3), correction=0) + variance.mean((0, 2, 3))).sqrt().tolist()
    assert model.config.latents_std == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("freeze", "compatible"), [(("encoder", "quant_conv"), True), ((), False)])
def test_flux2_gets_new_statistics_of_packed_latents(freeze: tuple[str, ...], compatible: bool, tmp_path: Path) -> None:
    save_tiny_models(tmp_path)
    spec = spec_of({"family": "autoencoder_kl_flux2", "pretrained": str(tmp_path / "flux2")}, freeze=freeze)
    result, _ = exported(spec, tmp_path)
    model = AutoencoderKLFlux2.from_pretrained(tmp_path / "model")
    if compatible:
        assert result == ExportedModel(True, None)
        assert torch.equal(model.bn.running_mean, torch.zeros(8))
        return
    assert result == ExportedModel(False, None, ("bn.running_mean", "bn.running_var"))
    with torch.no_grad():
        posterior = model.encode(all_training_images(spec)).latent_dist
    latents = torch.nn.functional.pixel_unshuffle(posterior.mean.double(), 2)  # the order in which pipelines pack
    variance = torch.nn.functional.pixel_unshuffle(posterior.var.double(), 2)
    assert torch.allclose(model.bn.running_mean.double(), latents.mean((0, 2, 3)), atol=1e-6)
    expected = latents.var((0, 2, 3), correction=0) + variance.mean((0, 2, 3))
    assert torch.allclose(model.bn.running_var.double(), expected, rtol=1e-4)


def test_plain_diffusers_gives_the_same_images(home: Path, tmp_path: Path) -> None:
    spec = kl(home, ema_half_life_fraction=0.5)
    _, checkpoint = exported(spec, tmp_path)
    tuned = build_model(spec, None)
    tuned.load_state_dict(evaluated_weights(checkpoint))
    images = all_training_images(spec)[:4]
    with torch.no_grad():
        plain = AutoencoderKL.from_pretrained(tmp_path / "model")(images).sample
        assert torch.equal(plain, tuned.decode(tuned.encode(images).mode))
        tuned.load_state_dict(load_file(checkpoint / "model.safetensors"))  # the live weights
        assert not torch.equal(plain, tuned.decode(tuned.encode(images).mode))


def test_the_single_file_beside_it_is_read_by_diffusers_and_by_ftae(tmp_path: Path) -> None:
    torch.manual_seed(1)
    AutoencoderKL(latent_channels=2, block_out_channels=(32,), scaling_factor=SCALING).save_pretrained(tmp_path / "kl")
    exported(kl(tmp_path), tmp_path)
    folder = AutoencoderKL.from_pretrained(tmp_path / "model")
    one = AutoencoderKL.from_single_file(tmp_path / "vae.safetensors", config=str(tmp_path / "model"))
    assert one.config.scaling_factor == folder.config.scaling_factor != SCALING
    assert "encoder.mid.attn_1.q.weight" in load_file(tmp_path / "vae.safetensors")
    again = load_network("autoencoder_kl", str(tmp_path / "vae.safetensors"), None, "sd")
    for net in (one, again):
        assert_same(dict(net.state_dict()), dict(folder.state_dict()))


def test_there_is_no_single_file_that_other_programs_would_misread(home: Path, tmp_path: Path) -> None:
    exported(kl(home), tmp_path)  # normalised over 4 groups
    assert not (tmp_path / "vae.safetensors").exists()


def test_families_without_a_scale(tmp_path: Path) -> None:
    spec = spec_of({"family": "conv_vae", "channels": 4, "latent_dim": 4})
    assert exported(spec, tmp_path / "whole")[0] == ExportedModel(latents_compatible=False, scaling_factor=None)
    spec = spec_of({"family": "conv_vae", "channels": 4, "latent_dim": 4}, freeze=("encoder", "bottleneck"))
    assert exported(spec, tmp_path / "decoder")[0] == ExportedModel(latents_compatible=True, scaling_factor=None)


def test_a_head_is_written_beside_the_model(tmp_path: Path) -> None:
    spec = spec_of({"family": "conv_vae", "channels": 4, "latent_dim": 4}, losses={"mse": 1.0, "ce": 1.0})
    _, checkpoint = exported(spec, tmp_path)
    head = load_file(tmp_path / "model" / "head.safetensors")
    trained = load_file(checkpoint / "model.safetensors")
    assert torch.equal(head["linear.weight"], trained["head.linear.weight"])
    assert torch.equal(head["linear.bias"], trained["head.linear.bias"])
    assert json.loads((tmp_path / "model" / "classes.json").read_text()) == ["0", "1"]
    assert not any(name.startswith("head") for name in load_file(tmp_path / "model" / "model.safetensors"))
