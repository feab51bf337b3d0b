"""The commands that use a model: what goes where, and what is refused."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from ftae import cli
from ftae.production import train
from ftae.specs import ProductionSpec


class Result(NamedTuple):
    status: int
    out: str
    err: str


Ftae = Callable[..., Result]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one training run of the digits 3 and 7, ``runs/digits``."""
    home = tmp_path_factory.mktemp("cli")
    finetune = {
        "model": {"family": "conv_vae", "channels": 4, "depth": 1, "latent_dim": 4},
        "data": {"source": "digits", "resolution": 16, "classes": [3, 7]},
        "losses": {"mse": 1.0, "kl": 1e-3},
        "optimizer": {"lr": 1e-2},
        "max_steps": 12,
        "num_evals": 2,
        "metrics": ["psnr"],
    }
    spec = ProductionSpec.model_validate({"name": "digits", "finetune": finetune})
    train(spec, home / "runs" / "digits", storage=home / "searches", say=lambda line: None)
    return home


@pytest.fixture
def ftae(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ftae:
    monkeypatch.chdir(home)
    monkeypatch.delenv("FTAE_DEBUG", raising=False)

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["ftae", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return Result(int(end.value.code or 0), *capsys.readouterr())

    return run


def test_evaluate_is_read_by_machines_and_people(ftae: Ftae) -> None:
    last = json.loads(Path("runs/digits/reports.jsonl").read_text().splitlines()[-1])["metrics"]["val/psnr"]
    result = ftae("evaluate", "runs/digits", "--json")
    assert result.status == 0
    told = "runs/digits at step-00000012"
    assert json.loads(result.out) == {"model": told, "num_images": 72, "metrics": {"psnr": last}}
    assert result.err == f"model: {told}\n"
    assert ftae("evaluate", "runs/digits").out == f"psnr: {last:.6g}\n"


def test_evaluate_writes_the_error_of_each_image(ftae: Ftae, tmp_path: Path) -> None:
    result = ftae("evaluate", "runs/digits", "--metrics", "mse", "--out", str(tmp_path / "out"), "--heatmaps", "4")
    assert result.status == 0
    assert result.out.startswith("mse: 0.")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"scores.csv", "heatmaps.png"}
    assert len((tmp_path / "out/scores.csv").read_text().splitlines()) == 73
    assert "the error of each of 72 images" in result.err
    assert "of the 4 worst, the worst on top" in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "none"], "error: 'none' names no model; name a folder that ftae export or ftae train wrote"),
        (["evaluate", "runs/digits", "--heatmaps", "3"], "error: --heatmaps needs --out"),
        (["evaluate", "runs/digits", "--metrics", "fun"], "error: a metric must be one of mse, "),
        (["evaluate", "runs/digits", "--data", "nowhere"], "error: there is no image folder nowhere"),
        (["evaluate", "runs/digits", "--set", "losses.mse=2"], "error: --set losses.mse=2: must be path=value with"),
        (["evaluate", "runs/digits", "--set", "data.resolution=32"], "error: the weights of runs/digits/checkpoints/s"),
    ],
)
def test_what_the_user_can_fix_is_1_with_one_message(ftae: Ftae, arguments: list[str], message: str) -> None:
    result = ftae(*arguments)
    assert (result.status, result.out) == (1, "")
    said = [line for line in result.err.splitlines() if not line.startswith("model: ")]
    assert len(said) == 1
    assert said[0].startswith(message)
