"""What ``ftae evaluate`` finds is what the run reported, to the last digit, whatever the model and the precision."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, VQModel
from PIL import Image
from production_runs import untracked

from ftae.engine.data.dataset import load_dataset
from ftae.engine.training.checkpoint import EvalReport
from ftae.engine.training.export_model import export_model
from ftae.engine.training.loop import finetune
from ftae.inference import evaluate
from ftae.inference.model import load_model
from ftae.inference.source import ModelSource, find_model
from ftae.search.production import train
from ftae.specs.finetune.run import FinetuneSpec

USER_MODULE = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.decoder = nn.ConvTranspose2d(8, 3, 4, 2, 1)

    def encode(self, images):
        return self.encoder(images)

    def decode(self, latents):
        return self.decoder(latents)
"""
CODES = {"channels": 16, "codebook_size": 24, "code_dim": 4}
MODELS: dict[str, dict[str, Any]] = {
    "mlp_vae": {"family": "mlp_vae", "hidden": 16, "latent_dim": 4},
    "conv_ae": {"family": "conv_ae", "channels": 16, "latent_channels": 2},
    "conv_vae": {"family": "conv_vae", "channels": 16, "latent_dim": 4},
    "conv_cvae": {"family": "conv_cvae", "channels": 16, "latent_dim": 4},
    "hierarchical_vae": {"family": "hierarchical_vae", "channels": 16, "latent_channels": 2},
    "vq_vae": {"family": "vq_vae", **CODES},
    "vq_vae_2": {"family": "vq_vae_2", **CODES},
    "autoencoder_kl": {"family": "autoencoder_kl", "pretrained": "kl"},
    "autoencoder_tiny": {"family": "autoencoder_tiny", "pretrained": "tiny"},
    "vq_model": {"family": "vq_model", "pretrained": "vq"},
    "custom": {"family": "evaluated_nets:Net", "image_range": "0..1"},
}
HAS_CODES = ("vq_vae", "vq_vae_2", "vq_model")
HAS_POSTERIOR = ("mlp_vae", "conv_vae", "conv_cvae", "hierarchical_vae", "autoencoder_kl")
SHAPES = {"source": "shapes", "resolution": 16, "color": "rgb", "num_images": 120}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with small pretrained models, and with a module of one's own that can be imported."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "evaluated_nets.py").write_text(USER_MODULE)
    torch.manual_seed(1)
    small: dict[str, Any] = {
        "block_out_channels": (16, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 4,
    }
    AutoencoderKL(**small, latent_channels=2).save_pretrained(folder / "kl")
    VQModel(**small, latent_channels=2, num_vq_embeddings=24).save_pretrained(folder / "vq")
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=2,
    ).save_pretrained(folder / "tiny")
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


def spec_of(model: dict[str, Any], models: Path, **changes: Any) -> FinetuneSpec:
    """A run that a metric of every kind judges: of images, of latents, of a head, of codes."""
    family, pretrained = model["family"], model.get("pretrained")
    metrics = ["mse", "l1", "psnr", "ssim", "accuracy", "sharpness", "edge_distance", "linear_probe"]
    metrics += ["kl", "active_units"] if family in HAS_POSTERIOR else []
    metrics += ["codebook_usage", "perplexity"] if family in HAS_CODES else []
    metrics += ["latent_drift"] if pretrained else []
    fields: dict[str, Any] = {
        "model": model | ({"pretrained": str(models / pretrained)} if pretrained else {}),
        "data": SHAPES,
        "losses": {"mse": 1.0, "ce": 0.1},
        "optimizer": {"lr": 1e-3},
        "ema_half_life_fraction": 0.2,
        "batch_size": 16,
        "max_steps": 2,
        "num_evals": 1,
        "metrics": metrics,
        "num_threads": 1,
    }
    return FinetuneSpec.model_validate(fields | changes)


def evaluated(source: ModelSource, folder: str | None = None) -> dict[str, str]:
    """What ``ftae evaluate`` measures, with every digit."""
    model = load_model(source)
    images = evaluate.evaluation_images(model, folder)
    values = evaluate.measure(model, images, evaluate.choose_metrics(model, images, None))
    return {f"val/{name}": repr(value) for name, value in values.items()}


def reported(report: EvalReport) -> dict[str, str]:
    return {name: repr(value) for name, value in report.metrics.items() if name.startswith("val/")}


def check(spec: FinetuneSpec, folder: Path) -> None:
    """The untuned model, each checkpoint of a run of ``spec``, and the model it gives."""
    first, *others = finetune(spec, folder)
    assert evaluated(ModelSource(spec, None, "")) == reported(first)
    for report in others:
        assert evaluated(find_model(str(folder / str(report.checkpoint)), "searches", notify=print)) == reported(report)
    export_model(spec, folder / str(others[-1].checkpoint), folder / "model")
    assert evaluated(ModelSource(spec, folder / "model", "")) == reported(others[-1])
    assert len(reported(first)) == len(spec.metrics)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_of_every_family(name: str, precision: str, device: str, models: Path, tmp_path: Path) -> None:
    check(spec_of(MODELS[name], models, precision=precision, device=device), tmp_path)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_of_a_production_run(precision: str, models: Path, tmp_path: Path) -> None:
    spec = spec_of(MODELS["conv_vae"], models, precision=precision)
    last, _ = train(untracked("p", spec), tmp_path / "run", storage=tmp_path, notify=lambda line: None)
    for baseline in (False, True):
        found = evaluated(find_model(str(tmp_path / "run"), str(tmp_path), baseline=baseline, notify=print))
        first = next(finetune(spec, tmp_path / "again"))
        assert found == reported(first if baseline else last)


