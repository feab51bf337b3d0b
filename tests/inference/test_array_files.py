"""Files of arrays in use: measured, and reconstructed in the values of the file."""

from pathlib import Path

import numpy as np
import pytest
from builders import run_spec

from ftae.engine.data.dataset import load_dataset
from ftae.engine.training.export_model import export_model
from ftae.engine.training.loop import finetune
from ftae.errors import FtaeError
from ftae.inference.files import Model
from ftae.inference.model import load_model
from ftae.inference.pyfunc import ServedModel
from ftae.inference.source import ModelSource


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    return np.random.default_rng(0).normal(50.0, 10.0, (40, 2, 12))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, values: np.ndarray) -> Model:
    """An untrained model of series of two channels."""
    file = tmp_path_factory.mktemp("arrays") / "train.npy"
    np.save(file, values)
    data = {"source": "arrays", "train": str(file), "layout": "cs", "resolution": [1, 12], "num_channels": 2}
    family = {"family": "mlp_vae", "hidden": 8, "latent_dim": 2}
    spec = run_spec(
        model=family,
        data={**data, "normalise": "standard", "val": 0.25},
        losses={"mse": 1.0},
        metrics=["psnr", "mse"],
        device="cpu",
    )
    return Model(load_model(ModelSource(spec, None, "untrained")), "untrained")


def test_a_reconstruction_is_in_the_values_and_the_layout_of_the_file(
    model: Model, values: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "some.npy", values[:10])
    assert model.reconstruct_folder(tmp_path / "some.npy", tmp_path / "out") == 10
    made = np.load(tmp_path / "out" / "some.npy")
    assert made.shape == (10, 2, 12)
    assert made.dtype == np.float32
    # Untrained, it gives about the middle of the range, which is the mean of the training samples.
    assert 45.0 < made.mean() < 55.0


def test_other_samples_are_normalised_as_those_of_training(model: Model, values: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "same.npy", values)
    np.save(tmp_path / "brighter.npy", values + 40.0)
    same, brighter = (model.evaluate(tmp_path / name, ["mse"]) for name in ("same.npy", "brighter.npy"))
    assert same.num_images == 40
    # 40 is 4 standard deviations, half of the range.
    assert brighter.metrics["mse"] == pytest.approx(0.25 + same.metrics["mse"], abs=0.02)


def test_what_cannot_be_reconstructed(model: Model, values: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "long.npy", np.zeros((3, 2, 13)))
    with pytest.raises(FtaeError, match=r"resolution \[1, 13\] with 2 channels, not \[1, 12\] and 2"):
        model.reconstruct_folder(tmp_path / "long.npy", tmp_path / "out")
    np.save(tmp_path / "nan.npy", np.full((3, 2, 12), np.nan))
    with pytest.raises(FtaeError, match="has NaN or inf"):
        model.reconstruct_folder(tmp_path / "nan.npy", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_export_needs_neither_the_training_samples_nor_the_cache(
    model: Model, values: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = model.spec.model_copy(update={"max_steps": 2, "num_evals": 1})
    *_, last = finetune(spec, tmp_path / "run")
    assert last.checkpoint is not None
    checkpoint = tmp_path / "run" / last.checkpoint
    export_model(spec, checkpoint, tmp_path / "model")
    np.save(tmp_path / "some.npy", values[:10])
    Model(load_model(ModelSource(spec, checkpoint, "here")), "here").reconstruct_folder(
        tmp_path / "some.npy", tmp_path / "here"
    )
    gone = spec.model_copy(update={"data": spec.data.model_copy(update={"train": str(tmp_path / "gone.npy")})})
    monkeypatch.setenv("FTAE_CACHE", str(tmp_path / "empty"))
    load_dataset.cache_clear()
    Model(load_model(ModelSource(gone, tmp_path / "model", "export")), "export").reconstruct_folder(
        tmp_path / "some.npy", tmp_path / "there"
    )
    assert np.array_equal(*(np.load(tmp_path / where / "some.npy") for where in ("here", "there")))
    (tmp_path / "model" / "scale.npy").write_bytes(b"not an array")
    with pytest.raises(FtaeError, match=r"scale.npy cannot be read"):
        load_model(ModelSource(gone, tmp_path / "model", "export"))


# ------------------------------------------------------------------------------------------------- in Python


def test_samples_go_in_and_come_out_in_their_own_axes_and_values(
    model: Model, values: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "some.npy", values)
    model.reconstruct_folder(tmp_path / "some.npy", tmp_path / "out")
    made = model.reconstruct(values)
    np.testing.assert_array_equal(made, np.load(tmp_path / "out" / "some.npy"))
    assert model.image_shape == (2, 12)
    latents = model.encode(values)
    assert np.ptp(latents) > 0
    np.testing.assert_allclose(model.decode(latents), made, rtol=1e-6)
    errors = model.score(values)
    assert errors.mean() == pytest.approx(model.evaluate(tmp_path / "some.npy", ["mse"]).metrics["mse"], rel=1e-5)
    assert model.score(values + 40.0).mean() > errors.mean() + 0.2
    np.testing.assert_array_equal(model.encode(np.full((1, 2, 12), 50)), model.encode(np.full((1, 2, 12), 50.0)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((3, 1, 12, 2)), r"samples must have the shape \(N, 2, 12\), got float64"),
        (np.full((3, 2, 12), np.nan), r"the array has NaN or inf in row 0"),
        (np.array([["a"] * 12] * 2)[None], "samples must be real numbers as in the file"),
    ],
)
def test_other_arrays_are_refused(model: Model, given: np.ndarray, message: str) -> None:
    with pytest.raises(FtaeError, match=message):
        model.encode(given)


def test_new_samples_are_in_the_values_of_the_file(model: Model, tmp_path: Path) -> None:
    drawn = model.sample(3, seed=1)
    assert drawn.shape == (3, 2, 12)
    assert 30.0 < drawn.mean() < 70.0
    assert model.sample_files(3, tmp_path / "out", seed=1)[0] == 3
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "samples.npy"), drawn)
    with pytest.raises(FtaeError, match="a model of arrays takes no image files"):
        model.interpolate_files(tmp_path / "a.png", tmp_path / "b.png", tmp_path / "way")


def test_a_served_model_speaks_the_values_of_the_file(model: Model, values: np.ndarray) -> None:
    served = ServedModel(model)
    given = values[:5, :, None].astype(np.float32)  # (B, C, H, W)
    made = served.predict(given)
    np.testing.assert_allclose(made[:, :, 0], model.reconstruct(values[:5]), rtol=1e-6)
    np.testing.assert_allclose(served.predict(served.predict(given, {"method": "encode"}), {"method": "decode"}), made)
    assert served.predict(given, {"method": "sample", "n": 2}).shape == (2, 2, 1, 12)
