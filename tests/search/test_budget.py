"""The budget of a search, in full trainings: what begins, when a search is complete, and what is said of it."""

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
from builders import eval_report, search_spec
from rich.console import Console

from ftae.engine.sizing import Probe, trial_seconds
from ftae.results.search_record import SearchRecord
from ftae.search.coordinator import StateCoordinator
from ftae.search.plan import plan
from ftae.search.progress import Progress
from ftae.search.sizing import search_hours, search_seconds, space_needed
from ftae.search.state import SearchState
from ftae.specs import SearchSpec
from ftae.storage.backends import FolderStore
from ftae.storage.journal import FILE_NAME

STEPS = (0, 4, 8, 12)
MEASURED = Probe(step_seconds=3.0, eval_seconds=0.0, peak_bytes=10**9, memory_bytes=None, device="cpu", node="here")


def spec(budget: float | None = 4.0, **settings: Any) -> SearchSpec:
    """Trials of 12 steps with three evaluations; asha may stop them at step 4."""
    chosen = {"sampler": "random", "scheduler": {"name": "asha", "reduction_factor": 3}, "seed": 3}
    limits = {} if budget is None else {"budget": budget}
    return search_spec(
        **{"finetune.num_evals": 3, "finetune.metrics": ["psnr"]}, search={**chosen, **limits, **settings}
    )


class Workers:
    """Runs the trials of a state like workers, in turns: a report each. Every fifth trial diverges before step 4."""

    def __init__(self, state: SearchState) -> None:
        self.state, self.at = state, dict[int, int]()  # by running trial, the place of its next report

    def begin(self, most: int) -> None:
        while len(self.at) < most and (trial := self.state.next_trial()) is not None:
            step = self.state.record.trials[trial.number].step
            self.at[trial.number] = STEPS.index(step) if self.state.record.trials[trial.number].reports else 0

    def report(self) -> None:
        """Every running trial reports once."""
        for number, place in list(self.at.items()):
            if number % 5 == 0 and number and STEPS[place] == 4:
                self.state.end(number, "diverged", "non-finite loss")
                del self.at[number]
                continue
            self.at[number] += 1
            psnr = 20.0 + (7 * number % 11) * STEPS[place] / 12
            if not self.state.report(number, eval_report(STEPS[place], psnr, checkpoint=None, images=None)):
                del self.at[number]

    def run(self, most: int) -> None:
        self.begin(most)
        while self.at:
            self.report()
            assert self.state.record.budget is None or self.state.record.used_budget <= self.state.record.budget
            self.begin(most)


def kill(state: SearchState) -> None:
    state.writer.journal.close()
    state.writer.lease._released.set()


# ----------------------------------------------------------------------------------------------- the rule


@pytest.mark.parametrize("workers", [1, 4])
def test_a_search_never_takes_more_than_its_budget(tmp_path: Path, workers: int) -> None:
    state = SearchState(spec(8.5), FolderStore(tmp_path))
    Workers(state).run(workers)
    record = state.record
    assert state.is_complete
    assert 7.5 < record.used_budget <= 8.5, "there is no room for one more trial"
    tuned = [trial for trial in record.trials.values() if trial.kind != "baseline"]
    assert record.used_budget == pytest.approx(sum(trial.step for trial in tuned) / 12)
    assert {trial.status for trial in tuned} == {"finished", "pruned", "diverged"}
    assert len(tuned) > 8, "what stopped trials have left is used by others"


def test_a_running_trial_keeps_a_full_training(tmp_path: Path) -> None:
    state = SearchState(spec(3.0), FolderStore(tmp_path))
    workers = Workers(state)
    workers.begin(9)
    assert sorted(workers.at) == [0, 1, 2, 3], "the baseline does not count"
    assert not state.is_complete
    workers.report()  # the baseline ends
    assert state.next_trial() is None
    state.end(2, "failed", "no such file")
    assert state.next_trial() is not None, "a trial that ended early leaves its place"
    assert state.next_trial() is None


def test_a_place_waits_while_others_run(tmp_path: Path) -> None:
    state = SearchState(spec(2.0), FolderStore(tmp_path))
    coordinator = StateCoordinator(state, None, lambda number: None, lambda text: None)
    begun = [coordinator.assign() for _ in range(3)]
    assert None not in begun
    assert coordinator.assign() is None
    assert coordinator.may_assign_more(), "a running trial may stop, and leave room for another"


