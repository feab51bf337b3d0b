"""Tune's public interfaces, connected to the ``Coordinator`` of a search: ``run_trials``.

Tune runs the trials and restarts those that lose their worker; the coordinator decides everything else. Tune's own
snapshots are not used, because the journal is the truth: the adapters pickle without content.
"""

import tempfile
from collections import Counter
from typing import Any

from ray import tune
from ray.tune import Callback, Stopper
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from ftae.search.ray.hang_detector import HangDetector, newest_error
from ftae.search.ray.messages import Coordinator, from_json
from ftae.search.ray.nodes import placement, room
from ftae.search.ray.trial import run_trial
from ftae.specs.search.search import SearchSpec


def run_trials(coordinator: Coordinator, spec: SearchSpec, fingerprint: str, report_seconds: float) -> None:
    """Run trials until ``coordinator`` has no more, or has to stop.

    ``fingerprint``: of the images. ``report_seconds``: the longest that a trial is expected to take from one report to
    the next; a worker that is silent for much longer is killed.
    """
    settings = spec.search
    workers = Workers(coordinator, settings.max_failures, report_seconds)
    trainable = tune.with_parameters(run_trial, search=spec.model_dump(mode="json"), fingerprint=fingerprint)
    with tempfile.TemporaryDirectory(prefix="ftae-tune-") as scratch:  # for files of Tune that nobody reads
        tune.Tuner(
            tune.with_resources(trainable, placement(settings.resources)),
            tune_config=tune.TuneConfig(
                search_alg=CoordinatorSearcher(coordinator),
                scheduler=CoordinatorScheduler(workers),
                num_samples=-1,
                max_concurrent_trials=settings.max_concurrent or room(settings.resources),
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=scratch,
                stop=CoordinatorStopper(workers),
                callbacks=[FailureCallback(workers)],
                failure_config=tune.FailureConfig(max_failures=settings.max_failures),
                verbose=0,
            ),
        ).fit()


class Workers:
    """The workers of the trials: passes their messages on, kills those that hang, and counts those that are lost.

    Methods never raise: an exception inside Tune's loop would end the search without a word.
    """

    def __init__(self, coordinator: Coordinator, max_failures: int, report_seconds: float) -> None:
        self.coordinator, self._max_failures = coordinator, max_failures
        self._hangs = HangDetector(coordinator.note, report_seconds)
        self._losses: Counter[int] = Counter()  # by trial
        self._without_worker: set[int] = set()  # trials that lost their worker and have sent no message since

    def receive(self, number: int, text: str) -> bool:
        """Take a message of a trial; returns whether the trial continues."""
        try:
            message = from_json(text)
            self._hangs.heartbeat(number, message)
        except Exception as error:
            self.coordinator.fail(error)
            return False
        self._without_worker.discard(number)
        goes_on = self.coordinator.receive(number, message)
        if not goes_on:
            self._hangs.forget(number)
        return goes_on

    def lost(self, number: int, error_file: str | None) -> None:
        """The worker of a trial was lost, and Tune starts the trial again."""
        self._hangs.forget(number)
        self._losses[number] += 1
        self._without_worker.add(number)
        reason = newest_error(error_file)
        self.coordinator.note(number, f"its worker was lost ({reason}); it continues from its newest checkpoint")

    def given_up(self, number: int, error_file: str | None) -> None:
        """Tune does not start a trial again.

        The loss of a worker that Tune was about to reuse counts as two failures for Tune, which gives up at the
        second one. The trial has not begun then, and is assigned again.
        """
        self._hangs.forget(number)
        if number in self._without_worker and self._losses[number] <= self._max_failures:
            self.coordinator.take_back(number)
        else:
            self.coordinator.give_up(number, newest_error(error_file))

    def must_stop(self) -> bool:
        """Called by Tune all the time, whether or not anything happened."""
        try:
            self._hangs.kill_hung()
        except Exception as error:
            self.coordinator.fail(error)
        return self.coordinator.must_stop()


class _PickledEmpty:
    def __getstate__(self) -> dict[str, Any]:
        return {}


class CoordinatorSearcher(_PickledEmpty, Searcher):
    """Gives Tune the trials of the coordinator."""

    def __init__(self, coordinator: Coordinator) -> None:
        super().__init__()
        self._coordinator = coordinator

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # Ray's lacks FINISHED
        assignment = self._coordinator.assign()
        if assignment is not None:
            return vars(assignment)
        return None if self._coordinator.may_assign_more() else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing to do: the coordinator has the messages of the trial."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to do: the journal has everything."""

    def restore(self, checkpoint_path: str) -> None:
        raise AssertionError("a search is resumed from its journal")


class CoordinatorScheduler(_PickledEmpty, FIFOScheduler):
    """Passes every result on, and stops the trials that the coordinator ends."""

    def __init__(self, workers: Workers) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._workers = workers

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        goes_on = self._workers.receive(trial.config["number"], result["message"])
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP


class FailureCallback(_PickledEmpty, Callback):
    """Passes on that a worker was lost, and that Tune has given a trial up."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._workers.given_up(trial.config["number"], trial.error_file)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._workers.lost(trial.config["number"], trial.error_file)


class CoordinatorStopper(_PickledEmpty, Stopper):
    """Ends the whole search when the coordinator has to stop."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._workers.must_stop()
