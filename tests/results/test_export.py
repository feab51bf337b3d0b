"""From a search to one folder for production, on a search that was really trained (without Ray)."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from builders import search_spec

from ftae.engine.data.dataset import load_dataset
from ftae.engine.training.export_model import ExportedModel
from ftae.engine.training.loop import finetune
from ftae.errors import FtaeError
from ftae.results.export import _latents_note, export
from ftae.results.replay import replay
from ftae.results.search_record import SearchRecord, TrialRecord
from ftae.results.verdict import verdict
from ftae.search.provenance import provenance
from ftae.search.state import SearchState
from ftae.specs import ProductionSpec, SearchSpec
from ftae.specs.files import load_production
from ftae.storage import journal
from ftae.storage.backends import FolderStore

CHANGES: dict[str, Any] = {
    "finetune.data": {"source": "digits", "resolution": 16},
    "finetune.optimizer.lr": 1e-6,
    "finetune.ema_half_life_fraction": 0.1,
    "finetune.num_evals": 3,
    "finetune.metrics": ["psnr", "ssim"],
    "finetune.seed": 5,
    "search_space": {
        "optimizer.lr": {"low": 1e-6, "high": 1e-2, "log": True},
        "freeze_depth": {"choices": [0, 2]},  # 2: encoder and bottleneck
    },
    "search": {"num_trials": 4, "scheduler": {"name": "fifo"}, "seed": 1},
    "tracking.experiment": "ours",
}
SEARCH = search_spec(**CHANGES)


def run_trials(folder: Path, search: SearchSpec) -> SearchRecord:
    """A search without Ray: one trial after the other in this process."""
    folder.mkdir()
    state = SearchState(search, FolderStore(folder), provenance(search, load_dataset(search.finetune.data)))
    while (trial := state.next_trial()) is not None:
        for report in finetune(search.trial_spec(trial.params), folder / "trials" / f"{trial.number:04d}"):
            if not state.report(trial.number, report):
                break
    state.close("complete")
    return replay(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("searches") / "small"
    record = run_trials(folder, SEARCH)
    assert {trial.params.get("freeze_depth") for trial in record.ranked()} == {0, 2}
    return folder


@pytest.fixture(scope="module")
def record(folder: Path) -> SearchRecord:
    return replay(folder)


@pytest.fixture(scope="module")
def exported(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exports") / "below" / "small"
    export(FolderStore(folder), out)
    return out


def trial_with(record: SearchRecord, freeze_depth: int) -> TrialRecord:
    return next(trial for trial in record.ranked() if trial.params["freeze_depth"] == freeze_depth)


def test_the_best_trial_is_written_as_one_folder(folder: Path, record: SearchRecord, tmp_path: Path) -> None:
    trial = export(FolderStore(folder), tmp_path / "out").trial
    assert trial == record.ranked()[0]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"production.yaml", "model", "provenance.json", "README.md", "reconstructions.png"} <= names
    assert {"MLmodel", "requirements.txt", "code", "input_example.json"} <= names
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    picture = folder / trial.reports[-1]["images"]
    assert (tmp_path / "out" / "reconstructions.png").read_bytes() == picture.read_bytes()


def test_the_production_file_is_the_trials_run(exported: Path, record: SearchRecord) -> None:
    best = record.ranked()[0]
    assert load_production(exported / "production.yaml") == ProductionSpec(
        name=f"small-trial-{best.number}",
        finetune=SEARCH.trial_spec(best.params),
        tracking=SEARCH.tracking,
        from_search={
            "search": "small",
            "trial": best.number,
            "dataset_fingerprint": record.facts["dataset_fingerprint"],
            "objective": {"metric": "val/psnr", "direction": "maximize", "constraints": []},
        },
    )


def test_the_production_file_repeats_the_trial(exported: Path, record: SearchRecord, tmp_path: Path) -> None:
    spec = load_production(exported / "production.yaml").finetune
    assert [r.metrics for r in finetune(spec, tmp_path)] == [r["metrics"] for r in record.ranked()[0].reports]


def test_the_model_measures_as_the_trial_did(exported: Path, record: SearchRecord, tmp_path: Path) -> None:
    spec = load_production(exported / "production.yaml").model_dump()["finetune"]
    spec["model"] = {"family": "conv_vae", "pretrained": str(exported / "model")}
    untouched = next(finetune(SEARCH.finetune.model_validate(spec), tmp_path))
    best = record.ranked()[0].metrics
    assert untouched.metrics == {name: best[name] for name in ("val/psnr", "val/ssim")}


def test_the_provenance_says_where_the_model_came_from(exported: Path, record: SearchRecord) -> None:
    best = record.ranked()[0]
    provenance: dict[str, Any] = json.loads((exported / "provenance.json").read_text())
    assert record.baseline is not None
    assert {
        key: provenance[key] for key in ("search", "search_digest", "trial", "params", "seed", "value", "baseline")
    } == {
        "search": "small",
        "search_digest": SEARCH.digest(),
        "trial": best.number,
        "params": best.params,
        "seed": 5,
        "value": best.value,
        "baseline": record.baseline.value,
    }
    assert provenance["finetune_digest"] == SEARCH.trial_spec(best.params).digest()
    assert provenance["metrics"] == best.metrics
    assert provenance["skipped_images"] == []
    assert len(provenance["dataset_fingerprint"]) >= 16
    assert provenance["versions"]["torch"].startswith("2.")
    assert set(provenance["versions"]) >= {"python", "ftae", "torch", "diffusers", "ray", "optuna", "mlflow"}


def test_the_readme_holds_the_verdict_and_every_metric(exported: Path, record: SearchRecord) -> None:
    best, text = record.ranked()[0], (exported / "README.md").read_text()
    assert record.baseline is not None
    assert text.startswith(f"# small, trial {best.number}\n\n{verdict(record, best)}\n")
    for name in ("val/psnr", "val/ssim"):
        assert f"| {name} | {record.baseline.metrics[name]:.6g} | {best.metrics[name]:.6g} |" in text
    assert "over 4 tuned trials" in text
    assert f"- `optimizer.lr`: {best.params['optimizer.lr']}" in text
    assert "(reconstructions.png)" in text


def test_a_frozen_encoder_keeps_its_latents_and_a_trained_one_does_not(
    folder: Path, record: SearchRecord, tmp_path: Path
) -> None:
    for freeze_depth in (0, 2):
        out = tmp_path / str(freeze_depth)
        model = export(FolderStore(folder), out, trial_with(record, freeze_depth).number).model
        assert model.latents_compatible is (freeze_depth == 2)
        provenance = json.loads((out / "provenance.json").read_text())
        assert provenance["latents"] == {
            "latents_compatible": freeze_depth == 2,
            "scaling_factor": None,
            "recomputed": [],
        }
        assert "trained from scratch" in (out / "README.md").read_text()  # so nothing to be compatible with


def test_the_readme_says_whether_the_latents_still_fit() -> None:
    model = SEARCH.finetune.model.model_copy(update={"pretrained": "some/folder"})
    search = SEARCH.model_copy(update={"finetune": SEARCH.finetune.model_copy(update={"model": model})})
    assert "models trained on those still fit" in _latents_note(search, ExportedModel(True, None))
    moved = _latents_note(search, ExportedModel(False, 0.5))
    assert "**latents are no longer compatible**" in moved
    assert "`scaling_factor` was recomputed on the training images: 0.5" in moved
    moved = _latents_note(search, ExportedModel(False, None, ("latents_mean", "latents_std")))
    assert "`latents_mean` and `latents_std` were recomputed on the training images." in moved


def test_the_readme_warns_of_a_search_that_did_not_beat_the_baseline(folder: Path, tmp_path: Path) -> None:
    lines = (folder / journal.FILE_NAME).read_text().splitlines()
    events = [json.loads(line) for line in lines]
    for event in events:
        if event.get("trial") == 0 and event["event"] == "report":
            event["value"] = event["metrics"]["val/psnr"] = 60.0
    shutil.copytree(folder, tmp_path / "small")
    (tmp_path / "small" / journal.FILE_NAME).write_text("".join(json.dumps(event) + "\n" for event in events))
    export(FolderStore(tmp_path / "small"), tmp_path / "out")
    assert (
        "\nWARNING: the untuned model was not beaten. val/psnr 60.0000 -> " in (tmp_path / "out/README.md").read_text()
    )


def test_an_adapted_trial_is_exported_as_it_ran(folder: Path, record: SearchRecord, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "small")
    best, changes = record.ranked()[0], {"batch_size": 4, "grad_accumulation": 2}
    adapt = {"event": "adapt", "time": 0.0, "trial": best.number, "changes": changes, "reason": "out of memory"}
    with (tmp_path / "small" / journal.FILE_NAME).open("a") as file:
        file.write(json.dumps(adapt) + "\n")
    export(FolderStore(tmp_path / "small"), tmp_path / "out")
    spec = load_production(tmp_path / "out" / "production.yaml").finetune
    assert (spec.batch_size, spec.grad_accumulation) == (4, 2)
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert (provenance["params"], provenance["changes"]) == (best.params, changes)
    assert provenance["finetune_digest"] == spec.digest()
    assert "- `batch_size`: 4" in (tmp_path / "out" / "README.md").read_text()


# ------------------------------------------------------------------------------------------- refusals


def test_an_export_is_never_overwritten(folder: Path, exported: Path) -> None:
    before = {path: path.read_bytes() for path in exported.rglob("*") if path.is_file()}
    with pytest.raises(FtaeError, match=r"below/small exists; remove it or choose another folder with --out"):
        export(FolderStore(folder), exported)
    assert {path: path.read_bytes() for path in exported.rglob("*") if path.is_file()} == before


def test_a_trial_without_a_checkpoint_is_refused_and_the_others_are_named(
    folder: Path, record: SearchRecord, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "small")
    *kept, lost = [trial.number for trial in record.ranked()]
    shutil.rmtree(tmp_path / "small" / "trials" / f"{lost:04d}" / "checkpoints")
    for number in (lost, 0, 99):
        with pytest.raises(FtaeError) as refusal:
            export(FolderStore(tmp_path / "small"), tmp_path / "out", number)
        choices = ", ".join(str(n) for n in kept)
        assert str(refusal.value).startswith(f"small: trial {number} has no checkpoint; choose one of {choices} (")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [None, 1])
def test_a_search_without_a_full_trial_has_nothing_to_export(number: int | None, tmp_path: Path) -> None:
    state = SearchState(SEARCH, FolderStore(tmp_path))
    state.next_trial()
    state.next_trial()
    state.end(1, "diverged")
    with pytest.raises(FtaeError, match="no tuned trial ran to its full budget yet, so there is no tuned model"):
        export(FolderStore(tmp_path), tmp_path / "out", number)


def test_a_damaged_checkpoint_is_not_exported(folder: Path, record: SearchRecord, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "small")
    best = record.ranked()[0]
    assert best.checkpoint is not None
    file = tmp_path / "small" / best.checkpoint / "average.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(FtaeError, match=r"small/trials/.* is damaged: average\.safetensors is not what was written"):
        export(FolderStore(tmp_path / "small"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_a_failed_export_leaves_nothing(folder: Path, record: SearchRecord, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "small")
    best = record.ranked()[0]
    (tmp_path / "small" / best.reports[-1]["images"]).unlink()  # the last thing that is copied
    with pytest.raises(FileNotFoundError):
        export(FolderStore(tmp_path / "small"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_the_provenance_names_earlier_searches_without_their_trials(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "small")
    file = tmp_path / "small" / journal.FILE_NAME
    first, *rest = file.read_text().splitlines()
    trials = [{"params": {}, "shares": [1.0], "values": [20.0]}]
    earlier = {"search": "first", "digest": "0123", "trials": trials, "model": [0.0]}
    event = json.loads(first)
    event["facts"]["warm_start"] = [earlier]
    file.write_text("\n".join([json.dumps(event), *rest, ""]))
    export(FolderStore(tmp_path / "small"), tmp_path / "out")
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert provenance["warm_start"] == [{"search": "first", "digest": "0123"}]


def test_the_licence_of_foreign_weights_goes_on_to_hold(exported: Path, tmp_path: Path) -> None:
    origin = {"file": "x.pkl", "sha256": "0" * 64, "layout": "a layout", "licence": "for research alone"}
    shutil.copytree(exported / "model", tmp_path / "converted")
    (tmp_path / "converted/weights.json").write_text(json.dumps(origin))
    few = {"finetune.max_steps": 2, "finetune.num_evals": 1, "search": {"num_trials": 1}}
    model = {"family": "conv_vae", "pretrained": str(tmp_path / "converted")}
    run_trials(tmp_path / "small", search_spec(**CHANGES | few | {"finetune.model": model}))
    export(FolderStore(tmp_path / "small"), tmp_path / "out")
    assert json.loads((tmp_path / "out/model/weights.json").read_text()) == origin
    assert json.loads((tmp_path / "out/provenance.json").read_text())["weights"] == origin
    assert "x.pkl, whose licence goes on to hold: **for research alone**" in (tmp_path / "out/README.md").read_text()
