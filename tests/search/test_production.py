"""Production runs: the loop of a trial run to its end, tracked, and going on where it was interrupted."""

import json
import multiprocessing
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image

from ftae.engine.data.dataset import load_dataset
from ftae.engine.training.loop import finetune
from ftae.errors import FtaeError, TrainingFailed
from ftae.search.production import train
from ftae.specs import ProductionSpec
from ftae.specs.files import load_production
from ftae.specs.reading.overrides import apply_overrides
from ftae.tracking import store_uri


def spec(**changes: Any) -> ProductionSpec:
    """``changes``: values of finetune by path, ``__`` between its parts."""
    production = ProductionSpec.model_validate(
        {
            "name": "digits",
            "finetune": {
                "model": {"family": "conv_vae", "channels": 4, "depth": 1, "latent_dim": 4},
                "data": {"source": "digits", "resolution": 16},
                "losses": {"mse": 1.0, "kl": 1e-3},
                "optimizer": {"lr": 3e-3},
                "schedule": {"name": "cosine"},
                "ema_half_life_fraction": 0.1,
                "max_steps": 12,
                "num_evals": 3,
                "metrics": ["psnr"],
                "num_threads": 1,
            },
            "from_search": {"search": "small", "trial": 7},
        }
    )
    changed = {path.replace("__", "."): value for path, value in changes.items()}
    return production.model_copy(update={"finetune": apply_overrides(production.finetune, changed)})


def nowhere(production: ProductionSpec) -> ProductionSpec:
    """The same run, tracked by a server that is not there: most tests need no MLflow."""
    return production.model_copy(
        update={"tracking": production.tracking.model_copy(update={"uri": "http://127.0.0.1:9"})}
    )


def silent(line: str) -> None:
    pass


def interrupt_after(reports: int) -> Callable[[str], None]:
    """What a Ctrl-C does right after so many reports."""
    seen: list[str] = []

    def notify(line: str) -> None:
        seen.extend([line] if line.startswith("step") else [])
        if len(seen) == reports:
            raise KeyboardInterrupt

    return notify


def reports(out: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (out / "reports.jsonl").read_text().splitlines()]
    return [{key: value for key, value in report.items() if key not in ("time", "timing")} for report in found]


def model_bytes(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "model").iterdir()}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One embedded store for the module: making its tables takes seconds."""
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def client(storage: Path) -> MlflowClient:
    return MlflowClient(store_uri(None, storage), registry_uri=store_uri(None, storage))


@pytest.fixture(scope="module")
def finished(storage: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run that was never interrupted, registered in the end: its folder, and what was said."""
    out, said = tmp_path_factory.mktemp("runs") / "digits", list[str]()
    train(spec(), out, storage=storage, register="digits-vae", notify=said.append)
    return out, said


def test_a_run_leaves_model_reports_pictures_and_its_file(finished: tuple[Path, list[str]]) -> None:
    out, said = finished
    assert {path.name for path in out.iterdir()} == {
        "production.yaml",
        "reports.jsonl",
        "images",
        "checkpoints",
        "model",
    }
    assert load_production(out / "production.yaml") == spec()
    assert [report["step"] for report in reports(out)] == [0, 4, 8, 12]
    assert all((out / report["images"]).is_file() for report in reports(out))
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-00000008", "step-00000012"]
    assert [line.split()[:2] for line in said[:4]] == [["step", str(step)] for step in (0, 4, 8, 12)]
    assert said[4:] == ["registered as version 1 of 'digits-vae', alias champion"]
    assert said[3].startswith(f"step 12  val/psnr {reports(out)[3]['metrics']['val/psnr']:.5g}  train/loss ")


def test_it_is_the_loop_of_a_trial(finished: tuple[Path, list[str]], tmp_path: Path) -> None:
    assert [r.metrics for r in finetune(spec().finetune, tmp_path)] == [r["metrics"] for r in reports(finished[0])]


def test_the_model_is_the_one_that_was_measured(finished: tuple[Path, list[str]], tmp_path: Path) -> None:
    again = spec(model__pretrained=str(finished[0] / "model"))
    untouched = next(finetune(again.finetune, tmp_path))
    assert untouched.metrics["val/psnr"] == reports(finished[0])[-1]["metrics"]["val/psnr"]


