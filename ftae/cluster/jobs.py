"""The jobs of a search: submitted, listed, stopped, and their logs followed.

A job's entrypoint carries the whole spec on standard input, so the client needs neither the storage nor a
folder on the cluster.
"""

import os
import shlex
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import yaml

from ftae.errors import FtaeError
from ftae.specs.files import dump
from ftae.specs.reading.formats import stored
from ftae.specs.reading.names import redacted
from ftae.specs.search.search import SearchSpec
from ftae.user_code import code_option

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient


Client: TypeAlias = "JobSubmissionClient"

# How ``ftae search`` ends by itself: done, a fault to fix, a wrong call, stopped. Any other driver died.
OWN_EXIT_CODES = (0, 1, 2, 130)

SUCCESSOR_SECONDS = 20.0  # how long the next attempt may take to appear

LOG_SECONDS = 1.0

RETRY_SECONDS = 60.0  # how long the cluster may be out of reach while a log is followed

END_OF_SPEC = "END_OF_SEARCH"

LOG_BEGINS = "--- ftae ---"  # the first line of a driver that is a job: what is before it in the log is Ray's

# A job is stopped as Ctrl-C stops a driver; Ray's own way kills it after 3 s.
ENVIRONMENT = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "60"}


@dataclass(frozen=True)
class Attempt:
    """One job of a search.

    ``status`` is Ray's: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED. ``started`` and ``ended`` are
    seconds since the epoch. ``last`` is the number of the last attempt to be made without the user.
    """

    search: str
    number: int
    status: str
    started: float
    ended: float | None
    exit_code: int | None
    message: str
    entrypoint: str
    storage: str
    python: str
    last: int

    @property
    def job(self) -> str:
        return f"{self.search}-a{self.number}"

    @property
    def is_over(self) -> bool:
        return self.status not in ("PENDING", "RUNNING")

    @property
    def died(self) -> bool:
        """Whether the driver was killed, or lost with its supervisor: the search did not end by itself."""
        return self.status == "FAILED" and self.exit_code not in OWN_EXIT_CODES

    @property
    def has_successor(self) -> bool:
        """Whether the watcher makes another attempt."""
        return self.died and self.number < self.last

    @property
    def may_have_begun(self) -> bool:
        """Whether there may be something to go on with: it did not end by a fault that its user was to mend."""
        return not (self.status == "FAILED" and self.exit_code in (1, 2))

    @property
    def reason(self) -> str | None:
        """Why it failed, on one line; None if it did not."""
        if self.status != "FAILED":
            return None
        if self.exit_code is not None and self.exit_code < 0:
            return f"killed by signal {-self.exit_code} ({signal.strsignal(-self.exit_code)})"
        lines = self.message.strip().splitlines() or ["the cluster gives no reason"]
        return lines[0] if self.exit_code is None else lines[-1].removeprefix("error: ")

    def told(self) -> str:
        """What became of it and when, as one clause."""
        verbs = {"STOPPED": "was stopped", "SUCCEEDED": "ended in order", "FAILED": "failed"}
        what = f"{verbs[self.status]} at" if self.is_over else f"is {self.status.lower()} since"
        reason = "" if self.reason is None else f": {self.reason}"
        return f"attempt {self.number} of {self.search} {what} {at(self.ended or self.started)}{reason}"

    def spec(self) -> SearchSpec:
        """The search it runs.

        Raises:
            FtaeError: another version of ftae sent it, which has other fields.
        """
        sent = self.entrypoint.partition("\n")[2].removesuffix(f"{END_OF_SPEC}\n")
        return stored(SearchSpec, yaml.safe_load(sent), f"attempt {self.number} of {self.search}")


def connect(address: str) -> Client:
    """A client of the cluster at ``address``, whatever the environment names.

    ``address``: the URL of its dashboard; or where Ray itself listens (``head:6379``, ``auto``), from inside.

    Raises:
        FtaeError: there is no cluster, or it wants another token.
    """
    import requests
    from ray.exceptions import AuthenticationError, RayError
    from ray.job_submission import JobSubmissionClient

    override = "RAY_API_SERVER_ADDRESS"  # outranks RAY_ADDRESS and the client's argument
    before = os.environ.get(override)
    os.environ[override] = address
    try:
        return JobSubmissionClient()
    except AuthenticationError as error:
        said = str(error).splitlines()[0].partition(". ")[0]
        raise FtaeError(
            f"the cluster at {redacted(address)} wants a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the "
            f"cluster's own token (or put it into ~/.ray/auth_token). The error was: {said}"
        ) from error
    except (ConnectionError, requests.RequestException, RayError, RuntimeError, ValueError) as error:
        raise FtaeError(
            f"no Ray cluster answers at {redacted(address)}; name its dashboard, such as http://127.0.0.1:8265, by "
            f"--address or RAY_API_SERVER_ADDRESS (from outside, through ssh -L 8265:localhost:8265 HEAD). "
            f"The error was: {redacted(str(error).splitlines()[0], address)}"
        ) from error
    finally:
        if before is None:
            del os.environ[override]
        else:
            os.environ[override] = before


