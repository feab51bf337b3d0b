"""Searches in real processes, watched through their journals."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from ftae.engine.run_folder import CHECKPOINTS
from ftae.results.search_record import Event, SearchRecord, trial_folder
from ftae.storage import journal

MARK = "FTAE_TEST"


def wait_until(condition: Callable[[], bool], seconds: float = 600.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.01)


class Driver(subprocess.Popen[bytes]):
    """An ``ftae`` command in its own process group. Its output goes to files, which unlike pipes never fill up."""

    def __init__(self, arguments: tuple[str, ...], log: Path, environment: dict[str, str]) -> None:
        self._out, self._err = log.with_suffix(".out"), log.with_suffix(".err")
        with self._out.open("wb") as out, self._err.open("wb") as err:
            command = [sys.executable, "-m", "ftae", *arguments]
            super().__init__(command, cwd=log.parent, env=environment, stdout=out, stderr=err, start_new_session=True)

    @property
    def messages(self) -> str:
        """The output on stderr so far."""
        return self._err.read_text()

    def result(self, seconds: float = 600.0) -> tuple[int, str, str]:
        """Wait for the end; returns exit status, stdout and stderr."""
        return self.wait(seconds), self._out.read_text(), self.messages

    def lose(self) -> float:
        """Kill the driver; returns the time of its death."""
        self.kill()
        killed = time.time()
        self.wait()
        return killed


@dataclass
class Drivers:
    """Runs ``ftae`` commands in one folder."""

    folder: Path
    started: list[Driver] = field(default_factory=list)

    def start(self, *arguments: str, **environment: str) -> Driver:
        log = self.folder / f"driver-{len(self.started):03d}"
        driver = Driver(arguments, log, self.environment() | environment)
        self.started.append(driver)
        return driver

    def environment(self) -> dict[str, str]:
        """The environment of a user without a cluster, with a mark that all child processes inherit."""
        mine = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return mine | {MARK: str(self.folder)}

    def left_over(self) -> list[int]:
        """The processes started here, at any depth, that still run."""
        mark = f"{MARK}={self.folder}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # the process has ended, or belongs to another user
                if mark in (path / "environ").read_bytes().split(b"\0"):
                    found.append(int(path.name))
        return found

    def clean_up(self) -> None:
        for driver in self.started:
            driver.kill()
            driver.wait()
        for pid in self.left_over():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Search:
    """A search of ``drivers``, watched through its journal. ``sets``: arguments of ``--set``."""

    def __init__(self, drivers: Drivers, folder: Path, *sets: str, **environment: str) -> None:
        self.drivers, self.folder, self._environment = drivers, folder, environment
        sets = (f"name={folder.name}", f"search.storage={folder.parent}", *sets)
        self._command = ["search", "search.yaml", *(part for text in sets for part in ("--set", text))]
        self._begin()

    def start(self) -> Driver:
        """Start a driver, which resumes the search if there is one."""
        resume = ["--resume"] if self.look().trials else []
        return self.drivers.start(*self._command, *resume, **self._environment)

    def start_two(self) -> tuple[Driver, tuple[int, str, str]]:
        """Start two drivers at the same time; returns the one that runs, and the result of the other."""
        pair = [self.start(), self.start()]
        wait_until(lambda: any(driver.poll() is not None for driver in pair))
        pair.sort(key=lambda driver: driver.poll() is not None)
        return pair[0], pair[1].result()

    def _begin(self) -> None:
        self.record, self.events, self._offset = SearchRecord(search={}), list[Event](), 0

    def look(self) -> SearchRecord:
        """Read the new events of the journal."""
        path = self.folder / journal.FILE_NAME
        size = path.stat().st_size if path.exists() else 0
        if size < self._offset:  # the journal has lost its end
            self._begin()
        if size > self._offset:
            for event, end in journal.read(self.folder, self._offset):
                self.events.append(event)
                self.record.apply(event)
                self._offset = end
        return self.record

    def wait_for(self, condition: Callable[[SearchRecord], bool], driver: Driver, seconds: float = 600.0) -> None:
        """Wait until ``condition`` holds for the journal; fails if ``driver`` ends before that."""

        def is_so() -> bool:
            ended = driver.poll() is not None
            found = condition(self.look())
            assert found or not ended, driver.messages
            return found

        wait_until(is_so, seconds)

    def wait_inside(self, first_trial: int, driver: Driver, reports: int = 2) -> None:
        """Wait until ``first_trial`` or a later trial is between two reports, after more than ``reports`` of them."""

        def is_inside(record: SearchRecord) -> bool:
            trial = next(reversed(record.trials.values()), None)
            if trial is None or trial.number < first_trial or trial.status != "running":
                return False
            return reports < len(trial.reports) < record.search["finetune"]["num_evals"]

        self.wait_for(is_inside, driver)

    def seconds_until(self, kind: str, moment: float, driver: Driver, other_than: int = 0) -> float:
        """Wait for the first event of this kind after ``moment``; returns the seconds between the two.

        Events of the process ``other_than`` do not count.
        """

        def first() -> float | None:
            new = takewhile(lambda event: event["time"] > moment, reversed(self.events))
            return min((e["time"] for e in new if e["event"] == kind and e.get("pid") != other_than), default=None)

        self.wait_for(lambda record: first() is not None, driver)
        return (first() or moment) - moment

    def wait_for_report(self, driver: Driver) -> None:
        """Wait for the next report."""
        self.seconds_until("report", time.time(), driver)

    @property
    def last_start(self) -> Event:
        """The newest start of a trial by a worker."""
        self.look()
        return next(event for event in reversed(self.events) if event["event"] == "start")

    def wait_between_trials(self, driver: Driver) -> None:
        """Wait until the next trial is assigned."""
        seen = len(self.look().trials)
        self.wait_for(lambda record: len(record.trials) > seen, driver)

    def lose_worker(self, driver: Driver) -> float:
        """Kill the worker that trains; returns the seconds until another one starts a trial."""
        worker = self.last_start["pid"]
        os.kill(worker, signal.SIGKILL)
        return self.seconds_until("start", time.time(), driver, other_than=worker)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, the worker is suspended."""
        worker = self.last_start["pid"]
        os.kill(worker, signal.SIGSTOP)
        yield
        os.kill(worker, signal.SIGCONT)

    def spoil_checkpoint(self, chance: random.Random) -> Path | None:
        """Suspend the worker, and truncate a file of the newest checkpoint of the running trial.

        Returns the checkpoint; None if the trial needs no checkpoint at this moment.
        """
        os.kill(self.last_start["pid"], signal.SIGSTOP)
        newest = next(reversed(self.look().trials.values()))
        folder = self.folder / trial_folder(newest.number) / CHECKPOINTS
        found = max(folder.glob("step-*"), default=None)
        is_needed = newest.status == "running" and found is not None and found.name not in self._last_step()
        if is_needed and found is not None:
            file = chance.choice(sorted(found.iterdir()))
            os.truncate(file, chance.randrange(file.stat().st_size))
        return found if is_needed else None

    def _last_step(self) -> str:
        return f"step-{self.record.search['finetune']['max_steps']:08d}"

    def cut_last_line(self, chance: random.Random) -> None:
        """Truncate the last line of the journal at any byte, like a power failure during a write."""
        path = self.folder / journal.FILE_NAME
        *_, last = path.read_bytes().splitlines(keepends=True)
        os.truncate(path, path.stat().st_size - chance.randint(1, len(last) - 1))
        self._begin()

    def stop_while_saving(self, driver: Driver, number: int = signal.SIGINT) -> tuple[float, bool]:
        """Stop the driver, like a job of Ray is stopped, while a checkpoint is written.

        Returns the time, and whether a checkpoint was being written: that takes milliseconds, and may not come in time.
        """
        folder = self.folder / trial_folder(max(self.look().trials)) / CHECKPOINTS

        def being_written() -> set[Path]:
            with suppress(FileNotFoundError):  # a trial that is over has its checkpoints removed
                return set(folder.glob(".step-*.tmp"))
            return set()

        deadline, left_before = time.monotonic() + 1.0, being_written()
        while not (hit := bool(being_written() - left_before)) and time.monotonic() < deadline:
            pass
        driver.send_signal(number)
        return time.time(), hit