def test_a_trial_that_fits_exactly_begins(tmp_path: Path) -> None:
    state = SearchState(spec(1.0 + 1.0 / 3.0), FolderStore(tmp_path))
    state.next_trial()
    state.report(0, eval_report(0, 20.0, checkpoint=None, images=None))
    state.next_trial()
    state.report(1, eval_report(4, 20.0, checkpoint=None, images=None))
    state.end(1, "diverged", "non-finite loss")
    assert state.next_trial() is not None


def test_the_number_of_trials_limits_a_budget_too(tmp_path: Path) -> None:
    state = SearchState(spec(6.0, num_trials=3), FolderStore(tmp_path))
    Workers(state).run(2)
    assert state.is_complete
    assert len(state.record.trials) == 4
    assert state.ended_early is not None
    assert state.ended_early.startswith("search.num_trials has no room for another trial: 3 trials took ")


def test_a_complete_search_says_what_it_took(tmp_path: Path) -> None:
    state = SearchState(spec(2.0, scheduler={"name": "fifo"}), FolderStore(tmp_path))
    Workers(state).run(1)
    assert state.ended_early == ("search.budget has no room for another trial: 2 trials took 2 of 2 full trainings")


def test_an_exhausted_space_ends_a_budget(tmp_path: Path) -> None:
    few = spec(9.0).model_dump(mode="json") | {"search_space": {"data.flip": {"choices": [False, True]}}}
    state = SearchState(SearchSpec.model_validate(few), FolderStore(tmp_path))
    Workers(state).run(1)
    assert state.is_complete
    assert state.ended_early is not None
    assert state.ended_early.startswith("all configurations of the search space have been tried: 2 trials took ")


@pytest.mark.parametrize("workers", [1, 3])
def test_a_resumed_search_begins_the_same_trials(tmp_path: Path, workers: int) -> None:
    """Killed after any event: the same trials fit, with the same params, and the budget still holds."""
    search, whole = spec(3.5), tmp_path / "whole"
    whole.mkdir()
    state = SearchState(search, FolderStore(whole))
    Workers(state).run(workers)
    kill(state)
    lines = (whole / FILE_NAME).read_bytes().splitlines(keepends=True)
    for length in range(1, len(lines) + 1):
        folder = tmp_path / f"cut-{length}"
        folder.mkdir()
        (folder / FILE_NAME).write_bytes(b"".join(lines[:length]))
        resumed = SearchState(search, FolderStore(folder))
        Workers(resumed).run(workers)
        assert resumed.is_complete
        assert resumed.record.used_budget <= 3.5
        if workers == 1:  # with more, the order of the events differs
            assert {n: (t.params, t.status, t.step) for n, t in resumed.record.trials.items()} == {
                n: (t.params, t.status, t.step) for n, t in state.record.trials.items()
            }
        kill(resumed)
        shutil.rmtree(folder)


def test_a_search_goes_on_with_a_larger_budget_and_ends_with_a_smaller_one(tmp_path: Path) -> None:
    state = SearchState(spec(2.0), FolderStore(tmp_path))
    Workers(state).run(1)
    before = len(state.record.trials)
    kill(state)
    longer = SearchState(spec(4.0), FolderStore(tmp_path))
    assert not longer.is_complete
    Workers(longer).run(1)
    assert 3.0 < longer.record.used_budget <= 4.0
    assert len(longer.record.trials) > before
    kill(longer)
    shorter = SearchState(spec(1.0), FolderStore(tmp_path))
    assert shorter.is_complete
    assert shorter.next_trial() is None


# -------------------------------------------------------------------------------------- what is said of it


class Shown:
    """The progress of a search whose record grows, as plain lines."""

    def __init__(self, search: SearchSpec, record: SearchRecord | None = None) -> None:
        self.record = record or SearchRecord(search=search.model_dump(mode="json"))
        self.progress, self.output = Progress(search), io.StringIO()
        self.progress._console = Console(file=self.output, width=200, color_system=None)
        self.progress.follow(self.record, 400.0)

    def trial(self, number: int, step: int, end: str | None = None) -> None:
        events: list[dict[str, Any]] = [{"event": "suggest", "kind": "sampled" if number else "baseline", "params": {}}]
        report = {"step": step, "value": 20.0, "metrics": {"val/psnr": 20.0}, "checkpoint": None, "images": None}
        events.append({"event": "report", **report})
        if end is not None:
            events.append({"event": "end", "status": end, "reason": None})
        for event in events:
            self.record.apply({"trial": number, "time": 0.0} | event)
        self.progress.update(number)

    @property
    def lines(self) -> list[str]:
        return self.output.getvalue().splitlines()