def attempts(client: Client, search: str | None = None) -> list[Attempt]:
    """The attempts at one search, or at all searches; in order of their numbers."""
    found = [_attempt(job) for job in client.list_jobs() if "ftae.search" in (job.metadata or {})]
    return sorted((a for a in found if search in (None, a.search)), key=lambda attempt: attempt.number)


def newest(client: Client, search: str) -> Attempt | None:
    """The newest attempt at a search, if any; see ``drop_inactive``."""
    found = attempts(client, search)
    return drop_inactive(client, found[-1]) if found else None


def drop_inactive(client: Client, attempt: Attempt) -> Attempt:
    """``attempt``, or the one that the watcher makes after it if it died; that one is waited for."""
    deadline = time.monotonic() + SUCCESSOR_SECONDS
    while attempt.has_successor and time.monotonic() < deadline:
        following = attempts(client, attempt.search)[-1]
        if following.number > attempt.number:
            return following
        time.sleep(LOG_SECONDS)
    return attempt


def submit(client: Client, spec: SearchSpec, *, number: int, resume: bool, python: str, last: int) -> str:
    """Submit attempt ``number`` at a search, which with ``resume`` goes on where it is; returns the job's name.

    ``spec`` has absolute paths only. The driver runs on the head node, for no resources are asked for.

    Raises:
        FtaeError: the attempt was submitted by somebody else just now, or the cluster refuses it.
    """
    job, storage = f"{spec.name}-a{number}", spec.search.storage
    metadata = {"search": spec.name, "attempt": number, "last": last, "storage": storage, "python": python}
    options = [*(["--resume"] if resume else []), *code_option()]
    command = [python, "-P", "-m", "ftae", "search", "-", "--attempt", str(number), *options]
    text = dump(spec)
    assert END_OF_SPEC not in text.splitlines(), "every line of a dumped mapping has a key, or is indented"
    try:
        return client.submit_job(
            # By ``exec`` the driver is the job's own process: what ends the one ends the other.
            entrypoint=f"exec {shlex.join(command)} <<'{END_OF_SPEC}'\n{text}{END_OF_SPEC}\n",
            submission_id=job,
            metadata={f"ftae.{key}": str(value) for key, value in metadata.items()},
            runtime_env={"env_vars": dict(ENVIRONMENT)},
        )
    except RuntimeError as error:
        if _is_known(client, job):
            raise FtaeError(f"{job} was submitted by somebody else just now; see ftae status {spec.name}") from error
        raise FtaeError(f"the cluster refuses the job {job}: {error}") from error


def _is_known(client: Client, job: str) -> bool:
    try:
        client.get_job_info(job)
    except RuntimeError:  # Ray's for any answer but 200
        return False
    return True


def stop(client: Client, attempt: Attempt) -> Attempt:
    """Stop an attempt as Ctrl-C does, and wait until it is over; returns what has become of it."""
    while not attempt.is_over:
        client.stop_job(attempt.job)  # again and again: at first there may be nobody yet to hear it
        time.sleep(LOG_SECONDS / 2)
        attempt = _attempt(client.get_job_info(attempt.job))
    return attempt


def log(client: Client, attempt: Attempt) -> str:
    """What the driver has written so far, without what Ray writes before it."""
    text: str = client.get_job_logs(attempt.job)
    _, begun, written = f"\n{text}".partition(f"\n{LOG_BEGINS}\n")
    return written if begun or not attempt.is_over else text


def follow(client: Client, attempt: Attempt, write: Callable[[str], None]) -> Attempt:
    """Pass on the log of an attempt, and of those after it, as they grow; returns the last when it is over.

    The whole log is asked for each time: it is small, and Ray's stream ends whenever a proxy or the
    dashboard drops it, to begin again from the first line.

    Raises:
        FtaeError: the cluster is out of reach.
    """
    seen, deadline = 0, time.monotonic() + RETRY_SECONDS
    while True:
        try:
            attempt = _attempt(client.get_job_info(attempt.job))
            text = log(client, attempt)
            write(text[seen:])
            seen, deadline = len(text), time.monotonic() + RETRY_SECONDS
            if attempt.is_over:
                if attempt.has_successor:
                    write(f"{attempt.told()}; the next attempt is on its way\n")
                following = drop_inactive(client, attempt)
                if following is attempt:
                    return attempt
                attempt, seen = following, 0
        except (OSError, RuntimeError) as error:  # the latter is Ray's for any answer but 200
            if time.monotonic() > deadline:
                raise FtaeError(f"the cluster is out of reach, the search may go on: {error}") from error
        time.sleep(LOG_SECONDS)


def at(seconds: float) -> str:
    """A moment, in seconds since the epoch, in local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _attempt(job: Any) -> Attempt:
    metadata = job.metadata
    return Attempt(
        search=metadata["ftae.search"],
        number=int(metadata["ftae.attempt"]),
        status=job.status.value,
        started=job.start_time / 1000,
        ended=job.end_time and job.end_time / 1000,
        exit_code=job.driver_exit_code,
        message=job.message or "",
        entrypoint=job.entrypoint,
        storage=metadata["ftae.storage"],
        python=metadata["ftae.python"],
        last=int(metadata["ftae.last"]),
    )
