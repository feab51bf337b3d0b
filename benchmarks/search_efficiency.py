"""How much of a search's wall clock is training and evaluating: ftae against the script from the documentation.

    python -m benchmarks.search_efficiency [--workloads NAME ...] [--variants NAME ...] [--repeats N] [--json FILE]
        [--kl-model FOLDER --kl-images FOLDER] [--trials N] [--steps N] [--val-images N]

Both sides (``standard_recipe.py`` is the other) search the same space over the same model and images, with the same
budget, rungs, and number of trials. Each run is a fresh process with empty caches, timed from its start to its exit;
the order of the sides is turned round in every repeat. Search efficiency = (steps and evaluations done x their time in
``bare_loop.py``) / (workers x wall clock), by the bare loop measured in the same repeat: alone, and beside a second
one, which shows what the machine itself loses with two workers.

Steps and evaluations are counted for each side, since trials are not stopped alike. The untuned model is the same for
every trial, so its evaluation counts once; how often it was repeated is in the JSON. ``fp32`` is on equal terms with
the recipe, without a cache of what a frozen encoder says; ``cache`` and ``bf16`` (with it) are more than the recipe
has. The bare loop caches nothing, so that they may come out above 1.

Without ``--kl-model`` the KL workloads tune a model of random weights on patches of photographs: the same work.
"""

import argparse
import json
import math
import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import material
from benchmarks.sides import VARIANTS, Case, bare_times, precision_of, run_ftae, run_recipe, variants_of
from benchmarks.work import Work, efficiency
from benchmarks.workloads import WORKERS, WORKLOADS

RECIPE = "recipe"
Run = dict[str, Any]


def cases(given: argparse.Namespace, folder: Path) -> Iterator[Case]:
    """The workloads that were asked for, with what they need made in ``folder``."""
    sizes = {"num_trials": given.trials, "max_steps": given.steps}
    changes = {name: size for name, size in sizes.items() if size is not None}
    kl: tuple[Path, Path] | None = None
    for name in given.workloads:
        workload = replace(WORKLOADS[name], **changes)
        if workload.family == "conv_vae":
            yield Case(name, workload, material.digits_model(folder), material.digits_images(folder))
            continue
        kl = kl or _kl_material(given, folder)
        yield Case(name, workload, *kl)


def _kl_material(given: argparse.Namespace, folder: Path) -> tuple[Path, Path]:
    model = given.kl_model.absolute() if given.kl_model else material.untrained_kl(folder)
    images = given.kl_images.absolute() if given.kl_images else material.photo_patches(folder)
    material.check_resolution(model, images)
    return model, material.fewer(images, folder, given.val_images)


def measure(case: Case, variants: list[str], repeat: int, folder: Path, notify: Callable[[str], None]) -> list[Run]:
    """Every side of a workload once, with the bare loop's times of the same minutes; backwards in odd repeats."""
    bare = bare_times(case, list(dict.fromkeys(precision_of(variant) for variant in ("fp32", *variants))))
    sides: dict[str, Callable[[Path], tuple[float, Work]]] = {RECIPE: partial(run_recipe, case)}
    sides |= {variant: partial(run_ftae, case, variant) for variant in variants}
    runs = []
    for side in list(sides) if repeat % 2 == 0 else list(reversed(sides)):
        place = folder / f"{case.name}-{side}-{repeat}"
        place.mkdir()
        load = os.getloadavg()[0]
        wall, work = sides[side](place)
        precision = "fp32" if side == RECIPE else precision_of(side)
        times = {beside: by_precision[precision] for beside, by_precision in bare.items()}
        run: Run = {"workload": case.name, "side": side, "repeat": repeat, "wall_seconds": wall, "bare": times}
        run["load_before"] = load  # processes that wanted a core in the minute before, those of this benchmark too
        runs.append(run | {"work": asdict(work)} | _efficiencies(case, wall, work, times))
        notify(f"{case.name} {side} {repeat}: {wall:.1f} s, efficiency {runs[-1]['efficiency_alone']:.2f}")
    return runs


