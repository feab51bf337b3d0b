"""A secret belongs in the environment, and what is there gets into nothing that ftae writes or sends."""

from pathlib import Path
from typing import Any

import pytest
from builders import small_search

from ftae.cluster import jobs
from ftae.engine.data.dataset import load_dataset
from ftae.engine.training.loop import finetune
from ftae.results.export import export
from ftae.search.production import train
from ftae.search.provenance import provenance
from ftae.search.state import SearchState
from ftae.search.tracking_sync import sync
from ftae.specs import SearchSpec
from ftae.specs.files import dump, load_production
from ftae.storage.backends import FolderStore

SEARCH = small_search(**{"search.notify": ["FTAE_WEBHOOK"]})

SECRETS = {
    "MLFLOW_TRACKING_USERNAME": "hush-username",
    "MLFLOW_TRACKING_PASSWORD": "hush-password",
    "MLFLOW_TRACKING_TOKEN": "hush-token",
    "AWS_ACCESS_KEY_ID": "hush-key-id",
    "AWS_SECRET_ACCESS_KEY": "hush-access-key",
    "AWS_SESSION_TOKEN": "hush-session",
    "PGPASSWORD": "hush-database",
    "MYSQL_PWD": "hush-mysql",
    "AZURE_STORAGE_ACCOUNT_KEY": "hush-azure",
    "AZURE_STORAGE_CONNECTION_STRING": "AccountKey=hush-connection",
    "GOOGLE_APPLICATION_CREDENTIALS": "/hush-google.json",
    "HF_TOKEN": "hush-hub",
    "RAY_AUTH_TOKEN": "hush-ray",
    "FTAE_WEBHOOK": "https://hooks.example.org/hush-webhook",
}


class Client:
    """What a cluster is told, and nothing else of it."""

    def __init__(self) -> None:
        self.told: dict[str, Any] = {}

    def submit_job(self, **told: Any) -> str:
        self.told = told
        return str(told["submission_id"])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that a search, its export, a production run and a submission write, of a user who has every secret set."""
    home = tmp_path_factory.mktemp("secrets")
    uri = f"sqlite:///{home / 'tracking.db'}"
    spec = SearchSpec.model_validate(SEARCH.model_dump() | {"tracking": {"uri": uri, "experiment": "ours"}})
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        folder = home / "searches" / spec.name
        folder.mkdir(parents=True)
        state = SearchState(spec, FolderStore(folder), provenance(spec, load_dataset(spec.finetune.data)))
        (folder / "search.yaml").write_text(dump(spec))
        while (trial := state.next_trial()) is not None:
            for report in finetune(spec.trial_spec(trial.params), folder / "trials" / f"{trial.number:04d}"):
                if not state.report(trial.number, report):
                    break
        state.close("complete")
        sync(FolderStore(folder))
        export(FolderStore(folder), home / "exported")
        production = load_production(home / "exported" / "production.yaml")
        train(production, home / "run", storage=home / "searches", register="model", notify=lambda line: None)
        client = Client()
        jobs.submit(client, spec, number=1, resume=False, python="python", last=3)  # type: ignore[arg-type]
        (home / "job").write_text(repr(client.told))
    return home


def test_no_secret_of_the_environment_is_written_or_sent(written: Path) -> None:
    files = [path for path in written.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"journal.jsonl", "search.yaml", "production.yaml", "provenance.json", "tracking.db", "job"} <= names
    assert b"val/psnr" in (written / "tracking.db").read_bytes(), "what is looked for can be found in a database"
    assert "search_space" in (written / "job").read_text()
    found = [path for path in files if b"hush" in path.read_bytes().lower()]
    assert found == []
