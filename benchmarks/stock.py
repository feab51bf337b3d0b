"""Driver and turnaround of ftae and of Tune with its own MLflow callback, side by side on the same simulated trials.

Both report the same metrics as often, one trial at a time, to a tracking server that they reach by HTTP. Tune writes
neither its own result files nor snapshots on either side, which would cost it more.
"""

import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from benchmarks import curves
from benchmarks.searches import mlflow_server, run_on_ray, search_spec
from ftae.storage.journal import read

Measured = dict[str, float]
Reading = tuple[float, float]  # seconds: worked by the loop's clock, used of the processors
MOMENTS = "moments"  # a folder of the begin and end of each of the stock trials


class Clock:
    """What a driver works from its first result to its last, by its loop's wall clock and by its processors.

    Tune's loop waits for its trials in ``ray.wait``; whatever else it does, a trial that has reported waits for.
    """

    def __init__(self) -> None:
        import ray
        from ray.tune.execution.tune_controller import TuneController

        self._waited, self._readings = 0.0, list[Reading]()
        wait, take = ray.wait, TuneController._on_training_result

        def watched(*args: Any, **kwargs: Any) -> Any:
            begin = time.monotonic()
            try:
                return wait(*args, **kwargs)
            finally:
                self._waited += time.monotonic() - begin

        def taken(controller: TuneController, trial: Any, result: Any) -> None:
            if not self._readings:
                self._readings = [self._read()]
            take(controller, trial, result)
            self._readings[1:] = [self._read()]

        ray.wait, TuneController._on_training_result = watched, taken

    def _read(self) -> Reading:
        return time.monotonic() - self._waited, time.process_time()

    def per_report(self, reports: int) -> Measured:
        """Milliseconds of both."""
        loop, cpu = (1000.0 * (last - first) / reports for first, last in zip(*self._readings, strict=True))
        return {"reports": reports, "loop_ms": loop, "cpu_ms": cpu}


def compare(num_trials: int, repeats: int, folder: Path) -> list[dict[str, Any]]:
    """A row for each side of each repeat; turned round in every second one, each in a process of its own."""
    rows = []
    for repeat in range(repeats):
        sides = [("ftae", run_ftae), ("stock", run_stock)]
        for name, run in sides if repeat % 2 == 0 else reversed(sides):
            place = folder / f"{name}-{repeat}"
            place.mkdir()
            with mlflow_server(place) as uri, multiprocessing.get_context("spawn").Pool(1) as pool:
                rows.append({"side": name, "repeat": repeat, **pool.apply(run, (num_trials, place, uri))})
    return rows


def run_ftae(num_trials: int, folder: Path, uri: str) -> Measured:
    """Milliseconds of the driver per report, and seconds from the end of a trial to the beginning of the next."""
    spec, clock = search_spec(num_trials, 1, folder, uri), Clock()
    run_on_ray(spec)
    events = [event for event, _ in read(folder / spec.name)]
    reports = sum(event["event"] == "report" for event in events)
    return clock.per_report(reports) | _turnaround(_moments(events))


def _moments(events: list[dict[str, Any]]) -> Iterator[tuple[float, float]]:
    for trial in sorted({event["trial"] for event in events if event["event"] == "start"}):
        its = {event["event"]: event["time"] for event in events if event.get("trial") == trial}
        yield its["start"], its["end"]


def run_stock(num_trials: int, folder: Path, uri: str) -> Measured:
    """The same of Tune as it is, with Optuna, ASHA and the MLflow callback."""
    import ray
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    spec, moments = search_spec(num_trials, 1, folder, uri), folder / MOMENTS
    moments.mkdir()
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    tuner = tune.Tuner(
        tune.with_parameters(stock_trial, finetune=spec.finetune.model_dump(mode="json"), moments=str(moments)),
        param_space={"lr": tune.loguniform(1e-5, 1e-2), "kl": tune.loguniform(1e-6, 1e-2)},
        tune_config=tune.TuneConfig(
            metric="val/psnr",
            mode="max",
            search_alg=OptunaSearch(seed=0),
            scheduler=ASHAScheduler(max_t=spec.finetune.num_evals + 1, grace_period=3, reduction_factor=3),
            num_samples=num_trials,
            max_concurrent_trials=1,
        ),
        run_config=tune.RunConfig(
            storage_path=str(folder), callbacks=[MLflowLoggerCallback(uri, experiment_name="stock")], verbose=0
        ),
    )
    clock = Clock()
    tuner.fit()
    ray.shutdown()
    trials = [json.loads(file.read_text()) for file in sorted(moments.iterdir(), key=lambda file: int(file.name))]
    reports = sum(trial["reports"] for trial in trials)
    return clock.per_report(reports) | _turnaround((trial["begin"], trial["end"]) for trial in trials)


def stock_trial(config: dict[str, Any], *, finetune: dict[str, Any], moments: str) -> None:
    """The simulated trial, reported as the documentation has it; leaves when it began and reported last."""
    from ray import tune

    from ftae.specs import FinetuneSpec

    base = FinetuneSpec.model_validate(finetune)
    optimizer = base.optimizer.model_copy(update={"lr": config["lr"]})
    losses = base.losses.model_copy(update={"kl": config["kl"]})
    spec = base.model_copy(update={"optimizer": optimizer, "losses": losses})
    file = Path(moments) / str(len(os.listdir(moments)))
    trial: dict[str, float] = {"begin": time.time(), "reports": 0}
    for step in [0, *spec.eval_steps()]:
        trial |= {"end": time.time(), "reports": trial["reports"] + 1}
        file.write_text(json.dumps(trial))
        tune.report(curves.metrics(spec, step))


def _turnaround(moments: Iterator[tuple[float, float]]) -> Measured:
    gaps = [later[0] - earlier[1] for earlier, later in pairwise(sorted(moments))]
    return {"turnaround_seconds": median(gaps)}


def table(rows: list[dict[str, Any]]) -> Table:
    """A row a side: medians over the repeats."""
    shown = Table("side", "repeats", "reports", "driver's loop, ms a report", "CPU, ms a report", "turnaround, s")
    for side in dict.fromkeys(row["side"] for row in rows):
        own = [row for row in rows if row["side"] == side]
        medians = {key: median(row[key] for row in own) for key in own[0] if key != "side"}
        shown.add_row(
            side,
            str(len(own)),
            f"{medians['reports']:.0f}",
            *(f"{medians[key]:.1f}" for key in ("loop_ms", "cpu_ms")),
            f"{medians['turnaround_seconds']:.3f}",
        )
    return shown
