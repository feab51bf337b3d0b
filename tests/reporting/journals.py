"""Journals of made-up searches for reports: trials whose results follow a formula, in all states, of any number."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from builders import search_spec
from PIL import Image

from ftae.specs import SearchSpec
from ftae.storage.backends import FolderStore
from ftae.storage.journal import FILE_NAME

START = 1_790_000_000.0
MAX_STEPS = 90
SPACE: dict[str, Any] = {
    "optimizer.lr": {"low": 1e-5, "high": 1e-1, "log": True},
    "losses.kl": {"low": 1e-6, "high": 1e-2, "log": True, "or_off": True},
    "batch_size": {"low": 8, "high": 64, "step": 8},
    "optimizer.betas": {"choices": [[0.9, 0.999], [0.5, 0.9]]},
    "max_grad_norm": {"choices": [0.1, 1.0, None]},
}
ONE = {"metric": "val/psnr", "direction": "maximize"}
TWO = {"metrics": [ONE, {"metric": "val/ssim", "direction": "maximize"}]}
CONSTRAINED = {**ONE, "constraints": ["val/kl <= 25"]}


def spec_of(name: str = "made-up", objective: dict[str, Any] = ONE, **settings: Any) -> SearchSpec:
    """A search over ``SPACE``."""
    changes: dict[str, Any] = {
        "finetune.max_steps": MAX_STEPS,
        "finetune.num_evals": 9,
        "finetune.metrics": ["psnr", "ssim", "kl"],
        "finetune.optimizer": {"lr": 1e-3, "betas": [0.9, 0.999]},
        "search_space": SPACE,
        "objective": objective,
    }
    return search_spec(name=name, search={"num_trials": 4000, **settings}, **changes)


class Story:
    """Writes the journal of a search, as a driver with two workers would."""

    def __init__(self, folder: Path, spec: SearchSpec | None = None, **facts: Any) -> None:
        self.folder, self.spec = folder, spec_of() if spec is None else spec
        self.random = random.Random(0)
        self.now = START
        folder.mkdir(parents=True)
        self._lines: list[str] = []
        found = {"versions": {"python": "3.11", "ftae": "0.2.0"}, "dataset_fingerprint": "f00d", **facts}
        self.add("open", search=self.spec.model_dump(mode="json"), digest=self.spec.digest(), facts=found, format=2)

    def add(self, event: str, **fields: Any) -> None:
        self._lines.append(json.dumps({"event": event, "time": self.now, **fields}))

    def write(self) -> FolderStore:
        """The search as it is so far."""
        (self.folder / FILE_NAME).write_text("\n".join(self._lines) + "\n")
        return FolderStore(self.folder)

    def params(self) -> dict[str, Any]:
        lr = 10 ** self.random.uniform(-5, -1)
        kl = self.random.choice([0.0, 10 ** self.random.uniform(-6, -2)])
        return {
            "optimizer.lr": lr,
            "losses.kl": kl,
            "batch_size": 8 * self.random.randint(1, 8),
            "optimizer.betas": self.random.choice([[0.9, 0.999], [0.5, 0.9]]),
            "max_grad_norm": self.random.choice([0.1, 1.0, None]),
        }

    def baseline(self) -> None:
        self.add("suggest", trial=0, params={}, kind="baseline")
        self.report(0, 0, 18.0)
        self.end(0, "finished")

    def trial(self, number: int, status: str = "finished", reason: str | None = None, **params: Any) -> None:
        """One trial from its beginning to its end; ``running`` has none."""
        chosen = self.params() | ({"optimizer.lr": 1e-4} if number == 1 else {}) | params
        self.add("suggest", trial=number, params=chosen, kind="file" if number == 1 else "sampled", noise=0.05)
        node = ["a1b2c3d4e5", "f6a7b8c9d0"][number % 2]
        self.add("start", trial=number, node=node, pid=100 + number % 2, step=0)
        last = {"finished": 9, "pruned": self.random.randint(1, 6), "diverged": 2, "failed": 1, "running": 4}[status]
        best = 27.0 - 2.0 * abs(math.log10(chosen["optimizer.lr"]) + 1.6) + self.random.gauss(0, 0.2)
        for i in range(last + 1):
            self.now += 3.0
            self.report(number, 10 * i, 18.0 + (best - 18.0) * (1 - math.exp(-i / 2)))
        if status != "running":
            expected = (
                {"forecast": {"mean": best, "sd": 0.3, "chance": 0.1, "best": 27.0}} if status == "pruned" else {}
            )
            self.end(number, status, reason or (None if status == "finished" else f"{status} for a reason"), **expected)

    def report(self, trial: int, step: int, psnr: float, images: str | None = None) -> None:
        metrics = {"val/psnr": psnr, "val/ssim": psnr / 40, "val/kl": 10.0 + psnr / 2 + trial % 7, "train/lr": 1e-3}
        more = {"timing": {}, "checkpoint": None, "images": images}
        self.add("report", trial=trial, step=step, value=psnr, metrics=metrics, **more)

    def end(self, trial: int, status: str, reason: str | None = None, **more: Any) -> None:
        self.add("end", trial=trial, status=status, reason=reason, value=0.0, step=0, **more)

    def close(self, status: str = "complete", reason: str | None = None) -> None:
        self.add("close", status=status, reason=reason)

    def picture(self, trial: int, step: int, degraded: bool = False) -> str:
        """A stored picture of 12 samples of 16 pixels, enlarged to 96, as the engine writes it; returns its path."""
        path = f"trials/{trial:04d}/images/step-{step:08d}.png"
        shades = np.random.default_rng(trial * 1000 + step)
        cells = shades.integers(0, 255, (6, 2, 3, 16, 16), dtype=np.uint8)
        cells[:, :, 0] = np.random.default_rng(7).integers(0, 255, (6, 2, 16, 16), dtype=np.uint8)
        if not degraded:
            cells[:, :, 2] = np.abs(cells[:, :, 0].astype(int) - cells[:, :, 1]).astype(np.uint8)
        grid = cells.transpose(0, 3, 1, 2, 4).reshape(96, 96).repeat(6, axis=0).repeat(6, axis=1)
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grid).save(self.folder / path)
        return path


def search_of(
    folder: Path, num_trials: int, spec: SearchSpec | None = None, status: Callable[[int], str] | None = None
) -> Story:
    """A complete search of so many tuned trials, by default in the proportions of a real one."""
    story = Story(folder, spec)
    story.baseline()
    mixed = ["finished", "finished", "pruned", "pruned", "pruned", "pruned", "diverged", "pruned", "finished", "failed"]
    for number in range(1, num_trials + 1):
        story.trial(number, mixed[(number - 1) % 10] if status is None else status(number))
    story.close()
    return story