def test_mlflow_has_the_run(finished: tuple[Path, list[str]], client: MlflowClient) -> None:
    out, _ = finished
    run = only_run(client, "digits")
    assert run.info.status == "FINISHED"
    assert {key: run.data.tags[key] for key in ("ftae.kind", "ftae.search", "ftae.trial")} == {
        "ftae.kind": "production",
        "ftae.search": "small",
        "ftae.trial": "7",
    }
    assert run.data.params["optimizer.lr"] == "0.003"
    points = client.get_metric_history(run.info.run_id, "val/psnr")
    assert [(p.step, p.value) for p in points] == [(r["step"], r["metrics"]["val/psnr"]) for r in reports(out)]
    files = {Path(artifact.path).name for artifact in client.list_artifacts(run.info.run_id, "model")}
    assert files == set(model_bytes(out))
    version = client.get_model_version_by_alias("digits-vae", "champion")
    assert (str(version.version), version.run_id) == ("1", run.info.run_id)


def in_experiment(production: ProductionSpec, name: str) -> ProductionSpec:
    return production.model_copy(update={"tracking": production.tracking.model_copy(update={"experiment": name})})


def only_run(client: MlflowClient, experiment: str) -> Run:
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    [run] = client.search_runs([found.experiment_id])
    return run


def test_a_run_that_goes_on_is_the_same_run_in_mlflow(storage: Path, client: MlflowClient, tmp_path: Path) -> None:
    production, during = in_experiment(spec(), "goes-on"), list[tuple[str, int]]()

    def notify(line: str) -> None:
        """Told before the report is sent, so what is seen are the earlier ones."""
        if line.startswith(("step 8", "step 12")):
            run = only_run(client, "goes-on")
            points = client.get_metric_history(run.info.run_id, "val/psnr")
            during.append((run.info.status, len(points)))
        if line.startswith("step 8") and len(during) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(production, tmp_path, storage=storage, notify=notify)
    killed = only_run(client, "goes-on")
    assert killed.info.status == "KILLED"
    assert [p.step for p in client.get_metric_history(killed.info.run_id, "val/psnr")] == [0, 4, 8]
    train(production, tmp_path, storage=storage, resume=True, notify=notify)
    finished = only_run(client, "goes-on")
    assert (finished.info.run_id, finished.info.status) == (killed.info.run_id, "FINISHED")
    lines = [json.loads(line) for line in (tmp_path / "reports.jsonl").read_text().splitlines()]
    for name in ("val/psnr", "time/eval"):
        points = client.get_metric_history(finished.info.run_id, name)
        expected = [(r["step"], int(r["time"] * 1000)) for r in lines if name in r["metrics"] | r["timing"]]
        assert [(p.step, p.timestamp) for p in points] == expected
    assert during == [("RUNNING", 2), ("KILLED", 3), ("RUNNING", 3)]


def test_a_run_that_fails_is_seen_in_mlflow(storage: Path, client: MlflowClient, tmp_path: Path) -> None:
    diverging = in_experiment(spec(optimizer__name="sgd", optimizer__lr=1e6, max_grad_norm=None), "fails")
    with pytest.raises(TrainingFailed, match="non-finite loss at step"):
        train(diverging, tmp_path / "diverges", storage=storage, notify=silent)

    def fail(line: str) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        train(in_experiment(spec(), "breaks"), tmp_path / "breaks", storage=storage, notify=fail)
    for name in ("fails", "breaks"):
        run = only_run(client, name)
        assert run.info.status == "FAILED"
        assert client.get_metric_history(run.info.run_id, "val/psnr")[0].step == 0


def test_what_mlflow_missed_is_sent_when_it_is_back(tmp_path: Path) -> None:
    storage, said = tmp_path / "storage", list[str]()
    storage.write_text("in the way")

    def notify(line: str) -> None:
        said.append(line)
        if line.startswith("step 8"):
            storage.unlink()

    train(spec(), tmp_path / "run", storage=storage, notify=notify)
    assert [line.split()[0] for line in said] == ["MLflow", "step", "step", "step", "tracking", "step"]
    came = MlflowClient(store_uri(None, storage))
    run = only_run(came, "digits")
    assert run.info.status == "FINISHED"
    assert [p.step for p in came.get_metric_history(run.info.run_id, "val/psnr")] == [0, 4, 8, 12]


