"""Which trials a scheduler stops: the contract of every scheduler, and the rungs of ASHA."""

import random
from types import SimpleNamespace
from typing import Any, cast, get_args

import pytest
from ray.tune.schedulers.async_hyperband import _Bracket
from simulated import ONE, SCHEDULER_SETTINGS, Trials, on_rungs, sampler_spec

from ftae.search.scheduler import SCHEDULERS, Scheduler
from ftae.specs import SearchSpec
from ftae.specs.search.settings import SearchSettings


def spec(direction: str = "maximize", max_steps: int = 12, num_evals: int = 3, **scheduler: Any) -> SearchSpec:
    return sampler_spec(
        {"optimizer.lr": {"low": 1e-4, "high": 1e-2}},
        ONE[direction],
        {"max_steps": max_steps, "num_evals": num_evals},
        scheduler=SCHEDULER_SETTINGS["asha"] | scheduler,
    )


def scheduler_of(search: SearchSpec) -> Scheduler:
    return Trials(search).scheduler


def report(scheduler: Scheduler, number: int, step: int, value: float) -> bool:
    """Ask whether the trial continues, which changes nothing, and record the report."""
    before = on_rungs(scheduler)
    stop = scheduler.stop(number, step, value)
    assert scheduler.stop(number, step, value) == stop
    assert on_rungs(scheduler) == before
    scheduler.record(number, step, value)
    return stop is None


# --------------------------------------------------------------------- the contract of every scheduler


def test_the_table_has_the_schedulers_of_the_file() -> None:
    classes = get_args(SearchSettings.model_fields["scheduler"].annotation)
    assert {get_args(kind.model_fields["name"].annotation)[0] for kind in classes} == set(SCHEDULERS)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("direction", ["maximize", "minimize"])
class TestEveryScheduler:
    STEPS = (4, 8, 12, 16, 20)

    def trials(self, name: str, direction: str) -> Trials:
        """Trials of a sampler that learns nothing; the baseline and the file's own run, too."""
        run = {"max_steps": 24, "num_evals": 6}
        settings = {"scheduler": SCHEDULER_SETTINGS[name], "sampler": "random"}
        trials = Trials(sampler_spec(objective=ONE[direction], run=run, **settings))
        trials.begin(0, {}, "baseline")
        trials.begin_file()
        for number in range(2, 10):
            trials.begin(number)
        return trials

    def reports(self) -> list[tuple[int, int, float]]:
        """Reports of all trials in turns, each a little better or worse than others."""
        draw = random.Random(0)
        level = [draw.gauss(0.0, 1.0) for _ in range(10)]
        return [(n, step, level[n] + step / 10 + draw.gauss(0.0, 0.1)) for step in self.STEPS for n in range(1, 10)]

    def test_decisions_are_the_same_after_a_replay(self, name: str, direction: str) -> None:
        """Those of a search in which a trial ends where it is stopped."""
        trials, stopped = self.trials(name, direction), 0
        for count, (number, step, value) in enumerate(self.reports()):
            if trials.record.trials[number].status != "running":
                continue
            if count % 4 == 0:
                again = trials.replayed()
                assert again.stop(number, step, value) == trials.stop(number, step, value)
                assert on_rungs(again.scheduler) == on_rungs(trials.scheduler)
            if trials.report(number, step, value) is not None:
                trials.end(number, "pruned")
                stopped += 1
        assert (stopped > 0) is (name != "fifo")

    def test_to_ask_changes_nothing_and_a_repeated_report_neither(self, name: str, direction: str) -> None:
        asked, other = self.trials(name, direction), self.trials(name, direction)
        for number, step, value in self.reports()[:20]:
            for extreme in (-100.0, 100.0):
                asked.stop(number, step, extreme)
            assert asked.report(number, step, value) == other.report(number, step, value)
            asked.scheduler.record(number, step, value)
        assert on_rungs(asked.scheduler) == on_rungs(other.scheduler)

    def test_trials_are_stopped_at_the_steps_of_the_plan(self, name: str, direction: str) -> None:
        trials = self.trials(name, direction)
        search = trials.spec
        rungs = search.rung_steps()
        for number, step, value in self.reports():
            stop = trials.report(number, step, value)
            assert stop is None or (step in rungs and stop.reason)
        assert 0 < search.search.scheduler.expected_steps(search.finetune) <= 24
        assert search.search.scheduler.description()


# -------------------------------------------------------------------------------------------- the rungs


