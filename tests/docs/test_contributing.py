"""The changes that CONTRIBUTING.md shows: each applies to the package, and makes what it promises."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
DIFFS = dict(re.findall(r"^### An? (.+?)\n(?:(?!^#).)*?^```diff\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))

USED = """
import sys
from pathlib import Path

from ftae.engine.training.loop import finetune
from ftae.results.search_record import SearchRecord
from ftae.search.curves.forecaster import Forecaster
from ftae.search.sampler import SAMPLERS
from ftae.search.scheduler import SCHEDULERS
from ftae.specs import SearchSpec

spec = SearchSpec.model_validate(
    {
        "name": "added",
        "finetune": {
            "model": {"family": "linear_ae", "latent_dim": 4},
            "data": {"source": "stripes", "resolution": 16},
            "losses": {"charbonnier": 1.0},
            "optimizer": {"lr": 1e-3},
            "mirrored": True,
            "max_steps": 4,
            "num_evals": 2,
            "metrics": ["max_error"],
        },
        "search_space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True}},
        "objective": {"metric": "val/max_error", "direction": "minimize"},
        "search": {"sampler": "gp", "scheduler": {"name": "median"}},
    }
)
*_, last = finetune(spec.finetune, Path(sys.argv[1]))
assert 0.0 < last.metrics["val/max_error"] <= 1.0

forecaster = Forecaster(spec, SearchRecord(search=spec.model_dump(mode="json")))
assert set(SAMPLERS["gp"](forecaster).propose(2).params) == {"optimizer.lr"}
scheduler = SCHEDULERS["median"](forecaster)
for number, value in enumerate((0.1, 0.2, 0.3)):
    scheduler.record(number, 2, value)
assert [scheduler.stop(9, 2, value) is None for value in (0.1, 0.3)] == [True, False]
assert spec.rung_steps() == [2]
"""


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with all the changes."""
    folder = tmp_path_factory.mktemp("changed")
    shutil.copytree(ROOT / "ftae", folder / "ftae", ignore=shutil.ignore_patterns("__pycache__"))
    for name, diff in DIFFS.items():
        applied = subprocess.run(["git", "apply", "-"], input=diff, cwd=folder, capture_output=True, text=True)
        assert applied.returncode == 0, f"{name}: {applied.stderr}"
    return folder


def run(folder: Path, *arguments: str) -> str:
    env = os.environ | {"PYTHONPATH": str(folder), "FTAE_CACHE": str(folder / "cache")}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_is_a_change_for_everything() -> None:
    parts = {"loss term", "metric", "family", "source of data", "task", "sampler", "scheduler", "command"}
    assert DIFFS.keys() == parts


def test_the_changes_do_what_they_promise(changed: Path) -> None:
    run(changed, "-c", USED, str(changed / "run"))
    assert "max_error: " in run(changed, "-m", "ftae", "metrics")


def test_the_changed_package_is_clean(changed: Path) -> None:
    settings = ["--config", str(ROOT / "pyproject.toml")]
    run(changed, "-m", "ruff", "check", *settings, "ftae")
    run(changed, "-m", "ruff", "format", "--check", *settings, "ftae")
