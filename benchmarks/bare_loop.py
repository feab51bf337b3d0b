"""The time of a step and of an evaluation where nothing is around them: one process, one thread, images in memory.

    python -m benchmarks.bare_loop --workload NAME --model FOLDER --images FOLDER [--precisions NAME ...] [--endless]

Prints them as JSON, by precision. With ``--endless`` it says "ready" and takes steps until it is killed: the load of
a second worker.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from benchmarks.standard_recipe import evaluate, image_transform, load_model, training_loss
from benchmarks.workloads import FIRST, WORKLOADS, Workload

SECONDS = 4.0  # how long steps are measured, and evaluations
EVAL_BATCHES = 4
LEAST_TIMES = 3


class BareLoop:
    """A hand-written loop over a workload's first configuration, without anything that a search adds."""

    def __init__(self, workload: Workload, model: Path, images: Path) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        self._workload = workload
        self._model = load_model(workload, str(model))
        self._images = in_memory(images / "train", workload)
        self._val = in_memory(images / "val", workload)[: EVAL_BATCHES * workload.batch_size]
        self._parameters = [p for p in self._model.parameters() if p.requires_grad]
        rates = {"lr": workload.first_lr, "weight_decay": FIRST["weight_decay"]}
        self._optimizer = torch.optim.AdamW(self._parameters, **rates)

    def step(self, precision: str) -> None:
        batch = self._images[torch.randint(len(self._images), (self._workload.batch_size,))]
        self._model.train()
        self._optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext():
            loss = training_loss(self._model, batch, FIRST["l1"], self._workload.kl)
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, FIRST["max_grad_norm"])
        self._optimizer.step()

    def evaluation(self) -> None:
        """Of some of the images, in fp32."""
        batches = [(batch, batch) for batch in self._val.split(self._workload.batch_size)]
        evaluate(self._model, batches, self._workload.color)

    def times(self, precisions: Sequence[str]) -> dict[str, dict[str, float]]:
        """For each precision: seconds of a step, and of an evaluation for each of its images."""
        image = median_time(self.evaluation) / len(self._val)
        return {name: {"step": median_time(partial(self.step, name)), "image": image} for name in precisions}


def in_memory(folder: Path, workload: Workload) -> Tensor:
    """All images of a folder, in random order."""
    images = ImageFolder(str(folder), image_transform(workload))
    return next(iter(DataLoader(images, batch_size=len(images), shuffle=True)))[0]


def median_time(call: Callable[[], None]) -> float:
    """Seconds that a call takes: the median of as many as fit into ``SECONDS``, the first ones left out."""
    call()
    call()
    times: list[float] = []
    while sum(times) < SECONDS or len(times) < LEAST_TIMES:
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32"])
    parser.add_argument("--endless", action="store_true")
    given = parser.parse_args()
    loop = BareLoop(WORKLOADS[given.workload], given.model, given.images)
    if not given.endless:
        sys.stdout.write(json.dumps(loop.times(given.precisions)) + "\n")
        return
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        loop.step(given.precisions[0])


if __name__ == "__main__":
    main()
