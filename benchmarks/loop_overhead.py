"""What the engine's loop costs: its training steps against those of a loop written by hand, per family.

    python -m benchmarks.loop_overhead [--families NAME ...] [--rounds N] [--seconds S] [--json FILE]

Both sides train the same model on the same images with the same terms, in rounds that take turns in one
process on one thread, with neither evaluation nor checkpoint. The loop written by hand indexes one array in
memory, reads the loss once a step and keeps nothing else. Prints a row a family: medians over the rounds.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import diffusers
import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ftae.engine.training.trainer import Trainer
from ftae.specs.finetune.run import FinetuneSpec

KL_WEIGHT, COMMITMENT, LR, HALF_LIFE, MAX_NORM = 1e-4, 0.25, 1e-4, 0.05, 1.0
MAX_STEPS = 1_000_000  # the schedule's; rounds end long before
OWN = {"mlp_vae": {"kl": KL_WEIGHT}, "conv_ae": {}, "conv_vae": {"kl": KL_WEIGHT}, "vq_vae": {"commitment": COMMITMENT}}
DIFFUSERS = {"autoencoder_kl": {"kl": KL_WEIGHT}, "autoencoder_tiny": {}}


def spec_of(family: str, pretrained: Path) -> FinetuneSpec:
    """A run of ``family``: digits of 16 grey pixels, or of 32 in colour for a model of diffusers."""
    own = family in OWN
    model = {"family": family} if own else {"family": family, "pretrained": str(pretrained)}
    return FinetuneSpec.model_validate(
        {
            "model": model,
            "data": {
                "source": "digits",
                "resolution": 16 if own else 32,
                "color": "grey" if own else "rgb",
                "flip": True,
            },
            "losses": {"mse": 1.0} | (OWN | DIFFUSERS)[family],
            "optimizer": {"name": "adamw", "lr": LR, "weight_decay": 0.0},
            "max_grad_norm": MAX_NORM,
            "schedule": {"name": "cosine", "warmup_fraction": 0.0},
            "ema_half_life_fraction": HALF_LIFE,
            "batch_size": 32 if own else 16,
            "max_steps": MAX_STEPS,
            "metrics": ["mse"],
            "num_threads": 1,
        }
    )


def save_random(family: str, folder: Path) -> None:
    """A model of diffusers with random weights: the autoencoder of about a million parameters, or the tiny one."""
    torch.manual_seed(0)
    if family == "autoencoder_kl":
        diffusers.AutoencoderKL(
            block_out_channels=(32, 64, 64),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            layers_per_block=1,
            norm_num_groups=16,
            sample_size=32,
        ).save_pretrained(folder)
    elif family == "autoencoder_tiny":
        diffusers.AutoencoderTiny().save_pretrained(folder)


class ByHand:
    """The loop that one would write for one family: no framework, and nothing measured but the loss."""

    def __init__(self, family: str, training: Trainer) -> None:
        spec = training.spec
        self.images = torch.from_numpy(np.array(training.data.train.images)).permute(0, 3, 1, 2).contiguous()
        self.model: Any = training.autoencoder.net
        self.forward: Callable[[Tensor], Tensor] = getattr(self, f"_{family}")
        self.batch_size = spec.batch_size
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=LR, weight_decay=0.0, fused=True)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, MAX_STEPS)
        self.average = [p.detach().clone() for p in self.parameters]
        self.decay = 0.5 ** (1.0 / (HALF_LIFE * MAX_STEPS))
        self.losses: list[float] = []
        self.order, self.position = torch.randperm(len(self.images)), 0

    def train(self, steps: int) -> None:
        """Take ``steps`` steps."""
        self.model.train()
        for _ in range(steps):
            loss = self.forward(self._batch())
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, MAX_NORM)
            self.optimizer.step()
            self.schedule.step()
            with torch.no_grad():
                torch._foreach_lerp_(self.average, self.parameters, 1.0 - self.decay)
            self.losses.append(loss.item())

    def _batch(self) -> Tensor:
        """Float images (B, C, H, W) in [0, 1], half of them mirrored."""
        if self.position + self.batch_size > len(self.images):
            self.order, self.position = torch.randperm(len(self.images)), 0
        rows = self.order[self.position : self.position + self.batch_size]
        self.position += self.batch_size
        images = self.images[rows]
        mirrored = torch.rand(len(images)) < 0.5
        images[mirrored] = images[mirrored].flip(3)
        return images.float().div_(255)

    def _mlp_vae(self, images: Tensor) -> Tensor:
        features = torch.relu(self.model.hidden(images.flatten(1)))
        latents, kl = _sampled(self.model.mean(features), self.model.logvar(features))
        return F.mse_loss(self.model.decode(latents, None), images) + KL_WEIGHT * kl

    def _conv_ae(self, images: Tensor) -> Tensor:
        latents = self.model.to_latents(self.model._down(images))
        return F.mse_loss(self.model.decode(latents, None), images)

    def _conv_vae(self, images: Tensor) -> Tensor:
        features = self.model._down(images).flatten(1)
        latents, kl = _sampled(self.model.mean(features), self.model.logvar(features))
        return F.mse_loss(self.model.decode(latents, None), images) + KL_WEIGHT * kl

    def _vq_vae(self, images: Tensor) -> Tensor:
        encoded = self.model.to_latents(self.model._down(images))
        codes, _, _ = self.model.quantizer.nearest(encoded.detach())
        latents = encoded + (codes - encoded).detach()
        commitment = F.mse_loss(encoded, codes.detach())
        return F.mse_loss(self.model.decode(latents, None), images) + COMMITMENT * commitment

    def _autoencoder_kl(self, images: Tensor) -> Tensor:
        images = images * 2 - 1
        posterior = self.model.encode(images).latent_dist
        latents, kl = _sampled(posterior.mean, posterior.logvar)
        return F.mse_loss(self.model.decode(latents).sample, images) + KL_WEIGHT * kl

    def _autoencoder_tiny(self, images: Tensor) -> Tensor:
        images = images * 2 - 1
        return F.mse_loss(self.model.decode(self.model.encode(images).latents).sample, images)


def _sampled(mean: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """A sample of the posterior, and the KL divergence per latent element."""
    latents = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
    return latents, 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()


def compare(family: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Milliseconds a step of either loop, and the share of the other's steps per second that the engine takes."""
    with tempfile.TemporaryDirectory(prefix="ftae-benchmark-") as folder:
        save_random(family, Path(folder))
        engine, other = (Trainer(spec_of(family, Path(folder))) for _ in range(2))
    by_hand = ByHand(family, other)

    def train(steps: int) -> None:
        engine.train_to(engine.step + steps)

    taken(train, 3), taken(by_hand.train, 3)  # what is only done once
    steps = max(2, round(1000.0 * seconds / taken(by_hand.train, 5)["wall_ms"]))
    pairs = []
    for number in range(rounds):
        sides = {"engine": train, "by_hand": by_hand.train}
        order = list(sides) if number % 2 else list(sides)[::-1]
        pairs.append({side: taken(sides[side], steps) for side in order})
    assert all(np.isfinite(by_hand.losses))
    row: dict[str, Any] = {"family": family, "steps_per_round": steps, "rounds": pairs}
    for clock in ("wall_ms", "cpu_ms"):
        ours, theirs = ([pair[side][clock] for pair in pairs] for side in ("engine", "by_hand"))
        share = median(its / own for own, its in zip(ours, theirs, strict=True))
        row[clock] = {"engine": median(ours), "by_hand": median(theirs), "share": share}
    return row


