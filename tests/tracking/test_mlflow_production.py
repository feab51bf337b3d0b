"""Production runs in MLflow: one run each, and the registry."""

from pathlib import Path

from made_up_search import START, MadeUpRun, artifacts_of, points_of, runs_of
from mlflow import MlflowClient


def test_a_production_run_is_one_run(storage: Path, client: MlflowClient, tmp_path: Path) -> None:
    run = MadeUpRun(storage, "digits", tmp_path / "run")
    came_from = {"search": "small", "trial": 3, "objective": {"metric": "val/psnr", "direction": "maximize"}}
    run.spec = run.spec.model_copy(update={"from_search": came_from})
    run.open()
    run.add("suggest", trial=1, params={}, kind="file")
    run.add("start", trial=1, node="n", pid=1, step=0)
    run.report(1, 0, 18.0)
    run.report(1, 10, 19.0, image=True)
    run.add("end", trial=1, status="finished", reason=None, value=19.0, step=10)
    run.close("complete")
    for _ in range(2):  # the second time changes nothing
        run.tracker().send(run.events)
        found = runs_of(client, "digits")["digits"]
        assert (found.info.status, found.info.start_time) == ("FINISHED", int((START + 120.0) * 1000))
        assert found.info.end_time == int(run.now * 1000)
        assert {key: value for key, value in found.data.tags.items() if not key.startswith("mlflow.")} == {
            "ftae.kind": "production",
            "ftae.run_id": f"digits-{found.info.start_time}",
            "ftae.search": "small",
            "ftae.trial": "3",
            "ftae.status": "complete",
        }
        assert found.data.params["optimizer.lr"] == "0.01"
        assert found.data.params["model.family"] == "conv_vae"
        assert [value for _, _, value in points_of(client, found)] == [18.0, 19.0]
        assert [path.split("+")[2] for path in artifacts_of(client, found, "images")] == ["10", "10"]


def test_a_continued_run_is_the_same_run(storage: Path, client: MlflowClient, tmp_path: Path) -> None:
    run = MadeUpRun(storage, "continued", tmp_path / "run")
    run.open()
    run.report(1, 0)
    run.close("interrupted", "stopped by the user")
    run.tracker().send(run.events)
    first = runs_of(client, "continued")["continued"]
    assert (first.info.status, first.data.tags["ftae.reason"]) == ("KILLED", "stopped by the user")
    run.spec = run.spec.model_copy(update={"finetune": run.spec.finetune.model_copy(update={"max_steps": 24})})
    tracker, sent = run.tracker(), len(run.events)
    run.open()
    tracker.send(run.events[sent:])
    assert client.get_run(first.info.run_id).info.status == "RUNNING"
    run.report(1, 24)
    run.close("complete")
    tracker.send(run.events[sent:])
    second = runs_of(client, "continued")["continued"]
    assert (second.info.run_id, second.info.status) == (first.info.run_id, "FINISHED")
    assert (second.data.params["max_steps"], second.data.tags["ftae.max_steps"]) == ("12", "24")
    assert [step for step, _, _ in points_of(client, second)] == [0, 24]
    client.delete_run(second.info.run_id)
    run.tracker().send(run.events)
    assert runs_of(client, "continued")["continued"].info.run_id != second.info.run_id
