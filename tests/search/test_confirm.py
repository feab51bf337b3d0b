"""Confirmations: the best trials trained again with other seeds, in the same search, after its trials."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from builders import eval_report, search_spec, small_search
from faults.running import Drivers, wait_until
from pydantic import ValidationError

from ftae.cluster.submission import confirming, with_settings
from ftae.errors import FtaeError
from ftae.results.replay import fold, replay
from ftae.results.search_record import FIRST_CONFIRMATION, SearchRecord
from ftae.results.stored_spec import run_of
from ftae.search.coordinator import StateCoordinator
from ftae.search.progress import Progress
from ftae.search.ray.messages import Assignment, Note
from ftae.search.ray.trial import _Trial
from ftae.search.retention import Retention
from ftae.search.sizing import space_needed
from ftae.search.state import SearchState
from ftae.specs import SearchSpec
from ftae.specs.files import dump
from ftae.specs.search.settings import Confirm
from ftae.storage.backends import FolderStore
from ftae.storage.journal import FILE_NAME

SPEC = search_spec(
    **{
        "finetune.num_evals": 3,
        "finetune.metrics": ["psnr"],
        "search_space.max_grad_norm": {"choices": [1.0, None]},
        "search": {"num_trials": 4, "scheduler": {"name": "fifo"}},
    }
)
PSNR = {0: 18.0, 1: 20.0, 2: 19.0, 3: 22.0, 4: 21.0}  # by trial
RANKED = [3, 4, 1, 2]


def asking(seeds: int, top: int = 2, spec: SearchSpec = SPEC) -> SearchSpec:
    return with_settings(spec, confirm=Confirm(seeds=seeds, top=top))


def train(state: SearchState, trial: Assignment, psnr: float | None = None) -> None:
    """Run a trial or a confirmation to its end, or until it is stopped."""
    for step in (0, 4, 8, 12):
        found = eval_report(step, PSNR.get(trial.number, 15.0) if psnr is None else psnr)
        if step:
            folder = f"trials/{trial.number:04d}/{found.checkpoint}"
            state.store.write(f"{folder}/model.safetensors", b"x")
        if not state.report(trial.number, found):
            return


def assigned(state: SearchState) -> Iterator[Assignment]:
    """All that is left to run, one after the other."""
    while (trial := state.next_trial()) is not None:
        yield trial
        train(state, trial)


def run(spec: SearchSpec, folder: Path) -> SearchState:
    """Run a search to its end, and leave it."""
    folder.mkdir(exist_ok=True)
    state = SearchState(spec, FolderStore(folder))
    for _ in assigned(state):
        pass
    assert state.is_complete
    state.close("complete")
    return state


def confirmations(record: SearchRecord) -> list[tuple[int | None, int]]:
    """The trial and the seed of each."""
    return [(run.of, run.changes["seed"]) for run in record.confirmations.values()]


# ------------------------------------------------------------------------------------------ what is run


def test_the_best_trials_are_trained_again_when_all_trials_have_ended(tmp_path: Path) -> None:
    state = SearchState(asking(2), FolderStore(tmp_path))
    trials = [state.next_trial() for _ in range(5)]
    for trial in trials[:-1]:
        assert trial is not None
        train(state, trial)
    assert state.next_trial() is None, "the last trial may still be among the best"
    assert not state.is_complete
    assert trials[-1] is not None
    train(state, trials[-1])
    assert [trial.number for trial in state.record.ranked()] == RANKED
    begun = list(assigned(state))
    expected = [(3, 1), (4, 1), (3, 2), (4, 2)]
    assert confirmations(state.record) == expected
    assert [(trial.number, trial.kind, trial.changes) for trial in begun] == [
        (FIRST_CONFIRMATION + i, "confirmation", {"seed": seed}) for i, (_, seed) in enumerate(expected)
    ]
    assert [trial.params for trial in begun] == [state.record.trials[of].params for of, _ in expected]
    assert state.is_complete


def test_a_confirmation_is_the_run_of_its_trial_with_another_seed(tmp_path: Path) -> None:
    state = SearchState(asking(1), FolderStore(tmp_path))
    for trial in assigned(state):
        if trial.number == 3:
            state.adapt(3, {"batch_size": 32, "grad_accumulation": 2}, "out of memory")
    own, again = state.record.trials[3], state.record.confirmations[FIRST_CONFIRMATION]
    assert run_of(state.record, own).batch_size == 32
    assert run_of(state.record, again) == run_of(state.record, own).model_copy(update={"seed": 1})


def test_seeds_follow_the_one_that_a_trial_had(tmp_path: Path) -> None:
    last = 2**31 - 1
    spec = asking(2, top=1, spec=SearchSpec.model_validate(SPEC.model_dump() | {"finetune": _with_seed(last)}))
    assert confirmations(run(spec, tmp_path).record) == [(3, 0), (3, 1)]


def _with_seed(seed: int) -> dict[str, Any]:
    return SPEC.finetune.model_dump() | {"seed": seed}


@pytest.mark.parametrize("scheduler", ["asha", "forecast"])
def test_no_confirmation_is_stopped_early(tmp_path: Path, scheduler: str) -> None:
    search = with_settings(
        asking(2), scheduler=SPEC.search.model_validate({"scheduler": {"name": scheduler}}).scheduler
    )
    state = run(search, tmp_path)
    assert confirmations(state.record) != []
    assert {(run.status, run.step, run.value) for run in state.record.confirmations.values()} == {
        ("finished", 12, 15.0)
    }


def test_asking_for_more_seeds_adds_what_is_missing(tmp_path: Path) -> None:
    run(SPEC, tmp_path)
    assert confirmations(run(asking(1), tmp_path).record) == [(3, 1), (4, 1)]
    assert confirmations(run(asking(1), tmp_path).record) == [(3, 1), (4, 1)]
    assert confirmations(run(asking(2, top=3), tmp_path).record) == [(3, 1), (4, 1), (1, 1), (3, 2), (4, 2), (1, 2)]
    assert len(run(asking(1), tmp_path).record.confirmations) == 6


def test_a_search_with_fewer_finished_trials_confirms_these(tmp_path: Path) -> None:
    state = SearchState(asking(1, top=3), FolderStore(tmp_path))
    while (trial := state.next_trial()) is not None:
        if trial.number in (2, 3, 4):
            state.end(trial.number, "diverged", "non-finite loss at step 3")
        else:
            train(state, trial)
    assert confirmations(state.record) == [(1, 1)]
    assert state.is_complete


# ----------------------------------------------------------------------------- the search itself


@pytest.mark.parametrize("sampler", ["curve", "tpe"])
def test_an_extended_search_goes_on_as_if_it_had_not_been_confirmed(tmp_path: Path, sampler: str) -> None:
    plain, longer = with_settings(SPEC, sampler=sampler), {"num_trials": 7}
    run(plain, tmp_path / "confirmed")
    before = run(asking(2, spec=plain), tmp_path / "confirmed").record
    assert len(before.confirmations) == 4
    assert (before.ended.total(), len(before.ranked()), len(before.trials)) == (4, 4, 5)
    run(plain, tmp_path / "plain")
    both = [run(with_settings(plain, **longer), tmp_path / name).record for name in ("confirmed", "plain")]
    params = [[(n, t.kind, t.params) for n, t in record.trials.items()] for record in both]
    assert params[0] == params[1]
    assert [number for number, _, _ in params[0]] == list(range(8))


def test_a_driver_killed_after_any_event_is_continued(tmp_path: Path) -> None:
    whole = run(asking(2), tmp_path / "whole").record
    lines = (tmp_path / "whole" / FILE_NAME).read_bytes().splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if json.loads(line).get("kind") == "confirmation")
    for number in range(first - 1, len(lines)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / FILE_NAME).write_bytes(b"".join(lines[:number]))
        # The question is in the journal: the spec that a resumed search reads from there asks for the same.
        record = replay(folder)
        spec = SearchSpec.model_validate(record.search)
        again = run(spec, folder).record
        assert confirmations(again) == confirmations(whole)
        assert {run.status for run in again.confirmations.values()} == {"finished"}
        assert [len(run.reports) for run in again.confirmations.values()] == [4, 4, 4, 4]


def test_a_confirmation_that_failed_or_diverged_is_not_repeated(tmp_path: Path) -> None:
    state = SearchState(asking(1, top=3), FolderStore(tmp_path))
    for trial in iter(state.next_trial, None):
        if trial.kind == "confirmation" and len(state.record.confirmations) < 3:
            state.end(trial.number, "failed" if trial.number % 2 else "diverged", "RuntimeError: boom")
        else:
            train(state, trial)
    assert [run.status for run in state.record.confirmations.values()] == ["diverged", "failed", "finished"]
    assert state.record.ended == {"finished": 4}
    state.close("complete")
    assert SearchState(asking(1, top=3), FolderStore(tmp_path)).is_complete


def test_checkpoints_of_confirmations_are_not_kept(tmp_path: Path) -> None:
    state = SearchState(with_settings(asking(1), keep_checkpoints=2), FolderStore(tmp_path))
    retention = Retention(state)
    last = None
    for trial in assigned(state):
        if last is not None:
            retention.trial_ended(last)
        last = trial.number
    retention.close()
    retention.check()
    kept = {n for n in state.record.all_trials if state.store.names(f"trials/{n:04d}/checkpoints")}
    assert kept == {3, 4, last}, "the last one has just ended"
    Retention(state).close()
    kept = {n for n in state.record.all_trials if state.store.names(f"trials/{n:04d}/checkpoints")}
    assert kept == {3, 4}


# ------------------------------------------------------------------------------ around the search


def test_messages_name_the_trial_and_the_seed(tmp_path: Path) -> None:
    state = SearchState(asking(1, top=1), FolderStore(tmp_path))
    for trial in assigned(state):
        if trial.kind == "confirmation":
            said: list[str] = []
            StateCoordinator(state, None, lambda number: None, said.append).receive(trial.number, Note("recovered"))
            assert said == ["trial 3 with seed 1: recovered"]
            break
    lines: list[str] = []
    with Progress(state.spec, lines.append) as progress:
        progress.follow(state.record, 100.0)
        state.report(FIRST_CONFIRMATION, eval_report(0, 18.0))
        state.report(FIRST_CONFIRMATION, eval_report(12, 21.5))
        progress.update(FIRST_CONFIRMATION)
    [line] = lines
    assert line.startswith(
        "trial 3 with seed 1 finished val/psnr 21.5000 at step 12 | 4/4 trials done, 0 running, 1/1 "
    )


def test_a_worker_that_runs_out_of_memory_may_still_halve_the_batch(tmp_path: Path) -> None:
    def trial(changes: dict[str, Any]) -> _Trial:
        return _Trial(Assignment(7, "confirmation", {}, changes), SPEC, FolderStore(tmp_path), "fingerprint")

    assert not trial({"seed": 1})._adapted
    assert trial({"seed": 1, "batch_size": 32, "grad_accumulation": 2})._adapted


def test_pictures_of_confirmations_take_space() -> None:
    plain, asked = (space_needed(spec, 1_000).lasting for spec in (SPEC, asking(5)))
    assert asked > plain


# --------------------------------------------------------------------------------------- asking for it


@pytest.fixture
def stored(tmp_path: Path) -> Callable[[SearchSpec, str], SearchSpec]:
    """Stores a search whose trials have ended, or at least two of them; returns its spec."""

    def store(spec: SearchSpec, status: str) -> SearchSpec:
        spec = with_settings(spec, storage=str(tmp_path))
        (tmp_path / spec.name).mkdir()
        state = SearchState(spec, FolderStore(tmp_path / spec.name))
        for trial in assigned(state):
            if status != "complete" and trial.number == 2:
                break
        state.close(status)
        return spec

    return store


def test_by_default_the_best_three_are_confirmed_or_as_many_as_are_kept(
    stored: Callable[[SearchSpec, str], SearchSpec],
) -> None:
    spec = stored(SPEC, "complete")
    assert confirming(spec, 3, None).search.confirm == Confirm(seeds=3, top=3)
    assert confirming(with_settings(spec, keep_checkpoints=2), 3, None).search.confirm == Confirm(seeds=3, top=2)


def test_a_search_that_is_not_complete_is_not_confirmed(stored: Callable[[SearchSpec, str], SearchSpec]) -> None:
    spec = stored(SPEC, "interrupted")
    with pytest.raises(FtaeError) as refusal:
        confirming(spec, 3, None)
    assert str(refusal.value) == (
        "small is not complete (interrupted): confirmations come after its trials; to continue it: ftae resume small"
    )
    assert confirming(asking(1, spec=spec), 3, None).search.confirm.seeds == 3, "it was asked for before"


@pytest.mark.parametrize(
    ("seeds", "top", "message"),
    [
        (0, None, "seeds: must be 1 .. 1000, got 0"),
        (1, 0, "top: must be 1 .. 3, since search.keep_checkpoints keeps the models of so many trials, got 0"),
        (1, 4, "top: must be 1 .. 3, since search.keep_checkpoints keeps the models of so many trials, got 4"),
    ],
)
def test_what_is_asked_for_is_checked(
    stored: Callable[[SearchSpec, str], SearchSpec], seeds: int, top: int | None, message: str
) -> None:
    with pytest.raises(FtaeError) as refusal:
        confirming(stored(SPEC, "complete"), seeds, top)
    assert str(refusal.value) == message


def test_a_search_file_may_ask_for_it() -> None:
    assert search_spec(**{"search.confirm": {"seeds": 2}}).search.confirm == Confirm(seeds=2, top=3)
    assert search_spec(**{"search.keep_checkpoints": 1}).search.confirm.seeds == 0
    with pytest.raises(
        ValidationError, match=r"must be at most keep_checkpoints \(1\): other models are deleted, got 3"
    ):
        search_spec(**{"search.keep_checkpoints": 1, "search.confirm": {"seeds": 2}})


# ------------------------------------------------------------------------------------- as a user does it


@pytest.fixture
def drivers(tmp_path: Path) -> Iterator[Drivers]:
    drivers = Drivers(tmp_path)
    yield drivers
    drivers.clean_up()


@pytest.mark.faults
def test_confirm_is_killed_and_resumed(drivers: Drivers) -> None:
    search = small_search(**{"search.num_trials": 2, "search.keep_checkpoints": 2, "search.max_concurrent": 1})
    (drivers.folder / "search.yaml").write_text(dump(search))
    folder = drivers.folder / "searches" / "small"
    status, _, errors = drivers.start("search", "search.yaml").result()
    assert status == 0, errors
    own = replay(folder)

    driver = drivers.start("confirm", "small", "--seeds", "2")

    def has_begun() -> bool:
        assert driver.poll() is None, driver.messages
        return any(run.status == "finished" for run in fold(folder).confirmations.values())

    wait_until(has_begun)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    status, output, errors = drivers.start("resume", "small").result()
    assert status == 0, errors
    assert "with seed 2 finished val/psnr" in errors
    assert " over 3 seeds (" in output
    record = replay(folder)
    best, second = (trial.number for trial in own.ranked())
    assert confirmations(record) == [(best, 1), (second, 1), (best, 2), (second, 2)]
    assert [trial.number for trial in record.ranked()] == [best, second]
    of_best = [run.value for run in record.confirmations.values() if run.of == best]
    assert len({own.trials[best].value, *of_best}) == 3, "each seed gives another result"
    status, output, _ = drivers.start("best", "small", "--json").result()
    assert list(json.loads(output)["confirmed"]["values"]) == ["0", "1", "2"]
    status, output, _ = drivers.start("export", "small").result()
    assert status == 0
    exports = drivers.folder / "exports" / "small"
    assert " over 3 seeds (" in (exports / "README.md").read_text()
    assert json.loads((exports / "provenance.json").read_text())["confirmed"]["sd"] > 0.0
    wait_until(lambda: drivers.left_over() == [])
