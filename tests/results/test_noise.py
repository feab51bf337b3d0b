"""What is said about noise: trials that are within it, gains that are, and the spread over seeds that was measured."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from builders import search_spec
from commands import Ftae, commands_in

from ftae.results.confirmation import chosen_by_mean, confirmed
from ftae.results.replay import replay
from ftae.results.search import Search
from ftae.results.search_record import FIRST_CONFIRMATION, SearchRecord
from ftae.results.summary import best, choose, leaderboard, progress
from ftae.results.verdict import beats_baseline, is_within_noise, needs_warning, notes, verdict, within_noise
from ftae.storage.backends import FolderStore
from ftae.storage.journal import FILE_NAME, UnreadableJournal

ONE = {"metric": "val/psnr", "direction": "maximize"}
TWO = {"metrics": [ONE, {"metric": "val/mse", "direction": "minimize"}]}


class Journal:
    """A journal of finished trials, in the folder of a search."""

    def __init__(self, folder: Path, objective: Any = ONE, **finetune: Any) -> None:
        self.folder = folder
        self.others: dict[str, float] = {}  # further metrics of the next trials
        folder.mkdir(parents=True)
        run = {f"finetune.{name}": value for name, value in ({"metrics": ["psnr", "mse"]} | finetune).items()}
        search = search_spec(name=folder.name, objective=objective, **run)
        self.add("open", search=search.model_dump(mode="json"), digest=search.digest(), facts={})

    def add(self, event: str, **fields: Any) -> None:
        with (self.folder / FILE_NAME).open("a") as file:
            file.write(json.dumps({"event": event, "time": 1.0, **fields}) + "\n")

    def trial(self, number: int, psnr: float, mse: float = 0.1, status: str = "finished", **ended: Any) -> None:
        kind = {0: "baseline", 1: "file"}.get(number, "sampled")
        self.add("suggest", trial=number, params={}, kind=kind)
        self.end(number, psnr, mse, status, **ended)

    def noise(self, noise: float) -> None:
        """A trial that runs, proposed by a model with this noise."""
        self.add("suggest", trial=99, params={}, kind="sampled", noise=noise)

    def confirmation(self, index: int, of: int, seed: Any, psnr: float, mse: float = 0.1, **ended: Any) -> None:
        number = FIRST_CONFIRMATION + index
        self.add("suggest", trial=number, params={}, kind="confirmation", of=of, changes={"seed": seed})
        self.end(number, psnr, mse, **ended)

    def end(self, number: int, psnr: float, mse: float, status: str = "finished", **ended: Any) -> None:
        metrics = {"val/psnr": psnr, "val/mse": mse, **self.others}
        fields = {"timing": {}, "checkpoint": None, "images": None}
        self.add("report", trial=number, step=12 if number else 0, value=psnr, metrics=metrics, **fields)
        self.add("end", trial=number, status=status, reason=None, value=psnr, step=12, **ended)

    @property
    def record(self) -> SearchRecord:
        return replay(self.folder)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "searches" / "small")


@pytest.fixture
def ftae(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ftae:
    return commands_in(tmp_path, monkeypatch, capsys)


# ---------------------------------------------------------------------------------------- by the model


def test_trials_behind_the_best_by_less_than_the_noise_of_a_difference_are_within_noise(journal: Journal) -> None:
    for number, psnr in enumerate([18.0, 20.0, 20.13, 20.12, 19.98]):
        journal.trial(number, psnr)
    journal.noise(0.1)  # differences have 0.1414
    assert within_noise(journal.record) == [2, 3, 1]
    assert notes(journal.record) == [
        "trials 2, 3 and 1 are within noise of each other: the standard deviation of a run is "
        "at most 0.1 dB of val/psnr"
    ]


def test_smaller_may_be_better(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "small", {"metric": "val/mse", "direction": "minimize"})
    for number, mse in enumerate([0.5, 0.1, 0.3, 0.09]):
        journal.trial(number, 20.0, mse)
    journal.noise(0.01)
    assert within_noise(journal.record) == [3, 1]
    assert notes(journal.record)[0].endswith("a run is at most 0.01 of val/mse")


def test_a_best_trial_without_rivals_is_not_within_noise(journal: Journal) -> None:
    for number, psnr in enumerate([18.0, 20.0, 23.0]):
        journal.trial(number, psnr)
    journal.noise(0.1)
    assert (within_noise(journal.record), notes(journal.record)) == ([], [])


def test_doubts_about_the_best_trial_are_told(journal: Journal) -> None:
    for number, diversity in enumerate([0.9, 0.65, 0.3]):
        journal.others = {"val/diversity": diversity, "val/memorised": 1.0, "val_source/psnr": 1.0, "val/gone": -1.0}
        journal.trial(number, 20.0 - (number - 1) ** 2)
    doubt = "trial 1: its images are much alike, below 0.7 (val/diversity is 0.65)"
    assert notes(journal.record) == [doubt]


@pytest.mark.parametrize(("kid", "of_train", "is_told"), [(0.5, 0.24, True), (0.33, 0.3, False), (0.03, -0.01, False)])
def test_a_generator_that_memorises_is_told(journal: Journal, kid: float, of_train: float, is_told: bool) -> None:
    journal.others = {"val/kid": kid, "val/kid_train": of_train}
    journal.trial(1, 20.0)
    found = notes(journal.record)
    assert [line for line in found if "memorises" in line] == (found if is_told else [])
    assert len(found) == is_told


def test_a_metric_of_sets_is_told_with_what_it_is_read_by(tmp_path: Path) -> None:
    run = {"metrics": ["psnr", "recall"], "features": {"net": "resnet18", "weights": "w.pth"}}
    journal = Journal(tmp_path / "small", ONE | {"constraints": ["val/recall >= 0.1"]}, **run)
    for number in (1, 2):
        journal.others = {"val/recall": 0.4, "val/recall_floor": 0.9, "val/kid_floor": 0.0}
        journal.trial(number, 20.0 + number)
    assert notes(journal.record) == ["trial 2: val/recall 0.4, val/recall_floor 0.9"]


def test_only_trials_that_keep_the_constraints_are_compared(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "small", ONE | {"constraints": ["val/mse <= 0.5"]})
    for number, (psnr, mse) in enumerate([(18.0, 0.1), (20.0, 0.1), (20.01, 0.9), (19.98, 0.2)]):
        journal.trial(number, psnr, mse)
    journal.noise(0.1)
    assert within_noise(journal.record) == [1, 3]


@pytest.mark.parametrize(("psnr", "is_gain"), [(18.05, False), (18.2, True)])
def test_a_gain_within_noise_is_not_called_a_gain(journal: Journal, psnr: float, is_gain: bool) -> None:
    journal.trial(0, 18.0)
    journal.trial(1, psnr)
    assert not needs_warning(journal.record, journal.record.trials[1])
    journal.noise(0.09)
    record = journal.record
    trial = record.trials[1]
    assert beats_baseline(record, trial) is True
    assert (is_within_noise(record, trial), needs_warning(record, trial)) == (not is_gain, not is_gain)
    expected = {
        True: "val/psnr 18.0000 -> 18.2000 (+0.2000)",
        False: "WARNING: val/psnr 18.0000 -> 18.0500 (+0.0500), which is within noise (0.09): not a gain",
    }
    assert verdict(record, trial) == expected[is_gain]


def test_keeping_a_constraint_that_the_untuned_model_misses_is_a_gain(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "small", ONE | {"constraints": ["val/mse <= 0.5"]})
    journal.trial(0, 18.0, 0.9)
    journal.trial(1, 18.01, 0.1)
    journal.noise(0.1)
    assert not needs_warning(journal.record, journal.record.trials[1])


def test_without_an_estimate_nothing_is_said_about_noise(journal: Journal, ftae: Ftae) -> None:
    journal.trial(0, 18.0)
    journal.trial(1, 18.01)
    journal.trial(2, 18.01)
    assert within_noise(journal.record) == []
    assert not best(FolderStore(journal.folder)).keys() & {"noise", "within_noise", "confirmed"}
    assert "noise" not in ftae("show", "small").out
    assert not json.loads(ftae("show", "small", "--json").out).keys() & {"noise", "within_noise"}


def test_commands_and_api_tell_what_is_within_noise(journal: Journal, ftae: Ftae) -> None:
    for number, psnr in enumerate([18.0, 20.0, 20.05]):
        journal.trial(number, psnr)
    journal.noise(0.1)
    line = (
        "trials 2 and 1 are within noise of each other: the standard deviation of a run is at most 0.1 dB of val/psnr"
    )
    shown = ftae("show", "small").out.splitlines()
    assert shown[-1] == line
    assert ["yes" in row.split() for row in shown[2:6]] == [True, True, False, False]
    rows = list(csv.DictReader(io.StringIO(ftae("show", "small", "--csv").out)))
    assert [row["within_noise"] for row in rows] == ["true", "true", "", ""]
    assert "within noise of trial" in ftae("status", "small").out
    assert "within_noise: 2, 1" in ftae("best", "small").out
    for command in ("show", "best"):
        shown = json.loads(ftae(command, "small", "--json").out)
        assert (shown["noise"], shown["within_noise"]) == (0.1, [2, 1])
    search = Search.find("small", "searches")
    assert (search.noise, search.within_noise, search.notes()) == (0.1, [2, 1], [line])


# ----------------------------------------------------------------------------------- expected ends


def test_a_stopped_trial_is_shown_with_the_end_that_was_expected(journal: Journal, ftae: Ftae) -> None:
    journal.trial(0, 18.0)
    journal.trial(1, 20.0)
    assert "forecast" not in leaderboard(journal.record)[0]
    forecast = {"mean": 19.123456, "sd": 0.21, "chance": 0.01, "best": 20.0}
    journal.trial(2, 15.0, status="pruned", forecast=forecast)
    rows = {row["trial"]: (row["forecast"], row["forecast_sd"]) for row in leaderboard(journal.record)}
    assert rows == {0: (None, None), 1: (None, None), 2: (19.123456, 0.21)}
    _, header, *lines = ftae("show", "small").out.splitlines()
    assert "expected end" in header
    assert "forecast" not in header
    assert "19.12 ± 0.21" in lines[2]
    table = Search.find("small", "searches").leaderboard()
    assert table.loc[2, "forecast"] == pytest.approx(19.123456)
    assert table["forecast_sd"].dtype == float


# -------------------------------------------------------------------------------------- over seeds


def confirmed_search(journal: Journal) -> None:
    """Trial 2 was lucky, trial 1 was not; trial 3 is not among the finalists."""
    for number, psnr in enumerate([18.0, 20.0, 20.3, 19.0]):
        journal.trial(number, psnr)
    for index, (of, seed, psnr) in enumerate([(2, 1, 19.5), (1, 1, 20.1), (2, 2, 19.3), (1, 2, 20.2)]):
        journal.confirmation(index, of, seed, psnr)


def test_confirmations_are_no_trials_of_the_search(journal: Journal) -> None:
    confirmed_search(journal)
    record = journal.record
    assert (list(record.trials), record.ended["finished"]) == ([0, 1, 2, 3], 3)
    assert [trial.number for trial in record.ranked()] == [2, 1, 3]
    assert [row["trial"] for row in leaderboard(record)] == [2, 1, 3, 0]
    assert (progress(record)["done"], progress(record)["confirmations"]) == (3, {"done": 4, "begun": 4})
    assert record.confirmations[FIRST_CONFIRMATION].name == "trial 2 with seed 1"


def test_the_confirmed_trial_with_the_best_mean_is_chosen(journal: Journal, ftae: Ftae) -> None:
    confirmed_search(journal)
    record = journal.record
    assert choose(record).number == 1
    assert choose(record, 2).number == 2
    one = confirmed(record)[1]
    assert (one.values, one.num_seeds, one.faults()) == ({0: 20.0, 1: 20.1, 2: 20.2}, 3, [])
    assert (one.mean, one.sd) == (pytest.approx(20.1), pytest.approx(0.1))
    assert verdict(record, record.trials[1]) == "val/psnr 18.0000 -> 20.10 ± 0.10 over 3 seeds (+2.1000)"
    found = json.loads(ftae("best", "small", "--json").out)
    assert (found["trial"], found["value"]) == (1, 20.0)
    assert found["confirmed"]["values"] == {"0": 20.0, "1": 20.1, "2": 20.2}
    assert found["confirmed"]["mean"] == pytest.approx(20.1)
    shown = ftae("show", "small").out
    assert "20.10 ± 0.10" in shown
    assert shown.splitlines()[-1] == "trial 1 has the best mean: 20.10 ± 0.10 over 3 seeds"
    table = Search.find("small", "searches").leaderboard()
    assert table.loc[1, ["seeds", "mean"]].tolist() == [3, pytest.approx(20.1)]
    assert table.loc[3, "seeds"] != table.loc[3, "seeds"], "it is not confirmed"


def test_a_new_best_trial_that_is_not_confirmed_is_chosen_before_confirmed_ones(journal: Journal) -> None:
    confirmed_search(journal)
    journal.trial(4, 25.0)
    assert chosen_by_mean(journal.record) is None
    assert choose(journal.record).number == 4


def test_the_measured_spread_takes_the_place_of_the_noise_of_the_model(journal: Journal) -> None:
    journal.trial(0, 18.0)
    journal.trial(1, 18.3)
    journal.noise(0.01)
    assert not needs_warning(journal.record, journal.record.trials[1])
    for index, psnr in enumerate([17.9, 18.2]):
        journal.confirmation(index, 1, index + 1, psnr)
    record = journal.record
    assert verdict(record, record.trials[1]) == (
        "WARNING: val/psnr 18.0000 -> 18.13 ± 0.21 over 3 seeds (+0.1333), which is within noise (0.21): not a gain"
    )
    journal.confirmation(2, 1, 3, 17.0)
    record = journal.record
    assert beats_baseline(record, record.trials[1]) is False, "its mean is worse, although its own value is better"
    assert verdict(record, record.trials[1]).startswith(
        "WARNING: the untuned model was not beaten. val/psnr 18.0000 -> "
    )


def test_a_trial_whose_other_seeds_diverge_is_not_preferred(journal: Journal) -> None:
    for number, psnr in enumerate([18.0, 20.0, 22.0]):
        journal.trial(number, psnr)
    journal.confirmation(0, 2, 1, 0.0, status="diverged")
    journal.confirmation(1, 1, 1, 20.0)
    record = journal.record
    assert choose(record).number == 1
    assert confirmed(record)[2].values == {0: 22.0}
    assert verdict(record, record.trials[2]) == (
        "val/psnr 18.0000 -> 22.0000 over 1 seed (+4.0000); 1 of 2 runs diverged"
    )


def test_a_trial_whose_other_seeds_miss_constraints_is_not_preferred(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "small", ONE | {"constraints": ["val/mse <= 0.5"]})
    for number, psnr in enumerate([18.0, 20.0, 22.0]):
        journal.trial(number, psnr)
    journal.confirmation(0, 2, 1, 23.0, mse=0.9)
    journal.confirmation(1, 1, 1, 20.0)
    record = journal.record
    assert choose(record).number == 1
    assert verdict(record, record.trials[2]).endswith("; 1 of 2 runs missed constraints")


def test_with_two_metrics_each_has_its_mean_and_spread(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "small", TWO)
    journal.trial(0, 18.0, 0.2)
    journal.trial(1, 20.0, 0.1)
    journal.confirmation(0, 1, 1, 20.4, 0.2)
    record = journal.record
    assert verdict(record, record.trials[1]) == (
        "val/psnr 18.0000 -> 20.20 ± 0.28 over 2 seeds (+2.2000); "
        "val/mse 0.2000 -> 0.150 ± 0.071 over 2 seeds (-0.0500)"
    )


@pytest.mark.parametrize(
    ("of", "seed", "fault"),
    [
        (7, 1, "confirmation 100000 is of no trial that finished"),
        (2, 1, "confirmation 100000 is of no trial that finished"),
        (1, "x", "confirmation 100000 has no seed"),
    ],
)
def test_a_confirmation_of_nothing_is_a_damaged_journal(journal: Journal, of: int, seed: Any, fault: str) -> None:
    journal.trial(0, 18.0)
    journal.trial(1, 20.0)
    journal.trial(2, 20.0, status="pruned")
    journal.confirmation(0, of, seed, 20.0)
    with pytest.raises(UnreadableJournal, match=fault):
        replay(journal.folder)
