"""The Ray of a search: started on this machine or joined, and left again."""

import logging
import os
import re
import secrets
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
from ftae.search.ray.hang_detector import is_other_token
from ftae.user_code import ALLOW_CODE

ADDRESS = "RAY_ADDRESS"

# For the driver and its workers, where the user has not set them. Ray and Tune read each of them when it is needed.
ENVIRONMENT = {
    # Tune loses the slot of a stopped trial whose teardown takes longer.
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "120",
    # The journal is the truth: Tune writes no snapshots and no result files, and prints nothing.
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
JOIN_SECONDS = 45.0  # a cluster that has not answered by then will not answer
MAX_TEMPORARY_LENGTH = 40  # characters; Ray adds 62 for its sockets, and the system allows 107
JOIN = "import ray, sys; ray.init(sys.argv[1], logging_level='CRITICAL', log_to_driver=False)"


@contextmanager
def ray_session() -> Iterator[bool]:
    """Inside, Ray is up: the one this process uses already, the cluster of ``RAY_ADDRESS``, or a new local one.

    Yields whether it is a new local one. Afterwards a Ray that was in use is still up, and environment, signal handlers
    and log level are as before, except for what ``ray.init`` itself leaves and the token (see ``_set_token``).

    Raises:
        FtaeError: no cluster answers at the address, or Ray cannot start on this machine.
    """
    if ray.is_initialized():
        with _environment(ENVIRONMENT), _quiet_ray():
            yield False
        return
    address = cluster_address()
    if address is not None:
        _check_reachable(address)
    with _environment(ENVIRONMENT), _quiet_ray():
        try:
            with _signals_restored(), _no_folder_on_the_path():
                _start() if address is None else _join(address)
            logging.getLogger("ray").setLevel(logging.CRITICAL)  # Ray sets its own level as it starts
            yield address is None
        finally:
            ray.shutdown()


@contextmanager
def _quiet_ray() -> Iterator[None]:
    """Inside, Ray and Tune do not log: the journal and the progress show what goes wrong."""
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _start() -> None:
    _set_token()
    shorter = {"RAY_TMPDIR": "/tmp"} if len(tempfile.gettempdir()) > MAX_TEMPORARY_LENGTH else {}
    with _environment(shorter):
        try:
            _init("local", include_dashboard=False)  # its workers inherit the environment
        except Exception as error:  # Ray has no error type of its own for a node that does not start
            logs = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray/session_latest/logs"
            raise FtaeError(
                f"Ray cannot start on this machine: {_reason(error)}. Its logs are in {logs}; a full disk, a limit "
                "of the shell (ulimit -a), or a folder too long for sockets (RAY_TMPDIR) are the usual reasons"
            ) from error


def _set_token() -> None:
    """Let a new local Ray answer only to this process and its children.

    Ray listens on all interfaces, also when it is local, so that only a token keeps strangers out. ``ray.init`` of Ray
    2.60 turns token mode on for a local Ray and sets ``RAY_AUTH_MODE``, unless that is set already, no matter how long
    ago Ray was imported. Without a token it would write one into the user's home folder, for all later Rays.

    Ray reads the token once per process and keeps it. So both variables stay: the processes of another local Ray, of a
    second search or of the user's own ``ray.init``, need the same token. If ``RAY_AUTH_MODE`` is set, the user or an
    earlier ``ray.init`` has chosen how this process authenticates.
    """
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _join(address: str) -> None:
    workers = {name: os.environ[name] for name in FOR_WORKERS if name in os.environ}
    try:
        _init(address, runtime_env={"env_vars": workers})
    except Exception as error:
        raise _unreachable(address, _reason(error)) from error


def _init(address: str, **options: Any) -> None:
    ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL, **options)


def _check_reachable(address: str) -> None:
    """Join in another process first: Ray itself tries for many minutes, and writes to stderr all the while."""
    command = [sys.executable, "-P", "-c", JOIN, address]
    try:
        subprocess.run(command, capture_output=True, timeout=JOIN_SECONDS, check=True)
    except subprocess.TimeoutExpired as error:
        reason = f"nothing that is Ray answered within {JOIN_SECONDS:.0f} s"
        raise _unreachable(address, reason, error.stderr or b"") from None
    except subprocess.CalledProcessError as error:
        last_line = error.stderr.decode(errors="replace").strip().splitlines()[-1].rstrip(".")
        raise _unreachable(address, last_line, error.stderr) from None


def _reason(error: Exception) -> str:
    return first_line(error).rstrip(".")


# ----------------------------------------------------------------------------------------- RAY_ADDRESS


def cluster_address() -> str | None:
    """The cluster that ``RAY_ADDRESS`` names: ``HOST:PORT`` of its GCS, or ``auto``. None for a local Ray.

    Raises:
        FtaeError: a search cannot join what it names.
    """
    address = os.environ.get(ADDRESS, "").strip()
    if address in ("", "local"):
        return None
    if "://" in address:
        scheme = address.partition("://")[0]
        kind = {"http": "a dashboard", "https": "a dashboard", "ray": "Ray's client server"}.get(scheme, scheme)
        raise FtaeError(f"{_named(address)}, the address of {kind}. {_choices()}")
    if address != "auto" and not re.fullmatch(r"[^\s:]+:\d{1,5}|\[[0-9a-fA-F:.%\w]+\]:\d{1,5}", address):
        raise FtaeError(f"{_named(address)}, which is no HOST:PORT. {_choices()}")
    return address


def _unreachable(address: str, reason: str, errors: bytes = b"") -> FtaeError:
    """The error for a cluster that does not answer; ``errors``: what Ray wrote to stderr until then."""
    if is_other_token(errors.decode(errors="replace")):
        reason = (
            "it wants another token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the cluster's own "
            "(or put it into ~/.ray/auth_token)"
        )
    return FtaeError(f"{_named(address)}, and no search can join that cluster: {reason}. {_choices()}")


def _named(address: str) -> str:
    return f"the environment variable {ADDRESS} is {address!r}"


def _choices() -> str:
    return (
        "A search joins a cluster at HOST:PORT of its GCS (port 6379, unless it was started with another), or at "
        f"'auto' on one of its nodes; `unset {ADDRESS}` runs the search on this machine alone, and `ftae submit` "
        "takes the address of a dashboard"
    )


# ---------------------------------------------------------------------- what starting Ray does to a process


@contextmanager
def _signals_restored() -> Iterator[None]:
    """Inside, Ray is started. Afterwards the caller's signal handlers are back.

    Ray replaces the handler of SIGTERM. SIGHUP is ignored meanwhile, and Ray's processes inherit that: they survive a
    lost terminal, so that the driver can end the search in order.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    terminate, hang_up = signal.getsignal(signal.SIGTERM), signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, terminate)
        signal.signal(signal.SIGHUP, hang_up)


def _no_folder_on_the_path() -> "chdir[Path] | nullcontext[None]":
    """Inside, the current folder is one from which the workers import anyway, unless the user allows code.

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


# ------------------------------------------------------------------------------------------------ warm-up


def start_worker(cpus: float) -> None:
    """Start a worker that imports what the dry run needs, and then runs it, while the driver checks the data."""
    ray.remote(_import_for_dry_run).options(num_cpus=cpus).remote()


def _import_for_dry_run() -> None:
    import ftae.search.ray.preflight_tasks  # noqa: F401
