"""``search.warm_start`` in a file: which searches it may name, and with what."""

from pathlib import Path
from typing import Any

import pytest
from builders import search_dict, search_spec
from pydantic import ValidationError

from ftae.search.driver import MAY_CHANGE
from ftae.specs import SearchSpec

TWO = {"metrics": [{"metric": "val/psnr", "direction": "maximize"}, {"metric": "val/mse", "direction": "minimize"}]}


def settings(warm_start: Any, **more: Any) -> dict[str, Any]:
    return {"search": {"num_trials": 2, "warm_start": warm_start, **more}}


def test_by_default_a_search_starts_without_others() -> None:
    assert search_spec().search.warm_start == ()


def test_names_and_urls_stay_and_folders_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["first", "old/second", "/at/third", "s3://bucket/fourth"]
    spec = search_spec(**settings(given)).with_absolute_paths()
    assert spec.search.warm_start == ("first", f"{tmp_path}/old/second", "/at/third", "s3://bucket/fourth")
    assert SearchSpec.model_validate(spec.model_dump(mode="json")) == spec


def test_in_an_object_store_folders_become_absolute_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    changes = settings(["old/second"], storage="s3://bucket/x") | {"tracking": {"uri": "http://there"}}
    searched = search_spec(**changes).with_absolute_paths().search
    assert (searched.storage, searched.warm_start) == ("s3://bucket/x", (f"{tmp_path}/old/second",))


def test_it_is_part_of_the_question() -> None:
    assert "warm_start" not in MAY_CHANGE


@pytest.mark.parametrize(
    ("warm_start", "problem"),
    [
        ("first", "search.warm_start: must be a list"),
        ([""], "search.warm_start.0: '' must not be empty"),
        (["../.."], r"search.warm_start.0: '../..' must not be empty, consist of dots alone"),
        (["old/"], None),
        (["first", "~"], "search.warm_start.1: '~' must be the name of a file, not a path"),
        (["a\\b"], "search.warm_start.0: .* must be the name of a file, not a path"),
        (["mlflow.db"], "search.warm_start.0: 'mlflow.db' is the name of the embedded MLflow store"),
        (["first", "first"], "search.warm_start.1: names 'first' twice"),
        (["s3://key:secret@bucket/x"], "search.warm_start.0: must not hold a password"),
        (["small"], "search.warm_start.0: 'small' is this search itself"),
    ],
)
def test_what_it_names_is_checked(warm_start: Any, problem: str | None) -> None:
    data = search_dict(**settings(warm_start))
    if problem is None:
        assert SearchSpec.model_validate(data).search.warm_start == ("old/",)
        return
    with pytest.raises(ValidationError) as refused:
        SearchSpec(**data)
    refused.match(problem)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("more", "objective", "is_valid"),
    [
        ({}, None, True),
        ({"sampler": "curve", "scheduler": {"name": "asha"}}, None, True),
        ({"sampler": "random", "scheduler": {"name": "forecast"}}, None, False),
        ({"sampler": "tpe", "scheduler": {"name": "asha"}}, None, False),
        ({}, TWO, False),
    ],
)
def test_it_needs_the_sampler_that_learns_from_it(more: dict[str, Any], objective: Any, is_valid: bool) -> None:
    changes: dict[str, Any] = {"finetune.metrics": ["psnr", "mse"]} | settings(["first"], **more)
    data = search_dict(**changes | ({} if objective is None else {"objective": objective}))
    if is_valid:
        assert SearchSpec.model_validate(data).search.warm_start == ("first",)
    else:
        with pytest.raises(ValidationError, match=r"search.warm_start: has no effect with sampler \w+"):
            SearchSpec(**data)
