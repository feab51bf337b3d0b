"""Searches run by real processes, and watched through their journals."""

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
    """An ``ftae`` command, a process group of its own. What it says goes to files, which never fill up."""

    def __init__(self, arguments: tuple[str, ...], log: Path, environment: dict[str, str]) -> None:
        self._out, self._err = log.with_suffix(".out"), log.with_suffix(".err")
        with self._out.open("wb") as out, self._err.open("wb") as err:
            command = [sys.executable, "-m", "ftae", *arguments]
            super().__init__(command, cwd=log.parent, env=environment, stdout=out, stderr=err, start_new_session=True)

    @property
    def said(self) -> str:
        """On stderr, up to now."""
        return self._err.read_text()

    def result(self, seconds: float = 600.0) -> tuple[int, str, str]:
        """Wait for its end: exit status, stdout, stderr."""
        return self.wait(seconds), self._out.read_text(), self.said

    def lose(self) -> float:
        """Kill it; returns when that was."""
        self.kill()
        killed = time.time()
        self.wait()
        return killed


@dataclass
class Drivers:
    """Runs ``ftae`` in a folder of its own."""

    folder: Path
    started: list[Driver] = field(default_factory=list)

    def start(self, *arguments: str, **environment: str) -> Driver:
        log = self.folder / f"driver-{len(self.started):03d}"
        driver = Driver(arguments, log, self.environment() | environment)
        self.started.append(driver)
        return driver

    def environment(self) -> dict[str, str]:
        """That of a user who has no cluster, and a mark that all processes below inherit."""
        mine = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return mine | {MARK: str(self.folder)}

    def left_over(self) -> list[int]:
        """The processes that still run of all those started here."""
        mark = f"{MARK}={self.folder}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # gone meanwhile, or another user's
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
    """A search of ``drivers``, watched through its journal. ``sets``: what ``--set`` takes."""

    def __init__(self, drivers: Drivers, folder: Path, *sets: str, **environment: str) -> None:
        self.drivers, self.folder, self._environment = drivers, folder, environment
        sets = (f"name={folder.name}", f"search.storage={folder.parent}", *sets)
        self._command = ["search", "search.yaml", *(part for text in sets for part in ("--set", text))]
        self._begin()

    def start(self) -> Driver:
        """A driver for it: its first, or one that resumes it."""
        resume = ["--resume"] if self.look().trials else []
        return self.drivers.start(*self._command, *resume, **self._environment)

    def start_two(self) -> tuple[Driver, tuple[int, str, str]]:
        """Two drivers at the same instant: the one that runs, and the result of the other."""
        pair = [self.start(), self.start()]
        wait_until(lambda: any(driver.poll() is not None for driver in pair))
        pair.sort(key=lambda driver: driver.poll() is not None)
        return pair[0], pair[1].result()

    def _begin(self) -> None:
        self.record, self.events, self._offset = SearchRecord(search={}), list[Event](), 0

    def look(self) -> SearchRecord:
        """What the journal says by now."""
        path = self.folder / journal.FILE_NAME
        size = path.stat().st_size if path.exists() else 0
        if size < self._offset:  # a part was lost
            self._begin()
        if size > self._offset:
            for event, end in journal.read(self.folder, self._offset):
                self.events.append(event)
                self.record.apply(event)
                self._offset = end
        return self.record

    def wait_for(self, condition: Callable[[SearchRecord], bool], driver: Driver, seconds: float = 600.0) -> None:
        """Wait until the journal fulfils ``condition``, which it does while ``driver`` runs."""

        def is_so() -> bool:
            ended = driver.poll() is not None
            found = condition(self.look())
            assert found or not ended, driver.said
            return found

        wait_until(is_so, seconds)

    def wait_inside(self, first_trial: int, driver: Driver, reports: int = 2) -> None:
        """Wait until a trial, ``first_trial`` or a later one, has made some reports and has more to make."""

        def is_inside(record: SearchRecord) -> bool:
            trial = next(reversed(record.trials.values()), None)
            if trial is None or trial.number < first_trial or trial.status != "running":
                return False
            return reports < len(trial.reports) < record.search["finetune"]["num_evals"]

        self.wait_for(is_inside, driver)

    def seconds_until(self, kind: str, moment: float, driver: Driver, other_than: int = 0) -> float:
        """Wait for the first event of this kind since ``moment``; returns the seconds from then to it.

        Those that the process ``other_than`` caused do not count.
        """

        def first() -> float | None:
            new = takewhile(lambda event: event["time"] > moment, reversed(self.events))
            return min((e["time"] for e in new if e["event"] == kind and e.get("pid") != other_than), default=None)

        self.wait_for(lambda record: first() is not None, driver)
        return (first() or moment) - moment

    def wait_for_report(self, driver: Driver) -> None:
        """Wait until the search has got on by one more report."""
        self.seconds_until("report", time.time(), driver)

    @property
    def last_start(self) -> Event:
        """When a process took up a trial last."""
        self.look()
        return next(event for event in reversed(self.events) if event["event"] == "start")

    def wait_between_trials(self, driver: Driver) -> None:
        """Wait until a trial is handed out to the worker that the one before it has left."""
        seen = len(self.look().trials)
        self.wait_for(lambda record: len(record.trials) > seen, driver)

    def lose_worker(self, driver: Driver) -> float:
        """Kill the process that trains, and wait for another to take up a trial; returns the seconds that it took."""
        worker = self.last_start["pid"]
        os.kill(worker, signal.SIGKILL)
        return self.seconds_until("start", time.time(), driver, other_than=worker)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is trained meanwhile."""
        worker = self.last_start["pid"]
        os.kill(worker, signal.SIGSTOP)
        yield
        os.kill(worker, signal.SIGCONT)

    def spoil_checkpoint(self, chance: random.Random) -> Path | None:
        """Cut short a file of the newest checkpoint of the trial that runs, while its worker is stopped for good.

        Returns the checkpoint; None if at that moment there was none that the trial would need.
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
        """Leave the journal as a driver does that loses its power while writing, however much was made of the line."""
        path = self.folder / journal.FILE_NAME
        *_, last = path.read_bytes().splitlines(keepends=True)
        os.truncate(path, path.stat().st_size - chance.randint(1, len(last) - 1))
        self._begin()

    def stop_while_saving(self, driver: Driver, number: int = signal.SIGINT) -> tuple[float, bool]:
        """Stop the driver, as Ray's jobs are stopped, while a checkpoint is written.

        Returns when that was, and whether it hit: a checkpoint takes milliseconds, and is not waited for forever.
        """
        folder = self.folder / trial_folder(max(self.look().trials)) / CHECKPOINTS

        def being_written() -> set[Path]:
            with suppress(FileNotFoundError):  # a trial that is over has its checkpoints removed
                return set(folder.glob(".step-*.tmp"))
            return set()

        deadline, of_the_killed = time.monotonic() + 1.0, being_written()
        while not (hit := bool(being_written() - of_the_killed)) and time.monotonic() < deadline:
            pass
        driver.send_signal(number)
        return time.time(), hit
