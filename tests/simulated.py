"""Searches for tests without Ray and without training: trials whose results follow a formula."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from builders import eval_report, search_spec

from ftae.engine.training.checkpoint import EvalReport
from ftae.search.ray.messages import Assignment
from ftae.search.sampler import Sampler
from ftae.search.state import SearchState
from ftae.specs import SearchSpec
from ftae.storage import journal
from ftae.storage.backends import FolderStore
from ftae.storage.journal import FILE_NAME

STEPS = (0, 4, 8, 12)

# ------------------------------------------------------------------------------------------ a sampler

SPACE: dict[str, Any] = {
    "optimizer.lr": {"low": 1e-4, "high": 1.0, "log": True},
    "optimizer.weight_decay": {"low": 0.0, "high": 0.5},
    "optimizer.betas": {"choices": [[0.9, 0.999], [0.5, 0.9]]},
    "batch_size": {"low": 4, "high": 16, "step": 4},
    "grad_accumulation": {"low": 1, "high": 64, "log": True},
    "schedule.warmup_fraction": {"low": 0.0, "high": 0.5, "step": 0.25},
    "max_grad_norm": {"choices": [0.1, 1.0, None]},
    "model.latent_channels": {"choices": [4, 8]},
    "data.flip": {"choices": [False, True]},
}

ONE: dict[str, Any] = {
    "maximize": {"metric": "val/psnr", "direction": "maximize"},
    "minimize": {"metric": "val/mse", "direction": "minimize"},
}
TWO = {"metrics": list(ONE.values())}
CONSTRAINED = ONE["maximize"] | {"constraints": ["val/mse <= 0.5"]}


def sampler_spec(
    space: dict[str, Any] = SPACE, objective: Any = ONE["maximize"], run: dict[str, Any] | None = None, **settings: Any
) -> SearchSpec:
    """A search over ``space``; ``run``: changes of finetune, ``settings``: the section search."""
    run = {
        "model": {"family": "conv_ae", "latent_channels": 4},
        "losses": {"mse": 1.0},
        "optimizer": {"lr": 1e-3, "betas": [0.9, 0.999]},
        "schedule": {"warmup_fraction": 0.25},
        "num_evals": 3,
        "metrics": ["psnr", "mse"],
    } | (run or {})
    changes = {f"finetune.{path}": value for path, value in run.items()}
    return search_spec(**changes, search_space=space, objective=objective, search=settings)


def measured(value: float | None) -> dict[str, float]:
    """The metrics of a last report, where ``value`` is the objective, whichever of them that is."""
    return {} if value is None else {"val/psnr": value, "val/mse": value}


def proposed(sampler: Sampler, number: int) -> dict[str, Any]:
    params = sampler.propose(number)
    assert params is not None
    return params


# ------------------------------------------------------------------------------------------- a search

OBJECTIVES: dict[str, Any] = ONE | {
    "constrained": ONE["maximize"] | {"constraints": ["val/mse >= 0.04", "val/psnr <= 90"]},
    "several": {"metrics": [ONE["maximize"], {"metric": "val/ssim", "direction": "minimize"}]},
}
MIXED_SPACE: dict[str, Any] = {
    "optimizer.lr": {"low": 1e-4, "high": 1.0, "log": True},
    "optimizer.betas": {"choices": [[0.9, 0.999], [0.5, 0.9]]},
    "batch_size": {"low": 4, "high": 16, "step": 4},
    "max_grad_norm": {"choices": [0.1, 1.0, None]},
}
# Which of these params a trial has depends on the others.
CONDITIONAL_SPACE: dict[str, Any] = {
    "optimizer.lr": {"low": 1e-4, "high": 1.0, "log": True},
    "batch_size": {"low": 4, "high": 16, "step": 4},
    "losses.huber_delta": {"low": 0.01, "high": 1.0},
    "losses.huber": {"low": 0.1, "high": 1.0, "or_off": True},
    "max_grad_norm": {"low": 0.1, "high": 1.0, "or_off": True},
    "schedule.name": {"choices": ["constant", "cosine", "cyclical"]},
    "schedule.num_cycles": {"low": 2, "high": 5},
}
SCHEDULER_SETTINGS: dict[str, Any] = {
    "asha": {"name": "asha", "reduction_factor": 2.0, "grace_fraction": 0.33},
    "fifo": {"name": "fifo"},
}


def state_spec(
    objective: str = "maximize", scheduler: str = "asha", space: dict[str, Any] = MIXED_SPACE, **settings: Any
) -> SearchSpec:
    """A search of 8 trials; ``objective`` and ``scheduler`` name entries of the tables above."""
    settings = {"num_trials": 8, "keep_checkpoints": 2, "seed": 3} | settings
    return sampler_spec(
        space,
        OBJECTIVES[objective],
        {"metrics": ["psnr", "mse", "ssim"]},
        scheduler=SCHEDULER_SETTINGS[scheduler],
        **settings,
    )


def conditional_spec(**settings: Any) -> SearchSpec:
    return state_spec(space=CONDITIONAL_SPACE, **settings)


def report(step: int, psnr: float) -> EvalReport:
    metrics = {"val/psnr": psnr, "val/mse": 1.0 / psnr, "val/ssim": (psnr % 3.0) / 3.0}
    return eval_report(step, psnr, metrics=metrics, timing={"time/eval_seconds": 0.1})


def sampled(state: SearchState, count: int) -> list[int]:
    """Start the baseline, the file's own trial and ``count`` more; returns the numbers of the latter."""
    numbers = []
    for _ in range(2 + count):
        trial = state.next_trial()
        assert trial is not None
        numbers.append(trial.number)
    return numbers[2:]


