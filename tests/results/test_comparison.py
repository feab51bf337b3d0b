"""Two searches, exports or runs side by side: what is comparable, which is better, and what differs."""

import json
from pathlib import Path
from typing import Any

import pytest
from builders import eval_report, search_spec
from commands import Ftae, commands_in

from ftae.errors import FtaeError
from ftae.results.comparison import ComparedMetric, compare
from ftae.results.export import PRODUCTION, PROVENANCE
from ftae.results.search_record import SearchRecord
from ftae.search.state import SearchState
from ftae.specs.files import dump
from ftae.specs.search.search import ProductionSpec
from ftae.storage.backends import FolderStore

FACTS = {"dataset_fingerprint": "f00d", "versions": {"ftae": "1"}}
METRICS = ["psnr", "mse", "kl"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(name: str, psnr: float, facts: dict[str, Any] = FACTS, noise: float | None = None, **changes: Any) -> Path:
    """A search below ``searches`` whose only tuned trial has this ``val/psnr``."""
    folder = Path("searches") / name
    folder.mkdir(parents=True)
    settings = {"num_trials": 1, "scheduler": {"name": "fifo"}}
    spec = search_spec(name=name, **{"finetune.metrics": METRICS, "search": settings} | changes)
    state = SearchState(spec, FolderStore(folder), facts)
    for number, value in ((0, 18.0), (1, psnr)):
        state.next_trial()
        metrics = {"val/psnr": value, "val/mse": 1.0 / value, "val/kl": value, "train/lr": 1e-3}
        state.report(number, eval_report(12 * number, value, metrics=metrics))
    if noise is not None:  # as a model of the curves would say with its next proposal
        state._append("suggest", trial=2, params={}, kind="sampled", noise=noise)
        state.end(2, "failed")
    state.close("complete")
    return folder


def make_export(folder: Path, psnr: float, **more: Any) -> Path:
    """What ``ftae export`` writes, as far as a comparison reads it."""
    folder.mkdir(parents=True)
    spec = search_spec(**{"finetune.metrics": METRICS})
    (folder / PRODUCTION).write_text(dump(ProductionSpec(name="small-trial-1", finetune=spec.finetune)))
    facts = {"trial": 1, "metrics": {"val/psnr": psnr, "train/lr": 1.0}, "objective": spec.objective.model_dump()}
    (folder / PROVENANCE).write_text(json.dumps(facts | FACTS | more))
    return folder


def by_name(a: str | Path, b: str | Path) -> dict[str, ComparedMetric]:
    return {metric.metric: metric for metric in compare(str(a), str(b), "searches").metrics}


def test_each_metric_is_better_on_its_own_side(home: Path) -> None:
    make("one", 20.0)
    make("other", 25.0)
    found = by_name("one", "other")
    assert list(found) == ["val/psnr", "val/mse", "val/kl"]
    assert found["val/psnr"] == ComparedMetric("val/psnr", 20.0, 25.0, 5.0, "b", None)
    assert (found["val/mse"].better, found["val/kl"].better) == ("b", None)
    assert by_name("other", "searches/one")["val/psnr"].better == "a"
    assert by_name("one", "one")["val/psnr"].better is None


@pytest.mark.parametrize(
    ("noises", "near"),
    [((None, None), None), ((1.0, None), False), ((4.0, None), True), ((3.0, 3.0), False), ((3.0, 4.1), True)],
)
def test_noise_is_that_of_a_difference(home: Path, noises: tuple[float | None, float | None], near: Any) -> None:
    for name, psnr, noise in (("one", 20.0, noises[0]), ("other", 25.0, noises[1])):
        make(name, psnr, noise=noise)
    assert by_name("one", "other")["val/psnr"].within_noise is near
    assert by_name("one", "other")["val/mse"].within_noise is None


def test_a_confirmed_trial_counts_with_its_mean(home: Path) -> None:
    confirm = {"search": {"num_trials": 1, "scheduler": {"name": "fifo"}, "confirm": {"seeds": 1}}}
    folder = make("one", 20.0)
    state = SearchState(search_spec(name="one", **{"finetune.metrics": METRICS} | confirm), FolderStore(folder), FACTS)
    run = state.next_trial()
    assert run is not None
    metrics = {"val/psnr": 22.0, "val/mse": 0.1, "val/kl": 1.0}
    state.report(run.number, eval_report(12, 22.0, metrics=metrics))
    state.close("complete")
    make("other", 21.5)
    found = compare("one", "other", "searches")
    assert found.a.deviations["val/psnr"] == pytest.approx(1.0)  # the spread of 20 and 22 over the root of 2
    psnr = found.metrics[0]
    assert (psnr.a, psnr.difference, psnr.within_noise) == (21.0, 0.5, True)


def test_what_differs_and_what_it_cost_is_told(home: Path) -> None:
    make("one", 20.0)
    make("other", 25.0, **{"finetune.batch_size": 4, "search.sampler": "random", "search.storage": "elsewhere"})
    found = compare("one", "other", "searches")
    assert found.differing == {"batch_size": (8, 4), "search.sampler": ("curve", "random")}
    assert found.a.full_trainings == 1.0
    assert json.loads(json.dumps(found.plain()))["b"] == {
        "name": "other",
        "kind": "search",
        "trial": 1,
        "full_trainings": 1.0,
        "hours": found.b.hours,
    }


def test_an_export_is_compared_as_it_was_measured(home: Path) -> None:
    make("one", 20.0)
    confirmed = {"values": {"0": 24.0, "1": 26.0}, "mean": 25.0, "sd": 2.0**0.5}
    folder = make_export(home / "exported", 26.0, confirmed=confirmed, full_trainings=3.5)
    found = compare("one", str(folder), "searches")
    assert [(metric.metric, metric.b) for metric in found.metrics] == [("val/psnr", 25.0)]
    assert found.b.deviations == {"val/psnr": pytest.approx(1.0)}
    assert (found.b.full_trainings, found.b.hours) == (3.5, None)
    assert found.warnings == ("only trial 1 of one was measured by val/mse and val/kl",)
    assert "search.sampler" not in found.differing
    (folder / PROVENANCE).write_text('{"trial": 1, "metrics": []}')
    with pytest.raises(FtaeError, match="is damaged, or not written by ftae export"):
        compare("one", str(folder), "searches")


@pytest.mark.parametrize(
    ("facts", "changes", "message"),
    [
        ({"dataset_fingerprint": "beef"}, {}, r"different images \(dataset fingerprints f00d and beef\)"),
        ({}, {"finetune.data.degrade": {"noise": 0.1}}, r"in different ways: data\.degrade differ"),
    ],
)
def test_other_images_are_refused(home: Path, facts: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    make("one", 20.0)
    make("other", 25.0, FACTS | facts, **changes)
    with pytest.raises(FtaeError, match=message):
        compare("one", "other", "searches")


def test_training_images_may_be_used_in_other_ways(home: Path) -> None:
    make("one", 20.0)
    make("other", 25.0, **{"finetune.data.flip": True})
    assert compare("one", "other", "searches").differing == {"data.flip": (False, True)}


def test_a_metric_by_another_network_is_left_out(home: Path, tmp_path: Path) -> None:
    weights = str(tmp_path / "weights.pth")
    networks = {"finetune.perceptual": {"net": "vgg16", "weights": weights}, "finetune.data.resolution": 32}
    lpips = networks | {"finetune.metrics": [*METRICS, "lpips"]}
    for name, digest in (("one", "a"), ("other", "b"), ("same", "a")):
        make_with_lpips(name, digest, lpips)
    found = compare("one", "other", "searches")
    assert "val/lpips" not in [metric.metric for metric in found.metrics]
    assert found.warnings == ("val/lpips is left out: the weights of finetune.perceptual differ",)
    assert "val/lpips" in by_name("one", "same")


def make_with_lpips(name: str, digest: str, changes: dict[str, Any]) -> SearchRecord:
    folder = Path("searches") / name
    folder.mkdir(parents=True)
    spec = search_spec(name=name, **{"search.num_trials": 1} | changes)
    state = SearchState(spec, FolderStore(folder), FACTS | {"perceptual_digest": digest})
    for number in (0, 1):
        state.next_trial()
        state.report(number, eval_report(12 * number, 20.0, metrics={"val/psnr": 20.0, "val/lpips": 0.1}))
    state.close("complete")
    return state.record


def test_doubts_are_told(home: Path) -> None:
    make("one", 20.0)
    make("other", 25.0, {"versions": {"ftae": "2"}})
    assert compare("one", "other", "searches").warnings == (
        "whether the images are the same is not known: trial 1 of other has no fingerprint of them",
        "ftae 1 and 2 measured the two, and may have defined a metric differently",
    )


@pytest.fixture
def ftae(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ftae:
    return commands_in(tmp_path, monkeypatch, capsys)


def test_the_command_prints_both(ftae: Ftae) -> None:
    make("one", 20.0)
    make("other", 25.0, {**FACTS, "versions": {"ftae": "2"}}, **{"finetune.max_grad_norm": None})
    result = ftae("compare", "one", "other")
    assert result.status == 0
    assert result.err.startswith("warning: ftae 1 and 2 measured the two")
    lines = [" ".join(line.split()) for line in result.out.splitlines()]
    assert lines[0].startswith("A: trial 1 of one, 1 full training, ")
    assert "val/psnr 20 25 5 B" in lines
    assert "max_grad_norm 1 null" in lines
    assert json.loads(ftae("compare", "one", "other", "--json").out)["metrics"][0]["better"] == "b"
    missing = ftae("compare", "one", "none")
    assert (missing.status, missing.err) == (
        1,
        "error: there is no search 'none' in searches; choose one of one, other\n",
    )
