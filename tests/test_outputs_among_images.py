"""No command writes among the images that are read: what it writes there would become images."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from builders import small_search
from PIL import Image

from ftae.cli import main as cli
from ftae.engine.data.dataset import load_dataset
from ftae.engine.training.loop import finetune
from ftae.search.production import train
from ftae.search.provenance import provenance
from ftae.search.state import SearchState
from ftae.specs import ProductionSpec, SearchSpec
from ftae.specs.files import dump
from ftae.storage.backends import FolderStore

SEARCH = small_search()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of images ``train``, ``val``, ``replayed`` and ``others``; a run and a search on the first three."""
    home = tmp_path_factory.mktemp("among")
    rng = np.random.default_rng(0)
    for name in ("train", "val", "replayed", "others"):
        for i in range(4):
            path = home / name / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    finetune_spec = SEARCH.finetune.model_dump() | {
        "data": {
            "source": "image_folder",
            "train": str(home / "train"),
            "val": str(home / "val"),
            "resolution": 16,
            "replay": {"source": "image_folder", "train": str(home / "replayed"), "share": 0.5, "val": 0.5},
        },
        "losses": {"mse": 1.0, "kl": 1e-4},
        "metrics": ["psnr"],
    }
    search = SearchSpec.model_validate({**SEARCH.model_dump(), "name": "small", "finetune": finetune_spec})
    (home / "search.yaml").write_text(dump(search))
    spec = ProductionSpec.model_validate(
        {"name": "p", "finetune": finetune_spec, "tracking": {"uri": "http://127.0.0.1:9"}}
    )
    (home / "p.yaml").write_text(dump(spec))
    train(spec, home / "runs" / "p", storage=home / "searches", notify=lambda line: None)
    folder = home / "searches" / "small"
    folder.mkdir(parents=True)
    state = SearchState(search, FolderStore(folder), provenance(search, load_dataset(search.finetune.data)))
    while (trial := state.next_trial()) is not None:
        for report in finetune(search.trial_spec(trial.params), folder / "trials" / f"{trial.number:04d}"):
            if not state.report(trial.number, report):
                break
    state.close("complete")
    return home


def at(out: str) -> tuple[str, ...]:
    return ("--out", out)


COMMANDS: dict[str, Callable[[str], tuple[str, ...]]] = {
    "train": lambda out: ("train", "p.yaml", *at(out)),
    "train resumed": lambda out: ("train", "p.yaml", "--resume", *at(out)),
    "train's store": lambda out: ("train", "p.yaml", "--storage", out, *at("runs/q")),
    "export": lambda out: ("export", "small", *at(out)),
    "sample": lambda out: ("sample", "runs/p", "--fitted", *at(out)),
    "evaluate": lambda out: ("evaluate", "runs/p", "--heatmaps", "1", *at(out)),
    "interpolate": lambda out: ("interpolate", "runs/p", "others/0.png", "others/1.png", *at(out)),
    "reconstruct": lambda out: ("reconstruct", "runs/p", "others", out),
    "validate": lambda out: ("validate", "search.yaml", "--set", f"search.storage={out}"),
    "search": lambda out: ("search", "search.yaml", "--set", f"search.storage={out}"),
}
INSIDE = ("train", "val/x", "replayed/x", "train/../val/x", "link/x")
ABOVE = ("train", "train resumed", "export", "reconstruct")  # they make folders of their own where they write


@pytest.mark.parametrize(
    ("command", "out"),
    [
        *((command, "train/below/it") for command in COMMANDS),
        *(("train", out) for out in INSIDE),
        *((command, ".") for command in ABOVE),
    ],
)
def test_it_is_refused_before_anything_is_written(
    command: str, out: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    if not (home / "link").exists():
        (home / "link").symlink_to("train")
    before = sorted(home.rglob("*"))
    if command == "search":  # nothing of it needs Ray
        monkeypatch.setattr("ftae.search.driver.ray_session", lambda: pytest.fail("Ray is asked for"))
    monkeypatch.setattr(sys, "argv", ["ftae", *COMMANDS[command](out)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    assert "must be apart from" in capsys.readouterr().err
    assert sorted(home.rglob("*")) == before


def test_images_to_measure_on_are_images_too(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "argv", ["ftae", "evaluate", "runs/p", "--data", "others", "--out", "others"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "others must be apart from others (--data)" in capsys.readouterr().err


def test_beside_the_images_is_no_fault(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name that only begins alike; and scores in the folder that holds the folder of images."""
    monkeypatch.chdir(home)
    for out in ("training", "."):
        monkeypatch.setattr(sys, "argv", ["ftae", "evaluate", "runs/p", "--out", out])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
        assert (home / out / "scores.csv").is_file()


@pytest.mark.parametrize(
    "command", sorted(COMMANDS.keys() - {"validate", "search"})
)  # in a file, YAML refuses such names
def test_a_folder_to_write_to_has_a_name_in_utf_8(
    command: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The writers of weights take no other, and would say so after the training."""
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "argv", ["ftae", *COMMANDS[command]("gr\udcfcn/x")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert "gr\\xfcn/x" in error
