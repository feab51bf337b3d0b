"""How long a step waits for a degraded batch, made in the step and beside it.

    python -m benchmarks.waiting [--resolution N] [--batch N] [--step-ms N] [--json FILE]

Images get noise and JPEG artefacts. All rows take the same batches for steps of the same length, in rounds that take
turns in one process. A step here is what a GPU leaves to the CPU: a tenth of its time Python launches kernels, and for
the rest it waits. ``waits`` is the share of a step for which it has no batch. ``steps`` are those per second; a loop
whose batches cost nothing has 1. Medians over the rounds, without the first batch of each, which nothing hides.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ftae.engine.data.batches import Batch, training_batch
from ftae.engine.data.dataset import load_dataset
from ftae.engine.training.prefetch import made_ahead
from ftae.specs.finetune.run import FinetuneSpec

ROUNDS, STEPS = 3, 8
LAUNCHING = 0.1  # of a step
Batches = Callable[[range], Generator[Batch]]


def spec_of(resolution: int, batch_size: int) -> FinetuneSpec:
    return FinetuneSpec.model_validate(
        {
            "model": {"family": "conv_ae"},
            "data": {
                "source": "shapes",
                "num_images": 200,
                "resolution": resolution,
                "color": "rgb",
                "degrade": {"noise": 0.1, "jpeg": 40},
            },
            "losses": {"mse": 1.0},
            "optimizer": {"lr": 1e-4},
            "batch_size": batch_size,
            "max_steps": 1000,
            "metrics": ["psnr"],
        }
    )


def sides(spec: FinetuneSpec) -> dict[str, Batches]:
    """Ways to get the batches of a range of numbers."""
    data = load_dataset(spec.data)

    def make(number: int) -> Batch:
        return training_batch(data, spec.data, batch_size=spec.batch_size, batch=number, seed=spec.seed, device="cpu")

    ready = make(0)
    beside = {
        f"beside it, {n} thread{'s' * (n > 1)}": lambda numbers, n=n: made_ahead(make, numbers, threads=n)
        for n in (1, 2, 4)
    }
    return {
        "no cost": lambda numbers: (ready for _ in numbers),
        "in the step": lambda numbers: (make(number) for number in numbers),
        **beside,
    }


def step(seconds: float) -> None:
    end = time.perf_counter() + LAUNCHING * seconds
    small = torch.zeros(8)
    while time.perf_counter() < end:
        small.add_(1.0)
    time.sleep((1.0 - LAUNCHING) * seconds)


def timed(batches: Batches, seconds: float) -> dict[str, float]:
    """Of ``STEPS`` steps behind the first: seconds a step, and those of them that it waited for its batch."""
    waited, begin = 0.0, 0.0
    with closing(batches(range(1 + STEPS))) as following:
        for number in range(1 + STEPS):
            asked = time.perf_counter()
            next(following)
            if number == 0:
                begin = time.perf_counter()
            else:
                waited += time.perf_counter() - asked
            step(seconds)
    # The step of the first batch counts for neither.
    return {"step": (time.perf_counter() - begin) / (1 + STEPS), "waited": waited / (1 + STEPS)}


def measure(spec: FinetuneSpec, seconds: float) -> list[dict[str, Any]]:
    ways = sides(spec)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for number in range(ROUNDS):
        for name in list(ways)[:: 1 if number % 2 else -1]:
            found[name].append(timed(ways[name], seconds))
    free = statistics.median(row["step"] for row in found["no cost"])
    return [
        {
            "batches": name,
            "step_ms": 1000.0 * statistics.median(row["step"] for row in rows),
            "wait_share": statistics.median(row["waited"] / row["step"] for row in rows),
            "steps": free / statistics.median(row["step"] for row in rows),
        }
        for name, rows in found.items()
    ]


def table(rows: list[dict[str, Any]]) -> Table:
    shown = Table("batches", "step, ms", "waits", "steps")
    for row in rows:
        shown.add_row(row["batches"], f"{row['step_ms']:.0f}", f"{row['wait_share']:.1%}", f"{row['steps']:.2f}")
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--step-ms", type=float, default=400.0)
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    given = parser.parse_args()
    rows = measure(spec_of(given.resolution, given.batch), given.step_ms / 1000.0)
    console = Console(width=120)
    console.print(table(rows))
    console.print(f"{platform.machine()}, {os.cpu_count()} cores")
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
