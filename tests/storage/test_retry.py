"""How long a failing storage is retried. Time is simulated."""

from collections.abc import Callable

import pytest

from ftae.storage import store as module
from ftae.storage.store import LONGEST_WAIT_SECONDS, RETRY_SECONDS, StorageRetry, with_retries


class Clock:
    def __init__(self) -> None:
        self.now, self.waits = 1000.0, list[float]()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def failing(times: int) -> Callable[[], str]:
    """An action that works after so many faults, each with its number."""
    left = iter(range(times))

    def action() -> str:
        for number in left:
            raise OSError(f"fault {number}")
        return "done"

    return action


def test_an_action_that_works_notifies_nobody(clock: Clock) -> None:
    notes: list[str] = []
    assert with_retries(failing(0), notes.append) == "done"
    assert (notes, clock.waits) == ([], [])


def test_a_passing_fault_is_retried_and_reported_once(clock: Clock) -> None:
    notes: list[str] = []
    assert with_retries(failing(6), notes.append) == "done"
    assert notes == ["the storage fails: fault 0; trying again for 60 s", "the storage works again"]
    assert clock.waits == [0.5, 1.0, 2.0, 4.0, LONGEST_WAIT_SECONDS, LONGEST_WAIT_SECONDS]


def test_a_lasting_fault_is_raised_within_the_time(clock: Clock) -> None:
    notes: list[str] = []
    with pytest.raises(OSError, match="fault 10"):
        with_retries(failing(1000), notes.append)
    assert RETRY_SECONDS - LONGEST_WAIT_SECONDS < clock.now - 1000.0 <= RETRY_SECONDS
    assert len(notes) == 1


def test_an_error_other_than_oserror_is_raised_at_once(clock: Clock) -> None:
    with pytest.raises(ValueError, match="x"):
        with_retries(lambda: int("x"), lambda message: None)
    assert clock.waits == []


def test_the_time_for_retries_begins_again_after_a_success(clock: Clock) -> None:
    notes: list[str] = []
    retry = StorageRetry(notes.append)
    for _ in range(3):
        while clock.now % 100.0 < 50.0:
            retry.failed(OSError("away"))
        retry.succeeded()
        retry.succeeded()
        clock.now += 100.0 - clock.now % 100.0
    assert notes == ["the storage fails: away; trying again for 60 s", "the storage works again"] * 3
    assert clock.waits[:4] == [0.5, 1.0, 2.0, 4.0]


def test_the_time_of_slow_faults_counts(clock: Clock) -> None:
    def slow() -> None:
        clock.now += 25.0
        raise OSError("timed out")

    with pytest.raises(OSError, match="timed out"):
        with_retries(slow, lambda message: None)
    assert clock.now - 1000.0 <= 25.0 + RETRY_SECONDS + 25.0
