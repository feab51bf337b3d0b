"""Searches for tests without Ray and without training: trials whose results follow a formula."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from builders import eval_report, search_spec

from ftae.engine.training.checkpoint import EvalReport
from ftae.results.search_record import SearchRecord
from ftae.search.curves import curve_sampler, gaussian_process
from ftae.search.curves.decisions import Stop
from ftae.search.curves.forecaster import Forecaster
from ftae.search.ray.messages import Assignment
from ftae.search.sampler import SAMPLERS, OptunaSampler, Sampler
from ftae.search.scheduler import SCHEDULERS, Scheduler, SuccessiveHalving
from ftae.search.state import SearchState
from ftae.specs import SearchSpec
from ftae.specs.search.objective import Metrics
from ftae.storage import journal
from ftae.storage.backends import FolderStore
from ftae.storage.journal import FILE_NAME, Event

STEPS = (0, 4, 8, 12)
FIRST_STEP = STEPS[1]

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
    """A search over ``space``, with TPE; ``run``: changes of finetune, ``settings``: the section search."""
    run = {
        "model": {"family": "conv_ae", "latent_channels": 4},
        "losses": {"mse": 1.0},
        "optimizer": {"lr": 1e-3, "betas": [0.9, 0.999]},
        "schedule": {"warmup_fraction": 0.25},
        "num_evals": 3,
        "metrics": ["psnr", "mse"],
    } | (run or {})
    changes = {f"finetune.{path}": value for path, value in run.items()}
    return search_spec(**changes, search_space=space, objective=objective, search={"sampler": "tpe"} | settings)


def measured(value: float | None) -> dict[str, float]:
    """The metrics of a last report, where ``value`` is the objective, whichever of them that is."""
    return {} if value is None else {"val/psnr": value, "val/mse": value}


class Trials:
    """The trials of a search without driver and journal: a test says what happens to them, in any order.

    As in ``SearchState``, an event is known to the record before the sampler gets it, and a report is judged before it
    is known at all.
    """

    def __init__(self, spec: SearchSpec) -> None:
        self.spec, self.events = spec, list[Event]()
        self.record = SearchRecord(search=spec.model_dump(mode="json"))
        self.forecaster = Forecaster(spec, self.record)
        self.sampler: Sampler = SAMPLERS[spec.search.sampler](self.forecaster)
        self.scheduler: Scheduler = SCHEDULERS[spec.search.scheduler.name](self.forecaster)

    def proposed(self, number: int) -> dict[str, Any] | None:
        """The params that the sampler would give the trial."""
        proposal = self.sampler.propose(number)
        return None if proposal is None else proposal.params

    def begin(self, number: int, params: dict[str, Any] | None = None, kind: str = "sampled") -> dict[str, Any]:
        """Begin a trial, by default with what the sampler proposes; returns its params."""
        facts: dict[str, Any] = {}
        if params is None:
            proposal = self.sampler.propose(number)
            assert proposal is not None
            params, facts = proposal.params, proposal.facts
        self._happens("suggest", trial=number, params=params, kind=kind, **facts)
        return params

    def begin_file(self) -> dict[str, Any]:
        """Begin trial 1 with the file's own params."""
        return self.begin(1, self.spec.file_params(), "file")

    def report(self, number: int, step: int, value: float, metrics: Metrics | None = None) -> Stop | None:
        """Take a report; returns what the scheduler says to it, after which the trial runs all the same."""
        stop = self.stop(number, step, value) if 0 < step < self.spec.finetune.max_steps else None
        metrics = measured(value) if metrics is None else metrics
        more = {"timing": {}, "checkpoint": None, "images": None}
        self._happens("report", trial=number, step=step, value=value, metrics=dict(metrics), **more)
        return stop

    def stop(self, number: int, step: int, value: float) -> Stop | None:
        """What the scheduler would say to a report."""
        return self.scheduler.stop(number, step, value)

    def end(self, number: int, status: str, metrics: Metrics | None = None) -> None:
        """End a trial. One that is given ``metrics`` reports them first, at the end of its budget if it finished."""
        trial = self.record.trials[number]
        if metrics:
            step = self.spec.finetune.max_steps if status == "finished" else max(trial.step, FIRST_STEP)
            self.report(number, step, metrics[self.spec.objective.first.metric], metrics)
        self._happens("end", trial=number, status=status, reason=None)

    def run(self, number: int, value: Callable[[dict[str, Any]], float], kind: str = "sampled") -> dict[str, Any]:
        """Begin a trial and run it to its end, whose value is a function of its params."""
        params = self.begin_file() if kind == "file" else self.begin(number)
        self.end(number, "finished", measured(value(params)))
        return params

    def replayed(self) -> "Trials":
        """The same after all events so far, as they would be read from a journal, where nothing is asked."""
        again = Trials(self.spec)
        for event in json.loads(json.dumps(self.events)):
            again.apply(event)
        return again

    def _happens(self, event: str, **fields: Any) -> None:
        self.apply({"event": event, "time": float(len(self.events)), **fields})

    def apply(self, event: Event) -> None:
        """Take an event of another search with the same space."""
        self.events.append(event)
        self.record.apply(event)
        number = event["trial"]
        trial = self.record.trials[number]
        if event["event"] == "suggest":
            self.sampler.adopt(number, trial.params)
        elif event["event"] == "report":
            self.sampler.report(number, event["step"], event["value"])
            if 0 < event["step"] < self.spec.finetune.max_steps:
                self.scheduler.record(number, event["step"], event["value"])
        else:
            self.sampler.end(number, event["status"], trial.metrics)