@pytest.mark.parametrize("after", [2, 3, 4])
def test_an_interrupted_run_goes_on_as_if_it_never_stopped(
    after: int, finished: tuple[Path, list[str]], storage: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(nowhere(spec()), tmp_path, storage=storage, notify=interrupt_after(after))
    assert not (tmp_path / "model").exists()
    with pytest.raises(FtaeError, match="holds a run already; go on with it by --resume"):
        train(nowhere(spec()), tmp_path, storage=storage, notify=silent)
    said: list[str] = []
    train(nowhere(spec()), tmp_path, storage=storage, resume=True, notify=said.append)
    assert reports(tmp_path) == reports(finished[0])
    assert model_bytes(tmp_path) == model_bytes(finished[0])
    assert [line.split()[1] for line in said if line.startswith("step")] == ["0", "4", "8", "12"][after - 1 :]


def test_a_run_interrupted_before_its_first_checkpoint_can_only_be_started_again(
    finished: tuple[Path, list[str]], storage: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(nowhere(spec()), tmp_path, storage=storage, notify=interrupt_after(1))
    with pytest.raises(FtaeError, match="has no checkpoint to resume from; start the run without --resume"):
        train(nowhere(spec()), tmp_path, storage=storage, resume=True, notify=silent)
    train(nowhere(spec()), tmp_path, storage=storage, notify=silent)
    assert reports(tmp_path) == reports(finished[0])


def test_a_report_that_was_cut_short_is_made_again(
    finished: tuple[Path, list[str]], storage: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(nowhere(spec()), tmp_path, storage=storage, notify=interrupt_after(3))
    text = (tmp_path / "reports.jsonl").read_text()
    (tmp_path / "reports.jsonl").write_text(text[:-30])
    train(nowhere(spec()), tmp_path, storage=storage, resume=True, notify=silent)
    assert reports(tmp_path) == reports(finished[0])


@pytest.mark.parametrize(
    "damaged", [b"\0" * 80 + b"\n", b'{"time": 1.0, "ste\n', b"[]\n", b'{"step": 8}\n', b"\xff\xfe\n"]
)
def test_a_line_that_is_damaged_is_cut_off_with_those_behind_it(
    damaged: bytes, finished: tuple[Path, list[str]], storage: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    lines = (out / "reports.jsonl").read_bytes().splitlines(keepends=True)
    (out / "reports.jsonl").write_bytes(b"".join([*lines[:2], damaged, *lines[2:]]))
    said: list[str] = []
    train(nowhere(spec()), out, storage=storage, resume=True, notify=said.append)
    assert f"{out}/reports.jsonl: line 3 is damaged and left out, with those behind it" in said
    assert [report["step"] for report in reports(out)] == [0, 4, 12]


def test_two_runs_never_share_a_folder(storage: Path, tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from ftae.search.production import _alone_in\n"
        "with _alone_in(Path(sys.argv[1])): print('in', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(FtaeError, match=r"another ftae process trains into .*; wait for it or stop it, or choose"):
            train(nowhere(spec()), tmp_path, storage=storage, notify=silent)
        assert not (tmp_path / "checkpoints").exists()
        other.kill()
    train(nowhere(spec(max_steps=1, num_evals=1)), tmp_path, storage=storage, notify=silent)
    assert [report["step"] for report in reports(tmp_path)] == [0, 1]


@pytest.mark.parametrize("uri", ["nosuch://somewhere", "./mlruns", "http:///nobody"])
def test_an_address_of_no_use_is_told_before_the_first_step(uri: str, storage: Path, tmp_path: Path) -> None:
    tracking = spec().tracking.model_copy(update={"uri": uri})
    said: list[str] = []
    with pytest.raises(FtaeError, match="MLflow at"):
        train(spec().model_copy(update={"tracking": tracking}), tmp_path, storage=storage, notify=said.append)
    assert (said, reports(tmp_path)) == ([], [])


def test_an_experiment_that_is_deleted_is_told_before_the_first_step(tmp_path: Path) -> None:
    uri = store_uri(None, tmp_path)
    client = MlflowClient(uri, registry_uri=uri)
    client.delete_experiment(client.create_experiment("digits"))
    with pytest.raises(FtaeError, match="the MLflow experiment 'digits' is deleted"):
        train(spec(), tmp_path / "run", storage=tmp_path, notify=silent)
    assert reports(tmp_path / "run") == []


def test_a_finished_run_can_go_on_for_longer(finished: tuple[Path, list[str]], storage: Path, tmp_path: Path) -> None:
    out = tmp_path / "longer"
    shutil.copytree(finished[0], out)
    longer = nowhere(spec(max_steps=24, num_evals=6))
    report, _ = train(longer, out, storage=storage, resume=True, notify=silent)
    assert report.step == 24
    assert [report["step"] for report in reports(out)] == [0, 4, 8, 12, 16, 20, 24]
    assert reports(out)[:4] == reports(finished[0])
    assert model_bytes(out) != model_bytes(finished[0])


def test_another_configuration_is_not_a_resumption(
    finished: tuple[Path, list[str]], storage: Path, tmp_path: Path
) -> None:
    out = tmp_path / "other"
    shutil.copytree(finished[0], out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(FtaeError, match="belongs to another configuration: optimizer differ"):
        train(nowhere(spec(optimizer__lr=1e-3)), out, storage=storage, resume=True, notify=silent)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_there_must_be_something_to_resume(storage: Path, tmp_path: Path) -> None:
    with pytest.raises(FtaeError, match="has no checkpoint to resume from"):
        train(nowhere(spec()), tmp_path / "none", storage=storage, resume=True, notify=silent)
    assert not (tmp_path / "none").exists()


def test_images_that_are_not_those_of_the_search_are_said(storage: Path, tmp_path: Path) -> None:
    production = nowhere(spec(max_steps=3))
    was = {"search": "small", "trial": 7, "dataset_fingerprint": load_dataset(production.finetune.data).fingerprint}
    for number, (fields, warned) in enumerate([({}, False), ({"finetune": spec(data__shift="invert").finetune}, True)]):
        said: list[str] = []
        changed = production.model_copy(update={"from_search": was, **fields})
        train(changed, tmp_path / str(number), storage=storage, notify=said.append)
        warning = "warning: the images are not those of the search small: they came, went or changed since"
        assert (warning in said) == warned


def test_what_of_the_files_is_not_used_is_said(storage: Path, tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / "d").mkdir(exist_ok=True)
        Image.new("L", (16, 16), 60 * i).save(tmp_path / "d" / f"{i}.png")
    (tmp_path / "d" / "x.heic").touch()
    data = {"source": "image_folder", "train": str(tmp_path / "d"), "resolution": 16, "color": "grey"}
    run = nowhere(spec(max_steps=3))
    finetune_spec = type(run.finetune).model_validate({**run.finetune.model_dump(), "data": data})
    said: list[str] = []
    train(run.model_copy(update={"finetune": finetune_spec}), tmp_path / "out", storage=storage, notify=said.append)
    assert said[0] == f"{tmp_path / 'd'}: 1 file of other kinds left out: .heic 1"


def test_without_mlflow_the_run_is_whole(storage: Path, tmp_path: Path) -> None:
    said: list[str] = []
    train(nowhere(spec()), tmp_path, storage=storage, notify=said.append)
    assert [line.split()[0] for line in said] == ["MLflow", "step", "step", "step", "step", "not"]
    assert said[0].endswith("; the run goes on and sends it later")
    assert said[-1].startswith("not tracked: MLflow at http://127.0.0.1:9: ")
    assert said[-1].endswith(f"All figures are in {tmp_path / 'reports.jsonl'}")
    with pytest.raises(FtaeError, match=r"the model is in .*/model, but was not registered: MLflow at"):
        train(nowhere(spec()), tmp_path, storage=storage, resume=True, register="digits-vae", notify=silent)
    assert len(reports(tmp_path)) == 4
    assert model_bytes(tmp_path)


def test_a_run_that_diverges_says_so(storage: Path, tmp_path: Path) -> None:
    diverging = nowhere(spec(optimizer__name="sgd", optimizer__lr=1e6, max_grad_norm=None))
    with pytest.raises(TrainingFailed, match="non-finite loss at step"):
        train(diverging, tmp_path, storage=storage, notify=silent)
    assert not (tmp_path / "model").exists()


def test_one_process_can_go_on_with_what_two_workers_began(
    finished: tuple[Path, list[str]], storage: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(nowhere(spec()), tmp_path, storage=storage, workers=2, notify=interrupt_after(2))
    assert multiprocessing.active_children() == []
    train(nowhere(spec()), tmp_path, storage=storage, resume=True, notify=silent)
    for report, expected in zip(reports(tmp_path), reports(finished[0]), strict=True):
        assert report["metrics"] == pytest.approx(expected["metrics"], rel=1e-5)
