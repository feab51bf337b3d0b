"""A whole search: absolute paths, the machine of its trials, workers that share batches."""

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
