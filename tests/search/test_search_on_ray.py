"""Small whole searches on a local Ray, tracked in MLflow's SQLite store, and shared by the tests."""

import json
import math
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from builders import search_spec
from made_up_search import shown_values
from mlflow import MlflowClient
from mlflow.entities import Run
from safetensors.torch import load_file, save_file

from ftae.engine.models.families import build_model
from ftae.engine.training.loop import finetune
from ftae.errors import FtaeError
from ftae.results.replay import fold, replay
from ftae.results.search_record import SearchRecord
from ftae.results.summary import leaderboard
from ftae.search import driver
from ftae.search.driver import run_search
from ftae.search.ray.hang_detector import WORKER_TITLE
from ftae.search.state import SearchState
from ftae.search.tracking_sync import sync, unsent
from ftae.specs import SearchSpec
from ftae.specs.files import load_search
from ftae.storage import journal
from ftae.storage import store as retry
from ftae.storage.backends import FolderStore
from ftae.storage.journal import FILE_NAME
from ftae.tracking import TrackingUnavailable, store_uri

pytestmark = pytest.mark.usefixtures("ray_session")


def spec(storage: Path, **changes: Any) -> SearchSpec:
    """A search whose trials take a fraction of a second; ``changes``: values by path, ``__`` between its parts."""
    base: dict[str, Any] = {
        "finetune.data": {"source": "digits", "resolution": 16},
        "finetune.optimizer": {"lr": 1e-3},
        "finetune.ema_half_life_fraction": 0.1,
        "finetune.num_evals": 3,
        "finetune.metrics": ["psnr", "ssim"],
        "search_space": {
            "optimizer.lr": {"low": 1e-4, "high": 1.0, "log": True},
            "losses.kl": {"low": 1e-5, "high": 1e-2, "log": True},
            "freeze_depth": {"low": 0, "high": 2},
        },
        "search": {
            "num_trials": 6,
            "scheduler": {"name": "asha", "reduction_factor": 2, "grace_fraction": 0.33},
            "max_concurrent": 1,
            "keep_checkpoints": 2,
            "storage": str(storage),
        },
    }
    return search_spec(**base | {path.replace("__", "."): value for path, value in changes.items()})


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One storage for the module, because creating MLflow's tables takes seconds."""
    return tmp_path_factory.mktemp("searches")


@pytest.fixture(scope="module")
def searched(storage: Path, ray_session: None) -> SearchRecord:
    """A search that ran to its end, one trial at a time."""
    return run_search(spec(storage))


@pytest.fixture(scope="module")
def troubled(storage: Path, ray_session: None) -> SearchRecord:
    """A search with as many trials at a time as there is room for, and configurations that cannot be trained."""
    return run_search(troubled_spec(storage))


def troubled_spec(storage: Path, **changes: Any) -> SearchSpec:
    # A rate of a million diverges. With the encoder frozen, the KL loss alone has nothing to train.
    return spec(
        storage,
        name="troubled",
        finetune__optimizer={"name": "sgd", "lr": 0.01},
        finetune__max_grad_norm=None,
        search_space={
            "optimizer.lr": {"choices": [0.01, 1e6]},
            "losses.mse": {"choices": [0.0, 1.0]},
            "freeze_depth": {"choices": [0, 2]},
        },
        search__sampler="random",
        search__scheduler={"name": "fifo"},
        search__seed=1,
        **{"search__max_concurrent": None, "search__num_trials": 4} | changes,
    )


def numbers(record: SearchRecord) -> dict[int, Any]:
    """All results of a search, without times."""
    return {
        n: (t.kind, t.params, t.status, t.reason, [(r["step"], r["value"], r["metrics"]) for r in t.reports])
        for n, t in record.trials.items()
    }