def test_of_two_workers_that_share_the_cores(models: Path, tmp_path: Path) -> None:
    """Each has half the threads, which is recorded: with all of them, evaluate would find other last digits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        data = SHAPES | {"resolution": 32}
        spec = spec_of({"family": "conv_vae"}, models, data=data, num_threads=None, metrics=["psnr", "ssim", "kl"])
        last, _ = train(untracked("p", spec), tmp_path / "run", storage=tmp_path, workers=2, notify=lambda line: None)
        source = find_model(str(tmp_path / "run"), str(tmp_path), notify=print)
        assert source.spec.num_threads == 1
        assert evaluated(source) == reported(last)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 1},
        {"batch_size": 7},  # leaves a smaller last batch
        {"batch_size": 200},  # more than there are
        {"freeze_depth": 2},  # whose outputs come from the cache
        {"freeze_depth": 2, "precision": "bf16"},
        {"data": SHAPES | {"val": 0.009}, "metrics": ["psnr", "ssim", "linear_probe", "latent_drift"]},  # one image
        {"data": SHAPES | {"flip": True, "random_crop_from": 20}},
        {"data": SHAPES | {"labelled_fraction": 0.5}},
        {"data": SHAPES | {"degrade": {"noise": 0.2}}, "metrics": ["psnr", "input_psnr", "latent_drift"]},
        {"data": SHAPES | {"anomaly_classes": ["circle"]}, "metrics": ["psnr", "auroc", "accuracy", "latent_drift"]},
        {"metrics": ["mig", "dci", "linear_probe"]},
    ],
    ids=str,
)
def test_whatever_batches_and_images(
    changes: dict[str, Any], models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ftae.engine.objectives.latent_metrics.TREES", 3)  # of dci, which take seconds
    check(spec_of(MODELS["autoencoder_kl"], models, **changes), tmp_path)


def folder_of_images(folder: Path, *classes: str) -> str:
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(8):
            pixels = np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((6, 6, 1))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return str(folder)


@pytest.mark.parametrize("apart", [False, True])
def test_anomalies_of_a_folder_are_no_class_of_the_model(apart: bool, models: Path, tmp_path: Path) -> None:
    data = {"source": "image_folder", "train": folder_of_images(tmp_path / "t", "bad", "good", "plain"), "val": 0.3}
    if apart:
        data["val"] = folder_of_images(tmp_path / "v", "bad", "good", "plain")
    data |= {"resolution": 16, "anomaly_classes": ["bad"]}
    metrics = ["psnr", "auroc", "accuracy", "linear_probe"]
    check(spec_of(MODELS["conv_vae"], models, data=data, metrics=metrics), tmp_path / "run")


def test_pinned_images_are_those_that_a_probe_is_fitted_on(models: Path, tmp_path: Path) -> None:
    """The cache keeps the images of a run; those that came since are not trained on, nor is the probe."""
    train = folder_of_images(tmp_path / "t", "bad", "good")
    data = {"source": "image_folder", "train": train, "val": 0.3, "resolution": 16}
    spec = spec_of(MODELS["conv_vae"], models, data=data, metrics=["linear_probe"], batch_size=4)
    spec = spec.model_copy(
        update={"data": spec.data.model_copy(update={"fingerprint": load_dataset(spec.data).fingerprint})}
    )
    *_, last = finetune(spec, tmp_path / "run")
    for file in sorted((tmp_path / "t" / "bad").iterdir())[1:]:
        file.unlink()
    load_dataset.cache_clear()
    source = find_model(str(tmp_path / "run" / str(last.checkpoint)), "searches", notify=print)
    assert evaluated(source) == reported(last)


def array_file(folder: Path, rows: int) -> str:
    folder.mkdir()
    np.save(folder / "a.npy", np.random.default_rng(rows).normal(50.0, 10.0, (rows, 16, 16)))
    return str(folder / "a.npy")


def folder_of_volumes(folder: Path, number: int) -> str:
    folder.mkdir()
    for i in range(number):
        values = np.random.default_rng(number + i).integers(100, 999, (16, 16, 5)).astype(np.int16)
        values[..., 0] = -3000
        nibabel.Nifti1Image(values, np.eye(4)).to_filename(folder / f"{i}.nii")
    return str(folder)


VALIDATED: dict[str, tuple[Callable[[Path, int], str], dict[str, Any]]] = {
    "arrays": (array_file, {"source": "arrays", "layout": "hw", "normalise": "standard"}),
    "slices": (
        folder_of_volumes,
        {"source": "image_folder", "color": "grey", "slices": {"axis": "axial"}, "intensity": {"percentile": [1, 99]}},
    ),
}


@pytest.mark.parametrize("name", VALIDATED)
def test_of_validation_files_named_as_others(name: str, models: Path, tmp_path: Path) -> None:
    """``--data`` with ``data.val``, whatever black and white were measured on: of a checkpoint, and of an export."""
    make, data = VALIDATED[name]
    val = make(tmp_path / "v", 3)
    data |= {"train": make(tmp_path / "t", 20), "val": val, "resolution": 16}
    spec = spec_of(MODELS["conv_vae"], models, data=data, metrics=["psnr", "l1"], losses={"mse": 1.0}, batch_size=2)
    *_, last = finetune(spec, tmp_path / "run")
    export_model(spec, tmp_path / "run" / str(last.checkpoint), tmp_path / "model")
    for weights in (tmp_path / "run" / str(last.checkpoint), tmp_path / "model"):
        assert evaluated(ModelSource(spec, weights, ""), val) == reported(last)
