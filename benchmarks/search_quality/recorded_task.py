"""A file of recorded curves, as ``record`` writes it, and the task that searches are replayed on.

A file is JSON lines. The first one is ``{"search": ...}``, the search file without its sampler, its scheduler and its
paths, and if need be ``"noise": FILE``, the file beside it whose repeats are used. Each further line is a training::

    {"kind": "random", "params": {...}, "seed": 7, "curve": {"0": 5.5, "17": 10.0, ...}, "metrics": {...},
     "diverged": null, "seconds": 9.3}

``kind``: file (the file's own configuration), random, refined (near the best), or noise, which are repeats of one
configuration with other seeds. ``curve`` has the objective by step, ``metrics`` what else was measured at the end.
"""

import json
import math
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import eq, gt, lt
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.search_quality.stand_in import GaussianProcess, fit_curves
from benchmarks.search_quality.unit_space import Params, UnitSpace, Vector
from ftae.errors import FtaeError
from ftae.specs import SearchSpec
from ftae.specs.files import load_search
from ftae.specs.reading.yaml_file import read_value

LR = "optimizer.lr"
CANDIDATES = 20_000  # random configurations; the best of them is what a search can reach
MIN_REPEATS = 3
NEIGHBOURS = 3  # configurations of a like learning rate whose noise is replayed
Row = dict[str, Any]


class Region:
    """Where training diverges: texts ``PATH>NUMBER``, ``PATH<NUMBER``, ``PATH=VALUE``, several joined by `` and ``."""

    _RELATIONS = {">": gt, "<": lt, "=": eq}

    def __init__(self, texts: Iterable[str]) -> None:
        self._parts = [[self._read(one.strip()) for one in text.split(" and ")] for text in texts]

    def _read(self, text: str) -> tuple[str, str, Any]:
        relation = next((sign for sign in self._RELATIONS if sign in text), None)
        if relation is None:
            raise FtaeError(f"{text!r} must be PATH>NUMBER, PATH<NUMBER or PATH=VALUE")
        path, _, value = text.partition(relation)
        return path.strip(), relation, read_value(value.strip())

    def contains(self, params: Params) -> bool:
        return any(all(self._holds(params, *one) for one in part) for part in self._parts)

    def _holds(self, params: Params, path: str, relation: str, value: Any) -> bool:
        if path not in params or (relation != "=" and params[path] is None):
            return False
        return bool(self._RELATIONS[relation](params[path], value))


@dataclass(frozen=True)
class Repeats:
    """How the curves of one configuration differ between seeds: a row of deviations for each, by share of the steps."""

    log_lr: float
    shares: Vector
    deviations: Vector