def test_a_search_is_in_its_journal_from_start_to_end(searched: SearchRecord, storage: Path) -> None:
    assert [trial.kind for trial in searched.trials.values()] == ["baseline", "file", *["sampled"] * 5]
    ended = [(trial.status, [r["step"] for r in trial.reports]) for trial in searched.trials.values()]
    assert ended[0] == ("finished", [0])
    assert ended[1:].count(("finished", [0, 4, 8, 12])) >= 3
    assert ("pruned", [0, 4]) in ended
    assert searched.close is not None
    assert (searched.close.status, searched.close.reason) == ("complete", None)
    values = {trial.number: trial.value for trial in searched.trials.values() if trial.status == "finished"}
    del values[0]
    rows = [row["trial"] for row in leaderboard(searched)]
    assert rows[: len(values)] == sorted(values, key=lambda number: -values[number])
    assert len(rows) == 7


def test_all_files_that_the_journal_names_exist(searched: SearchRecord, storage: Path) -> None:
    folder = storage / "small"
    for trial in searched.trials.values():
        for r in trial.reports:
            assert (folder / r["images"]).is_file()
    assert load_search(folder / "search.yaml") == spec(storage)
    assert {path.name for path in folder.iterdir()} == {FILE_NAME, "search.yaml", "tracking.json", "trials"}


def test_only_the_best_checkpoints_are_kept(searched: SearchRecord, storage: Path) -> None:
    best = {f"{trial.number:04d}" for trial in searched.ranked()[:2]}
    checkpoints = list((storage / "small" / "trials").glob("*/checkpoints/*"))
    assert {path.parts[-3] for path in checkpoints} == best
    assert {path.name for path in checkpoints} == {"step-00000012"}
    assert searched.ranked()[0].checkpoint == f"trials/{searched.ranked()[0].number:04d}/checkpoints/step-00000012"


def test_a_trial_is_the_run_that_its_params_describe(searched: SearchRecord, tmp_path: Path) -> None:
    best, search = searched.ranked()[0], SearchSpec.model_validate(searched.search)
    reports = list(finetune(search.trial_spec(best.params), tmp_path))
    assert [r.metrics for r in reports] == [r["metrics"] for r in best.reports]


def test_a_configuration_that_cannot_be_trained_does_not_end_the_search(troubled: SearchRecord) -> None:
    ended = {trial.number: (trial.status, trial.reason) for trial in troubled.trials.values()}
    assert ended == {
        0: ("finished", None),
        1: ("finished", None),
        2: ("diverged", "non-finite loss at step 2"),
        3: ("failed", "freeze leaves nothing to train that losses (kl) depend on"),
        4: ("finished", None),
    }
    assert [trial.number for trial in troubled.ranked()] == sorted(
        [1, 4], key=lambda n: -(troubled.trials[n].value or 0)
    )


def test_a_search_with_constraints_two_metrics_and_conditional_params(storage: Path, client: MlflowClient) -> None:
    search = spec(
        storage,
        name="asks-more",
        finetune__metrics=["psnr", "kl"],
        search_space={
            "optimizer.lr": {"low": 1e-4, "high": 1e-1, "log": True},
            "losses.kl": {"low": 1e-4, "high": 1e-1, "log": True, "or_off": True},
            "losses.kl_capacity": {"low": 1.0, "high": 9.0, "or_off": True},
        },
        objective={
            "metrics": [{"metric": "val/psnr", "direction": "maximize"}, {"metric": "val/kl", "direction": "minimize"}],
            "constraints": ["val/psnr >= 7"],
        },
    )
    record = run_search(search)
    assert record.close is not None
    assert record.close.status == "complete"
    tuned = [trial for trial in record.trials.values() if trial.number > 0]
    assert {"losses.kl_capacity" in trial.params for trial in tuned} == {True, False}
    assert all(("losses.kl_capacity" in trial.params) is (trial.params["losses.kl"] > 0) for trial in tuned)
    pareto_front = {trial.number for trial in record.pareto_front()}
    finished = [trial for trial in tuned if trial.status == "finished" and record.is_feasible(trial)]
    for trial in finished:
        beaten = any(
            other.metrics["val/psnr"] >= trial.metrics["val/psnr"]
            and other.metrics["val/kl"] <= trial.metrics["val/kl"]
            and other.metrics != trial.metrics
            for other in finished
        )
        assert (trial.number in pareto_front) is not beaten
    tags = runs(client, "asks-more")["search"].data.tags
    assert tags["ftae.front"] == ", ".join(str(trial.number) for trial in record.pareto_front())
    assert tags["ftae.feasible"] == json.dumps(bool(finished))
    resumed = run_search(
        search.model_copy(update={"search": search.search.model_copy(update={"num_trials": 7})}), resume=True
    )
    assert {number: numbers(resumed)[number] for number in numbers(record)} == numbers(record)
    assert len(resumed.trials) == 8