def _efficiencies(case: Case, wall: float, work: Work, times: dict[str, dict[str, float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for beside, bare in times.items():
        seconds = work.seconds(bare["step"], bare["image"], material.num_images(case.images / "val"))
        found |= {f"work_seconds_{beside}": seconds, f"efficiency_{beside}": efficiency(seconds, WORKERS, wall)}
    return found


def summary(runs: list[Run]) -> list[dict[str, Any]]:
    """A row for each side of each workload: medians over the repeats, of ratios that of the pairs' ratios."""
    walls = {(run["workload"], run["side"], run["repeat"]): run["wall_seconds"] for run in runs}
    rows = []
    for workload, side in dict.fromkeys((run["workload"], run["side"]) for run in runs):
        own = [run for run in runs if (run["workload"], run["side"]) == (workload, side)]
        ratios = [walls[workload, RECIPE, run["repeat"]] / run["wall_seconds"] for run in own]
        wall, bests = [run["wall_seconds"] for run in own], [run["work"]["best"] for run in own]
        keys = ("work_seconds_alone", "efficiency_alone", "efficiency_beside")
        rows.append(
            {"workload": workload, "side": side, "repeats": len(own)}
            | {"wall_seconds": statistics.median(wall), "wall_least": min(wall), "wall_most": max(wall)}
            | {"times_faster": statistics.median(ratios)}
            | {key: statistics.median(run[key] for run in own) for key in keys}
            | {key: statistics.median(run["work"][key] for run in own) for key in ("steps", "evaluations", "stopped")}
            | {"best": statistics.median([best for best in bests if best is not None] or [math.nan])}
        )
    return rows


def table(rows: list[dict[str, Any]]) -> Table:
    shown = Table(
        *("workload", "side", "wall, s", "least - most", "times faster", "steps", "evaluations", "trials stopped"),
        *("work, s", "efficiency", "beside another", "best psnr"),
    )
    for row in rows:
        shown.add_row(
            row["workload"],
            row["side"],
            f"{row['wall_seconds']:.1f}",
            f"{row['wall_least']:.1f} - {row['wall_most']:.1f}",
            f"{row['times_faster']:.2f}",
            *(f"{row[key]:g}" for key in ("steps", "evaluations", "stopped")),
            f"{row['work_seconds_alone']:.1f}",
            *(f"{row[key]:.2f}" for key in ("efficiency_alone", "efficiency_beside", "best")),
        )
    return shown


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--kl-model", type=Path, help="a pretrained AutoencoderKL of three levels")
    parser.add_argument("--kl-images", type=Path, help="images of 32x32 in train/CLASS and val/CLASS")
    parser.add_argument("--trials", type=int, help="instead of those of each workload, for a quick look")
    parser.add_argument("--steps", type=int, help="likewise")
    parser.add_argument("--val-images", type=int, default=200, help="of the KL workloads, at most")
    parser.add_argument("--keep", type=Path, help="a new folder in which everything stays, logs and journals too")
    parser.add_argument("--json", type=Path, help="write rows and runs there, too")
    return parser.parse_args()


def main() -> None:
    given, console = arguments(), Console(width=200)
    with tempfile.TemporaryDirectory(prefix="ftae-benchmark-") as scratch:
        folder = (given.keep or Path(scratch)).absolute()
        folder.mkdir(parents=True, exist_ok=given.keep is None)
        made, runs = list(cases(given, folder)), []
        for repeat in range(given.repeats):
            for case in made:
                variants = [variant for variant in variants_of(case.workload) if variant in given.variants]
                runs += measure(case, variants, repeat, folder, console.print)
                if given.json is not None:
                    _write(given, runs)
    console.print(table(summary(runs)))


def _write(given: argparse.Namespace, runs: list[Run]) -> None:
    machine = {"python": platform.python_version(), "machine": platform.machine(), "cpus": os.cpu_count()}
    found = machine | vars(given) | {"rows": summary(runs), "runs": runs}
    given.json.write_text(json.dumps(found, indent=2, default=str))


if __name__ == "__main__":
    main()
