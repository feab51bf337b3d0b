"""The embedded store that the tests of a module share."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from ftae.tracking import store_uri


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One embedded store for the module: making its tables takes seconds. Tests use experiments of their own."""
    return tmp_path_factory.mktemp("all searches")


@pytest.fixture(scope="module")
def client(storage: Path) -> MlflowClient:
    return MlflowClient(store_uri(None, storage), registry_uri=store_uri(None, storage))
