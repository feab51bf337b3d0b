"""Searches in MLflow as people find them, on a real SQLite store."""

import json
import math
import re
from pathlib import Path

import PIL.Image
import pytest
from made_up_search import MadeUpSearch, artifacts_of, picture, points_of, runs_of
from mlflow import MlflowClient
from mlflow.entities import Run

from ftae.errors import FtaeError
from ftae.specs import SearchSpec
from ftae.tracking import Outcome, TrackingUnavailable, store_uri

# ------------------------------------------------------------------------------------------- one search


def test_whether_a_trial_keeps_the_constraints_is_a_tag(storage: Path, client: MlflowClient) -> None:
    search = MadeUpSearch(storage, "constrained")
    constrained = {"metric": "val/psnr", "direction": "maximize", "constraints": ["val/psnr >= 20"]}
    search.spec = SearchSpec.model_validate(search.spec.model_dump() | {"objective": constrained})
    search.open()
    for trial, psnr in ((0, 19.0), (1, 21.0), (2, 30.0)):
        search.suggest(trial, "baseline" if trial == 0 else "sampled")
        search.report(trial, 0, psnr)
    search.end(2, "diverged", "non-finite loss")
    search.tracker().send(search.events)
    tags = {name: run.data.tags for name, run in runs_of(client, "constrained").items()}
    assert tags["baseline"]["ftae.missed"] == "val/psnr >= 20 (it is 19)"
    assert [tags[name].get("ftae.feasible") for name in ("baseline", "trial-0001", "trial-0002", "constrained")] == [
        "false",
        "true",
        "false",
        None,
    ]


def test_a_search_is_a_parent_run_with_a_child_per_trial(storage: Path, client: MlflowClient) -> None:
    search = MadeUpSearch(storage, "photos")
    search.tracker().send(search.whole())
    runs = runs_of(client, "photos")
    assert set(runs) == {"photos", "baseline", "trial-0001", "trial-0002", "trial-0003"}

    parent = runs.pop("photos")
    assert parent.info.status == "FINISHED"
    assert parent.info.end_time == int(search.now * 1000)
    assert parent.data.tags["ftae.kind"] == "search"
    assert parent.data.tags["ftae.status"] == "complete"
    expected = {
        "objective.metric": "val/psnr",
        "objective.direction": "maximize",
        "search.sampler": "curve",
        "search.scheduler.name": "forecast",
        "search.num_trials": "16",
        "search.seed": "0",
        "search.max_hours": "null",
        "model.family": "conv_vae",
        "model.pretrained": "null",
        "data.source": "digits",
        "data.flip": "false",
        "max_steps": "100",
    }
    assert expected.items() <= parent.data.params.items()
    assert json.loads(parent.data.params["search_space.optimizer.lr"])["log"] is True
    assert artifacts_of(client, parent) == ["search.yaml"]

    for run in runs.values():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["ftae.search"] == "photos"
        assert run.data.tags["ftae.search_id"] == parent.data.tags["ftae.search_id"]
    assert {name: run.data.tags["ftae.kind"] for name, run in runs.items()} == {
        "baseline": "baseline",
        "trial-0001": "file",
        "trial-0002": "sampled",
        "trial-0003": "sampled",
    }
    assert {name: (run.info.status, run.data.tags["ftae.status"]) for name, run in runs.items()} == {
        "baseline": ("FINISHED", "finished"),
        "trial-0001": ("FINISHED", "finished"),
        "trial-0002": ("KILLED", "pruned"),
        "trial-0003": ("FAILED", "diverged"),
    }
    assert runs["trial-0003"].data.tags["ftae.reason"] == "non-finite loss"
    assert runs["trial-0001"].data.params == {"optimizer.lr": "0.001", "max_grad_norm": "null"}

    events = [event for event in search.events if event.get("trial") == 2]
    run, reports = runs["trial-0002"], [event for event in events if event["event"] == "report"]
    assert (run.info.start_time, run.info.end_time) == tuple(int(events[i]["time"] * 1000) for i in (0, -1))
    assert points_of(client, run) == [(e["step"], int(e["time"] * 1000), e["value"]) for e in reports]
    assert len(points_of(client, run, "system/eval")) == 3


