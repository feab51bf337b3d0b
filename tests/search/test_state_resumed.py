"""After a driver has died at any point, the next one continues the search as if nothing had happened."""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from simulated import Recorded, conditional_spec, events, kill, outcome, run, snapshot, state_spec

from ftae.search.sampler import SAMPLERS
from ftae.search.scheduler import SCHEDULERS
from ftae.search.state import SearchState
from ftae.specs import SearchSpec
from ftae.storage.backends import FolderStore
from ftae.storage.journal import FILE_NAME

PAIRS = list(product(SAMPLERS, SCHEDULERS))
# Every sampler with every scheduler, every form of objective, and several workers: (spec, workers).
SEARCHES: dict[str, tuple[SearchSpec, int]] = {
    **{f"{name} {scheduler}": (state_spec(scheduler=scheduler, sampler=name), 1) for name, scheduler in PAIRS},
    **{name: (state_spec(name, num_trials=12), 1) for name in ("minimize", "constrained", "several")},
    "conditional": (conditional_spec(num_trials=14), 2),
    "three at a time": (state_spec(num_trials=10), 3),
}


@pytest.fixture(scope="module", params=SEARCHES)
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    search, workers = SEARCHES[request.param]
    return Recorded(search, tmp_path_factory.mktemp("recorded") / "whole", workers)


def test_the_recorded_searches_end_in_every_way(recorded: Recorded) -> None:
    ended = {event["status"] for event in recorded.events if event["event"] == "end"}
    pruned = {"pruned"} if recorded.spec.rung_steps() else set()
    assert ended == {"finished", "diverged", "failed"} | pruned
    assert len(recorded.lines) == len(recorded.events) + 1


def test_after_any_event_a_search_is_resumed_as_it_was(
    recorded: Recorded, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    for num_lines in range(len(recorded.lines) + 1):
        with subtests.test(num_lines=num_lines):
            state = recorded.cut(tmp_path / str(num_lines), num_lines)
            known = events(state.store.folder)
            assert known[: num_lines - 1] == recorded.events[: max(0, num_lines - 1)]
            # After a report that ends its trial, the new driver adds the end that the journal lacks.
            assert known == recorded.events[: len(known)]
            assert snapshot(state) == recorded.snapshots[len(known)]
            unfinished = [n for n, trial in state.record.trials.items() if trial.status == "running"]
            assigned = [trial.number for trial in (state.next_trial() for _ in range(len(unfinished) + 1)) if trial]
            new = [len(state.record.trials) - 1] if len(assigned) > len(unfinished) else []
            assert assigned == unfinished + new
            # The next proposal is that of the uninterrupted search, if that made one here.
            if new and len(known) < len(recorded.events) and recorded.events[len(known)]["event"] == "suggest":
                assert events(state.store.folder)[-1] == recorded.events[len(known)]
            kill(state)


def test_half_a_line_counts_as_not_written(recorded: Recorded, tmp_path: Path, subtests: pytest.Subtests) -> None:
    for num_lines, line in enumerate(recorded.lines):
        with subtests.test(num_lines=num_lines):
            rest = line[: len(line) // 2] if num_lines % 2 else line[:-1]
            state = recorded.cut(tmp_path / str(num_lines), num_lines, rest)
            written = (state.store.folder / FILE_NAME).read_bytes()
            assert written.startswith(b"".join(recorded.lines[:num_lines]) + b'{"event": "open"')
            assert snapshot(state) == recorded.snapshots[len(events(state.store.folder))]
            kill(state)


@pytest.mark.parametrize("name", [name for name, (_, workers) in SEARCHES.items() if workers == 1])
def test_an_interrupted_search_ends_like_one_that_never_stopped(
    name: str, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    recorded = Recorded(SEARCHES[name][0], tmp_path / "whole")
    for num_lines in range(len(recorded.lines) + 1):
        with subtests.test(num_lines=num_lines):
            state = run(recorded.cut(tmp_path / str(num_lines), num_lines))
            assert state.is_complete
            assert outcome(state) == recorded.outcome
            assert events(state.store.folder) == recorded.events
            kill(state)


def test_a_search_whose_drivers_all_die_early_ends_the_same(tmp_path: Path) -> None:
    recorded = Recorded(state_spec(), tmp_path / "whole")
    folder = tmp_path / "again"
    folder.mkdir()
    drivers = 0
    while True:
        drivers += 1
        state = SearchState(recorded.spec, FolderStore(folder))
        try:
            run(state, after_each=killed_at(3))  # a trial, its repeated last report, and one new message
            break
        except KeyboardInterrupt:
            kill(state)
    assert outcome(state) == recorded.outcome
    assert drivers > len(recorded.outcome[0])


def killed_at(number: int) -> Callable[[], None]:
    calls = iter(range(1, number))

    def count() -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt

    return count
