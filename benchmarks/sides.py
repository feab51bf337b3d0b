"""Runs what ``search_efficiency.py`` compares, each as a process of its own: ftae, the recipe, and the bare loop."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.material import ROOT
from benchmarks.work import Work, done_by_ftae, done_by_tune
from benchmarks.workloads import Workload, search_file

# What ftae is run with. fp32 is on equal terms with the recipe; the others are reported apart.
VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {"frozen_cache_gb": 0},
    "cache": {},
    "bf16": {"precision": "bf16"},
}


def variants_of(workload: Workload) -> list[str]:
    """Those that differ: without a frozen start there is nothing to cache."""
    return [name for name in VARIANTS if name != "cache" or workload.freeze_encoder]


def precision_of(variant: str) -> str:
    precision: str = VARIANTS[variant].get("precision", "fp32")
    return precision


@dataclass(frozen=True)
class Case:
    """A workload with its sizes, the model it starts from, and its images."""

    name: str
    workload: Workload
    model: Path
    images: Path


def run_ftae(case: Case, variant: str, folder: Path) -> tuple[float, Work]:
    """``ftae search`` with nothing cached; returns wall seconds from start to exit, and what was done."""
    file = write_search(case, variant, folder)
    command = [sys.executable, "-m", "ftae", "search", file.name]
    wall = _timed(command, folder, {"FTAE_CACHE": str(folder / "cache")})
    return wall, done_by_ftae(folder / "search", case.workload.max_steps)


def write_search(case: Case, variant: str, folder: Path) -> Path:
    """The search file of a variant, which keeps its search in ``folder``, too."""
    file = search_file("search", case.workload, case.model, case.images, folder)
    file["finetune"] |= VARIANTS[variant]
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump(file, sort_keys=False))
    return path


def run_recipe(case: Case, folder: Path) -> tuple[float, Work]:
    """The recipe; returns as ``run_ftae``."""
    command = [sys.executable, "-m", "benchmarks.standard_recipe", *_material(case), "--storage", str(folder)]
    command += ["--trials", str(case.workload.num_trials), "--steps", str(case.workload.max_steps)]
    # A cluster of its own, even where one runs on this machine.
    wall = _timed(command, folder, {"RAY_ADDRESS": "local", "RAY_AUTH_MODE": "disabled"})
    return wall, done_by_tune(folder / "search", case.workload.max_steps)


def bare_times(case: Case, precisions: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """``BareLoop.times`` of a process alone, and of one beside another that takes steps all the while."""
    command = [sys.executable, "-m", "benchmarks.bare_loop", *_material(case), "--precisions", *precisions]
    alone = _answer(command)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    other = subprocess.Popen([*command, "--endless"], env=_environment({}), text=True, **pipes)
    try:
        assert other.stdout is not None
        if other.stdout.readline() != "ready\n":
            raise RuntimeError("the second bare loop did not start")
        return {"alone": alone, "beside": _answer(command)}
    finally:
        other.kill()
        other.wait()


def _material(case: Case) -> list[str]:
    return ["--workload", case.name, "--model", str(case.model), "--images", str(case.images)]


def _answer(command: Sequence[str]) -> dict[str, dict[str, float]]:
    made = subprocess.run(command, env=_environment({}), capture_output=True, text=True, check=False)
    if made.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {made.returncode}:\n{made.stderr[-3000:]}")
    times: dict[str, dict[str, float]] = json.loads(made.stdout)
    return times


def _timed(command: Sequence[str], folder: Path, environment: dict[str, str]) -> float:
    """Wall seconds of a process; raises RuntimeError with the end of its log where it fails."""
    log = folder / "log"
    with log.open("w") as file:
        begin = time.monotonic()
        made = subprocess.run(command, cwd=folder, env=_environment(environment), stdout=file, stderr=file, check=False)
        wall = time.monotonic() - begin
    if made.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {made.returncode}:\n{log.read_text()[-3000:]}")
    return wall


def _environment(more: dict[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    path = os.pathsep.join(filter(None, [str(ROOT), inherited.get("PYTHONPATH")]))
    return inherited | {"PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0"} | more