def test_a_page_says_who_ran_what_on_which_data(storage: Path, client: MlflowClient) -> None:
    search = MadeUpSearch(storage, "origin")
    facts = {"git_commit": "0123abcd-dirty", "dataset_fingerprint": "f" * 60, "images": {"train": 80, "val": 20}}
    search.open(user="ada", facts=facts)
    search.suggest(1, "file")
    for _ in range(2):
        search.tracker().send(search.events)
    runs = runs_of(client, "origin")
    for run in runs.values():
        assert {key: run.data.tags[f"mlflow.{key}"] for key in ("source.name", "source.git.commit", "user")} == {
            "source.name": "ftae search",
            "source.git.commit": "0123abcd",
            "user": "ada",
        }
    (data,) = runs["origin"].inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("digits", "f" * 36)
    assert json.loads(data.dataset.profile) == {"train": 80, "val": 20}
    run_id = runs["origin"].info.run_id
    assert search.tracker().page() == (
        f"#/experiments/{runs['origin'].info.experiment_id}/runs/{run_id}?workflowType=machine_learning"
    )


def test_a_search_that_was_never_sent_has_no_page(storage: Path) -> None:
    search = MadeUpSearch(storage, "unsent")
    search.open()
    with pytest.raises(FtaeError, match="MLflow has no run of unsent; send it with: ftae sync unsent"):
        search.tracker().page()


def test_experiments_are_for_training_models(storage: Path, client: MlflowClient) -> None:
    for name, before in (("new", None), ("old", {}), ("own", {"mlflow.experimentKind": "genai_development"})):
        if before is not None:
            client.create_experiment(name, tags=before)
        search = MadeUpSearch(storage, name)
        search.open()
        search.tracker().check()
        kind = client.get_experiment_by_name(name).tags["mlflow.experimentKind"]
        assert kind == ("genai_development" if name == "own" else "custom_model_development")


def test_names_tell_results(storage: Path, client: MlflowClient) -> None:
    search = MadeUpSearch(storage, "named")
    events = search.whole()
    tracker = search.tracker()
    for i in range(0, len(events), 4):
        tracker.send(events[i : i + 4])
    names = sorted(run.info.run_name for run in runs_of(client, "named").values())
    assert names == ["baseline: 18.5 dB", "named", "trial-0001: 20.5 dB", "trial-0002: 21.5 dB", "trial-0003: diverged"]


def test_the_description_leaves_what_people_wrote(storage: Path, client: MlflowClient) -> None:
    search = MadeUpSearch(storage, "described")
    search.open()

    def described(text: str) -> str:
        search.tracker().publish(Outcome(description=text))
        note: str = runs_of(client, "described")["described"].data.tags["mlflow.note.content"]
        return note

    first = described("one")
    assert first.endswith("-->\none")
    assert described("two") == first.replace("one", "two")
    run_id = runs_of(client, "described")["described"].info.run_id
    client.set_tag(run_id, "mlflow.note.content", "by hand\n\n" + first)
    assert described("three") == "by hand\n\n" + first.replace("one", "three")
    client.set_tag(run_id, "mlflow.note.content", "all by hand")
    assert described("four") == "all by hand\n\n" + first.replace("one", "four")