# ----------------------------------------------------------------------------------------------- MLflow


@pytest.fixture(scope="module")
def client(storage: Path) -> MlflowClient:
    return MlflowClient(store_uri(None, storage), registry_uri=store_uri(None, storage))


def runs(client: MlflowClient, name: str) -> dict[str, Run]:
    """The runs of a search by trial number, the parent as ``search``."""
    experiment = client.get_experiment_by_name(name)
    found = client.search_runs([experiment.experiment_id])
    named = {run.data.tags.get("ftae.trial", "search"): run for run in found}
    assert len(named) == len(found), "a run was created twice"
    return named


@pytest.mark.parametrize("name", ["searched", "troubled"])
def test_mlflow_has_every_trial_and_every_point_once(
    name: str, request: pytest.FixtureRequest, client: MlflowClient, storage: Path
) -> None:
    record: SearchRecord = request.getfixturevalue(name)
    found = runs(client, record.search["name"])
    assert set(found) == {"search", *(str(number) for number in record.trials)}
    parent = found.pop("search")
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["ftae.best_trial"] == str(record.ranked()[0].number)
    assert parent.data.metrics["best/val/psnr"] == record.ranked()[0].value
    expected = {"finished": "FINISHED", "pruned": "KILLED", "diverged": "FAILED", "failed": "FAILED"}
    for number, run in found.items():
        trial = record.trials[int(number)]
        assert run.info.status == expected[trial.status]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["ftae.status"] == trial.status
        assert run.data.tags.get("ftae.reason") == trial.reason
        assert run.data.params.keys() == trial.params.keys()
        points = {
            (key, point.step, point.value, point.timestamp)
            for key in run.data.metrics
            for point in client.get_metric_history(run.info.run_id, key)
        }
        journalled = [
            (key, r["step"], value, int(r["time"] * 1000))
            for r in trial.reports
            for key, value in shown_values(r).items()
        ]
        assert len(points) == len(journalled)
        assert points == set(journalled)
        images = {artifact.path for artifact in client.list_artifacts(run.info.run_id, "images")}
        assert len([path for path in images if path.endswith(".png")]) == len(trial.reports)
    assert unsent(FolderStore(storage / record.search["name"])) == 0


def test_the_parent_run_holds_the_outcome(searched: SearchRecord, client: MlflowClient, storage: Path) -> None:
    parent = runs(client, "small")["search"].info.run_id
    artifacts = {artifact.path for artifact in client.list_artifacts(parent)}
    assert artifacts == {"best_config.yaml", "leaderboard.json", "search.yaml"}
    tags = client.get_run(parent).data.tags
    model = client.get_logged_model(tags["ftae.model"].removeprefix("models:/"))
    assert model.tags["ftae.trial"] == tags["ftae.best_trial"]
    files = {Path(file.path).name for file in client.list_logged_model_artifacts(model.model_id)}
    assert {"MLmodel", "code", "model", "production.yaml"} <= files
    table = json.loads(Path(client.download_artifacts(parent, "leaderboard.json")).read_text())
    assert [row[0] for row in table["data"]] == [row["trial"] for row in leaderboard(searched)]


# ------------------------------------------------------------------------------------------ resuming


def test_a_finished_search_can_be_extended(troubled: SearchRecord, storage: Path, client: MlflowClient) -> None:
    with pytest.raises(FtaeError, match=r"holds a search already \(4 of 4 trials done\)"):
        run_search(troubled_spec(storage))
    record = run_search(troubled_spec(storage, search__num_trials=5, search__max_concurrent=1), resume=True)
    before = numbers(troubled)
    assert {number: numbers(record)[number] for number in before} == before
    assert list(record.trials) == [0, 1, 2, 3, 4, 5]
    assert runs(client, "troubled").keys() == {"search", "0", "1", "2", "3", "4", "5"}


