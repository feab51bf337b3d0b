"""The commands that use a model: what goes where, and what is refused."""

import json
import sys
from pathlib import Path

import pytest
from builders import run_dict, run_spec
from commands import Ftae, commands_in
from foreign_weights import small_stylegan2
from PIL import Image
from production_runs import untracked
from safetensors.torch import save_file

from ftae.results.replay import replay
from ftae.search.production import train


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one training run of the digits 3 and 7, ``runs/digits``."""
    home = tmp_path_factory.mktemp("cli")
    spec = untracked("digits", run_spec(metrics=["psnr"]))
    train(spec, home / "runs" / "digits", storage=home / "searches", notify=lambda line: None)
    return home


@pytest.fixture
def ftae(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ftae:
    return commands_in(home, monkeypatch, capsys)


def test_evaluate_is_read_by_machines_and_people(ftae: Ftae) -> None:
    last = replay(Path("runs/digits")).trials[1].metrics["val/psnr"]
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
    assert "scores.csv: the scores of each of 72 images" in result.err
    assert "of the 4 worst images, the worst on top" in result.err


@pytest.fixture(scope="module")
def pictures(home: Path) -> Path:
    folder = home / "pictures"
    folder.mkdir()
    for i, value in enumerate((30, 120, 220)):
        Image.new("RGB", (24, 20), (value, 255 - value, 40)).save(folder / f"{i}.jpg")
    return folder


def test_reconstruct(ftae: Ftae, pictures: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    result = ftae("reconstruct", "runs/digits", "pictures", out)
    assert result.status == 0
    assert result.out == f"3 reconstructions are in {out}; {out}/sheet.png shows inputs and reconstructions\n"
    assert {path.name for path in Path(out).iterdir()} == {"0.png", "1.png", "2.png", "sheet.png"}
    again = ftae("reconstruct", "runs/digits", "pictures", out)
    assert (again.status, again.err.splitlines()[-1][: 9 + len(out)]) == (1, f"error: {out} i")
    assert ftae("reconstruct", "runs/digits", "pictures", out, "--overwrite").status == 0


def test_interpolate(ftae: Ftae, pictures: Path, tmp_path: Path) -> None:
    ends = ["pictures/0.jpg", "pictures/2.jpg"]
    result = ftae("interpolate", "runs/digits", *ends, "--out", str(tmp_path), "--frames", "4", "--spherical")
    assert (result.status, {path.name for path in tmp_path.iterdir()}) == (0, {"sheet.png", "frames.gif"})
    assert result.out.endswith("frames.gif: spherical interpolation of latents\n")
    assert Image.open(tmp_path / "sheet.png").size == (4 * 98 - 2, 96)


def test_sample(ftae: Ftae, tmp_path: Path) -> None:
    result = ftae("sample", "runs/digits", "--num", "3", "--out", str(tmp_path / "a"), "--seed", "5")
    assert result.status == 0
    assert result.out.endswith("latents from the standard normal\n")
    names = {"sample-0000.png", "sample-0001.png", "sample-0002.png", "sheet.png"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == names
    assert ftae("sample", "runs/digits", "--num", "3", "--out", str(tmp_path / "b"), "--seed", "5").status == 0
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reconstruct", "runs/digits", "nowhere", "out"], "error: there is no image folder nowhere"),
        (["reconstruct", "runs/digits", "pictures", "pictures/out"], "error: pictures/out must be apart from pictures"),
        (["interpolate", "runs/digits", "a.png", "b.png", "--out", "o"], "error: there is no image file a.png"),
        (
            ["sample", "runs/digits", "--out", "o", "--label", "3"],
            "error: conv_vae is not conditioned on labels: leave",
        ),
        (["sample", "runs/digits", "--out", "runs"], "error: runs is not empty; choose another folder, or use"),
        (["evaluate", "none"], "error: there is no model 'none'; name a folder written by ftae export or ftae train"),
        (["evaluate", "runs/digits", "--heatmaps", "3"], "error: --heatmaps needs --out"),
        (["evaluate", "runs/digits", "--metrics", "fun"], "error: a metric must be one of mse, "),
        (["evaluate", "runs/digits", "--data", "nowhere"], "error: there is no image folder nowhere"),
        (["evaluate", "runs/digits", "--set", "losses.mse=2"], "error: --set losses.mse=2: must be path=value with"),
        (["evaluate", "runs/digits", "--set", "data.resolution=32"], "error: the weights of runs/digits/checkpoints/s"),
    ],
)
def test_what_the_user_can_fix_is_1_with_one_message(
    ftae: Ftae, pictures: Path, arguments: list[str], message: str
) -> None:
    result = ftae(*arguments)
    assert (result.status, result.out) == (1, "")
    said = [line for line in result.err.splitlines() if not line.startswith("model: ")]
    assert len(said) == 1
    assert said[0].startswith(message)


LOUD = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        print("making attention of some type")
        self.encoder, self.decoder = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 1, 3, padding=1)
    def encode(self, images):
        print("encoding")
        return self.encoder(images)
    def decode(self, latents): return self.decoder(latents)
"""


