"""The command line in a folder with a search file and a production file."""

from pathlib import Path

import pytest
import yaml
from commands import Ftae, commands_in
from stored_searches import SEARCH


@pytest.fixture
def ftae(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ftae:
    """Runs a command in ``tmp_path``, which holds search.yaml and production.yaml."""
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(SEARCH))
    (tmp_path / "production.yaml").write_text(yaml.safe_dump({key: SEARCH[key] for key in ("name", "finetune")}))
    return commands_in(tmp_path, monkeypatch, capsys)