def test_a_complete_search_that_is_resumed_has_nothing_to_do(searched: SearchRecord, storage: Path) -> None:
    again = run_search(spec(storage), resume=True)
    assert numbers(again) == numbers(searched)
    assert again.close is not None
    assert again.close.status == "complete"


def test_two_drivers_cannot_run_one_search(searched: SearchRecord, storage: Path) -> None:
    state = SearchState(spec(storage), FolderStore(storage / "small"))
    try:
        with pytest.raises(FtaeError, match="small is being run by another ftae process"):
            run_search(spec(storage, search__keep_checkpoints=1), resume=True)
        assert "keep_checkpoints: 2" in (storage / "small" / "search.yaml").read_text()
    finally:
        state.close("complete")


def test_a_search_past_its_time_is_interrupted(storage: Path) -> None:
    record = run_search(spec(storage, name="short", search__max_hours=1e-6))
    assert record.close is not None
    assert (record.close.status, record.close.reason) == ("interrupted", "max_hours is over")
    assert record.ranked() == []


@pytest.mark.faults
def test_checkpoints_that_cannot_be_deleted_end_the_search(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remove = FolderStore.remove

    def refused(store: FolderStore, path: str) -> None:
        if "checkpoints" in path:
            raise OSError("the storage is read-only")
        remove(store, path)

    monkeypatch.setattr(FolderStore, "remove", refused)
    monkeypatch.setattr(retry, "RETRY_SECONDS", 0.0)
    with pytest.raises(FtaeError, match=r"the storage is read-only\. Make room, then continue with --resume"):
        run_search(spec(storage, name="undeletable"))
    record = replay(storage / "undeletable")
    assert record.close is not None
    assert record.close.status == "failed"
    monkeypatch.undo()
    record = run_search(spec(storage, name="undeletable"), resume=True)
    left = {path.parts[-3] for path in (storage / "undeletable" / "trials").glob("*/checkpoints/*")}
    assert left == {f"{trial.number:04d}" for trial in record.ranked()[:2]}


def test_a_ray_that_is_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        FtaeError, match=r"search\.resources\.cpus: a trial asks for 64, the largest node of the cluster has 2 CPUs"
    ):
        run_search(spec(tmp_path, search__resources={"cpus": 64}, search__wait_for_nodes_minutes=0))
    with pytest.raises(
        FtaeError, match=r"search\.resources\.gpus: a trial asks for 1, the largest node of the cluster has 0 GPUs"
    ):
        run_search(spec(tmp_path, search__resources={"gpus": 1}, search__wait_for_nodes_minutes=0))
    assert fold(tmp_path / "small").trials == {}, "the search may still begin under this name"


def test_a_configuration_that_cannot_be_run_is_refused_before_the_first_trial(tmp_path: Path) -> None:
    wild = {"optimizer": {"lr": 1e6, "name": "sgd"}, "max_grad_norm": None}
    changes = {f"finetune__{name}": value for name, value in wild.items()}
    with pytest.raises(FtaeError) as caught:
        run_search(spec(tmp_path, **changes, search_space={"freeze_depth": {"low": 0, "high": 2}}))
    message = str(caught.value)
    assert message.startswith("a step of the file's own configuration was tried and failed: on ")
    assert "; lower finetune.optimizer.lr" in message
    record = fold(tmp_path / "small")
    assert record.trials == {}, "the search may still begin under this name"
    assert record.close is not None
    assert (record.close.status, record.close.reason) == ("failed", message)


def test_a_search_without_a_baseline_stops_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = spec(tmp_path)
    model = build_model(search.finetune, None)
    model.save(tmp_path / "model")
    [weights] = (tmp_path / "model").glob("*.safetensors")
    check_measured = driver.check_measured

    def check_and_spoil(*arguments: Any) -> None:
        check_measured(*arguments)
        save_file({name: tensor.fill_(math.nan) for name, tensor in load_file(weights).items()}, weights)

    monkeypatch.setattr(driver, "check_measured", check_and_spoil)
    broken = spec(tmp_path, finetune__model={"family": "conv_vae", "pretrained": str(tmp_path / "model")})
    with pytest.raises(
        FtaeError, match=r"small stopped: the untuned model cannot be evaluated: .*as it was given is nan"
    ):
        run_search(broken)
    record = replay(tmp_path / "small")
    assert record.close is not None
    assert record.close.status == "failed"