def optuna_trials(sampler: Sampler) -> list[Any]:
    """What Optuna knows of the trials, in a form that can be compared; nothing where Optuna is not asked."""
    trials = sampler.trials if isinstance(sampler, OptunaSampler) else []
    return [(t.params, t.distributions, t.state, t.values, t.intermediate_values, t.constraints) for t in trials]


def on_rungs(scheduler: Scheduler) -> dict[int, dict[int, float]]:
    """The values that ASHA compares, by step and trial; higher is better. Empty for another scheduler."""
    rungs = scheduler._rungs if isinstance(scheduler, SuccessiveHalving) else []
    return {rung.step: dict(rung.recorded) for rung in rungs}


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
    "forecast": {"name": "forecast"},
}


def state_spec(
    objective: str = "maximize", scheduler: str = "asha", space: dict[str, Any] = MIXED_SPACE, **settings: Any
) -> SearchSpec:
    """A search of 8 trials with TPE; ``objective`` and ``scheduler`` name entries of the tables above."""
    settings = {"num_trials": 8, "keep_checkpoints": 2, "seed": 3} | settings
    return sampler_spec(
        space,
        OBJECTIVES[objective],
        {"metrics": ["psnr", "mse", "ssim"]},
        scheduler=SCHEDULER_SETTINGS[scheduler],
        **settings,
    )


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


def quicken_models(patch: pytest.MonkeyPatch) -> None:
    """Fits and proposals of the model of the curves take less work; they are as reproducible as others."""
    patch.setattr(gaussian_process, "MAX_ITERATIONS", 5)
    for name, number in {"RANDOM_CANDIDATES": 30, "NEAR_BEST": 5, "NEAR_CANDIDATE": 5}.items():
        patch.setattr(curve_sampler, name, number)


# --------------------------------------------------------------------------- comparing two searches

Snapshot = list[Any]


def snapshot(state: SearchState) -> Snapshot:
    """What the next proposal and the next decision depend on."""
    record = state.record
    told = [
        (t.number, t.kind, t.params, t.status, [(r["step"], r["value"], r["metrics"]) for r in t.reports])
        for t in record.trials.values()
    ]
    model = [record.model, record.noise, state.sampler.is_exhausted]
    return [json.loads(json.dumps([told, model])), optuna_trials(state.sampler), on_rungs(state.scheduler)]


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


def report_of(event: Event) -> EvalReport:
    """The report of a worker that an event was made of."""
    return eval_report(event["step"], event["value"], metrics=event["metrics"], timing=event["timing"])


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

    def finish(self, state: SearchState) -> SearchState:
        """Go on with a reopened search, with the messages of its workers in the order in which they came first.

        Trials that had begun repeat their last report.
        """
        known = len(events(state.store.folder))
        for _ in range(len(state.record.running)):
            trial = state.next_trial()
            assert trial is not None
            if reports := state.record.trials[trial.number].reports:
                assert state.report(trial.number, report_of(reports[-1]))
        for event in self.events[known:]:
            if event["event"] == "suggest":
                state.next_trial()
            elif event["event"] == "report":
                state.report(event["trial"], report_of(event))
            elif event["status"] in ("diverged", "failed"):  # else the state has ended it with its last report
                state.end(event["trial"], event["status"], event["reason"])
        return state
