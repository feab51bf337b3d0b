"""A whole search: absolute paths, the machine of its trials, workers that share batches, what suits the objective."""

from pathlib import Path
from typing import Any

import pytest
from builders import search_dict, search_spec
from pydantic import ValidationError

from ftae.specs import SearchSpec


def test_a_search_with_absolute_paths_is_valid_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("models/a", "models/b", "photos"):
        Path(name).mkdir(parents=True)
    spec = search_spec(
        search_space={"model.pretrained": {"choices": ["models/a", "models/b", "org/hub-id"]}},
        **{
            "finetune.model": {"family": "autoencoder_tiny", "pretrained": "models/a"},
            "finetune.data": {"source": "image_folder", "train": "photos", "val": "1e-1", "resolution": 32},
            "finetune.losses": {"mse": 1.0},
        },
    )
    assert spec.finetune.data.val == 0.1, "a share that YAML reads as text is no folder"
    absolute = spec.with_absolute_paths()
    assert absolute.finetune.model.pretrained == f"{tmp_path}/models/a"
    choices = absolute.search_space["model.pretrained"].corners()
    assert choices == (f"{tmp_path}/models/a", f"{tmp_path}/models/b", "org/hub-id")
    monkeypatch.chdir("/")
    assert SearchSpec.model_validate(absolute.model_dump(mode="json")) == absolute


def test_only_a_storage_folder_becomes_absolute() -> None:
    for storage, absolute in (("s3://bucket/x", "s3://bucket/x"), ("here", str(Path("here").absolute()))):
        spec = search_spec(tracking={"uri": "http://there"}, **{"search.storage": storage})
        assert spec.with_absolute_paths().search.storage == absolute


def test_a_local_mlflow_store_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = search_spec(tracking={"uri": "sqlite:///mlflow.db"})
    assert spec.with_absolute_paths().tracking.uri == f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert search_spec().with_absolute_paths().tracking.uri is None


def test_the_resources_decide_the_device_of_a_trial() -> None:
    def device(**gpus: float) -> str:
        return search_spec(**{"search.resources": gpus}).trial_spec({}).device

    assert (device(gpus=0), device(gpus=0.5)) == ("cpu", "cuda")


def test_gpus_per_trial_is_short_for_workers_with_a_gpu_each() -> None:
    short, long = (
        search_spec(**{"search.resources": resources})
        for resources in ({"gpus_per_trial": 4, "cpus": 2}, {"gpus": 1, "workers": 4, "cpus": 2})
    )
    assert short == long
    assert short.model_dump()["search"]["resources"] == {"cpus": 2.0, "gpus": 1.0, "workers": 4}
    assert short.trial_spec({}).num_threads == 2  # of each worker


@pytest.mark.parametrize(
    ("searched", "problem"),
    [
        ({"choices": [4, 8]}, None),
        ({"low": 4, "high": 16, "step": 4}, None),
        ({"choices": [4, 6, 8]}, "4 workers cannot share batch_size 6 evenly"),
        ({"low": 4, "high": 16}, "4 workers cannot share every batch_size of 4 .. 16, step 1 evenly, use multiples"),
        ({"low": 6, "high": 14, "step": 2}, "4 workers cannot share every batch_size of 6 .. 14, step 2 evenly"),
    ],
)
def test_workers_share_every_batch_evenly(searched: dict[str, Any], problem: str | None) -> None:
    data = search_dict(search_space={"batch_size": searched}, **{"search.resources": {"workers": 4}})
    if problem is None:
        assert SearchSpec.model_validate(data).search.resources.workers == 4
    else:
        with pytest.raises(ValidationError, match=f"resources.workers: {problem}"):
            SearchSpec.model_validate(data)


# ------------------------------------------------------------------------- what suits the objective

TWO = {"metrics": [{"metric": f"val/{m}", "direction": d} for m, d in (("psnr", "maximize"), ("ssim", "maximize"))]}


def with_goals(objective: dict[str, Any] | None = None, **settings: Any) -> SearchSpec:
    changes = {"finetune.metrics": ["psnr", "ssim"]} | ({} if objective is None else {"objective": objective})
    return search_spec(search=settings, **changes)


def test_the_default_sampler_and_scheduler_suit_the_objective() -> None:
    one, two = with_goals().search, with_goals(TWO).search
    assert (one.sampler, one.scheduler.name) == ("curve", "forecast")
    assert (two.sampler, two.scheduler.name) == ("tpe", "asha")
    given = with_goals(TWO, sampler="random", scheduler={"name": "fifo"}).search
    assert (given.sampler, given.scheduler.name) == ("random", "fifo")
    again = SearchSpec.model_validate(with_goals(TWO).model_dump(mode="json"))
    assert again == with_goals(TWO)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "curve"}, "curve optimises one metric, and objective has 2; use tpe or random"),
        ({"scheduler": {"name": "forecast"}}, "forecast optimises one metric, and objective has 2; use asha or fifo"),
    ],
)
def test_the_model_of_the_curves_is_refused_for_several_metrics(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        with_goals(TWO, **settings)
    [error] = refusal.value.errors()
    assert message in str(error)
    assert with_goals(**settings).search.num_trials == 16


@pytest.mark.parametrize(
    ("grace", "max_steps", "num_evals", "steps"),
    [
        (0.11, 90, 9, [10, 20, 30, 40, 50, 60, 70, 80]),
        (0.11, 300, 9, [33, 67, 100, 133, 167, 200, 233, 267]),  # a ninth, rounded down, is enough
        (0.5, 90, 9, [50, 60, 70, 80]),
        (0.9, 90, 9, []),
        (0.11, 12, 1, []),
    ],
)
def test_the_forecast_is_made_at_the_evaluations_after_the_grace(
    grace: float, max_steps: int, num_evals: int, steps: list[int]
) -> None:
    scheduler = {"name": "forecast", "grace_fraction": grace}
    changes = {"finetune.max_steps": max_steps, "finetune.num_evals": num_evals}
    search = search_spec(search={"scheduler": scheduler}, **changes)
    assert search.rung_steps() == steps
    assert bool(search.search.scheduler.warnings(search.finetune)) is (steps == [])
    shorter = search.search.scheduler.expected_steps(search.finetune) < max_steps
    assert shorter is (steps != [])
