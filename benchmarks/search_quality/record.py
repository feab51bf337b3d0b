"""Records curves of a search file with ftae's own engine: random configurations, some near the best, and repeats."""

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.search_quality.product import scratch
from benchmarks.search_quality.recorded_task import Row, read_rows
from benchmarks.search_quality.unit_space import Params, UnitSpace
from ftae.engine.training.loop import finetune
from ftae.engine.training.model_reuse import ModelReuse
from ftae.errors import TrainingFailed
from ftae.specs import SearchSpec
from ftae.specs.files import load_search

NUM_EVALS = 18
REFIT_EVERY = 20  # refined configurations, from one forest
CANDIDATES, KEPT = 1500, 45  # of a forest: configurations that it judges, and the best of them, to draw from
REPEATED = (0, 2, 5, 10, 20, 35, 50, 65, 80)  # percentiles, from the best on, of what is repeated beside the file's own


@dataclass(frozen=True)
class Plan:
    """What to record. Random ones may take 55 % of the minutes, refined ones up to 75 %, and repeats the rest."""

    configs: int
    refined: int
    noise: tuple[int, int]  # configurations to repeat, and how many seeds of each
    minutes: float
    seed: int = 0


def header_of(spec: SearchSpec) -> dict[str, Any]:
    """A search as files of curves have it: what the file says of the run, its space and its objective, without paths.

    Sampler, scheduler and number of evaluations are left out: a replay takes the product's own.
    """
    written = spec.model_dump(mode="json", exclude_unset=True)
    content = {key: written[key] for key in ("name", "finetune", "search_space", "objective")}
    content["finetune"].pop("num_evals", None)
    search: dict[str, Any] = _without_paths(content)
    return search


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_paths(inner) for inner in value]
    is_path = isinstance(value, str) and value.startswith(("/", "~"))
    return Path(value).name if is_path else value


def record(file: Path, overrides: Sequence[str], out: Path, plan: Plan, notify: Callable[[str], None]) -> None:
    """Write the curves of a search file to ``out``, which must not exist, a line as soon as each is known."""
    spec = load_search(file, overrides)
    with out.open("x") as lines:
        lines.write(json.dumps({"search": header_of(spec)}) + "\n")
    evaluations = min(NUM_EVALS, spec.finetune.max_steps)
    spec = spec.model_copy(update={"finetune": spec.finetune.model_copy(update={"num_evals": evaluations})})
    reuse, begin = ModelReuse(), time.monotonic()
    for number, (kind, params, seed) in enumerate(_configurations(spec, out, plan)):
        row = {"kind": kind, "params": params, "seed": seed, **_train(spec, params, seed, reuse)}
        with out.open("a") as lines:
            lines.write(json.dumps(row) + "\n")
        spent = (time.monotonic() - begin) / 60
        notify(f"{number + 1} {kind}: {row['diverged'] or list(row['curve'].values())[-1]} after {spent:.1f} min")


def _configurations(spec: SearchSpec, out: Path, plan: Plan) -> Iterator[tuple[str, Params, int]]:
    begin, rng, seeds = time.monotonic(), np.random.default_rng(plan.seed), random.Random(plan.seed)
    space, sign = UnitSpace(spec), spec.objective.first.sign

    def in_time(share: float) -> bool:
        return time.monotonic() - begin < 60 * plan.minutes * share

    yield "file", spec.file_params(), spec.finetune.seed
    for params in space.random(rng, plan.configs):
        if in_time(0.55):
            yield "random", params, seeds.randrange(1000)
    good: list[Params] = []
    for number in range(plan.refined):
        if in_time(0.75):
            if number % REFIT_EVERY == 0:
                good = _promising(space, _whole(spec, out), sign, rng)
            yield "refined", good[int(rng.integers(len(good)))], seeds.randrange(1000)
    ranked = sorted(_whole(spec, out), key=lambda row: -sign * _end(row))
    chosen = [spec.file_params(), *(ranked[len(ranked) * percent // 100]["params"] for percent in REPEATED)]
    count, repeats = plan.noise
    for params in chosen[:count]:
        for seed in range(repeats):
            if in_time(1.0):
                yield "noise", params, seed


def _whole(spec: SearchSpec, out: Path) -> list[Row]:
    return [row for row in read_rows(out) if str(spec.finetune.max_steps) in row["curve"]]


def _end(row: Row) -> float:
    return float(row["curve"][max(row["curve"], key=int)])


def _promising(space: UnitSpace, rows: list[Row], sign: float, rng: np.random.Generator) -> list[Params]:
    """Random configurations of which a forest expects the best ends: where a stand-in has to be exact."""
    from sklearn.ensemble import ExtraTreesRegressor

    ends = sign * np.array([_end(row) for row in rows])
    forest = ExtraTreesRegressor(100, min_samples_leaf=2, random_state=0)
    forest.fit(space.vectors([row["params"] for row in rows]), np.maximum(ends, np.quantile(ends, 0.2)))
    candidates = space.random(rng, CANDIDATES)
    order = np.argsort(-forest.predict(space.vectors(candidates)))[:KEPT]
    return [candidates[i] for i in order]


def _train(spec: SearchSpec, params: Params, seed: int, reuse: ModelReuse) -> Row:
    metric, begin = spec.objective.first.metric, time.monotonic()
    curve: dict[int, float] = {}
    metrics: dict[str, float] = {}
    diverged: str | None = None
    with scratch() as folder:
        try:
            for report in finetune(spec.trial_spec({**params, "seed": seed}), Path(folder), reuse=reuse):
                curve[report.step] = round(report.metrics[metric], 4)
                measured = {name: value for name, value in report.metrics.items() if name.startswith("val")}
                metrics = {name: round(value, 4) for name, value in measured.items() if name != metric}
        except TrainingFailed as failure:
            diverged = str(failure)
    seconds = round(time.monotonic() - begin, 2)
    by_step = {str(step): value for step, value in curve.items()}
    return {"curve": by_step, "metrics": metrics, "diverged": diverged, "seconds": seconds}