# ---------------------------------------------------------------------------------- a worker is killed


def busy_workers() -> list[int]:
    """This process's Ray workers that run a trial."""
    parents, titles = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            titles[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # gone meanwhile
            continue

    def is_ours(pid: int) -> bool:
        while pid in parents:
            if pid == os.getpid():
                return True
            pid = parents[pid]
        return False

    return [p for p, title in titles.items() if title.startswith(f"{WORKER_TITLE}ImplicitFunc") and is_ours(p)]


class Killer(threading.Thread):
    """Kills the busy worker after a new report, with a checkpoint, of each of the given trials in turn."""

    def __init__(self, folder: Path, trials: list[int]) -> None:
        super().__init__(daemon=True)
        self.folder, self.trials, self.killed = folder, list(trials), list[int]()

    def run(self) -> None:
        seen = None
        while self.trials:
            time.sleep(0.005)
            events = list(journal.read(self.folder)) if (self.folder / FILE_NAME).exists() else []
            if not events:
                continue
            last = events[-1][0]
            if last["event"] == "report" and last["trial"] == self.trials[0] and last["step"] > 0 and last != seen:
                seen = last
                [worker] = busy_workers()
                os.kill(worker, signal.SIGKILL)
                self.killed.append(self.trials.pop(0))


@pytest.fixture(scope="module")
def harmed(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> tuple[SearchSpec, list[int], SearchRecord]:
    """A search that lost one worker in trial 1 and two in trial 3, while MLflow could not be reached.

    Returns the spec, the trials that lost a worker, and the record.
    """
    slow = spec(
        tmp_path_factory.mktemp("harmed"),
        finetune__batch_size=512,
        finetune__max_steps=24,
        finetune__num_evals=12,
        search__num_trials=3,
        search__max_failures=1,
        search__scheduler={"name": "fifo"},
        tracking={"uri": "http://127.0.0.1:9"},
    )
    killer = Killer(Path(slow.search.storage) / slow.name, [1, 3, 3])
    killer.start()
    record = run_search(slow)
    return slow, killer.killed, record


@pytest.mark.faults
def test_a_trial_whose_worker_is_killed_continues_from_its_checkpoint(
    harmed: tuple[SearchSpec, list[int], SearchRecord], tmp_path: Path
) -> None:
    search, killed, record = harmed
    assert killed.count(1) == 1
    assert record.trials[1].status == "finished"
    assert [note.split(" (")[0] for note in record.trials[1].notes] == ["its worker was lost"]
    begun = [start["step"] for start in record.trials[1].starts]
    assert begun[0] == 0 < begun[1]
    undisturbed = list(finetune(search.trial_spec(record.trials[1].params), tmp_path))
    assert [r.metrics for r in undisturbed] == [r["metrics"] for r in record.trials[1].reports]
    folder = Path(search.search.storage) / search.name
    for r in record.trials[1].reports:  # a trial that began again would have drawn its pictures again
        assert (folder / r["images"]).stat().st_mtime <= r["time"]


@pytest.mark.faults
def test_a_trial_that_loses_too_many_workers_has_failed(
    harmed: tuple[SearchSpec, list[int], SearchRecord],
) -> None:
    _, killed, record = harmed
    assert killed.count(3) == 2
    assert record.trials[3].status == "failed"
    assert (record.trials[3].reason or "").startswith("The actor is dead because its worker process has died")
    assert record.trials[2].status == "finished"


@pytest.mark.faults
def test_a_search_without_mlflow_is_complete(harmed: tuple[SearchSpec, list[int], SearchRecord]) -> None:
    search, _, record = harmed
    assert record.close is not None
    assert record.close.status == "complete"
    folder = Path(search.search.storage) / search.name
    assert unsent(FolderStore(folder)) == len((folder / FILE_NAME).read_text().splitlines())
    with pytest.raises(TrackingUnavailable, match=r"127\.0\.0\.1:9"):
        sync(FolderStore(folder))
