"""After a driver has died at any point, the next one continues the search as if nothing had happened."""

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from simulated import (
    CONDITIONAL_SPACE,
    MIXED_SPACE,
    Recorded,
    events,
    kill,
    outcome,
    quicken_models,
    run,
    snapshot,
    state_spec,
)

from ftae.search.sampler import SAMPLERS
from ftae.search.scheduler import SCHEDULERS
from ftae.search.state import SearchState
from ftae.specs import SearchSpec
from ftae.storage.backends import FolderStore
from ftae.storage.journal import FILE_NAME

PAIRS = list(product(SAMPLERS, SCHEDULERS))


def spec(
    sampler: str, scheduler: str, objective: str = "maximize", space: Any = MIXED_SPACE, seed: int | None = None
) -> SearchSpec:
    """A search whose seed is chosen so that its trials end in every way."""
    seed = seed or (5 if sampler == "curve" else 3)
    return state_spec(objective, scheduler, space, sampler=sampler, num_trials=9, seed=seed)


# Every sampler with every scheduler, every form of objective, and several workers: (spec, workers).
SEARCHES: dict[str, tuple[SearchSpec, int]] = {
    **{f"{sampler} {scheduler}": (spec(sampler, scheduler), 1) for sampler, scheduler in PAIRS},
    **{f"tpe asha, {name}": (spec("tpe", "asha", name), 1) for name in ("minimize", "constrained", "several")},
    **{f"curve forecast, {name}": (spec("curve", "forecast", name), 1) for name in ("minimize", "constrained")},
    "tpe asha, conditional": (spec("tpe", "asha", space=CONDITIONAL_SPACE, seed=4), 2),
    "curve forecast, conditional": (spec("curve", "forecast", space=CONDITIONAL_SPACE), 2),
    "tpe asha, three at a time": (spec("tpe", "asha"), 3),
    "curve forecast, three at a time": (spec("curve", "forecast"), 3),
}
# In these the driver dies after each event, in the others after one of each kind.
AT_EACH_EVENT = {"tpe asha", "curve forecast"}


@pytest.fixture(scope="module", autouse=True)
def quick_models() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        quicken_models(patch)
        yield


@pytest.fixture(scope="module", params=SEARCHES)
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    search, workers = SEARCHES[request.param]
    return Recorded(search, tmp_path_factory.mktemp("recorded") / "whole", workers)


@pytest.fixture
def deaths(request: pytest.FixtureRequest, recorded: Recorded) -> list[int]:
    """How many lines a driver has written when it dies: any number, or up to the middle event of each kind."""
    if request.node.callspec.params["recorded"] in AT_EACH_EVENT:
        return list(range(len(recorded.lines) + 1))
    kinds: dict[Any, list[int]] = {}
    for num_lines, event in enumerate(recorded.events, start=2):  # the first line opens the search
        kind = event["event"], event.get("kind"), event.get("step"), event.get("status")
        kinds.setdefault(kind, []).append(num_lines)
    return [1, *sorted(found[len(found) // 2] for found in kinds.values())]


def test_the_recorded_searches_end_in_every_way(recorded: Recorded) -> None:
    ended = {event["status"] for event in recorded.events if event["event"] == "end"}
    pruned = {"pruned"} if recorded.spec.rung_steps() else set()
    assert ended == {"finished", "diverged", "failed"} | pruned
    assert len(recorded.lines) == len(recorded.events) + 1


def test_after_any_event_a_search_is_resumed_as_it_was_and_ends_the_same(
    recorded: Recorded, deaths: list[int], tmp_path: Path, subtests: pytest.Subtests
) -> None:
    for num_lines in deaths:
        with subtests.test(num_lines=num_lines):
            state = recorded.cut(tmp_path / str(num_lines), num_lines)
            known = events(state.store.folder)
            assert known[: max(0, num_lines - 1)] == recorded.events[: max(0, num_lines - 1)]
            # After a report that ends its trial, the new driver adds the end that the journal lacks.
            assert known == recorded.events[: len(known)]
            assert snapshot(state) == recorded.snapshots[len(known)]
            recorded.finish(state)
            assert events(state.store.folder) == recorded.events, "each proposal and decision is the same"
            assert outcome(state) == recorded.outcome
            assert state.is_complete
            kill(state)


def test_half_a_line_counts_as_not_written(
    recorded: Recorded, deaths: list[int], tmp_path: Path, subtests: pytest.Subtests
) -> None:
    for num_lines in sorted({*deaths} - {len(recorded.lines)}):
        with subtests.test(num_lines=num_lines):
            line = recorded.lines[num_lines]
            rest = line[: len(line) // 2] if num_lines % 2 else line[:-1]
            state = recorded.cut(tmp_path / str(num_lines), num_lines, rest)
            written = (state.store.folder / FILE_NAME).read_bytes()
            assert written.startswith(b"".join(recorded.lines[:num_lines]) + b'{"event": "open"')
            assert snapshot(state) == recorded.snapshots[len(events(state.store.folder))]
            kill(state)


@pytest.mark.parametrize(("sampler", "scheduler"), [("tpe", "asha"), ("curve", "forecast")])
def test_a_search_whose_drivers_all_die_early_ends_the_same(tmp_path: Path, sampler: str, scheduler: str) -> None:
    recorded = Recorded(spec(sampler, scheduler), tmp_path / "whole")
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
    assert events(folder) == recorded.events
    assert drivers > len(recorded.outcome[0])


def killed_at(number: int) -> Callable[[], None]:
    calls = iter(range(1, number))

    def count() -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt

    return count
