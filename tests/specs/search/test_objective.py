"""What a search optimises: one metric or several, and constraints on metrics."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from ftae.specs.reading.problems import dotted, problems
from ftae.specs.search.objective import AnyObjective, Constraint, check_measured, read_objective

MEASURED = ["val/psnr", "val/ssim", "val/kl"]
PSNR = {"metric": "val/psnr", "direction": "maximize"}
KL = {"metric": "val/kl", "direction": "minimize"}


def faults(given: Any) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        check_measured(read_objective(given), MEASURED)
    return [f"{dotted(at)}: {rule}" for at, rule in problems(AnyObjective, caught.value)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("val/psnr >= 27", Constraint("val/psnr", ">=", 27.0)),
        ("val/kl<=4e2", Constraint("val/kl", "<=", 400.0)),
        ("  val/kl  <=  0.5 ", Constraint("val/kl", "<=", 0.5)),
        ("val/ssim >= -0.1", Constraint("val/ssim", ">=", -0.1)),
    ],
)
def test_a_constraint_is_read_and_written(text: str, expected: Constraint) -> None:
    [constraint] = read_objective(PSNR | {"constraints": [text]}).constraints
    assert constraint == expected
    [again] = read_objective(PSNR | {"constraints": [str(constraint)]}).constraints
    assert again == expected


@pytest.mark.parametrize(
    ("text", "value", "violation"),
    [
        ("val/psnr >= 20", 20.0, 0.0),
        ("val/psnr >= 20", 25.0, 0.0),
        ("val/psnr >= 20", 15.0, 0.25),
        ("val/kl <= 400", 500.0, 0.25),
        ("val/kl <= 400", 0.0, 0.0),
        ("val/ssim >= -0.5", -1.0, 1.0),
        ("val/ssim >= 0", -0.3, 0.3),
    ],
)
def test_a_violation_is_a_share_of_the_bound(text: str, value: float, violation: float) -> None:
    objective = read_objective(PSNR | {"constraints": [text]})
    metrics = {"val/psnr": 20.0, objective.constraints[0].metric: value}
    assert objective.violation(metrics) == pytest.approx(violation)
    assert objective.missed(metrics) == ([f"{text} (it is {value:g})"] if violation else [])


def test_violations_add_up_and_metrics_are_listed_once() -> None:
    objective = read_objective(PSNR | {"constraints": ["val/psnr >= 20", "val/kl <= 400", "val/kl >= 1"]})
    assert objective.violation({"val/psnr": 10.0, "val/kl": 600.0}) == pytest.approx(1.0)
    assert objective.shown_metrics == ["val/psnr", "val/kl"]
    assert str(objective) == "maximize val/psnr, where val/psnr >= 20 and val/kl <= 400 and val/kl >= 1"


def test_several_metrics_give_a_point_in_which_more_is_better() -> None:
    objective = read_objective({"metrics": [PSNR, KL]})
    assert objective.first.metric == "val/psnr"
    assert objective.point({"val/psnr": 20.0, "val/kl": 3.0}) == (20.0, -3.0)
    assert [goal.worst() for goal in objective.goals] == [0.0, 1e9]
    assert str(objective) == "maximize val/psnr, minimize val/kl"


@pytest.mark.parametrize("given", [PSNR, PSNR | {"constraints": ["val/kl <= 400"]}, {"metrics": [PSNR, KL]}])
def test_a_dumped_objective_is_read_again(given: dict[str, Any]) -> None:
    reader: TypeAdapter[AnyObjective] = TypeAdapter(AnyObjective)
    objective = reader.validate_python(given)
    assert reader.validate_python(reader.dump_python(objective, mode="json")) == objective
    assert reader.validate_python(reader.dump_python(objective)) == objective


FORM = "must be METRIC >= NUMBER or METRIC <= NUMBER, such as 'val/psnr >= 27'"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (PSNR | {"constraints": ["val/kl < 3"]}, [f"constraints.0: {FORM}, got 'val/kl < 3'"]),
        (PSNR | {"constraints": ["val/kl <= 3", 7, "val/kl <= three"]},
         [f"constraints.1: {FORM}, got 7", f"constraints.2: {FORM}, got 'val/kl <= three'"]),
        (PSNR | {"constraints": "val/kl <= 3"}, ["constraints: must be a list, got 'val/kl <= 3'"]),
        (PSNR | {"constraints": ["val/k >= 3"]},
         ["constraints.0: finetune.metrics lacks it, must be one of val/psnr, val/ssim, val/kl, got 'val/k', "
          "did you mean 'val/kl'?"]),
        (PSNR | {"constraints": ["val/psnr >= 200", "val/ssim >= -1", "val/psnr <= nan"]},
         ["constraints.0: is met always or never, val/psnr lies between 0 and 100",
          "constraints.1: is met always or never, val/ssim lies between -1 and 1",
          "constraints.2: is met always or never, val/psnr lies between 0 and 100"]),
        (PSNR | {"constraint": []},
         ["constraint: unknown key, must be one of metric, direction, constraints, did you mean 'constraints'?"]),
        ({"metrics": [PSNR]}, ["metrics: must be two or more, for one write objective: {metric: ..., direction: ...}"]),
        ({"metrics": [PSNR, PSNR]}, ["metrics.1.metric: val/psnr is given twice"]),
        ({"metrics": [PSNR, {"metric": "val/kl", "direction": "down"}]},
         ["metrics.1.direction: must be one of minimize, maximize, got 'down'"]),
        ({"metrics": [{"metric": "loss", "direction": "minimize"}, KL]},
         ["metrics.0.metric: a weighted loss cannot be compared between trials, must be one of val/psnr, val/ssim, "
          "val/kl, got 'loss'"]),
        ({"metrics": ["val/psnr", KL]}, ["metrics.0: must be a mapping, got 'val/psnr'"]),
        ({"metric": "val/psnr", "metrics": [PSNR, KL]},
         ["metric: unknown key, must be one of metrics, constraints, did you mean 'metrics'?"]),
    ],
)  # fmt: skip
def test_every_problem_has_its_place(given: dict[str, Any], expected: list[str]) -> None:
    assert faults(given) == expected
