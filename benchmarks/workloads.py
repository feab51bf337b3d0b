"""What ``search_efficiency.py`` lets both sides search: the same model, images, space, budget and rungs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

WORKERS = 2  # trials at a time, each on one thread
REDUCTION_FACTOR = 3  # two thirds of the trials are stopped at the first rung, a third of the budget
SEED = 0
MAX_GRAD_NORMS = (0.1, 0.5, 1.0)
WEIGHT_DECAY = (1e-6, 1e-2)
WARMUP_FRACTION = 0.05


@dataclass(frozen=True)
class Workload:
    """A model to fine-tune by ``mse + l1 weight * l1 + kl weight * kl``, each a mean over elements.

    ``lr``: the range of the search; ``first_lr`` is tried first. ``num_images``: of training and validation, where
    they are made up. ``num_evals`` is a multiple of the reduction factor, so that the rung falls on an evaluation.
    """

    family: Literal["conv_vae", "autoencoder_kl"]
    resolution: int
    color: Literal["grey", "rgb"]
    freeze_encoder: bool
    kl: float
    lr: tuple[float, float]
    first_lr: float
    batch_size: int
    max_steps: int
    num_evals: int
    num_trials: int

    def __post_init__(self) -> None:
        assert self.num_evals % REDUCTION_FACTOR == 0

    def eval_steps(self) -> list[int]:
        return [round(i * self.max_steps / self.num_evals) for i in range(1, self.num_evals + 1)]


WORKLOADS = {
    # Steps of milliseconds: what is left is what a search costs besides training.
    "digits": Workload(
        family="conv_vae",
        resolution=16,
        color="grey",
        freeze_encoder=False,
        kl=1e-3,
        lr=(1e-4, 1e-2),
        first_lr=5e-4,
        batch_size=32,
        max_steps=150,
        num_evals=3,
        num_trials=48,
    ),
    "kl-decoder": Workload(
        family="autoencoder_kl",
        resolution=32,
        color="rgb",
        freeze_encoder=True,
        kl=0.0,
        lr=(1e-5, 1e-3),
        first_lr=1e-4,
        batch_size=16,
        max_steps=54,
        num_evals=3,
        num_trials=12,
    ),
    "kl-full": Workload(
        family="autoencoder_kl",
        resolution=32,
        color="rgb",
        freeze_encoder=False,
        kl=1e-6,
        lr=(1e-5, 1e-3),
        first_lr=1e-4,
        batch_size=16,
        max_steps=54,
        num_evals=3,
        num_trials=12,
    ),
}
L1_WEIGHT = (0.0, 1.0)
FIRST = {"l1": 0.1, "weight_decay": 1e-4, "max_grad_norm": 1.0}  # tried first, with ``first_lr``
ENCODER_STAGES = 7  # of an AutoencoderKL of three levels, from conv_in to quant_conv: what ``freeze_encoder`` freezes


def search_file(name: str, workload: Workload, model: Path, images: Path, storage: Path) -> dict[str, Any]:
    """The search as ftae is given it, in fp32. ``images``: a folder with ``train/`` and ``val/``."""
    losses = {"mse": 1.0, "l1": FIRST["l1"]} | ({"kl": workload.kl} if workload.kl else {})
    data = {"source": "image_folder", "train": str(images / "train"), "val": str(images / "val")}
    return {
        "name": name,
        "finetune": {
            "model": {"family": workload.family, "pretrained": str(model)},
            "data": data | {"resolution": workload.resolution, "color": workload.color},
            "freeze_depth": ENCODER_STAGES if workload.freeze_encoder else 0,
            "losses": losses,
            "optimizer": {"name": "adamw", "lr": workload.first_lr, "weight_decay": FIRST["weight_decay"]},
            "max_grad_norm": FIRST["max_grad_norm"],
            "schedule": {"name": "cosine", "warmup_fraction": WARMUP_FRACTION},
            "batch_size": workload.batch_size,
            "max_steps": workload.max_steps,
            "num_evals": workload.num_evals,
            "metrics": ["psnr", "ssim"],
            "seed": SEED,
        },
        "search_space": {
            "optimizer.lr": {"low": workload.lr[0], "high": workload.lr[1], "log": True},
            "optimizer.weight_decay": {"low": WEIGHT_DECAY[0], "high": WEIGHT_DECAY[1], "log": True},
            "losses.l1": {"low": L1_WEIGHT[0], "high": L1_WEIGHT[1]},
            "max_grad_norm": {"choices": list(MAX_GRAD_NORMS)},
        },
        "objective": {"metric": "val/psnr", "direction": "maximize"},
        "search": {
            "num_trials": workload.num_trials,
            "max_concurrent": WORKERS,
            "sampler": "tpe",
            # A little less than a third, so that rounding cannot move the rung behind its evaluation.
            "scheduler": {"name": "asha", "reduction_factor": REDUCTION_FACTOR, "grace_fraction": 0.33},
            "resources": {"cpus": 1},
            "storage": str(storage),
            "seed": SEED,
        },
        "tracking": {"uri": None},
    }