class RecordedTask:
    """A search file with curves for all of its configurations. Higher values are better, whatever the direction.

    ``overrides`` change the search file, such as its constraints: what is measured of these at the end is recorded, and
    taken to be the same at every evaluation.

    Attributes:
        best: the best end that can be reached, without noise.
        median: the median of the recorded ends.
        baseline: the value of the untuned model; None if it was not recorded.
        fit: how good the stand-in is, by cross-validation.
    """

    def __init__(self, file: Path, diverging: Region | None = None, overrides: Sequence[str] = ()) -> None:
        self.name, self._content, self._overrides = file.stem, read_header(file)["search"], tuple(overrides)
        self.spec = self.search()
        if len(self.spec.objective.goals) > 1:
            raise FtaeError(f"{file}: only searches with one goal can be replayed")
        self.space, self.diverging = UnitSpace(self.spec), diverging or Region([])
        rows, sign = read_rows(file), self.spec.objective.first.sign
        whole = [row for row in rows if str(self.max_steps) in row["curve"]]
        self.steps = sorted({int(step) for row in whole for step in row["curve"]} - {0})
        fitted = [row for row in whole if row["kind"] != "noise"]
        curves, vectors = sign * _curves(fitted, self.steps), self.space.vectors([row["params"] for row in fitted])
        self._model, self.fit = fit_curves(vectors, curves)
        self._measured = {
            c.metric: GaussianProcess(vectors, np.array([row["metrics"][c.metric] for row in fitted]))
            for c in self.spec.objective.constraints
        }
        first = whole[0]["curve"].get("0")
        self.baseline = None if first is None else sign * float(first)
        self.median, self.best = float(np.median(curves[:, -1])), self._reachable()
        self._repeats = _repeats(whole, self.steps) or self._borrowed(file)
        self._known: dict[bytes, Vector] = {}

    @property
    def max_steps(self) -> int:
        return self.spec.finetune.max_steps

    def search(self, overrides: Sequence[str] = ()) -> SearchSpec:
        """The search file with ``overrides``; what it leaves open is as the product has it by default."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "search.yaml"
            path.write_text(yaml.safe_dump(self._content, sort_keys=False))
            return load_search(path, [*self._overrides, *overrides])

    def curve(self, params: Params) -> Vector:
        """The values at ``steps``, without noise."""
        vector = self.space.vector(params)
        key = vector.tobytes()
        if key not in self._known:
            self._known[key] = self._model.predict(vector[None])[0]
        return self._known[key]

    def end(self, params: Params) -> float:
        """The true value of a configuration that is trained to the end."""
        return float(self.curve(params)[-1])

    def metrics(self, params: Params) -> dict[str, float]:
        """What constraints are about, of a configuration that is trained to the end."""
        vector = self.space.vector(params)[None]
        return {name: float(process.predict(vector)[0]) for name, process in self._measured.items()}

    def noise(self, params: Params, rng: np.random.Generator) -> Vector:
        """A recorded deviation from the mean curve, of a configuration with a like learning rate; in either direction.

        Zero where nothing was repeated.
        """
        if not self._repeats:
            return np.zeros(len(self.steps))
        log_lr = math.log(params[LR]) if LR in params else 0.0
        near = np.argsort([abs(log_lr - repeats.log_lr) for repeats in self._repeats])[:NEIGHBOURS]
        repeats = self._repeats[near[rng.integers(len(near))]]
        deviation = repeats.deviations[rng.integers(len(repeats.deviations))] * (1.0 if rng.random() < 0.5 else -1.0)
        shares = np.array(self.steps) / self.max_steps
        return np.asarray(np.interp(np.log(shares), np.log(repeats.shares), deviation))

    def at(self, curve: Vector, step: int) -> float:
        """The value of a curve at any step, interpolated over the logarithm of the step."""
        return float(np.interp(math.log(step), np.log(self.steps), curve))

    def _reachable(self) -> float:
        candidates = self.space.random(np.random.default_rng(0), CANDIDATES)
        vectors = self.space.vectors([params for params in candidates if not self.diverging.contains(params)])
        best = -math.inf
        for part in np.array_split(vectors, 20):
            measured = {name: process.predict(part) for name, process in self._measured.items()}
            kept = [not self.spec.objective.violation(_row(measured, i)) for i in range(len(part))]
            best = max(best, self._model.predict(part)[kept, -1].max(initial=-math.inf))
        return float(best)

    def _borrowed(self, file: Path) -> list[Repeats]:
        name = read_header(file).get("noise")
        if name is None:
            return []
        rows, max_steps = (
            read_rows(file.parent / name),
            read_header(file.parent / name)["search"]["finetune"]["max_steps"],
        )
        whole = [row for row in rows if str(max_steps) in row["curve"]]
        return _repeats(whole, sorted({int(step) for row in whole for step in row["curve"]} - {0}))


def _row(columns: dict[str, Vector], i: int) -> dict[str, float]:
    return {name: float(values[i]) for name, values in columns.items()}


def read_header(file: Path) -> Row:
    """The first line of a file of curves."""
    with file.open() as lines:
        header = json.loads(next(lines))
    if "search" not in header:
        raise FtaeError(f"{file} does not begin with a search: it is no file that `record` has written")
    return dict(header)


def read_rows(file: Path) -> list[Row]:
    """The trainings of a file, each once."""
    rows = [json.loads(line) for line in file.read_text().splitlines()[1:]]
    return list({(row["kind"], json.dumps(row["params"], sort_keys=True), row["seed"]): row for row in rows}.values())


def _curves(rows: list[Row], steps: list[int]) -> Vector:
    return np.array([[row["curve"][str(step)] for step in steps] for row in rows])


def _repeats(rows: list[Row], steps: list[int]) -> list[Repeats]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row["kind"] == "noise":
            groups.setdefault(json.dumps(row["params"], sort_keys=True), []).append(row)
    found = []
    for group in groups.values():
        if len(group) >= MIN_REPEATS:
            curves = _curves(group, steps)
            deviations = (curves - curves.mean(0)) * math.sqrt(len(group) / (len(group) - 1))
            log_lr = math.log(group[0]["params"].get(LR, 1.0))
            found.append(Repeats(log_lr, np.array(steps) / steps[-1], deviations))
    return found
