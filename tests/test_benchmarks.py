"""What the benchmarks compute: work counted from the files of both sides, efficiency, and that the terms are equal."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from benchmarks.material import check_resolution, fewer, num_images, untrained_kl
from benchmarks.search_efficiency import summary
from benchmarks.sides import VARIANTS, Case, variants_of, write_search
from benchmarks.work import Work, done_by_ftae, done_by_tune, efficiency
from benchmarks.workloads import ENCODER_STAGES, WORKLOADS
from ftae.engine.models.families import build_model
from ftae.specs.files import load_search
from ftae.storage.journal import Journal


def report(trial: int, step: int, value: float) -> dict[str, Any]:
    kept = {"timing": {}, "checkpoint": None, "images": None}
    return {"trial": trial, "step": step, "value": value, "metrics": {"val/psnr": value}, **kept}


SEARCH = {"name": "s", "search_space": {}, "search": {"num_trials": 3}, "finetune": {"max_steps": 30}}


def test_work_is_counted_from_the_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    objective = {"metric": "val/psnr", "direction": "maximize"}
    journal.append(
        "open",
        search=SEARCH | {"objective": objective},
        digest="",
        facts={},
    )
    for trial, kind in enumerate(("baseline", "file", "sampled", "sampled")):
        journal.append("suggest", trial=trial, kind=kind, params={})
    steps = {0: [0], 1: [0, 10, 20, 30], 2: [0, 10], 3: [0, 10, 20, 10, 20, 30]}  # the last one lost its worker
    for trial, reported in steps.items():
        for step in reported:
            journal.append("report", **report(trial, step, 20.0 + trial + step / 10))
    journal.close()
    assert done_by_ftae(tmp_path, max_steps=30) == Work(
        steps=30 + 10 + 30, evaluations=1 + 3 + 1 + 3, repeated=3, trials=3, stopped=1, best=26.0
    )


def test_trials_that_report_no_untuned_model_repeat_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    objective = {"metric": "val/psnr", "direction": "maximize"}
    journal.append(
        "open",
        search=SEARCH | {"objective": objective},
        digest="",
        facts={},
    )
    for trial, kind in enumerate(("baseline", "file", "sampled")):
        journal.append("suggest", trial=trial, kind=kind, params={})
    journal.append("report", **report(0, 0, 20.0))
    journal.append("report", **report(1, 10, 21.0))
    journal.close()
    assert done_by_ftae(tmp_path, max_steps=30) == Work(10, 2, repeated=0, trials=2, stopped=2, best=None)


def test_work_is_counted_from_the_results_of_tune(tmp_path: Path) -> None:
    for name, steps in {"train_a": [10, 20, 30], "train_b": [10]}.items():
        (tmp_path / name).mkdir()
        lines = [json.dumps({"step": step, "val_psnr": 20.0 + step / 10}) for step in steps]
        (tmp_path / name / "result.json").write_text("\n".join(lines) + "\n")
    (tmp_path / "tuner.pkl").touch()
    assert done_by_tune(tmp_path, max_steps=30) == Work(40, 4, repeated=0, trials=2, stopped=1, best=23.0)


def test_efficiency_is_the_share_of_the_workers_time() -> None:
    work = Work(steps=100, evaluations=5, repeated=7, trials=3, stopped=1, best=None)
    seconds = work.seconds(step=0.2, image=0.01, num_images=40)
    assert seconds == pytest.approx(22.0)
    assert efficiency(seconds, workers=2, wall=20.0) == pytest.approx(0.55)


def run(side: str, repeat: int, wall: float, share: float, best: float | None = 21.0) -> dict[str, Any]:
    work = Work(steps=40, evaluations=4, repeated=0, trials=2, stopped=1, best=best)
    efficiencies = {"efficiency_alone": share, "efficiency_beside": 1.2 * share, "work_seconds_alone": 2 * wall * share}
    return {"workload": "w", "side": side, "repeat": repeat, "wall_seconds": wall, "work": vars(work)} | efficiencies


def test_the_ratio_is_that_of_the_pairs() -> None:
    runs = [run("recipe", 0, 30.0, 0.5), run("fp32", 0, 10.0, 0.9)]
    runs += [run("fp32", 1, 40.0, 0.8), run("recipe", 1, 40.0, 0.4)]
    runs += [run("recipe", 2, 60.0, 0.3, best=None), run("fp32", 2, 30.0, 0.7)]
    recipe, fp32 = summary(runs)
    assert (recipe["side"], recipe["times_faster"], recipe["wall_seconds"]) == ("recipe", 1.0, 40.0)
    assert recipe["best"] == 21.0  # of those that have one
    assert fp32["times_faster"] == 2.0  # of 3, 1 and 2; the medians alone would say 40 / 30
    assert (fp32["wall_least"], fp32["wall_most"], fp32["repeats"]) == (10.0, 40.0, 3)
    assert (fp32["efficiency_alone"], fp32["efficiency_beside"]) == (0.8, pytest.approx(0.96))
    assert math.isnan(summary([run("recipe", 0, 30.0, 0.5, best=None)])[0]["best"])


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_search_files_are_valid_and_have_the_rungs_of_the_recipe(name: str, variant: str, tmp_path: Path) -> None:
    workload = WORKLOADS[name]
    spec = load_search(write_search(Case(name, workload, tmp_path, tmp_path), variant, tmp_path))
    assert spec.finetune.eval_steps() == workload.eval_steps()
    assert spec.rung_steps() == [workload.max_steps // 3]  # Tune's brackets: at a third, and at the end
    assert spec.finetune.precision == ("bf16" if variant == "bf16" else "fp32")
    assert (spec.finetune.frozen_cache_gb == 0.0) == (variant == "fp32")
    assert spec.search.num_trials == workload.num_trials


def test_a_workload_has_an_evaluation_at_the_rung() -> None:
    with pytest.raises(AssertionError):
        replace(WORKLOADS["digits"], num_evals=4)


def test_only_a_frozen_encoder_can_be_cached() -> None:
    assert variants_of(WORKLOADS["kl-full"]) == ["fp32", "bf16"]
    assert variants_of(WORKLOADS["kl-decoder"]) == ["fp32", "cache", "bf16"]


def test_both_sides_freeze_the_same(tmp_path: Path) -> None:
    workload = WORKLOADS["kl-decoder"]
    case = Case("kl-decoder", workload, untrained_kl(tmp_path), tmp_path)
    spec = load_search(write_search(case, "fp32", tmp_path))
    stages = build_model(spec.finetune, None).stages
    frozen = [stage.name for stage in stages[:ENCODER_STAGES]]
    assert frozen[-1] == "quant_conv"
    assert all(name.startswith("encoder.") for name in frozen[:-1])
    assert not any(stage.name.startswith("encoder.") for stage in stages[ENCODER_STAGES:])


def test_fewer_validation_images_are_of_all_classes(tmp_path: Path) -> None:
    for part, count in (("train", 2), ("val", 5)):
        for label in "abc":
            folder = tmp_path / "images" / part / label
            folder.mkdir(parents=True)
            for number in range(count):
                PIL.Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
    left = fewer(tmp_path / "images", tmp_path, 7)
    assert [num_images(left / "val" / label) for label in "abc"] == [3, 2, 2]
    assert num_images(left / "train") == 6
    with pytest.raises(ValueError, match="images of 32x32; these are"):
        check_resolution(untrained_kl(tmp_path), tmp_path / "images")
