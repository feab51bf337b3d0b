"""The examples run as they are."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.faults  # whole searches: minutes of them

EXAMPLES = Path(__file__).parents[2] / "examples"
RUN_CELLS = """
import json, sys

scope = {}
for cell in json.load(open(sys.argv[1]))["cells"]:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), cell["id"], "exec"), scope)
print("best", scope["search"].best.value, "baseline", scope["search"].baseline.value)
print("picture", scope["picture"].size)
"""


def run(*arguments: str, folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    result = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=folder, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_script_runs(tmp_path: Path) -> None:
    printed = run(str(EXAMPLES / "search.py"), folder=tmp_path)
    assert "4/4 trials done" in printed
    assert printed.splitlines()[-1].startswith("mean squared error of six reconstructions: 0.0")
    assert (tmp_path / "exports" / "inverted-digits" / "production.yaml").is_file()


def test_the_notebook_runs(tmp_path: Path) -> None:
    *_, values, picture = run("-c", RUN_CELLS, str(EXAMPLES / "search.ipynb"), folder=tmp_path).splitlines()
    _, best, _, baseline = values.split()
    assert float(best) > float(baseline)
    assert picture == "picture (96, 48)"


def test_the_notebook_is_stored_without_output() -> None:
    notebook = json.loads((EXAMPLES / "search.ipynb").read_text())
    assert notebook["nbformat"] == 4
    assert all(cell["outputs"] == [] for cell in notebook["cells"] if cell["cell_type"] == "code")