def test_the_progress_counts_full_trainings() -> None:
    shown = Shown(spec(4.0))
    shown.trial(0, 0, "finished")
    shown.trial(1, 6)
    shown.trial(2, 12, "finished")
    shown.trial(3, 4, "pruned")
    assert [line.split(" | ")[1] for line in shown.lines] == [
        "0/4 full trainings, 0 trials done, 0 running",
        "1.5/4 full trainings, 1 trial done, 1 running",
        "1.8/4 full trainings, 2 trials done, 1 running, 1 pruned",
    ]
    assert shown.progress._share_done() == pytest.approx((0.5 + 1.0 + 1.0 / 3.0) / 4.0)


def test_the_progress_does_not_wait_for_what_no_trial_can_use() -> None:
    shown = Shown(spec(2.5))
    for number in (1, 2):
        shown.trial(number, 12, "finished")
    assert shown.lines[-1].endswith("about to end")
    assert shown.progress._share_done() == 1.0


def test_confirmations_that_cannot_come_are_not_waited_for() -> None:
    shown = Shown(spec(2.5, confirm={"seeds": 2, "top": 3}))
    shown.trial(1, 12, "finished")
    assert " 0/6 confirmations done" in shown.lines[-1]
    shown.trial(2, 12, "finished")
    assert " 0/4 confirmations done" in shown.lines[-1], "no third trial fits into the budget"
    assert shown.progress._share_done() == pytest.approx(2 / 6)


def test_a_budget_below_what_is_used_is_noted() -> None:
    earlier = Shown(spec(4.0))
    earlier.trial(1, 12, "finished")
    earlier.trial(2, 4)
    lowered = spec(1.5)
    earlier.record.search = lowered.model_dump(mode="json")
    shown = Shown(lowered, earlier.record)
    assert shown.lines == [
        "the trials that have begun take up to 2 full trainings and search.budget is 1.5: they are finished, and none "
        "is added"
    ]


def line_of(search: SearchSpec, head: str) -> str:
    [line] = [line for line in plan(search) if line.startswith(head)]
    return line.removeprefix(head).strip()


def test_the_plan_says_what_is_asked_for_in_both_units() -> None:
    # Of the trials, a third runs from step 4 to step 12: 20/36 of the steps on average.
    asked = spec(20.0)
    assert line_of(asked, "trials") == (
        "about 36 (at most 60) tuned + the untuned baseline, random; each 1 CPUs, 0 GPUs"
    )
    assert line_of(asked, "budget") == "20 full trainings; a stopped trial counts with the share of its steps"
    assert line_of(spec(None, num_trials=9), "trials").startswith("9 tuned + the untuned baseline")
    assert line_of(spec(None, num_trials=9), "budget") == "about 5 full trainings"
    assert line_of(spec(None, num_trials=9, scheduler={"name": "fifo"}), "budget") == "9 full trainings"
    both = spec(20.0, num_trials=9)
    assert line_of(both, "trials").startswith("9 tuned")
    assert line_of(both, "budget").startswith("about 5 of at most 20 full trainings; ")


def test_the_estimates_go_by_the_budget() -> None:
    search, trial = spec(20.0), trial_seconds(MEASURED, spec().finetune)
    assert search_seconds(MEASURED, search, at_a_time=4) == pytest.approx(5 * trial)
    assert search_seconds(MEASURED, spec(20.0, num_trials=9), at_a_time=1) == pytest.approx(5 * trial)
    pictures = [space_needed(spec(budget, num_trials=60), 0).lasting for budget in (None, 60.0, 20.0)]
    assert pictures[0] == pictures[1]
    # 60 trials and the baseline have a picture before the first step, and 3 for each of 61 or 21 full trainings.
    assert pictures[2] / pictures[0] == pytest.approx((61 + 3 * 21) / (61 + 3 * 61))


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({"cpus": 2}, "0.4 CPU hours"),
        ({"cpus": 4, "gpus": 1}, "0.2 GPU hours"),
        ({"cpus": 4, "gpus": 0.5}, "0.1 GPU hours"),
        ({"cpus": 50, "workers": 4}, "40 CPU hours"),
    ],
)
def test_the_hours_of_a_search_are_those_it_reserves(resources: dict[str, Any], expected: str) -> None:
    search = spec(20.0, resources=resources)
    assert trial_seconds(MEASURED, search.finetune) == pytest.approx(36.0)  # 12 steps of 3 seconds
    assert search_hours(MEASURED, search) == expected
