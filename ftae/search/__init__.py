"""Searching: the only importer of ray.tune and optuna.

Ray reads its environment while it is imported, and its workers inherit it, so it is set here, before
any module of this package can import Ray.
"""

import os
import secrets
import sys
from pathlib import Path

ENVIRONMENT = {
    # Tune loses the slot of a stopped trial whose teardown outlasts this.
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "120",
    # The journal is the truth: no snapshots, no result files, no output of Tune's own.
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    # A trial without a GPU must not see one.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A node connects to its own object store while that starts: try again soon, not after a second.
    "RAY_raylet_client_connect_timeout_milliseconds": "50",
    "RAY_raylet_client_num_connect_attempts": "200",
}


def _set_environment() -> None:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "RAY_ADDRESS" not in os.environ:
        # A cluster of this process's own answers to nobody else.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # User modules are imported from the current folder, in the workers too.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))


if "ray" not in sys.modules:
    _set_environment()
