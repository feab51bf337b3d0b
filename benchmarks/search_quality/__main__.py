"""How good the configurations are that a search finds: whole searches, replayed on recorded fine-tuning curves.

    python -m benchmarks.search_quality record SEARCH.yaml TASK.jsonl [--configs 150] [--minutes 12] [--noise 10x5]
    python -m benchmarks.search_quality replay --tasks TASK.jsonl ... --methods ftae ray_stock optuna_gp ...
    python -m benchmarks.search_quality table RESULTS.jsonl
    python -m benchmarks.search_quality cost SEARCH.yaml [--set PATH=VALUE ...]

``record`` trains configurations of a search file. ``replay`` fits a stand-in to such curves, which also knows what was
not recorded, adds noise as it was recorded between seeds, and lets methods search it: workers take trials as they
become free, time is in training steps, and a budget is a number of full trainings. Regret is by how much the true end
of the configuration that a search would hand over falls short of the best one, in the metric's unit.

The method ``ftae`` is ftae's own state of a search with its sampler and scheduler, by default those of the package;
``ftae:sampler=tpe;scheduler=asha`` changes them, or any other setting as ``--set`` does. ``optuna_SAMPLER`` and
``optuna_SAMPLER_PRUNER`` are Optuna's, ``ray_stock`` is Tune with TPE and ASHA as they come.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from threadpoolctl import threadpool_limits

from benchmarks.search_quality.cost import decision_cost
from benchmarks.search_quality.peers import PEERS, make_peer
from benchmarks.search_quality.product import FtaeSearch
from benchmarks.search_quality.record import Plan, record
from benchmarks.search_quality.recorded_task import RecordedTask, Region
from benchmarks.search_quality.results import Row, key_of, markdown, read_results, summaries
from benchmarks.search_quality.simulation import Method, Simulation
from ftae.errors import FtaeError

SHORT = {"sampler": "search.sampler", "scheduler": "search.scheduler.name"}
ALIASES = {"ftae_tpe_asha": "ftae:sampler=tpe;scheduler=asha", "ftae_random": "ftae:sampler=random;scheduler=fifo"}


def make_method(name: str, task: RecordedTask, seed: int, budget: float, workers: int) -> Method:
    """A new search by the method of this name."""
    if name in PEERS:
        if task.spec.objective.constraints:
            raise FtaeError(f"{name} knows no constraints; replay ftae, with whatever sampler and scheduler")
        return make_peer(name, task, seed)
    settings = ALIASES.get(name, name).partition(":")[2]
    pairs = [text.partition("=") for text in settings.split(";") if text]
    overrides = [f"{SHORT.get(path, path)}={value}" for path, _, value in pairs]
    return FtaeSearch(task, seed=seed, budget=budget, workers=workers, overrides=overrides)


def replay(given: argparse.Namespace, console: Console) -> None:
    """Replay what the file of results does not have yet, and show each method's summary as it is known."""
    unknown = [name for name in given.methods if name not in {"ftae", *ALIASES, *PEERS} and name[:5] != "ftae:"]
    if unknown:
        names = ", ".join(["ftae", "ftae:PATH=VALUE;...", *ALIASES, *PEERS])
        raise FtaeError(f"unknown method {unknown[0]}; there are {names}")
    known = {(*key_of(row), row["seed"]): row for row in ([] if given.again else read_results(given.out))}
    for file in given.tasks:
        task = RecordedTask(file, Region(given.diverge), given.set)
        fit = ", ".join(f"{name} {value:.3g}" for name, value in task.fit.items())
        console.print(f"{task.name}: best {task.best:.3f}, median {task.median:.3f}; stand-in: {fit}", markup=False)
        for method in given.methods:
            rows = list(_searches(given, task, method, known))
            console.print(_line(next(summaries(rows))), markup=False, soft_wrap=True)


def _searches(given: argparse.Namespace, task: RecordedTask, name: str, known: dict[Any, Row]) -> Iterator[Row]:
    setting: Row = {"task": task.name, "method": name, "budget": given.budget, "workers": given.workers}
    setting |= {"noise_factor": given.noise_factor, "diverge": " or ".join(given.diverge)}
    setting["set"] = " ".join(given.set)
    for seed in range(given.first, given.first + given.seeds):
        row = known.get((*key_of(setting), seed))
        if row is None:
            begin = time.process_time()
            method = make_method(name, task, seed, given.budget, given.workers)
            how = {"workers": given.workers, "budget": given.budget, "seed": seed, "noise_factor": given.noise_factor}
            outcome = Simulation(task, method, **how).run()
            method.close()
            row = setting | {"seed": seed, "regret": [round(regret, 4) for regret in outcome.regret]}
            row |= {"started": outcome.started, "finished": outcome.finished}
            row["cpu_seconds"] = round(time.process_time() - begin, 3)
            with given.out.open("a") as lines:
                lines.write(json.dumps(row) + "\n")
        yield row


