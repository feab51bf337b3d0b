"""A tuned model as MLflow loads and serves it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pytest
import torch
from small_models import GENERATORS, MODELS, TRANSLATORS, model_in, save_pretrained_models, spec_of

from ftae.engine.models.families import build_model
from ftae.engine.training.export_model import CLASSES
from ftae.errors import FtaeError
from ftae.inference.pyfunc import METHODS
from ftae.results.export import MODEL, PRODUCTION
from ftae.specs import ProductionSpec
from ftae.specs.files import dump
from ftae.tracking.mlflow_model_folder import make_mlflow_model, requirements

LABELS = ["7", "3"]
IMAGES = np.random.default_rng(0).random((2, 3, 16, 16), dtype=np.float32)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    save_pretrained_models(folder)
    return folder


def write_model(folder: Path, model: dict[str, Any]) -> Any:
    """What ``ftae export`` writes of an untuned model, as far as MLflow is concerned; returns the model."""
    spec = spec_of(model)
    autoencoder = build_model(spec, len(LABELS))
    (folder / PRODUCTION).write_text(dump(ProductionSpec(name="small", finetune=spec)))
    autoencoder.save(folder / MODEL)
    (folder / MODEL / CLASSES).write_text(json.dumps(sorted(LABELS)))
    make_mlflow_model(folder, spec)
    return autoencoder.eval()


@pytest.fixture
def kept_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow puts the code of a model at the front of the path."""
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.mark.parametrize("name", MODELS)
def test_every_family_is_served(name: str, pretrained: Path, tmp_path: Path, kept_path: None) -> None:
    autoencoder = write_model(tmp_path, model_in(pretrained, name))
    loaded = mlflow.pyfunc.load_model(str(tmp_path))
    with_labels = "cvae" in name
    given: dict[str, Any] = {"labels": LABELS} if with_labels else {}

    def predict(values: Any, method: str, **params: Any) -> Any:
        return loaded.predict(values, params={"method": method, **given, **params})

    if name in GENERATORS:
        made = loaded.predict(IMAGES, params={"n": 2, "seed": 3})
        assert (made.dtype, made.shape) == (np.float32, IMAGES.shape)
        assert np.array_equal(predict(IMAGES, "sample", seed=4), made[1:])
        for method in ("encode", "decode", "translate", "score", "reconstruct"):
            with pytest.raises(FtaeError, match=r"(gets|takes) no images"):
                predict(IMAGES, method)
        return
    made = loaded.predict(IMAGES, params=given)
    with torch.no_grad():
        labels, images = torch.tensor([1, 0]), autoencoder.to_range(torch.from_numpy(IMAGES))
        encoding, expected = autoencoder.run(images, labels)
        latents, expected = encoding.mode, autoencoder.to_unit(expected).clamp(0.0, 1.0).numpy()
    assert (made.dtype, made.shape) == (np.float32, IMAGES.shape)
    np.testing.assert_allclose(made, expected, atol=1e-5)
    if name in TRANSLATORS:
        assert np.array_equal(predict(IMAGES, "translate"), made)
        if autoencoder.reverse is not None:
            back = autoencoder.to_unit(autoencoder.reverse(images)).detach().clamp(0.0, 1.0).numpy()
            np.testing.assert_allclose(predict(IMAGES, "translate", reverse=True), back, atol=1e-5)
        for method in ("encode", "decode", "sample", "score", "reconstruct"):
            with pytest.raises(FtaeError, match="translat"):
                predict(IMAGES, method)
        return
    with pytest.raises(FtaeError, match="gives the images that it gets: use reconstruct"):
        predict(IMAGES, "translate")
    encoded = predict(IMAGES, "encode")
    np.testing.assert_allclose(encoded.reshape(latents.shape), latents.numpy(), atol=1e-5)
    assert np.array_equal(predict(encoded, "decode"), made)
    np.testing.assert_allclose(predict(IMAGES, "score"), ((made - IMAGES) ** 2).mean((1, 2, 3)), rtol=1e-5)
    assert loaded.predict(loaded.input_example, params={"labels": ["3"]} if with_labels else None).shape[2:] == (16, 16)
    if name in ("conv_vae", "conv_cvae", "hierarchical_vae", "vq_vae"):
        drawn = predict(IMAGES[:1], "sample", n=3, seed=1)
        assert drawn.shape == ((6 if with_labels else 3), 3, 16, 16)
        assert np.array_equal(predict(IMAGES[:1], "sample", n=3, seed=1), drawn)


