"""The seconds of searches and reports, estimated from what a probe measured."""

from typing import Any

import pytest
from builders import search_spec

from ftae.engine.sizing.probe import Probe
from ftae.search.sizing import expected_seconds, search_seconds
from ftae.specs import SearchSpec

MEASURED = Probe(step_seconds=0.1, eval_seconds=0.5, peak_bytes=10**9, memory_bytes=None, device="cpu", node="here")
RATES = {"optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True}}


def search(space: dict[str, Any], **settings: Any) -> SearchSpec:
    run = {"finetune.batch_size": 8, "finetune.max_steps": 90, "finetune.num_evals": 9}
    return search_spec(**run, search_space=space, search=settings)


def test_the_seconds_of_a_search_are_estimated() -> None:
    whole = search(RATES, num_trials=12, scheduler={"name": "fifo"})
    assert search_seconds(MEASURED, whole, at_a_time=4) == pytest.approx(3 * 14.0)
    # A rung at 30 of 90 steps: two thirds of the trials save two thirds of their steps.
    stopped = search(RATES, num_trials=12, scheduler={"name": "asha", "reduction_factor": 3})
    assert stopped.rung_steps() == [30]
    assert search_seconds(MEASURED, stopped, at_a_time=4) == pytest.approx(3 * 14.0 * (30 + 60 / 3) / 90)


@pytest.mark.parametrize(
    ("space", "factor"),
    [
        (RATES, 1),
        ({"batch_size": {"low": 4, "high": 32, "step": 4}}, 4),
        ({"batch_size": {"choices": [8, 16]}, "grad_accumulation": {"low": 1, "high": 3}}, 6),
    ],
)
def test_the_next_report_is_estimated_for_the_largest_batches(space: dict[str, Any], factor: int) -> None:
    assert expected_seconds(MEASURED, search(space), 10, 20) == pytest.approx(factor * 1.0 + 0.5)
    assert expected_seconds(MEASURED, search(space), 0, 0) == pytest.approx(0.5)


def test_larger_images_take_longer_to_train_and_to_evaluate() -> None:
    spec = search({"data.resolution": {"choices": [16, 32]}})
    assert expected_seconds(MEASURED, spec, 10, 20) == pytest.approx(4 * 1.5)
