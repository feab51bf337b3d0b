"""What a decision costs: the time of a proposal and of a report with a stop decision, in searches of many trials."""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmarks.search_quality.product import evaluation, scratch
from benchmarks.search_quality.unit_space import Params, UnitSpace
from ftae.results.search_record import trial_folder
from ftae.search.state import SearchState
from ftae.specs import SearchSpec
from ftae.specs.files import load_search
from ftae.specs.reading.format_versions import FORMAT
from ftae.storage.backends import FolderStore
from ftae.storage.journal import Event, Journal, new_event

PROPOSALS = 15
STOPPED = 2 / 3  # of the trials, at any of their evaluations
T = TypeVar("T")
Curve = Callable[[Params, float], float]


def decision_cost(file: Path, overrides: Sequence[str], num_trials: int) -> dict[str, Any]:
    """Medians, in milliseconds of CPU time, of the decisions that follow ``num_trials`` trials with made-up curves.

    The trials lie in a journal, which a new driver takes up; it then starts ``PROPOSALS`` more. What the journal takes
    for a decision is counted, too.
    """
    spec = load_search(file, [f"search.num_trials={num_trials + PROPOSALS}", *overrides])
    curve = _made_up_curve(UnitSpace(spec))
    with scratch() as folder:
        journal = Journal(Path(folder))
        journal.append_all(list(_events(spec, curve, num_trials)))
        journal.close()
        opened, state = _timed(lambda: SearchState(spec, FolderStore(Path(folder))))
        proposals, decisions = _timed_trials(state, curve)
        state.close("complete")
    found = {"proposal_ms": statistics.median(proposals), "decision_ms": statistics.median(decisions or [math.nan])}
    found |= {"slowest_proposal_ms": max(proposals), "slowest_decision_ms": max(decisions or [math.nan])}
    return {"trials": num_trials, **found, "taken_up_ms": opened}


def _timed_trials(state: SearchState, curve: Curve) -> tuple[list[float], list[float]]:
    """The times of all proposals, and of all reports that could have ended a trial early."""
    run, goal = state.spec.finetune, state.spec.objective.first
    proposals, decisions = list[float](), list[float]()
    for _ in range(PROPOSALS):
        spent, assignment = _timed(state.next_trial)
        assert assignment is not None
        proposals.append(spent)
        for step in run.eval_steps():
            value = goal.sign * curve(assignment.params, step / run.max_steps)
            report = evaluation(goal.metric, step, value)
            spent, goes_on = _timed(partial(state.report, assignment.number, report))
            if step < run.max_steps:
                decisions.append(spent)
            if not goes_on:
                break
    return proposals, decisions


def _timed(call: Callable[[], T]) -> tuple[float, T]:
    begin = time.process_time()
    result = call()
    return 1000 * (time.process_time() - begin), result


def _made_up_curve(space: UnitSpace) -> Curve:
    """The value of a configuration after a share of its steps: it saturates, the higher the nearer to some point."""
    rng = np.random.default_rng(0)
    peak = space.vector(space.random(rng, 1)[0])

    def curve(params: Params, share: float) -> float:
        off = float(((space.vector(params) - peak) ** 2).sum())
        return 30.0 - 6.0 * off - 8.0 * math.exp(-4.0 * share) + 0.05 * float(rng.normal())

    return curve


def _events(spec: SearchSpec, curve: Curve, num_trials: int) -> Iterator[Event]:
    """The journal of a search whose trials ran one after another: a baseline, the file's own, random ones."""
    search = spec.model_dump(mode="json")
    yield new_event("open", format=FORMAT, search=search, digest=spec.digest(), facts={})
    yield new_event("suggest", trial=0, params={}, kind="baseline")
    yield from _trial(spec, 0, [(0, 20.0)], "finished")
    rng, space, steps = np.random.default_rng(1), UnitSpace(spec), spec.finetune.eval_steps()
    for number in range(1, num_trials + 1):
        params = spec.file_params() if number == 1 else space.random(rng, 1)[0]
        yield new_event("suggest", trial=number, params=params, kind="file" if number == 1 else "sampled")
        is_stopped = number > 1 and len(steps) > 1 and rng.random() < STOPPED
        reached = steps[: rng.integers(1, len(steps))] if is_stopped else steps
        sign = spec.objective.first.sign
        values = [(step, sign * curve(params, step / spec.finetune.max_steps)) for step in reached]
        yield from _trial(spec, number, values, "pruned" if is_stopped else "finished")


def _trial(spec: SearchSpec, number: int, values: list[tuple[int, float]], status: str) -> Iterator[Event]:
    for step, value in values:
        metrics = {spec.objective.first.metric: value}
        files = {"checkpoint": f"{trial_folder(number)}/step-{step:08d}" if step else None, "images": None}
        yield new_event("report", trial=number, step=step, value=value, metrics=metrics, timing={}, **files)
    step, value = values[-1]
    yield new_event("end", trial=number, status=status, reason=None, value=value, step=step)