def test_a_confirmation_is_a_child_run_of_its_own_kind(storage: Path, client: MlflowClient) -> None:
    search = MadeUpSearch(storage, "confirmed")
    search.open()
    search.suggest(1, "file", {"optimizer.lr": 1e-3})
    search.report(1, 100, 21.0)
    search.end(1, "finished")
    search.suggest(100_000, "confirmation", {"optimizer.lr": 1e-3}, of=1, changes={"seed": 5})
    search.report(100_000, 50, 20.0)
    tracker = search.tracker()
    tracker.send(search.events)
    before = picture(client, "confirmed")
    search.report(100_000, 100, 20.5)
    search.end(100_000, "finished")
    search.tracker().send(search.events)  # another driver, which finds the run
    runs = runs_of(client, "confirmed")
    assert set(runs) == set(before) == {"confirmed", "trial-0001", "trial-0001-seed-5"}
    run = runs["trial-0001-seed-5"]
    assert run.data.tags["mlflow.parentRunId"] == runs["confirmed"].info.run_id
    assert (run.data.tags["ftae.kind"], run.data.tags["ftae.confirms"]) == ("confirmation", "1")
    assert "ftae.trial" not in run.data.tags
    assert run.data.params == {"optimizer.lr": "0.001", "seed": "5"}
    assert [value for _, _, value in points_of(client, run)] == [20.0, 20.5]


def test_the_changes_of_a_trial_are_a_tag(storage: Path, client: MlflowClient) -> None:
    search = MadeUpSearch(storage, "adapted")
    search.open()
    search.suggest(1, "file", {"optimizer.lr": 1e-3})
    search.add("start", trial=1, node="n", pid=1, step=0)
    search.add("adapt", trial=1, changes={"batch_size": 4}, reason="out of memory at step 6")
    search.add("note", trial=1, text="its worker was lost")
    search.add("preflight", probe={"step_seconds": 0.5})
    search.report(1, 50)
    search.tracker().send(search.events)
    run = runs_of(client, "adapted")["trial-0001"]
    assert json.loads(run.data.tags["ftae.changes"]) == {"batch_size": 4}
    assert run.data.params == {"optimizer.lr": "0.001"}
    assert points_of(client, run) != []


def test_artifacts_lie_below_the_storage_folder(storage: Path, client: MlflowClient) -> None:
    search = MadeUpSearch(storage, "where")
    search.open()
    search.tracker().send(search.events)
    run_id = runs_of(client, "where")["where"].info.run_id
    assert (storage / "mlartifacts" / run_id / "artifacts" / "search.yaml").read_text() == "name: where\n"


def test_sending_again_changes_nothing(storage: Path, client: MlflowClient) -> None:
    search = MadeUpSearch(storage, "again")
    events = search.whole()
    tracker = search.tracker()
    tracker.send(events)
    before = picture(client, "again")
    tracker.send(events)
    assert picture(client, "again") == before
    search.tracker().send(events)
    assert picture(client, "again") == before
    late = search.tracker()  # another process, whose offset was saved three batches ago
    for start in range(7, len(events), 4):
        late.send(events[start : start + 4])
    assert picture(client, "again") == before


def test_many_small_batches_end_as_one_large_one(storage: Path, client: MlflowClient) -> None:
    whole, parts = MadeUpSearch(storage, "whole"), MadeUpSearch(storage, "parts")
    whole.tracker().send(whole.whole())
    for event in parts.whole():
        parts.tracker().send([event])
    one, many = runs_of(client, "whole"), runs_of(client, "parts")
    one["parts"] = one.pop("whole")
    assert one.keys() == many.keys()
    for name, run in one.items():
        assert run.info.status == many[name].info.status
        assert run.data.params == many[name].data.params
        assert run.data.tags.keys() == many[name].data.tags.keys()
        assert points_of(client, run) == points_of(client, many[name])
        assert len(artifacts_of(client, run)) == len(artifacts_of(client, many[name]))