@pytest.fixture(scope="module")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("conditional")
    before = sys.path
    write_model(folder, MODELS["conv_cvae"])
    loaded = mlflow.pyfunc.load_model(str(folder))
    sys.path = before
    return loaded


@pytest.mark.parametrize(
    ("values", "params", "message"),
    [
        (IMAGES, {"method": "paint", "labels": ["3"]}, f"method must be one of {', '.join(METHODS)}, got 'paint'"),
        (IMAGES, {}, "conv_cvae needs labels: one class name for each image, of 3, 7"),
        (IMAGES, {"labels": ["3", "7", "3"]}, "needs labels: one class name for each image"),
        (IMAGES, {"labels": ["9"]}, "the label of an image must be one of 3, 7, got '9'"),
        (
            IMAGES[:, :1],
            {"labels": ["3"]},
            r"images must have the shape \(B, 3, 16, 16\), got float32 of .*\(2, 1, 16, 16\)",
        ),
        (IMAGES * 2, {"labels": ["3"]}, r"images must lie in \[0, 1\]"),
        (IMAGES, {"labels": ["3"], "method": "decode"}, r"latents must .*shape \(N, 4\), got float32 of .*3, 16, 16"),
        (IMAGES, {"labels": ["3"], "method": "sample", "n": 0}, "n must be at least 1"),
    ],
)
def test_a_wrong_request_is_named(conditional: Any, values: Any, params: dict[str, Any], message: str) -> None:
    with pytest.raises(FtaeError, match=message):
        conditional.predict(values, params=params)


def test_code_of_the_user_needs_permission(
    pretrained: Path, tmp_path: Path, kept_path: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path, model_in(pretrained, "custom_forward_alone"))
    monkeypatch.delenv("FTAE_ALLOW_CODE")
    with pytest.raises(FtaeError, match=r"'user_models:ForwardAlone' names code, .*FTAE_ALLOW_CODE=1"):
        mlflow.pyfunc.load_model(str(tmp_path))


# Everything that ftae depends on and that a served model must do without.
ABSENT = ("ray", "optuna", "plotly", "typer", "rich", "torchvision", "torchmetrics")
SERVE = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in ABSENT else self.finder.find_spec(name, path, target)

ABSENT = sys.argv[1].split(",")
sys.meta_path[:] = map(Without, sys.meta_path)
import mlflow.pyfunc, numpy
for folder in sys.argv[2:]:
    model = mlflow.pyfunc.load_model(folder)
    params = {"labels": ["3"]} if "labels" in str(model.metadata.signature.params) else None
    print(model.predict(numpy.zeros((2, 3, 16, 16), numpy.float32), params).shape)
import ftae
print(ftae.__file__.startswith(sys.argv[2]), "mlflow.pyfunc" in sys.modules, "ftae.search" in sys.modules)
"""


def test_a_model_brings_its_code_and_needs_no_search(pretrained: Path, tmp_path: Path) -> None:
    """In a process without Ray, Optuna and the like, on the code in the folder."""
    folders = [tmp_path / name for name in ("conv_cvae", "autoencoder_kl")]
    for folder in folders:
        folder.mkdir()
        write_model(folder, model_in(pretrained, folder.name))
    result = subprocess.run(
        [sys.executable, "-c", SERVE, ",".join(ABSENT), *map(str, folders)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[:3] == ["(2, 3, 16, 16)"] * 2 + ["True True False"]


def test_the_requirements_are_exact_and_without_the_build() -> None:
    names = {line.partition("==")[0] for line in requirements(spec_of(MODELS["conv_vae"]).model)}
    assert {"torch", "numpy", "safetensors"} <= names
    assert names.isdisjoint(ABSENT)
    assert not names & {"diffusers", "vector-quantize-pytorch"}
    assert all("==" in line and "+" not in line for line in requirements(spec_of(MODELS["vq_vae"]).model))
