"""``ftae init``: what it prints and what it writes."""

from pathlib import Path

import pytest
from commands import Ftae, commands_in

from ftae.specs.files import load_search


@pytest.fixture
def ftae(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ftae:
    return commands_in(tmp_path, monkeypatch, capsys)


def test_it_prints_or_writes_a_file_that_loads(ftae: Ftae, tmp_path: Path) -> None:
    shown = ftae("init", "conv_ae", "digits", "--dry-run")
    assert shown.status == 0
    assert shown.err.splitlines()[0] == "model: a new model, trained from scratch"
    assert list(tmp_path.iterdir()) == []
    written = ftae("init", "conv_ae", "digits")
    assert written.out == "conv-ae-digits.yaml is written; next: ftae validate conv-ae-digits.yaml\n"
    assert Path("conv-ae-digits.yaml").read_text() == shown.out
    assert load_search(Path("conv-ae-digits.yaml")).finetune.model.family == "conv_ae"


def test_a_file_that_exists_is_kept(ftae: Ftae, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("mine")
    refused = ftae("init", "conv_ae", "digits", "--out", str(file))
    assert refused.status == 1
    assert "exists: choose another by --out, or use --overwrite" in refused.err
    assert file.read_text() == "mine"
    assert ftae("init", "conv_ae", "digits", "--out", str(file), "--overwrite").status == 0
    assert load_search(file).name == "conv-ae-digits"


def test_its_commands_name_the_file(ftae: Ftae, tmp_path: Path) -> None:
    file = tmp_path / "my search.yaml"
    written = ftae("init", "conv_ae", "digits", "--out", str(file))
    assert written.out == f"{file} is written; next: ftae validate '{file}'\n"
    assert f"#   ftae search '{file}'\n" in file.read_text()
    refused = ftae("init", "conv_ae", "digits", "--out", str(tmp_path / "no" / "such.yaml"))
    assert refused.status == 1
    assert f"cannot write {tmp_path}/no/such.yaml: No such file or directory" in refused.err
