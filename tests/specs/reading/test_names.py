"""Names from files cannot lead out of a folder; names that MLflow would refuse are refused at once."""

from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from pydantic import ValidationError

from ftae.errors import FtaeError
from ftae.results.search_record import SearchRecord
from ftae.specs import ProductionSpec, SearchSpec
from ftae.specs.reading.names import LONGEST, file_name_problem, registry_name_problem
from ftae.specs.search.settings import Tracking

HOSTILE: list[Any] = [
    "../escaped",
    "..",
    ".",
    "...",
    "",
    " ",
    "a/b",
    "/etc/passwd",
    "a\\b",
    "..\\escaped",
    "C:escaped",
    "c:\\escaped",
    "~",
    "~root",
    "a\0b",
    "a\nb",
    "a\x1b[2J",
    "a\x85",
    "\ud800",
    "x" * 300,
    "é" * (LONGEST // 2 + 1),
    " leading",
    "trailing ",
    None,
    7,
    ["a"],
]


@pytest.mark.parametrize("name", HOSTILE, ids=repr)
def test_a_path_is_no_name(name: Any) -> None:
    reason = file_name_problem(name)
    assert reason is not None
    assert reason.startswith("must ")
    assert reason.isprintable()


@pytest.mark.parametrize("name", ["7", "cat", "a.b", ".hidden", "tiger cat", "猫", "10:30", "a~b", "x" * LONGEST])
def test_a_class_may_have_any_other_name(name: str, tmp_path: Path) -> None:
    assert file_name_problem(name) is None
    (tmp_path / f"{name}-0000.png").touch()
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}-0000.png"]


@pytest.mark.parametrize("name", [name for name in HOSTILE if isinstance(name, str)], ids=repr)
@pytest.mark.parametrize("spec_type", [SearchSpec, ProductionSpec])
def test_neither_a_search_nor_a_run_takes_a_path_as_name(name: str, spec_type: Any) -> None:
    with pytest.raises(ValidationError) as refusal:
        spec_type.model_validate({"name": name})
    assert any(error["loc"] == ("name",) for error in refusal.value.errors())


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    return MlflowClient(uri, registry_uri=uri)


@pytest.mark.parametrize("name", ["team/vae", "a:b", "/", "", " ", ".", "..", "vae", "digits vae", "v1.0", "x" * 256])
def test_a_registry_accepts_the_names_that_are_accepted_here(client: MlflowClient, name: str) -> None:
    if registry_name_problem(name) is None:
        assert client.create_registered_model(name).name == name
    elif name.strip(" ."):  # MLflow accepts the other names and then cannot find them
        with pytest.raises(MlflowException):
            client.create_registered_model(name)


def test_an_experiment_may_be_as_long_as_mlflow_accepts(client: MlflowClient) -> None:
    longest = "x" * 500
    assert Tracking(uri="http://host", experiment=longest).experiment == longest
    assert client.create_experiment(longest)
    for wrong in (longest + "x", ""):
        with pytest.raises(ValidationError):
            Tracking(uri="http://host", experiment=wrong)
        with pytest.raises(MlflowException):
            client.create_experiment(wrong)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "trials/../../x", "trials/0001/..", "a\0b", 7])
def test_no_path_of_a_journal_leads_out_of_its_search(path: Any) -> None:
    for key in ("checkpoint", "images"):
        record = SearchRecord(search={})
        record.apply({"event": "suggest", "trial": 0, "params": {}, "kind": "baseline", "time": 0.0})
        report = {"event": "report", "trial": 0, "checkpoint": None, "images": None, "metrics": {}, "step": 0}
        record.apply(report)
        record.apply({**report, key: "trials/0000/images/step-00000000.png"})
        with pytest.raises(FtaeError, match="is not in the folder of its search"):
            record.apply({**report, key: path})