def test_what_a_users_module_prints_is_no_result(ftae: Ftae, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loud_nets.py").write_text(LOUD)
    finetune = run_dict(
        model={"family": "loud_nets:Net", "image_range": [0, 1]},
        losses={"mse": 1.0},
        max_steps=2,
        num_evals=1,
        metrics=["psnr"],
    )
    (tmp_path / "loud.yaml").write_text(json.dumps({"name": "loud", "finetune": finetune}))
    monkeypatch.chdir(tmp_path)
    try:
        plan = ftae("validate", "loud.yaml", "--allow-code")
        trained = ftae("train", "loud.yaml", "--allow-code")
        judged = ftae("evaluate", "runs/loud", "--json", "--allow-code", "--out", "scores")
    finally:
        sys.modules.pop("loud_nets", None)
    assert str(tmp_path) not in sys.path
    assert plan.out.startswith("loud: a valid training run\n")
    assert trained.out.startswith("loud: val/psnr ")
    assert json.loads(judged.out)["num_images"] > 0
    for result in (plan, trained, judged):
        assert result.status == 0
        assert "encoding" in result.err
        assert "making attention" in result.err
        assert "encoding" not in result.out


def test_convert(ftae: Ftae, tmp_path: Path) -> None:
    state = small_stylegan2(0).state_dict()
    save_file(state, tmp_path / "g.safetensors")
    asked = ftae("convert", str(tmp_path / "g.safetensors"), str(tmp_path / "out"))
    assert asked.status == 1
    assert "need --licence TEXT" in asked.err
    result = ftae("convert", str(tmp_path / "g.safetensors"), str(tmp_path / "out"), "--licence", "for research")
    assert result.status == 0
    assert result.out.startswith(f"{tmp_path / 'out'} holds a stylegan2, from state dicts of a StyleGAN2 generator")
    assert "no discriminator: tuning begins with a new one" in result.out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "ftae_model.json",
        "model.safetensors",
        "weights.json",
    ]


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (("interpolate", "--out", "way"), "name two images A and B, or --seeds"),
        (("interpolate", "a.png", "b.png", "--out", "way", "--truncation", "0.5"), "--truncation has no effect"),
        (("interpolate", "--seeds", "3", "8", "--label", "7", "--out", "way"), "--label has no effect"),
        (("sample", "--seeds", "3,x", "--out", "way"), "--seeds must be numbers and ranges"),
        (("sample", "--seeds", "8-3", "--out", "way"), "a range must not end before it begins"),
    ],
)
def test_seeds_and_images_do_not_mix(ftae: Ftae, arguments: tuple[str, ...], rule: str) -> None:
    command, *others = arguments
    result = ftae(command, "runs/digits", *others)
    assert result.status == 2
    assert rule in " ".join(result.err.replace("│", " ").split())
    assert not Path("way").exists()
