"""The jobs of a search: submits, lists and stops them, and follows their logs.

The entrypoint of a job passes the whole spec on standard input, so the client needs neither the storage nor a folder on
the cluster. No text of Ray is interpreted, only statuses and exit codes.
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
from ftae.specs.reading.format_versions import stored
from ftae.specs.reading.names import redacted
from ftae.specs.search.search import SearchSpec
from ftae.user_code import code_option

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient


Client: TypeAlias = "JobSubmissionClient"

# The exit codes of ``ftae search``: done, the user can fix it, wrong usage, stopped. Any other driver died.
OWN_EXIT_CODES = (0, 1, 2, 130)
SUCCESSOR_SECONDS = 20.0  # how long the next attempt may take to appear
LOG_SECONDS = 1.0
RETRY_SECONDS = 60.0  # how long the cluster may be unreachable while a log is followed
END_OF_SPEC = "END_OF_SEARCH"
LOG_BEGINS = "--- ftae ---"  # the first line that a driver writes as a job; the lines before it are Ray's

# Stops a job as Ctrl-C stops a driver; by default Ray would kill it after 3 s.
ENVIRONMENT = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "60"}


@dataclass(frozen=True)
class Attempt:
    """One job of a search.

    Attributes:
        status: Ray's: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED.
        started, ended: seconds since the epoch.
        last: the number of the last attempt that is made without the user.
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
        """The name of the job."""
        return f"{self.search}-a{self.number}"

    @property
    def is_over(self) -> bool:
        """Whether the job has ended, however it did."""
        return self.status not in ("PENDING", "RUNNING")

    @property
    def died(self) -> bool:
        """Whether the driver was killed, or lost with its node, so that the search did not end by itself."""
        return self.status == "FAILED" and self.exit_code not in OWN_EXIT_CODES

    @property
    def has_successor(self) -> bool:
        """Whether the watcher submits another attempt."""
        return self.died and self.number < self.last

    @property
    def may_have_begun(self) -> bool:
        """Whether the search may have begun: the attempt did not end with a fault that the user has to fix."""
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

    def description(self) -> str:
        """What became of the attempt, and when, as one clause."""
        verbs = {"STOPPED": "was stopped", "SUCCEEDED": "ended in order", "FAILED": "failed"}
        what = f"{verbs[self.status]} at" if self.is_over else f"is {self.status.lower()} since"
        reason = "" if self.reason is None else f": {self.reason}"
        return f"attempt {self.number} of {self.search} {what} {at(self.ended or self.started)}{reason}"

    def spec(self) -> SearchSpec:
        """Read the search that the job runs.

        Raises:
            FtaeError: another version of ftae submitted the job, with other fields.
        """
        sent = self.entrypoint.partition("\n")[2].removesuffix(f"{END_OF_SPEC}\n")
        return stored(SearchSpec, yaml.safe_load(sent), f"attempt {self.number} of {self.search}")


def connect(address: str) -> Client:
    """Return a client of the cluster at ``address``, whatever cluster the environment names.

    ``address``: the URL of the dashboard; inside the cluster also the address of Ray itself (``head:6379``, ``auto``).

    Raises:
        FtaeError: there is no cluster, or it requires another token.
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
    """Return the attempts at one search, or at all searches, in the order of their numbers."""
    found = [_attempt(job) for job in client.list_jobs() if "ftae.search" in (job.metadata or {})]
    return sorted((a for a in found if search in (None, a.search)), key=lambda attempt: attempt.number)


def newest(client: Client, search: str) -> Attempt | None:
    """Return the newest attempt at a search, if any; waits for the successor of one that died."""
    found = attempts(client, search)
    return wait_for_successor(client, found[-1]) if found else None


def wait_for_successor(client: Client, attempt: Attempt) -> Attempt:
    """Return the attempt that the watcher submits after ``attempt``, or ``attempt`` itself if there is none."""
    deadline = time.monotonic() + SUCCESSOR_SECONDS
    while attempt.has_successor and time.monotonic() < deadline:
        following = attempts(client, attempt.search)[-1]
        if following.number > attempt.number:
            return following
        time.sleep(LOG_SECONDS)
    return attempt


def submit(client: Client, spec: SearchSpec, *, number: int, resume: bool, python: str, last: int) -> str:
    """Submit attempt ``number`` at a search, which continues it with ``resume``; returns the name of the job.

    ``spec`` has absolute paths only. The driver runs on the head node, because it requests no resources.

    Raises:
        FtaeError: somebody else has just submitted this attempt, or the cluster refuses it.
    """
    job, storage = f"{spec.name}-a{number}", spec.search.storage
    metadata = {"search": spec.name, "attempt": number, "last": last, "storage": storage, "python": python}
    options = [*(["--resume"] if resume else []), *code_option()]
    command = [python, "-P", "-m", "ftae", "search", "-", "--attempt", str(number), *options]
    text = dump(spec)
    assert END_OF_SPEC not in text.splitlines(), "every line of a dumped mapping has a key, or is indented"
    try:
        return client.submit_job(
            # With ``exec`` the driver is the job's own process: what ends one ends the other.
            entrypoint=f"exec {shlex.join(command)} <<'{END_OF_SPEC}'\n{text}{END_OF_SPEC}\n",
            submission_id=job,
            metadata={f"ftae.{key}": str(value) for key, value in metadata.items()},
            runtime_env={"env_vars": dict(ENVIRONMENT)},
        )
    except RuntimeError as error:
        if _is_known(client, job):
            raise FtaeError(f"somebody else has just submitted {job}; see ftae status {spec.name}") from error
        raise FtaeError(f"the cluster refuses the job {job}: {error}") from error


def _is_known(client: Client, job: str) -> bool:
    try:
        client.get_job_info(job)
    except RuntimeError:  # what Ray raises for every answer but 200
        return False
    return True


def stop(client: Client, attempt: Attempt) -> Attempt:
    """Stop an attempt as Ctrl-C does, and wait until it is over; returns its last state."""
    while not attempt.is_over:
        client.stop_job(attempt.job)  # repeatedly: the driver may not handle signals yet
        time.sleep(LOG_SECONDS / 2)
        attempt = _attempt(client.get_job_info(attempt.job))
    return attempt


def log(client: Client, attempt: Attempt) -> str:
    """Return what the driver has written so far, without what Ray wrote before it."""
    text: str = client.get_job_logs(attempt.job)
    _, begun, written = f"\n{text}".partition(f"\n{LOG_BEGINS}\n")
    return written if begun or not attempt.is_over else text


def follow(client: Client, attempt: Attempt, write: Callable[[str], None]) -> Attempt:
    """Pass on the log of an attempt and of its successors as they grow; returns the last attempt when it is over.

    Fetches the whole log each time: it is small, and Ray's stream ends whenever a proxy or the dashboard drops it, and
    then starts from the first line.

    Raises:
        FtaeError: the cluster cannot be reached.
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
                    write(f"{attempt.description()}; the next attempt is on its way\n")
                following = wait_for_successor(client, attempt)
                if following is attempt:
                    return attempt
                attempt, seen = following, 0
        except (OSError, RuntimeError) as error:  # Ray raises RuntimeError for every answer but 200
            if time.monotonic() > deadline:
                raise FtaeError(f"the cluster cannot be reached; the search may still be running: {error}") from error
        time.sleep(LOG_SECONDS)


def at(seconds: float) -> str:
    """Return a time in seconds since the epoch as local date and time."""
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