def test_a_search_continues_after_an_interruption(storage: Path, client: MlflowClient) -> None:
    search = MadeUpSearch(storage, "resumed", num_trials=4)
    search.open()
    for trial in (1, 2):
        search.suggest(trial)
        search.report(trial, 50)
    search.end(2, "finished")
    search.close("interrupted", "stopped by the user")
    search.tracker().send(search.events)
    runs = runs_of(client, "resumed")
    assert {name: run.info.status for name, run in runs.items()} == {
        "resumed": "KILLED",
        "trial-0001": "KILLED",
        "trial-0002": "FINISHED",
    }
    assert runs["trial-0001"].data.tags["ftae.status"] == "interrupted"
    assert runs["resumed"].data.tags["ftae.reason"] == "stopped by the user"
    sent = len(search.events)

    settings = search.spec.search.model_copy(update={"num_trials": 8})
    search.spec = search.spec.model_copy(update={"search": settings})
    search.open()
    search.report(1, 100)
    tracker = search.tracker()
    tracker.send(search.events[sent:])
    runs = runs_of(client, "resumed")
    assert {name: run.info.status for name, run in runs.items()} == {
        "resumed": "RUNNING",
        "trial-0001": "RUNNING",
        "trial-0002": "FINISHED",
    }
    assert runs["resumed"].data.tags["ftae.reason"] == ""
    assert runs["resumed"].data.params["search.num_trials"] == "4"  # a param cannot be changed
    assert runs["resumed"].data.tags["ftae.search.num_trials"] == "8"

    tracker.send([search.end(1, "finished"), search.close("complete")])
    runs = runs_of(client, "resumed")
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert {run.data.tags["ftae.status"] for run in runs.values()} == {"complete", "finished"}
    assert [step for step, _, _ in points_of(client, runs["trial-0001"])] == [50, 100]


def test_a_new_search_of_the_same_name_gets_runs_of_its_own(storage: Path, client: MlflowClient) -> None:
    first = MadeUpSearch(storage, "same")
    first.open()
    first.tracker().send(first.events)
    first.folder.rename(storage / "moved away")
    second = MadeUpSearch(storage, "same")
    second.now += 1000.0
    second.open()
    second.tracker().send(second.events)
    experiment = client.get_experiment_by_name("same")
    assert experiment is not None
    ids = [run.data.tags["ftae.search_id"] for run in client.search_runs([experiment.experiment_id])]
    assert len(set(ids)) == len(ids) == 2


def test_values_that_spoil_charts_or_break_limits(storage: Path, client: MlflowClient) -> None:
    search = MadeUpSearch(storage, "limits")
    search.open()
    glob = "optimizer.lr_multipliers.enc*[0]"
    search.suggest(1, params={glob: 0.5, "freeze": ["x" * 10_000], "nested": {"a": {"b": True}, "c": {}}})
    search.report(1, 0, None)
    report = search.report(1, 50, 20.0)
    report["metrics"] |= {"train/loss": math.inf, "train/grad_norm": math.nan, "train/mse": -math.inf}
    search.end(1, "failed", "y" * 10_000)
    search.tracker().send(search.events)
    run = runs_of(client, "limits")["trial-0001"]
    assert run.data.metrics == {"val/psnr": 20.0, "train/lr": 1e-3, "system/eval": 0.5}
    assert [step for step, _, _ in points_of(client, run)] == [50]
    freeze = run.data.params.pop("freeze")
    assert run.data.params == {
        "optimizer.lr_multipliers.enc_2a_5b0_5d": "0.5",
        "nested.a.b": "true",
        "nested.c": "{}",
    }
    assert freeze.startswith('["xxx')
    assert freeze.endswith("...")
    assert run.data.tags["ftae.reason"].startswith("yyy")


def test_thousands_of_points_in_one_batch(storage: Path, client: MlflowClient) -> None:
    search = MadeUpSearch(storage, "long")
    search.open()
    search.suggest(1)
    for step in range(450):
        search.report(1, step, float(step))
    search.tracker().send(search.events)
    run = runs_of(client, "long")["trial-0001"]
    assert [value for _, _, value in points_of(client, run)] == [float(step) for step in range(450)]
    assert len(points_of(client, run, "train/lr")) == 450


# ----------------------------------------------------------------------------------------------- images


def grid_name(path: str) -> str:
    """The part of a file name that MLflow's image grid reads, without the parts that may vary."""
    return re.sub(r"timestamp\+\d+\+[0-9a-f-]+", "timestamp+T+ID", path)


