"""A small pretrained model of every family that needs one."""

from pathlib import Path

import pytest
from small_models import save_pretrained_models


@pytest.fixture(scope="session")
def pretrained_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families")
    save_pretrained_models(folder)
    return folder