def taken(train: Callable[[int], None], steps: int) -> dict[str, float]:
    """Milliseconds a step, by the clock and of the process's CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    train(steps)
    spent = {"wall_ms": time.perf_counter() - wall, "cpu_ms": time.process_time() - cpu}
    return {clock: 1000.0 * seconds / steps for clock, seconds in spent.items()}


def table(rows: list[dict[str, Any]]) -> Table:
    """A row a family; milliseconds a step. On a machine that does other work, too, CPU time tells more."""
    shown = Table(
        "family", *(f"{side}, {clock}" for clock in ("ms", "CPU ms") for side in ("by hand", "engine", "share"))
    )
    for row in rows:
        cells = []
        for clock in ("wall_ms", "cpu_ms"):
            its = row[clock]
            cells += [f"{its['by_hand']:.3f}", f"{its['engine']:.3f}", f"{its['share']:.3f}"]
        shown.add_row(row["family"], *cells)
    return shown


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    families = [*OWN, *DIFFUSERS]
    parser.add_argument("--families", nargs="+", choices=families, default=families)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--seconds", type=float, default=0.2, help="of a round of one side")
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    torch.set_num_threads(1)
    rows = [compare(family, given.rounds, given.seconds) for family in given.families]
    Console(width=160).print(table(rows))
    if given.json is not None:
        machine = {"python": platform.python_version(), "machine": platform.machine(), "cpus": os.cpu_count()}
        given.json.write_text(json.dumps(machine | vars(given) | {"families": rows}, indent=2, default=str))


if __name__ == "__main__":
    main()