def test_images_are_named_as_mlflow_names_them(storage: Path, client: MlflowClient) -> None:
    search = MadeUpSearch(storage, "grid")
    search.open()
    search.suggest(1)
    event = search.report(1, 50, image=True)
    search.tracker().send(search.events)
    ours = runs_of(client, "grid")["trial-0001"]
    theirs = client.create_run(ours.info.experiment_id)
    with PIL.Image.open(search.folder / event["images"]) as image:
        client.log_image(theirs.info.run_id, image, key="reconstruction", step=50)
    theirs = client.get_run(theirs.info.run_id)
    assert list(map(grid_name, artifacts_of(client, ours))) == list(map(grid_name, artifacts_of(client, theirs)))
    assert ours.data.tags["mlflow.loggedImages"] == theirs.data.tags["mlflow.loggedImages"]
    png = next(path for path in artifacts_of(client, ours) if path.endswith(".png"))
    shown = Path(client.download_artifacts(ours.info.run_id, png))
    assert shown.read_bytes() == (search.folder / event["images"]).read_bytes()


def test_a_missing_or_broken_image_does_not_stop_the_rest(
    storage: Path, client: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    search = MadeUpSearch(storage, "holes")
    search.open()
    search.suggest(1)
    images = [search.folder / search.report(1, step, image=True)["images"] for step in (10, 20, 30)]
    images[0].unlink()
    images[1].write_bytes(images[1].read_bytes()[:60])
    search.tracker().send(search.events)
    run = runs_of(client, "holes")["trial-0001"]
    assert {path.split("+")[2] for path in artifacts_of(client, run)} == {"30"}
    assert len(artifacts_of(client, run)) == 2
    assert [step for step, _, _ in points_of(client, run)] == [10, 20, 30]
    assert sum("no image of step" in record.message for record in caplog.records) == 2


# --------------------------------------------------------------------------------------------- outcomes


def test_publish_replaces_what_it_published_before(
    storage: Path, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri(None, storage))  # load_table looks nowhere else
    search = MadeUpSearch(storage, "published")
    search.open()
    search.tracker().send(search.events)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")

    def publish(psnr: float, rows: int) -> Run:
        leaderboard = [{"trial": i, "val/psnr": psnr - i, "reason": None} for i in range(rows)] + [{"trial": 99}]
        outcome = Outcome(
            leaderboard,
            best_config=f"psnr: {psnr}\n",
            files={"best_checkpoint": model, "report": search.folder / "search.yaml"},
            tags={"ftae.best_trial": str(rows)},
            metrics={"best/val/psnr": psnr, "baseline/val/psnr": 18.0, "best/val/kl": math.inf},
        )
        search.tracker().publish(outcome)
        return runs_of(client, "published")["published"]

    publish(21.0, rows=2)
    run = publish(21.0, rows=2)
    assert [value for _, _, value in points_of(client, run, "best/val/psnr")] == [21.0]
    run = publish(22.0, rows=3)
    assert run.data.metrics == {"best/val/psnr": 22.0, "baseline/val/psnr": 18.0}
    assert len(points_of(client, run, "baseline/val/psnr")) == 1
    assert run.data.tags["ftae.best_trial"] == "3"
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": "leaderboard.json", "type": "table"}]
    table = client.load_table(run.info.experiment_id, "leaderboard.json", [run.info.run_id])
    assert table["trial"].tolist() == [0, 1, 2, 99]
    assert table["val/psnr"].tolist()[:3] == [22.0, 21.0, 20.0]
    assert artifacts_of(client, run) == [
        "best_checkpoint/config.json",
        "best_config.yaml",
        "leaderboard.json",
        "report/search.yaml",
        "search.yaml",
    ]
    assert Path(client.download_artifacts(run.info.run_id, "best_config.yaml")).read_text() == "psnr: 22.0\n"


def test_a_missing_file_to_publish_is_an_error_that_names_it(storage: Path, tmp_path: Path) -> None:
    search = MadeUpSearch(storage, "nothing")
    search.open()
    with pytest.raises(FtaeError, match=r"gone\.bin.*does not exist") as caught:
        search.tracker().publish(Outcome(files={"x": tmp_path / "gone.bin"}))
    assert not isinstance(caught.value, TrackingUnavailable)
