"""A program that uses the API and prints, as JSON, what each call changed in its process.

``python process_state.py FOLDER fresh``: two searches one after the other, in a process that has imported torch alone.
``python process_state.py FOLDER ray``: a search inside a Ray that the user has started, a training run, and its model,
in a process that has imported every heavy package before.
"""

import json
import logging
import os
import random
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import ftae

NOWHERE = "http://127.0.0.1:9"  # nobody listens there: creating the embedded store takes long


def search_spec(name: str, num_trials: int) -> ftae.SearchSpec:
    return ftae.SearchSpec.model_validate(
        {
            "name": name,
            "finetune": run(),
            "search_space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True}},
            "objective": {"metric": "val/psnr", "direction": "maximize"},
            "search": {"num_trials": num_trials, "scheduler": {"name": "fifo"}, "max_concurrent": 1},
            "tracking": {"uri": NOWHERE},
        }
    )


def run() -> dict[str, Any]:
    return {
        "model": {"family": "conv_vae", "channels": 4, "depth": 1, "latent_dim": 4},
        "data": {"source": "digits", "resolution": 16, "classes": [3, 7]},
        "losses": {"mse": 1.0, "kl": 1e-3},
        "optimizer": {"lr": 1e-2},
        "max_steps": 4,
        "num_evals": 1,
        "metrics": ["psnr"],
        "num_threads": 1,
    }


def log_levels() -> dict[str, int]:
    loggers = logging.root.manager.loggerDict
    named = {name: logger.level for name, logger in loggers.items() if isinstance(logger, logging.Logger)}
    return named | {"root": logging.root.level}


def state() -> dict[str, Any]:
    """What a call could change in the process, by kind."""
    return {
        "environment": dict(os.environ),
        "folder": os.getcwd(),  # noqa: PTH109
        "import path": list(sys.path),
        "signals": {number.name: str(signal.getsignal(number)) for number in signal.valid_signals() if number in NAMED},
        "random": [
            str(random.getstate()),
            str(np.random.get_state(legacy=False)),
            torch.get_rng_state().tolist(),
        ],
        "log levels": log_levels(),
        "streams": [id(sys.stdin), id(sys.stdout), id(sys.stderr)],
        "hooks": [id(sys.excepthook), id(sys.displayhook), str(warnings.showwarning)],
        "torch": [
            torch.get_num_threads(),
            torch.get_default_dtype().__repr__(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
            torch.get_float32_matmul_precision(),
            torch.is_grad_enabled(),
        ],
    }


NAMED = set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}


def changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, list[str]]:
    """What differs, by kind; loggers that were made meanwhile are no change."""
    found: dict[str, list[str]] = {}
    for kind, old in before.items():
        new = after[kind]
        if kind == "log levels":
            new = {name: level for name, level in new.items() if name in old}
        if isinstance(old, dict):
            keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
            found[kind] = [f"{key}: {old.get(key)} -> {new.get(key)}" for key in keys]
        else:
            found[kind] = [] if old == new else [f"{str(old)[:200]} -> {str(new)[:200]}"]
    return found


def observe(calls: dict[str, Callable[[], Any]]) -> dict[str, dict[str, list[str]]]:
    found = {}
    for name, call in calls.items():
        torch.set_num_threads(2)
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        before = state()
        call()
        found[name] = changes(before, state())
    return found


def fresh() -> dict[str, Callable[[], Any]]:
    return {
        "validate": lambda: ftae.validate(search_spec("one", 1)),
        "the first search": lambda: check_search(ftae.run_search(search_spec("one", 1)), 1),
        "the second search": lambda: check_search(ftae.run_search(search_spec("two", 1)), 1),
    }


def inside_ray() -> dict[str, Callable[[], Any]]:
    import diffusers  # noqa: F401
    import mlflow  # noqa: F401
    import optuna  # noqa: F401
    import ray

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    models: list[ftae.Model] = []
    production = ftae.ProductionSpec.model_validate({"name": "p", "finetune": run(), "tracking": {"uri": NOWHERE}})
    images = np.zeros((3, 16, 16, 1), np.uint8)
    return {
        "a search inside the user's Ray": lambda: check_search(ftae.run_search(search_spec("one", 1)), 1),
        "a training run": lambda: ftae.run_training(production, "run"),
        "loading a model": lambda: models.append(ftae.load_model("run")),
        "evaluating": lambda: models[0].evaluate(),
        "reconstructing": lambda: models[0].reconstruct(images),
        "sampling": lambda: models[0].sample(2, fitted=True),
        "exporting": lambda: ftae.open_search("one").export("exported"),
        "Ray is the user's still": lambda: check(ray.is_initialized()),
    }


def check_search(search: ftae.Search, num_trials: int) -> None:
    check((search.status, len(search.ranked)) == ("complete", num_trials))


def check(holds: bool) -> None:
    if not holds:
        raise AssertionError


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    sys.stdout.write(json.dumps(observe(fresh() if sys.argv[2] == "fresh" else inside_ray())) + "\n")
