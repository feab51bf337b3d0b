"""What ``checkpoint_stages`` saves and costs, on the VAE of Stable Diffusion with random weights.

    python -m benchmarks.stage_memory [--resolutions N ...] [--steps N] [--json FILE]

Each row is a new process: one image a step, fp32, on the CPU. Memory is the largest resident set of the process; what
it had before its first step, weights and libraries, is a column of its own; 1.0 GB of what comes above are gradients
and Adam's averages. On a machine that does other work, too, CPU time tells more: the ratio of steps is of that.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.images import SPAWN
from ftae.engine.training.trainer import Trainer
from ftae.specs.finetune.run import FinetuneSpec

Row = dict[str, Any]


def save_random_vae(folder: Path) -> None:
    """AutoencoderKL in the shape of Stable Diffusion's: 84 million parameters, 8 times smaller latents."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
    ).save_pretrained(folder)


def spec_of(pretrained: Path, resolution: int, recomputed: bool) -> FinetuneSpec:
    return FinetuneSpec.model_validate(
        {
            "model": {"family": "autoencoder_kl", "pretrained": str(pretrained)},
            "data": {"source": "shapes", "num_images": 20, "resolution": resolution, "color": "rgb"},
            "losses": {"l1": 1.0, "kl": 1e-6},
            "optimizer": {"lr": 1e-5},
            "batch_size": 1,
            "max_steps": 100,
            "metrics": ["psnr"],
            "device": "cpu",
            "checkpoint_stages": recomputed,
        }
    )


def measure(pretrained: Path, resolution: int, recomputed: bool, steps: int) -> Row:
    """One row, measured in this process, which must be new: its memory never counts as less."""
    trainer = Trainer(spec_of(pretrained, resolution, recomputed))
    before, begin, cpu_begin = _resident("VmRSS"), time.perf_counter(), time.process_time()
    for _ in range(steps):
        trainer.train_step()
    return {
        "resolution": resolution,
        "checkpoint_stages": recomputed,
        "before_gb": before / 1e9,
        "peak_gb": _resident("VmHWM") / 1e9,
        "step_seconds": (time.perf_counter() - begin) / steps,
        "step_cpu_seconds": (time.process_time() - cpu_begin) / steps,
        "loss": trainer.measured()["train/loss"],
    }


def _resident(field: str) -> int:
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return next(1024 * int(words[1]) for words in lines if words[0] == f"{field}:")


def table(rows: list[Row]) -> Table:
    """A row a process; ratios are to the row of the same resolution that keeps all activations."""
    shown = Table(
        "pixels", "checkpoint_stages", "before, GB", "peak, GB", "above, GB", "ratio", "step, s", "step, CPU s", "ratio"
    )
    kept = {row["resolution"]: row for row in rows if not row["checkpoint_stages"]}
    for row in rows:
        other, above = kept[row["resolution"]], row["peak_gb"] - row["before_gb"]
        shown.add_row(
            str(row["resolution"]),
            str(row["checkpoint_stages"]).lower(),
            *(f"{row[key]:.2f}" for key in ("before_gb", "peak_gb")),
            f"{above:.2f}",
            f"{above / (other['peak_gb'] - other['before_gb']):.2f}",
            *(f"{row[key]:.1f}" for key in ("step_seconds", "step_cpu_seconds")),
            f"{row['step_cpu_seconds'] / other['step_cpu_seconds']:.2f}",
        )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolutions", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ftae-benchmark-") as folder:
        os.environ["FTAE_CACHE"] = folder
        save_random_vae(Path(folder) / "vae")
        with ProcessPoolExecutor(1, mp_context=SPAWN, max_tasks_per_child=1) as pool:
            asked = [(resolution, recomputed) for resolution in given.resolutions for recomputed in (False, True)]
            rows = [pool.submit(measure, Path(folder) / "vae", *each, given.steps).result() for each in asked]
    assert all(kept["loss"] == again["loss"] for kept, again in zip(rows[::2], rows[1::2], strict=True)), rows
    console = Console(width=120)
    console.print(table(rows), f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