def _line(row: Row) -> str:
    regret, (low, high) = " ".join(f"{value:.3f}" for value in row["regret"]), row["interval"]
    trials = f"{row['started']:.0f} trials, {row['finished']:.0f} to the end"
    return f"  {row['method']:32} {row['seeds']} seeds  {regret} [{low:.3f}, {high:.3f}]  {trials}"


def cost(given: argparse.Namespace, console: Console) -> None:
    """Print the cost of decisions, after as many trials as asked for."""
    for trials in given.trials:
        found = [decision_cost(given.search, given.set, trials) for _ in range(given.repeats)]
        medians = {name: statistics.median(row[name] for row in found) for name in found[0] if name != "trials"}
        figures = ", ".join(f"{name} {value:.2f}" for name, value in medians.items())
        console.print(f"{trials} trials: {figures}", markup=False, soft_wrap=True)


def _noise(text: str) -> tuple[int, int]:
    configurations, _, seeds = text.partition("x")
    return int(configurations), int(seeds or 0)


def arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.search_quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="train configurations and keep their curves")
    recording.add_argument("search", type=Path, help="a search file")
    recording.add_argument("out", type=Path, help="a new file of curves")
    recording.add_argument("--configs", type=int, default=150, help="random configurations, at most")
    recording.add_argument("--refined", type=int, default=60, help="configurations near the best, at most")
    recording.add_argument("--noise", type=_noise, default=(10, 5), help="configurations to repeat x seeds of each")
    recording.add_argument("--minutes", type=float, default=12.0)
    recording.add_argument("--seed", type=int, default=0)
    recording.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="as in ftae search")
    replaying = commands.add_parser("replay", help="replay searches on files of curves")
    replaying.add_argument("--tasks", nargs="+", type=Path, required=True, help="files of curves")
    replaying.add_argument("--methods", nargs="+", default=["ftae", "ray_stock"])
    replaying.add_argument("--budget", type=float, default=24.0, help="in full trainings")
    replaying.add_argument("--workers", type=int, default=4)
    replaying.add_argument("--seeds", type=int, default=30)
    replaying.add_argument("--first", type=int, default=0, help="the first seed")
    replaying.add_argument("--noise-factor", type=float, default=1.0, help="0 replays without noise")
    replaying.add_argument(
        "--diverge", action="append", default=[], help="where training diverges: PATH>NUMBER and ..."
    )
    replaying.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="such as objective.constraints=[val/kl <= 54]"
    )
    replaying.add_argument("--out", type=Path, default=Path("results.jsonl"), help="rows that it has are not replayed")
    replaying.add_argument("--again", action="store_true", help="replay rows that the file has, too")
    showing = commands.add_parser("table", help="print a file of results as Markdown")
    showing.add_argument("results", type=Path)
    timing = commands.add_parser("cost", help="the time of decisions")
    timing.add_argument("search", type=Path, help="a search file")
    timing.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="such as search.sampler=tpe")
    timing.add_argument("--trials", nargs="+", type=int, default=[30, 300, 3000])
    timing.add_argument("--repeats", type=int, default=3)
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> None:
    asked, console = arguments(given), Console(width=200)
    with threadpool_limits(1):  # matrices are small, and the last digits of a result depend on it
        try:
            _run(asked, console)
        except FtaeError as error:
            raise SystemExit(str(error)) from error


def _run(asked: argparse.Namespace, console: Console) -> None:
    if asked.command == "record":
        plan = Plan(asked.configs, asked.refined, asked.noise, asked.minutes, asked.seed)
        record(asked.search, asked.set, asked.out, plan, lambda text: console.print(text, markup=False))
    elif asked.command == "replay":
        replay(asked, console)
    elif asked.command == "table":
        console.print(markdown(read_results(asked.results)), markup=False, soft_wrap=True)
    else:
        cost(asked, console)


if __name__ == "__main__":
    main()
