"""Estimates of a search: time, and storage compared with the files of real runs."""

from pathlib import Path
from typing import Any

import pytest
from builders import search_spec

from ftae.engine.sizing import Probe, summarize, trial_seconds
from ftae.engine.training.loop import finetune
from ftae.errors import FtaeError
from ftae.search.sizing import Space, check_quota, longest_report_seconds, search_seconds, space_needed
from ftae.specs import SearchSpec


def search(uri: str | None = "http://there:5000", **settings: Any) -> SearchSpec:
    model = {"family": "conv_vae", "channels": 32, "depth": 1, "latent_dim": 16}
    run = {"model": model, "data": {"source": "digits", "resolution": 16}, "num_evals": 4, "metrics": ["psnr"]}
    changes = {f"finetune.{path}": value for path, value in run.items()}
    return search_spec(**changes, **{"finetune.losses": {"mse": 1.0}}, search=settings, tracking={"uri": uri})


def long_search(space: dict[str, Any], **settings: Any) -> SearchSpec:
    run = {"batch_size": 8, "max_steps": 90, "num_evals": 9, "metrics": ["psnr"]}
    changes = {f"finetune.{path}": value for path, value in run.items()}
    return search_spec(**changes, search_space=space, search=settings)


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_run_takes_the_estimated_storage(tmp_path: Path) -> None:
    spec = search(num_trials=1, keep_checkpoints=1)
    checkpoint = summarize(spec.finetune, None).checkpoint_bytes
    for _ in finetune(spec.finetune, tmp_path):
        pass
    running = space_needed(spec, checkpoint).per_running_trial
    # While a checkpoint is written, there is one more.
    assert running * 2 / 3 == pytest.approx(bytes_in(tmp_path / "checkpoints"), rel=0.15)
    pictures = space_needed(spec, 0).lasting / 2  # the baseline has one picture, but counts as a trial
    assert bytes_in(tmp_path / "images") < pictures


def test_mlflows_embedded_store_holds_copies() -> None:
    apart, beside = space_needed(search(), 1000), space_needed(search(uri=None), 1000)
    pictures = apart.lasting - 3 * 1000
    assert beside == Space(4 * 1000 + 2 * pictures, apart.per_running_trial)
    assert apart.total(4) == apart.lasting + 4 * 3 * 1000


def test_the_quota_names_both_numbers() -> None:
    check_quota(search(), 10**15)
    check_quota(search(max_storage_gb=2), 2_000_000_000)
    with pytest.raises(FtaeError) as refusal:
        check_quota(search(max_storage_gb=2), 2_100_000_000)
    assert str(refusal.value) == (
        "search.max_storage_gb: 2 GB are allowed, the search takes about 2.1 GB. Allow more, or lower "
        "search.keep_checkpoints, search.max_concurrent, search.num_trials or finetune.num_evals"
    )


# ------------------------------------------------------------------------------------------------ time

MEASURED = Probe(step_seconds=0.1, eval_seconds=0.5, peak_bytes=10**9, memory_bytes=None, device="cpu", node="here")
RATES = {"optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True}}


def test_the_time_of_a_search_depends_on_the_scheduler() -> None:
    whole = long_search(RATES, num_trials=12, scheduler={"name": "fifo"})
    assert trial_seconds(MEASURED, whole.finetune) == pytest.approx(90 * 0.1 + 10 * 0.5)
    assert search_seconds(MEASURED, whole, at_a_time=4) == pytest.approx(3 * 14.0)
    # The only rung is at step 30 of 90: two thirds of the trials save two thirds of their steps.
    stopped = long_search(RATES, num_trials=12, scheduler={"name": "asha", "reduction_factor": 3})
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
def test_the_time_between_reports_is_that_of_the_largest_batches(space: dict[str, Any], factor: int) -> None:
    assert longest_report_seconds(MEASURED, long_search(space)) == pytest.approx(factor * 1.0 + 0.5)


def test_larger_images_take_longer_to_train_and_to_evaluate() -> None:
    search = long_search({"data.resolution": {"choices": [16, 32]}})
    assert longest_report_seconds(MEASURED, search) == pytest.approx(4 * 1.5)