def messages(state: SearchState, trial: Assignment) -> Iterator[int]:
    """Run a trial like a worker: from its last report on, one message at a time, until the state ends it.

    High rates diverge, and one batch size fails. The closer the rate is to 0.01, the better the result.
    """
    lr, batch_size = trial.params.get("optimizer.lr", 0.01), trial.params.get("batch_size", 4)
    for step in STEPS:
        if step < state.record.trials[trial.number].step:
            continue
        if lr > 0.1 and step == 4:
            return state.end(trial.number, "diverged", "non-finite loss at step 2")
        if batch_size == 12 and step == 8:
            return state.end(trial.number, "failed", "no such thing")
        psnr = 20.0 + step * (1.0 - abs(math.log10(lr / 0.01)))
        if not state.report(trial.number, report(step, psnr)):
            return None
        yield step
    raise AssertionError("the state has not ended the trial with its budget")


def run(state: SearchState, workers: int = 1, after_each: Callable[[], object] = lambda: None) -> SearchState:
    """Run all trials to their end, ``workers`` at a time, in turns."""
    running: list[Iterator[int]] = []
    while True:
        while len(running) < workers and (trial := state.next_trial()) is not None:
            running.append(messages(state, trial))
            after_each()
        if not running:
            return state
        for worker in list(running):
            if next(worker, None) is None:
                running.remove(worker)
            after_each()


def kill(state: SearchState) -> None:
    """Leave what a killed driver leaves: its lease, but not its lock."""
    state.writer.journal.close()
    state.writer.lease._released.set()


# --------------------------------------------------------------------------- comparing two searches

Snapshot = tuple[list[Any], dict[int, dict[int, float]]]


def snapshot(state: SearchState) -> Snapshot:
    """The state of the sampler and of the scheduler."""
    trials = [
        (t.number, t.state, t.params, t.values, t.intermediate_values, t.constraints) for t in state.sampler.trials
    ]
    return trials, state.scheduler.recorded()


def events(folder: Path) -> list[dict[str, Any]]:
    """The events of trials, without their times."""
    found = [event for event, _ in journal.read(folder) if event["event"] in ("suggest", "report", "end")]
    return [{key: value for key, value in event.items() if key != "time"} for event in found]


def outcome(state: SearchState) -> list[Any]:
    """Everything about the trials that a second run of the search must repeat."""
    trials = state.record.trials.values()
    fold = [(t.number, t.kind, t.params, t.status, t.reason, [r["metrics"] for r in t.reports]) for t in trials]
    ranking = [trial.number for trial in state.record.ranked()]
    return [*json.loads(json.dumps([fold, ranking])), snapshot(state)]


class Recorded:
    """A search that ran without interruption, with a snapshot after every number of trial events."""

    def __init__(self, search: SearchSpec, folder: Path, workers: int = 1) -> None:
        self.spec, self.snapshots = search, dict[int, Snapshot]()
        folder.mkdir()
        state = SearchState(search, FolderStore(folder))

        def note() -> None:
            self.snapshots[len(events(folder))] = snapshot(state)

        note()
        run(state, workers, note)
        kill(state)
        self.outcome, self.events = outcome(state), events(folder)
        self.lines = (folder / FILE_NAME).read_bytes().splitlines(keepends=True)

    def cut(self, folder: Path, num_lines: int, rest: bytes = b"") -> SearchState:
        """Reopen the search as a driver left it that was killed after ``num_lines`` events."""
        folder.mkdir()
        (folder / FILE_NAME).write_bytes(b"".join(self.lines[:num_lines]) + rest)
        return SearchState(self.spec, FolderStore(folder))
