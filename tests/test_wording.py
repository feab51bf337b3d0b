"""Sizes, durations and suggestions as text."""

import pytest

from ftae.wording import did_you_mean, done_of_asked, duration, full_trainings, listed, plus_minus, size, used_of_budget


@pytest.mark.parametrize(
    ("num_bytes", "written"),
    [(0, "0 B"), (999, "999 B"), (999.7, "1 KB"), (1234, "1.23 KB"), (312e6, "312 MB"), (141e9, "141 GB")],
)
def test_a_size_has_three_digits(num_bytes: float, written: str) -> None:
    assert size(num_bytes) == written


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0.0123, "12.3 ms"),
        (0.9999, "1 s"),
        (3.44, "3.4 s"),
        (9.96, "10 s"),
        (59.6, "1 min 0 s"),
        (125, "2 min 5 s"),
        (3 * 3600 + 120, "3 h 2 min"),
    ],
)
def test_a_duration_has_two_units_at_most(seconds: float, written: str) -> None:
    assert duration(seconds) == written


def test_the_closest_choice_is_suggested() -> None:
    choices = ["adamw", "sgd"]
    assert did_you_mean("adanw", choices) == ", did you mean 'adamw'?"
    assert did_you_mean("AdamW", choices) == ", did you mean 'adamw'?"
    assert did_you_mean("lbfgs", choices) == ""


def test_more_trials_than_are_asked_for_since_are_no_fraction() -> None:
    assert (done_of_asked(3, 8), done_of_asked(3, 8, " of ")) == ("3/8", "3 of 8")
    assert done_of_asked(3, 1) == "3 (1 asked for since)"


def test_what_is_used_of_a_budget_has_one_decimal() -> None:
    assert [used_of_budget(used) for used in (0.0, 1.0, 9.44, 24.0)] == ["0", "1", "9.4", "24"]
    assert (used_of_budget(9.44, 24.0), used_of_budget(9.44, 24.5, " of ")) == ("9.4/24", "9.4 of 24.5")
    assert used_of_budget(9.4, 5.0) == "9.4 (5 asked for since)"
    assert [full_trainings(used) for used in (1.0, 1.5)] == ["1 full training", "1.5 full trainings"]
    assert (full_trainings(0.5, 1.0), full_trainings(1.0, 2.0)) == ("0.5 of 1 full training", "1 of 2 full trainings")


@pytest.mark.parametrize(
    ("mean", "deviation", "written"),
    [
        (23.7012, 0.0523, "23.701 ± 0.052"),
        (23.15, 0.2, "23.15 ± 0.20"),
        (20.1, 0.09999999, "20.10 ± 0.10"),
        (12345.4, 321.0, "12345 ± 321"),
        (2e-5, 1.1e-6, "0.0000200 ± 0.0000011"),
        (20.0, 0.0, "20.0000 ± 0.0000"),
    ],
)
def test_a_deviation_has_two_digits(mean: float, deviation: float, written: str) -> None:
    assert plus_minus(mean, deviation) == written


def test_items_are_listed() -> None:
    assert [listed([3]), listed([3, 1]), listed([3, 1, 2])] == ["3", "3 and 1", "3, 1 and 2"]
