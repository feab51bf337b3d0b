"""A call of the API leaves the process as it was: what a notebook has set up stays."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.faults  # whole searches: minutes of them

PROGRAM = Path(__file__).with_name("process_state.py")
CALLS = {
    "fresh": ["validate", "the first search", "the second search"],
    "ray": [
        "a search inside the user's Ray",
        "a training run",
        "loading a model",
        "evaluating",
        "reconstructing",
        "sampling",
        "exporting",
        "Ray is the user's still",
    ],
}
KINDS = ["environment", "folder", "import path", "signals", "random", "log levels", "streams", "hooks", "torch"]
# What other packages do while they are imported, or as long as the process lives.
BY_OTHERS = {
    "KMP_DUPLICATE_LIB_OK": "scikit-learn's import",
    "KMP_INIT_AT_FORK": "scikit-learn's import",
    "TORCHINDUCTOR_CACHE_DIR": "torch's compiler's import",
    "RAY_CLIENT_MODE": "Ray's first start",
    "RAY_AUTH_MODE": "Ray reads how it authenticates once a process",
    "RAY_AUTH_TOKEN": "Ray reads how it authenticates once a process",
    "ray/thirdparty_files": "Ray's import",
}
Observed = dict[str, dict[str, list[str]]]


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Observed]:
    """What each call changed, by the kind of process and of change."""
    found = {}
    for kind in CALLS:
        folder = tmp_path_factory.mktemp(kind)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
        result = subprocess.run(
            [sys.executable, str(PROGRAM), str(folder), kind], capture_output=True, text=True, env=environment
        )
        assert result.returncode == 0, result.stderr
        found[kind] = json.loads(result.stdout.splitlines()[-1])
        assert result.stdout.count("\n") == 1, "nothing is printed as a result"
    return found


@pytest.mark.parametrize("changed", KINDS)
@pytest.mark.parametrize("process", CALLS)
def test_a_call_changes_nothing_in_its_process(process: str, changed: str, observed: dict[str, Observed]) -> None:
    assert list(observed[process]) == CALLS[process]
    found = {call: kinds[changed] for call, kinds in observed[process].items()}
    own = {
        call: [line for line in lines if not any(name in line for name in BY_OTHERS)] for call, lines in found.items()
    }
    assert own == {call: [] for call in CALLS[process]}