@pytest.mark.parametrize("reduction_factor", [1.5, 2.0, 3.0, 4.0])
@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_a_trial_continues_where_rays_own_bracket_lets_it(direction: str, reduction_factor: float) -> None:
    search = spec(direction, max_steps=100, num_evals=100, grace_fraction=0.1, reduction_factor=reduction_factor)
    scheduler, bracket = scheduler_of(search), _Bracket(10, 99, reduction_factor, 0, stop_last_trials=False)
    bracket._rungs = [(step, {}) for step in reversed(search.rung_steps())]
    draw, sign = random.Random(0), 1.0 if direction == "maximize" else -1.0
    decisions: list[bool] = []
    for number in range(200):
        for step in range(0, 100, draw.choice([1, 7, 30])):
            value, trial = draw.gauss(number / 100, 1.0), cast(Any, SimpleNamespace(trial_id=number))
            decisions.append(report(scheduler, number, step, value))
            assert decisions[-1] == (bracket.on_result(trial, step, sign * value) == "CONTINUE")
    assert 100 < decisions.count(False) < decisions.count(True)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_trial_continues_unless_it_is_behind_the_best_half_of_the_earlier_ones(sign: int) -> None:
    scheduler = scheduler_of(spec("maximize" if sign == 1 else "minimize"))
    # Nothing to compare with; below 10; above the median of 10 and 5; not below the median of 10, 5 and 8.
    arrivals = [(1, 10.0, True), (2, 5.0, False), (3, 8.0, True), (4, 8.0, True), (5, 7.9, False)]
    for number, value, goes_on in arrivals:
        assert report(scheduler, number, 4, sign * value) is goes_on
    assert on_rungs(scheduler)[4] == {number: value for number, value, _ in arrivals}


def test_a_stop_says_what_the_trial_was_compared_with() -> None:
    scheduler = scheduler_of(spec("minimize"))
    for number, value in enumerate((0.1, 0.2, 0.3)):
        scheduler.record(number, 4, value)
    stop = scheduler.stop(3, 4, 0.25)
    assert stop is not None
    assert stop.fields() == {"reason": "0.25 is not among the best 50% at step 4, which begin at 0.2"}


def test_a_repeated_report_does_not_count_twice() -> None:
    scheduler = scheduler_of(spec())
    report(scheduler, 1, 4, 10.0)
    report(scheduler, 2, 4, 6.0)
    assert report(scheduler, 1, 4, 10.0)
    assert on_rungs(scheduler)[4] == {1: 10.0, 2: 6.0}
    # If 10.0 counted twice, the median would be 10.0, and this trial behind it.
    assert report(scheduler, 3, 4, 9.0)


def test_nothing_is_decided_before_the_first_rung_and_between_two() -> None:
    scheduler = scheduler_of(spec(max_steps=24, num_evals=6))
    assert list(on_rungs(scheduler)) == [8, 16]
    report(scheduler, 1, 8, 10.0)
    assert report(scheduler, 2, 4, 0.0)
    assert on_rungs(scheduler) == {8: {1: 10.0}, 16: {}}
    report(scheduler, 2, 8, 11.0)
    assert report(scheduler, 2, 12, 0.0)  # behind trial 1, but past the rung
    assert on_rungs(scheduler) == {8: {1: 10.0, 2: 11.0}, 16: {}}


def test_a_report_counts_at_the_highest_rung_it_reaches() -> None:
    scheduler = scheduler_of(spec(max_steps=24, num_evals=6))
    report(scheduler, 1, 16, 10.0)
    assert on_rungs(scheduler) == {8: {}, 16: {1: 10.0}}


@pytest.mark.parametrize(
    ("grace", "max_steps", "num_evals", "steps"),
    [
        (0.33, 12, 3, [4, 8]),
        (0.33, 300, 6, [100, 200]),
        (0.34, 300, 6, [150]),
        (0.01, 100, 10, [10, 20, 40, 80]),
        (0.6, 12, 4, [9]),
        (1.0, 12, 4, []),
    ],
)
def test_the_first_rung_is_the_first_evaluation_at_or_after_the_grace_fraction(
    grace: float, max_steps: int, num_evals: int, steps: list[int]
) -> None:
    search = spec(max_steps=max_steps, num_evals=num_evals, grace_fraction=grace)
    assert search.rung_steps() == steps
    assert list(on_rungs(scheduler_of(search))) == steps
    assert bool(search.search.scheduler.warnings(search.finetune)) is (steps == [])


def test_a_report_on_a_rounded_rung_counts_there() -> None:
    search = spec(max_steps=42, num_evals=21, grace_fraction=0.2, reduction_factor=1.1)
    scheduler = scheduler_of(search)
    for step in (10, 12):  # 12 is before 10 * 1.1 ** 2 = 12.1, the third rung of Ray
        report(scheduler, 1, step, 10.0)
        assert on_rungs(scheduler)[step] == {1: 10.0}


def test_fifo_never_stops_a_trial() -> None:
    scheduler = scheduler_of(sampler_spec(scheduler={"name": "fifo"}))
    assert all(report(scheduler, number, step, -number) for number in range(20) for step in (4, 8))
    assert on_rungs(scheduler) == {}
