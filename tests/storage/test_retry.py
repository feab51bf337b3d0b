"""How long a storage is borne that refuses. Time is made up."""

from collections.abc import Callable

import pytest

from ftae.storage import retry as module
from ftae.storage.retry import LONGEST_WAIT_SECONDS, RETRY_SECONDS, StorageRetry, with_retries


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


def refusing(times: int) -> Callable[[], str]:
    """What works after so many faults, each with its own number."""
    left = iter(range(times))

    def action() -> str:
        for number in left:
            raise OSError(f"fault {number}")
        return "done"

    return action


def test_what_works_is_done_without_a_word(clock: Clock) -> None:
    said: list[str] = []
    assert with_retries(refusing(0), said.append) == "done"
    assert (said, clock.waits) == ([], [])


def test_a_fault_that_passes_is_borne_and_told_once(clock: Clock) -> None:
    said: list[str] = []
    assert with_retries(refusing(6), said.append) == "done"
    assert said == ["storage refuses: fault 0; trying again for 60 s", "storage is back"]
    assert clock.waits == [0.5, 1.0, 2.0, 4.0, LONGEST_WAIT_SECONDS, LONGEST_WAIT_SECONDS]


def test_a_fault_that_stays_is_raised_within_the_time(clock: Clock) -> None:
    said: list[str] = []
    with pytest.raises(OSError, match="fault 10"):
        with_retries(refusing(1000), said.append)
    assert RETRY_SECONDS - LONGEST_WAIT_SECONDS < clock.now - 1000.0 <= RETRY_SECONDS
    assert len(said) == 1


def test_another_fault_is_not_borne(clock: Clock) -> None:
    with pytest.raises(ValueError, match="x"):
        with_retries(lambda: int("x"), lambda message: None)
    assert clock.waits == []


def test_patience_is_whole_again_once_the_storage_served(clock: Clock) -> None:
    said: list[str] = []
    patience = StorageRetry(said.append)
    for _ in range(3):
        while clock.now % 100.0 < 50.0:
            patience.failed(OSError("away"))
        patience.succeeded()
        patience.succeeded()
        clock.now += 100.0 - clock.now % 100.0
    assert said == ["storage refuses: away; trying again for 60 s", "storage is back"] * 3
    assert clock.waits[:4] == [0.5, 1.0, 2.0, 4.0]


def test_slow_faults_count_with_the_time_they_take(clock: Clock) -> None:
    def slow() -> None:
        clock.now += 25.0
        raise OSError("timed out")

    with pytest.raises(OSError, match="timed out"):
        with_retries(slow, lambda message: None)
    assert clock.now - 1000.0 <= 25.0 + RETRY_SECONDS + 25.0
