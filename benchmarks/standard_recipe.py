"""The search that a user writes from the documentation of Ray Tune, Optuna and MLflow: what ftae is measured against.

    python -m benchmarks.standard_recipe --workload NAME --model FOLDER --images FOLDER --storage FOLDER

A function trainable that loads the pretrained model and the images, an ASHA scheduler, Optuna's TPE, MLflow's callback
on a local SQLite store, a checkpoint a report; all else as Tune has it by default. ``images`` holds ``train/`` and
``val/``, with a sub-folder a class.
"""

import argparse
import math
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.functional.image import structural_similarity_index_measure
from torchvision import transforms
from torchvision.datasets import ImageFolder

from benchmarks import workloads
from benchmarks.workloads import SEED, WARMUP_FRACTION, WORKERS, WORKLOADS, Workload


class ConvVae(nn.Module):
    """The small network, with the interface of diffusers' autoencoder. Images in [0, 1]."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        import json

        from safetensors.torch import load_file

        from ftae.engine.models.builtin.conv_mlp import ConvVaeNet

        config = json.loads((Path(folder) / "ftae_model.json").read_text())
        facts = {name: config[name] for name in ("channels_in", "resolution")}
        self.net = ConvVaeNet(**facts, **config["options"])
        self.net.load_state_dict(load_file(Path(folder) / "model.safetensors"))

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.net.encode(images, None, None).posterior
        assert posterior is not None
        return posterior.mean, posterior.logvar

    def decode(self, latents: Tensor) -> Tensor:
        return self.net.decode(latents, None)


class KlVae(nn.Module):
    """diffusers' AutoencoderKL. Images in [-1, 1]."""

    def __init__(self, folder: str, freeze_encoder: bool) -> None:
        super().__init__()
        from diffusers import AutoencoderKL

        self.net = AutoencoderKL.from_pretrained(folder)
        self.frozen = freeze_encoder
        if freeze_encoder:
            self.net.encoder.requires_grad_(False)
            self.net.quant_conv.requires_grad_(False)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            posterior = self.net.encode(images).latent_dist
        return posterior.mean, posterior.logvar

    def decode(self, latents: Tensor) -> Tensor:
        return self.net.decode(latents).sample


def load_model(workload: Workload, folder: str) -> nn.Module:
    return ConvVae(folder) if workload.family == "conv_vae" else KlVae(folder, workload.freeze_encoder)


def image_transform(workload: Workload) -> transforms.Compose:
    if workload.color == "grey":
        return transforms.Compose([transforms.Grayscale(), transforms.ToTensor()])
    return transforms.Compose([transforms.ToTensor(), transforms.Normalize(0.5, 0.5)])


def training_loss(model: nn.Module, images: Tensor, l1_weight: float, kl_weight: float) -> Tensor:
    mean, logvar = model.encode(images)
    reconstruction = model.decode(mean + torch.exp(0.5 * logvar) * torch.randn_like(mean))
    loss = F.mse_loss(reconstruction, images) + l1_weight * F.l1_loss(reconstruction, images)
    if kl_weight:
        loss = loss + kl_weight * 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
    return loss


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], color: str) -> dict[str, float]:
    """Mean PSNR and SSIM of the validation images, each image by itself."""
    model.eval()
    psnr, ssim, count = 0.0, 0.0, 0
    for images, _ in batches:
        mean, _ = model.encode(images)
        reconstruction = model.decode(mean)
        if color == "rgb":
            images, reconstruction = (images + 1) / 2, (reconstruction + 1) / 2
        reconstruction = reconstruction.clamp(0, 1)
        mse = (images - reconstruction).square().flatten(1).mean(1)
        psnr += float((-10 * mse.clamp_min(1e-10).log10()).sum())
        ssim += float(
            structural_similarity_index_measure(reconstruction, images, data_range=1.0, reduction="none").sum()
        )
        count += len(images)
    return {"val_psnr": psnr / count, "val_ssim": ssim / count}


def endless(loader: DataLoader) -> Iterator[Tensor]:
    while True:
        for images, _ in loader:
            yield images


def lr_factor(step: int, max_steps: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    progress = (step + 0.5) / max_steps
    if progress < WARMUP_FRACTION:
        return progress / WARMUP_FRACTION
    return 0.5 * (1 + math.cos(math.pi * (progress - WARMUP_FRACTION) / (1 - WARMUP_FRACTION)))


def train(config: dict[str, Any], workload: Workload, model_folder: str, image_folder: str) -> None:
    """One trial."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    model = load_model(workload, model_folder)
    transform = image_transform(workload)
    train_set, val_set = (ImageFolder(f"{image_folder}/{part}", transform) for part in ("train", "val"))
    batches = endless(DataLoader(train_set, workload.batch_size, shuffle=True, drop_last=True))
    val_loader = DataLoader(val_set, workload.batch_size)

    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config["lr"], weight_decay=config["weight_decay"])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, workload.max_steps))

    eval_steps = workload.eval_steps()
    train_loss = 0.0
    for step in range(1, workload.max_steps + 1):
        model.train()
        optimizer.zero_grad()
        loss = training_loss(model, next(batches), config["l1"], workload.kl)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, config["max_grad_norm"])
        optimizer.step()
        schedule.step()
        train_loss = loss.item()
        if step in eval_steps:
            metrics = {"step": step, "train_loss": train_loss, **evaluate(model, val_loader, workload.color)}
            with tempfile.TemporaryDirectory() as folder:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                torch.save(state, Path(folder) / "checkpoint.pt")
                tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))


def search(workload: Workload, model: Path, images: Path, storage: Path) -> tune.ResultGrid:
    space = {
        "lr": tune.loguniform(*workload.lr),
        "weight_decay": tune.loguniform(*workloads.WEIGHT_DECAY),
        "l1": tune.uniform(*workloads.L1_WEIGHT),
        "max_grad_norm": tune.choice(list(workloads.MAX_GRAD_NORMS)),
    }
    first = {"lr": workload.first_lr, **workloads.FIRST}
    trainable = tune.with_parameters(train, workload=workload, model_folder=str(model), image_folder=str(images))
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="val_psnr",
            mode="max",
            search_alg=OptunaSearch(points_to_evaluate=[first], seed=SEED),
            scheduler=ASHAScheduler(
                max_t=workload.num_evals,  # reports
                grace_period=workload.num_evals // workloads.REDUCTION_FACTOR,
                reduction_factor=workloads.REDUCTION_FACTOR,
            ),
            num_samples=workload.num_trials,
            max_concurrent_trials=WORKERS,
        ),
        run_config=tune.RunConfig(
            name="search",
            storage_path=str(storage),
            callbacks=[MLflowLoggerCallback(f"sqlite:///{storage}/mlflow.db", experiment_name="search")],
        ),
    )
    return tuner.fit()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("--model", type=Path, required=True, help="the pretrained model")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--storage", type=Path, required=True)
    parser.add_argument("--trials", type=int)
    parser.add_argument("--steps", type=int)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    sizes = {"num_trials": given.trials, "max_steps": given.steps}
    workload = replace(WORKLOADS[given.workload], **{name: size for name, size in sizes.items() if size is not None})
    folders = (path.absolute() for path in (given.model, given.images, given.storage))
    best = search(workload, *folders).get_best_result()
    assert best.metrics is not None
    Console().print(f"best: {best.metrics['val_psnr']:.4f} dB with {best.config}")


if __name__ == "__main__":
    main()
