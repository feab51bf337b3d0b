"""The Python API: what it gives back, what it refuses, and how little it imports."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import production_spec, run_spec, search_dict, search_spec
from pydantic import ValidationError

import ftae
from ftae.specs.files import dump

HEAVY = ["torch", "ray", "mlflow", "optuna", "diffusers", "numpy", "pandas", "sklearn", "PIL"]
NOWHERE = {"tracking.uri": "http://127.0.0.1:9"}  # nobody listens: creating the embedded store takes long


@pytest.mark.parametrize(
    "code", ["import ftae", "import ftae.api", "import ftae; ftae.read_search; ftae.SearchSpec; ftae.Search"]
)
def test_the_api_is_imported_without_heavy_packages(code: str) -> None:
    program = f"import sys; {code}; print(sorted({set(HEAVY)} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_every_name_is_there() -> None:
    for name in ftae.__all__:
        assert getattr(ftae, name).__doc__, name
        assert name in dir(ftae)
    with pytest.raises(AttributeError, match="no attribute 'run_serach'"):
        ftae.run_serach  # noqa: B018


def test_all_functions_of_the_module_are_names_of_the_package() -> None:
    from ftae import api

    assert set(api.__all__) <= set(ftae.__all__)


# ------------------------------------------------------------------------------------------------ specs


def test_a_spec_is_built_in_python_as_in_a_file(tmp_path: Path) -> None:
    built = ftae.SearchSpec(
        name="small",
        finetune=run_spec(),
        search_space={"optimizer.lr": ftae.Range(low=1e-6, high=1e-2, log=True)},
        objective={"metric": "val/psnr", "direction": "maximize"},  # type: ignore[arg-type]
        search={"num_trials": 2, "scheduler": {"name": "fifo"}},  # type: ignore[arg-type]
    )
    (tmp_path / "search.yaml").write_text(dump(search_spec()))
    assert built == search_spec() == ftae.read_search(tmp_path / "search.yaml")
    longer = ftae.read_search(str(tmp_path / "search.yaml"), ["search.num_trials=7"])
    assert longer.search.num_trials == 7
    with pytest.raises(ValidationError, match="batch_size"):
        ftae.FinetuneSpec.model_validate(search_dict()["finetune"] | {"batch_size": 0})


def test_a_file_with_faults_is_one_error_with_all_of_them(tmp_path: Path) -> None:
    (tmp_path / "search.yaml").write_text(json.dumps(search_dict(**{"finetune.batch_size": 0, "name": "a b"})))
    with pytest.raises(ftae.SpecError) as refusal:
        ftae.read_search(tmp_path / "search.yaml")
    assert isinstance(refusal.value, ftae.FtaeError)
    assert len(refusal.value.problems) == 2


def test_the_plan_of_a_spec_is_that_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("search.yaml").write_text(dump(search_spec()))
    lines = ftae.validate(search_spec())
    assert lines[0] == "small: a valid search"
    assert ftae.validate("search.yaml") == lines
    assert "training     24 steps" in "\n".join(ftae.validate("search.yaml", ["finetune.max_steps=24"]))
    assert ftae.validate(production_spec())[0] == "small: a valid training run"
    missing = search_spec(**{"finetune.data": {"source": "image_folder", "train": "gone", "resolution": 16}})
    with pytest.raises(ftae.FtaeError, match=r"finetune\.data\.train: "):
        ftae.validate(missing)


# --------------------------------------------------------------------------------------------- searches


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module")
def searched(home: Path, ray_session: None) -> tuple[ftae.Search, list[str]]:
    """A search of two trials, and what ``notify`` received."""
    lines: list[str] = []
    spec = search_spec(**NOWHERE, **{"search.storage": str(home / "searches"), "finetune.metrics": ["psnr"]})
    return ftae.run_search(spec, notify=lines.append), lines


def test_a_search_gives_its_trials(searched: tuple[ftae.Search, list[str]], home: Path) -> None:
    search, lines = searched
    assert (search.name, search.status, search.reason) == ("small", "complete", None)
    assert search.folder == home / "searches" / "small"
    assert search.spec.search.num_trials == 2
    assert [(t.number, t.kind, t.status) for t in search.trials] == [
        (0, "baseline", "finished"),
        (1, "file", "finished"),
        (2, "sampled", "finished"),
    ]
    assert search.baseline == search.trials[0]
    assert search.best in search.trials[1:]
    assert search.best.value == max(t.value for t in search.trials[1:] if t.value is not None)
    assert search.best.metrics["val/psnr"] == search.best.value
    assert list(search.best.curve) == [0, 6, 12]
    assert search.best.curve[12] == search.best.metrics
    assert search.trials[1].params == {"optimizer.lr": 1e-2}
    assert lines[0] == "small: checking data and model, then starting Ray"
    assert any("2/2 trials done" in line for line in lines)


def test_the_leaderboard_is_a_table(searched: tuple[ftae.Search, list[str]]) -> None:
    search, _ = searched
    table = search.leaderboard()
    assert list(table.columns) == ["kind", "status", "val/psnr", "step", "params.optimizer.lr", "reason"]
    assert table.index[0] == search.best.number
    assert table["val/psnr"].iloc[0] == search.best.value
    assert table.loc[0, "kind"] == "baseline"
    assert f"best is trial {search.best.number}" in repr(search)
    shown = search._repr_html_()
    assert shown.count("<tr>") == 4
    assert "<th>optimizer.lr</th>" in shown


def test_a_search_is_opened_by_name_or_folder(searched: tuple[ftae.Search, list[str]], home: Path) -> None:
    search, _ = searched
    for name, storage in (("small", str(home / "searches")), (str(search.folder), "elsewhere")):
        assert ftae.open_search(name, storage).trials == search.trials
    assert search.refresh() is search
    with pytest.raises(ftae.FtaeError, match="there is no search 'none'"):
        ftae.open_search("none", str(home / "searches"))
    with pytest.raises(ftae.FtaeError, match="trial 9 did not run"):
        search.choose(9)


def test_a_search_goes_on_with_more_trials(searched: tuple[ftae.Search, list[str]], home: Path) -> None:
    storage = str(home / "searches")
    with pytest.raises(ftae.FtaeError, match="holds a search already"):
        ftae.run_search(searched[0].spec)
    with pytest.raises(ftae.FtaeError, match="has finished all its 2 trials"):
        ftae.resume_search("small", storage)
    longer = ftae.resume_search("small", storage, trials=1)
    assert [trial.number for trial in longer.trials] == [0, 1, 2, 3]
    assert longer.spec.search.num_trials == 3


def test_progress_is_logged_unless_somebody_takes_it(
    home: Path, ray_session: None, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = search_spec(**NOWHERE, **{"search.storage": str(home / "logged"), "search.num_trials": 1})
    with caplog.at_level(logging.INFO, logger="ftae"):
        ftae.run_search(spec)
    assert any("1/1 trials done" in record.message for record in caplog.records if record.name == "ftae")
    assert "trials done" not in capsys.readouterr().out


# ------------------------------------------------------------------------------------ training, models


def test_a_model_is_exported_trained_and_used(searched: tuple[ftae.Search, list[str]], home: Path) -> None:
    folder = searched[0].export(home / "exported")
    assert folder == home / "exported"
    model = ftae.load_model(folder)
    assert (model.image_shape, model.latent_shape, model.class_names) == ((16, 16, 1), (4,), ("3", "7"))
    lines: list[str] = []
    run = ftae.run_training(folder, home / "run", storage=home / "searches", notify=lines.append)
    assert run.metrics["val/psnr"] == searched[0].best.value, "it repeats the trial"
    assert (run.step, run.model) == (12, home / "run" / "model")
    assert any(line.startswith("step 12 ") for line in lines)
    trained = ftae.load_model(run.model.parent)
    images = images_of(3)
    assert np.array_equal(trained.reconstruct(images), model.reconstruct(images))
    with pytest.raises(ftae.FtaeError, match=r"holds a run already|already contains a run"):
        ftae.run_training(folder, home / "run", storage=home / "searches")


def images_of(count: int, dtype: Any = np.uint8) -> Any:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 1)).astype(dtype)


def test_shapes_types_and_ranges_of_arrays(searched: tuple[ftae.Search, list[str]], home: Path) -> None:
    model = ftae.load_model("small", str(home / "searches"))
    images = images_of(11)  # more than a batch
    latents, made = model.encode(images), model.reconstruct(images)
    assert (latents.shape, latents.dtype) == ((11, 4), np.float32)
    assert (made.shape, made.dtype) == ((11, 16, 16, 1), np.float32)
    assert 0.0 <= made.min() <= made.max() <= 1.0
    assert np.array_equal(model.decode(latents), made)
    for floats in (images / 255, (images / 255).astype(np.float32), (images / 255).tolist()):
        assert np.allclose(model.reconstruct(floats), made, atol=1e-6)
    sampled = model.sample(5, seed=3)
    assert (sampled.shape, sampled.dtype) == ((5, 16, 16, 1), np.float32)
    assert np.array_equal(sampled, model.sample(5, seed=3))
    assert not np.array_equal(sampled, model.sample(5, seed=4))
    assert "conv_vae, images 16x16x1" in repr(model)
    evaluation = model.evaluate()
    assert evaluation.num_images == 72
    assert evaluation.metrics["psnr"] == ftae.open_search("small", str(home / "searches")).best.value


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 16, 16), np.uint8), r"must have the shape \(N, 16, 16, 1\), got uint8 of shape \(2, 16, 16\)"),
        (np.zeros((2, 1, 16, 16), np.uint8), r"must have the shape \(N, 16, 16, 1\)"),
        (np.zeros((2, 16, 16, 3), np.uint8), r"must have the shape \(N, 16, 16, 1\)"),
        (np.full((2, 16, 16, 1), 255.0), r"float images must lie in \[0, 1\], got values from 255 to 255"),
        (np.full((2, 16, 16, 1), np.nan), r"float images must lie in \[0, 1\], got values from nan to nan"),
        (np.zeros((2, 16, 16, 1), np.int64), r"must be uint8 in \[0, 255\] or floats in \[0, 1\], got int64"),
        (np.zeros((0, 16, 16, 1), np.uint8), "there must be at least one image"),
    ],
)
def test_arrays_that_are_no_images_are_refused(
    images: Any, message: str, searched: tuple[ftae.Search, list[str]], home: Path
) -> None:
    model = ftae.load_model("small", str(home / "searches"))
    with pytest.raises(ftae.FtaeError, match=message):
        model.reconstruct(images)


def test_other_faults_of_the_caller(searched: tuple[ftae.Search, list[str]], home: Path) -> None:
    model = ftae.load_model("small", str(home / "searches"), trial=1)
    assert model.description == "trial 1 of small"
    with pytest.raises(ftae.FtaeError, match=r"latents must be real numbers of shape \(N, 4\), got float64 of shape"):
        model.decode(np.zeros((2, 5)))
    with pytest.raises(ftae.FtaeError, match="conv_vae is not conditioned on labels"):
        model.reconstruct(images_of(1), labels=["3"])
    with pytest.raises(ftae.FtaeError, match="n must be at least 1"):
        model.sample(0)
    with pytest.raises(ftae.FtaeError, match="there is no model 'none'"):
        ftae.load_model("none", str(home))


def test_a_model_conditioned_on_labels_takes_class_names(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(dump(production_spec(**{"model.family": "conv_cvae"})))
    model = ftae.load_model(tmp_path / "p.yaml", baseline=True)
    images = images_of(2)
    first, second = (model.reconstruct(images, labels=[name, name]) for name in ("3", "7"))
    assert not np.array_equal(first, second)
    assert model.sample(2).shape == (4, 16, 16, 1)
    assert np.array_equal(model.sample(2, label="7"), model.sample(2, label="7"))
    with pytest.raises(ftae.FtaeError, match="needs labels: one class name for each image, of 3, 7"):
        model.encode(images)
    with pytest.raises(ftae.FtaeError, match="must be one of 3, 7, got '8'"):
        model.encode(images, labels=["3", "8"])


def test_code_that_a_spec_names_runs_only_if_the_caller_allows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "api_nets.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.encoder, self.decoder = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 1, 3, padding=1)\n\n"
        "    def encode(self, images):\n        return self.encoder(images)\n\n"
        "    def decode(self, latents):\n        return self.decoder(latents)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FTAE_ALLOW_CODE")
    spec = production_spec(model={"family": "api_nets:Net", "image_range": [0, 1]}, losses={"mse": 1.0})
    with pytest.raises(ftae.FtaeError, match="allow_code=True"):
        ftae.validate(spec)
    assert any("api_nets:Net" in line for line in ftae.validate(spec, allow_code=True))
    with pytest.raises(ftae.FtaeError, match="allow_code=True"):
        ftae.validate(spec)
