"""One way to name a model: which one is meant, and what is said where none is."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from builders import small_search

from ftae.engine.training.checkpoint import evaluated_weights
from ftae.errors import FtaeError
from ftae.inference.model import load_model
from ftae.inference.source import ModelSource, find_model, with_settings
from ftae.results.replay import replay
from ftae.specs.files import dump

SEARCH = small_search()

Find = Callable[..., ModelSource]


@pytest.fixture
def find(home: Path, monkeypatch: pytest.MonkeyPatch) -> Find:
    monkeypatch.chdir(home)
    return lambda name, **chosen: find_model(name, "searches", notify=lambda line: None, **chosen)


def weights_of(source: ModelSource) -> dict[str, torch.Tensor]:
    return dict(load_model(source).autoencoder.state_dict())


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_best_trial_has_many_names(find: Find, home: Path) -> None:
    best = replay(home / "searches/small").ranked()[0]
    assert best.checkpoint is not None
    names = ["small", "searches/small", "exports/small", f"searches/small/trials/{best.number:04d}"]
    found = [find(name) for name in [*names, f"searches/small/{best.checkpoint}"]]
    expected = evaluated_weights(home / "searches/small" / best.checkpoint)
    for source in found:
        assert same(weights_of(source), expected)
        assert source.spec.optimizer == SEARCH.trial_spec(best.params).optimizer
    assert find("small").description == f"trial {best.number} of small"
    other = 3 - best.number
    assert find("small", trial=other).description == f"trial {other} of small"
    assert not same(weights_of(find("small", trial=other)), expected)


def test_a_run_is_its_newest_checkpoint_which_is_the_model_it_wrote(find: Find, home: Path, tmp_path: Path) -> None:
    source = find("runs/digits")
    assert source.weights == Path("runs/digits/checkpoints/step-00000012")
    for part in ("model", "production.yaml"):
        copy = shutil.copytree if part == "model" else shutil.copyfile
        copy(home / "runs/digits" / part, tmp_path / part)
    assert same(weights_of(find(str(tmp_path))), weights_of(source))


@pytest.mark.parametrize("name", ["small", "exports/small", "runs/digits", "search.yaml"])
def test_the_untuned_model(find: Find, home: Path, name: str, tmp_path: Path) -> None:
    if name == "search.yaml":
        (tmp_path / name).write_text(dump(SEARCH))
        name = str(tmp_path / name)
    untuned = weights_of(find(name, baseline=True))
    assert same(untuned, weights_of(ModelSource(SEARCH.trial_spec({}), None, "")))
    assert same(untuned, weights_of(find("small", trial=0)))


def test_loading_draws_nothing(find: Find) -> None:
    before = torch.get_rng_state()
    for source in (find("small"), find("exports/small"), find("small", baseline=True)):
        load_model(source)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_released_model_needs_neither_images_nor_what_it_began_with(find: Find, tmp_path: Path) -> None:
    spec = SEARCH.finetune.model_dump() | {"data": {"source": "image_folder", "train": "gone", "resolution": 16}}
    spec["data"] |= {"color": "grey"}
    spec["model"]["pretrained"] = "gone"
    shutil.copytree("exports/small/model", tmp_path / "model")
    run = SEARCH.finetune.model_validate(spec)
    model = load_model(ModelSource(run, tmp_path / "model", "moved"))
    assert model.class_names == ("3", "7")
    assert same(dict(model.autoencoder.state_dict()), weights_of(find("exports/small")))


def test_a_run_made_on_a_gpu_is_used_without(find: Find) -> None:
    found = find("small")
    source = replace(found, spec=found.spec.model_copy(update={"device": "cuda"}))
    assert load_model(source).device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_gpu_that_is_asked_for_is_not_passed_over(find: Find, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert with_settings(find("small"), ["device=cuda"]).spec.device == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for text in ("device=cuda", "finetune.device=cuda"):
        with pytest.raises(FtaeError, match="device=cuda: torch finds no GPU on this machine"):
            with_settings(find("small"), [text])


def test_a_damaged_checkpoint_is_passed_over_in_a_run_and_refused_by_name(find: Find, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree("runs/digits", run)
    (run / "checkpoints/step-00000012/model.safetensors").write_bytes(b"damaged")
    said: list[str] = []
    source = find_model(str(run), "searches", notify=said.append)
    assert source.weights == run / "checkpoints/step-00000006"
    assert len(said) == 1
    assert "going back to the one before it" in said[0]
    with pytest.raises(FtaeError, match=r"step-00000012 is damaged: model.safetensors is not what was written"):
        find(str(run / "checkpoints/step-00000012"))


def test_settings_reach_the_data_and_unpin_the_images(find: Find) -> None:
    source = with_settings(find("small"), ["data.shift=invert", "finetune.batch_size=2"])
    assert find("small").spec.data.fingerprint is not None
    assert (source.spec.data.fingerprint, source.spec.batch_size) == (None, 2)
    assert source.spec.data.model_dump()["shift"] == "invert"


@pytest.mark.parametrize(
    ("name", "chosen", "message"),
    [
        (
            "none",
            {},
            "there is no model 'none'; name a folder written by ftae export or ftae train (found here: exports/sm",
        ),
        ("none", {}, ", a checkpoint folder, or a search (found in searches: small)"),
        ("searches", {}, "there is no model 'searches'; "),
        (
            "exports/small/README.md",
            {},
            "README.md is a file: it describes a model but contains no weights. Use --baseline",
        ),
        (
            "runs/digits",
            {"trial": 1},
            "trial 1 can only be chosen from a search; runs/digits is one model (runs/digits at step-",
        ),
        ("small", {"trial": 9}, "small: trial 9 has no checkpoint; choose one of "),
        ("small", {"trial": 1, "baseline": True}, "trial and baseline name two different models"),
    ],
)
def test_what_names_no_model(find: Find, name: str, chosen: dict[str, int], message: str) -> None:
    with pytest.raises(FtaeError) as refusal:
        find(name, **chosen)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_run_without_a_checkpoint(find: Find, tmp_path: Path) -> None:
    shutil.copyfile("runs/digits/production.yaml", tmp_path / "production.yaml")
    with pytest.raises(FtaeError, match=r"the run in .* has no checkpoint yet"):
        find(str(tmp_path))
    assert find(str(tmp_path), baseline=True).weights is None


def test_a_checkpoint_that_describes_no_run(find: Find, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps({"spec": {"model": 1}}))
    with pytest.raises(FtaeError, match=r"report\.json describes no run"):
        find(str(tmp_path))


@pytest.mark.parametrize("text", ["losses.mse=2", "data", "model.channels=3", "data.resolution=3"])
def test_settings_without_effect_or_sense(find: Find, text: str) -> None:
    with pytest.raises(FtaeError, match=r"must be path=value with a path in data, batch_size|data.resolution: must be"):
        with_settings(find("small"), [text])
