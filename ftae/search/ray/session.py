"""The Ray of a search: started, or joined, and left again."""

import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import ray

from ftae.engine.process import first_line
from ftae.errors import FtaeError
from ftae.search.ray.address import cluster_address, unreachable
from ftae.user_code import ALLOW_CODE

# For the driver and its workers, where the user has not set them.
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
}

FOR_WORKERS = (*ENVIRONMENT, "PYTHONPATH", ALLOW_CODE)

JOIN_SECONDS = 45.0  # a cluster that has not answered by then does not answer

LONGEST_TEMPORARY = 40  # characters; Ray's sockets add 62 to it, and the system allows 107

JOIN = "import ray, sys; ray.init(sys.argv[1], logging_level='CRITICAL', log_to_driver=False)"


@contextmanager
def ray_session() -> Iterator[bool]:
    """Inside, Ray is up: one that this process has joined before, the cluster of ``RAY_ADDRESS``, or one of our own.

    Yields whether it is our own. One that this process had joined before is left as it is.

    Raises:
        FtaeError: no cluster answers at the address, or Ray cannot start here.
    """
    if ray.is_initialized():
        with _environment(ENVIRONMENT):
            yield False
        return
    address = cluster_address()
    if address is not None:
        _check_reachable(address)
    logger = logging.getLogger("ray")
    level = logger.level
    with _environment(ENVIRONMENT):
        try:
            with _signals_of_the_caller(), _no_folder_on_the_path():
                _start() if address is None else _join(address)
            logger.setLevel(logging.CRITICAL)  # what goes wrong is in the journal and the progress
            yield address is None
        finally:
            ray.shutdown()
            logger.setLevel(level)


def _start() -> None:
    shorter = {"RAY_TMPDIR": "/tmp"} if len(tempfile.gettempdir()) > LONGEST_TEMPORARY else {}
    with _environment(shorter):
        try:
            _init("local", include_dashboard=False)  # its workers inherit the environment
        except Exception as error:  # Ray has no type of its own for a node that does not start
            logs = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray/session_latest/logs"
            raise FtaeError(
                f"Ray cannot start on this machine: {_reason(error)}. Its logs are in {logs}; a full disk, a limit "
                "of the shell (ulimit -a), or a folder too long for sockets (RAY_TMPDIR) are the usual reasons"
            ) from error


def _join(address: str) -> None:
    workers = {name: os.environ[name] for name in FOR_WORKERS if name in os.environ}
    try:
        _init(address, runtime_env={"env_vars": workers})
    except Exception as error:
        raise unreachable(address, _reason(error)) from error


def _init(address: str, **options: Any) -> None:
    ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL, **options)


def _check_reachable(address: str) -> None:
    """Join in another process first: Ray itself tries for many minutes, and writes to stderr all the while."""
    command = [sys.executable, "-P", "-c", JOIN, address]
    try:
        subprocess.run(command, capture_output=True, timeout=JOIN_SECONDS, check=True)
    except subprocess.TimeoutExpired as error:
        raise unreachable(
            address, _why(error.stderr, f"nothing that is Ray answered within {JOIN_SECONDS:.0f} s")
        ) from None
    except subprocess.CalledProcessError as error:
        last_line = error.stderr.decode(errors="replace").strip().splitlines()[-1].rstrip(".")
        raise unreachable(address, _why(error.stderr, last_line)) from None


def _why(said: bytes | None, otherwise: str) -> str:
    """Why a cluster was not joined, by what Ray said until it gave up, or was given up."""
    if said is not None and (b"InvalidAuthToken" in said or b"AuthenticationError" in said):
        return (
            "it wants another token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the cluster's own "
            "(or put it into ~/.ray/auth_token)"
        )
    return otherwise


@contextmanager
def _signals_of_the_caller() -> Iterator[None]:
    """Inside, Ray's processes are started: they outlive a lost terminal, so that the driver can end in order.

    Ray takes over SIGTERM, which is given back to who had it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    terminate, hang_up = signal.getsignal(signal.SIGTERM), signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, terminate)
        signal.signal(signal.SIGHUP, hang_up)


def _no_folder_on_the_path() -> "chdir[Path] | nullcontext[None]":
    """Inside, the current folder is one that the workers import from anyway, unless the user allows code.

    Ray puts the driver's current folder first on the import path of its workers.
    """
    return nullcontext() if os.environ.get(ALLOW_CODE) else chdir(Path(ray.__file__).parents[1])


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Inside, these variables are set, where they were not."""
    added = values.keys() - os.environ.keys()
    os.environ.update({name: values[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _reason(error: Exception) -> str:
    return first_line(error).rstrip(".")


def start_worker(cpus: float) -> None:
    """Have a worker import what the rehearsal needs, which it then runs, while the driver imports and checks."""
    ray.remote(_import_rehearsal).options(num_cpus=cpus).remote()


def _import_rehearsal() -> None:
    import ftae.search.ray.preflight_tasks  # noqa: F401
