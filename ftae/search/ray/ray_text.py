"""All that ftae reads from texts that Ray and Tune write for people: they have no better interface for it."""

from pathlib import Path

import psutil
from ray.exceptions import RayError, RayTaskError

MAX_TEXT = 300  # characters

WORKER_TITLE = "ray::"  # begins the title of every process that runs a task or an actor

# Errors of a process that has another token than the cluster it tries to join, or none.
_OTHER_TOKEN = ("InvalidAuthToken", "AuthenticationError")


def is_worker(pid: int) -> bool:
    """Whether a process of this machine is a worker of Ray, not one that has got the number since."""
    return psutil.pid_exists(pid) and WORKER_TITLE in " ".join(psutil.Process(pid).cmdline())


def is_other_token(errors: str) -> bool:
    """Whether a cluster refused the process that wrote ``errors`` to stderr because of its token."""
    return any(name in errors for name in _OTHER_TOKEN)


def reason_of(error: RayError) -> str:
    """The line of an error that names its cause: the last one of a traceback, else the first one."""
    lines = str(error).strip().splitlines()
    return lines[-1 if isinstance(error, RayTaskError) else 0][:MAX_TEXT]


def newest_error(file: str | None) -> str:
    """The message of the newest error in the file that Tune keeps for a trial.

    Tune may have written nothing, and the bytes may be in any encoding.
    """
    try:
        lines = Path(file).read_text(errors="replace").split("\n") if file else []
    except OSError:
        lines = []
    return next((line[:MAX_TEXT] for line in reversed(lines) if line.strip()), "the worker died")
