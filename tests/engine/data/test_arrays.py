"""Arrays: every kind of file and layout, what they are normalised by, and what is refused."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pytest
from builders import run_spec
from image_files import load
from pyarrow import parquet
from pydantic import TypeAdapter, ValidationError

from ftae.engine.data.batches import val_batches
from ftae.engine.data.files.arrays import as_in_file
from ftae.engine.data.sources import source_of
from ftae.errors import FtaeError
from ftae.specs.finetune.data import AnyData
from ftae.specs.finetune.sources.arrays import Arrays

pytestmark = pytest.mark.usefixtures("cache")


def arrays(file: Path, **fields: Any) -> Arrays:
    given = {"source": "arrays", "train": str(file), "layout": "d", "resolution": [1, 5], "normalise": "standard"}
    spec = TypeAdapter(AnyData).validate_python({**given, "val": 0.25, **fields})
    assert isinstance(spec, Arrays)
    return spec


def vectors(rows: int = 40) -> Any:
    scale, middle = np.array([1.0, 10.0, 100.0, 1e-3, 0.0]), np.array([0.0, -5.0, 1e4, 2.0, 3.0])
    return np.random.default_rng(0).normal(size=(rows, 5)) * scale + middle


def saved(path: Path, values: Any) -> Path:
    np.save(path, values)
    return path


def in_file(images: Any, spec: Arrays) -> Any:
    """Stored samples in the values and the layout of the file."""
    low, high = images.scale
    return as_in_file(images.images * (high - low) + low, spec)


@pytest.mark.parametrize("normalise", ["standard", "robust", "minmax", "percentile"])
def test_features_are_normalised_by_the_training_samples_alone(normalise: str, tmp_path: Path) -> None:
    values = vectors()
    values[-10:] += 1000.0  # held out
    spec = arrays(saved(tmp_path / "a.npy", values), split="time", normalise=normalise)
    data = load(spec)
    train = data.train.images[..., 0, :, 0]
    assert train.shape == (30, 5)
    assert data.val.images.max() > 1.5
    if normalise == "minmax":
        assert train[:, :4].min(axis=0) == pytest.approx(np.zeros(4), abs=1e-6)
        assert train[:, :4].max(axis=0) == pytest.approx(np.ones(4))
    elif normalise == "standard":
        assert train[:, :4].mean(axis=0) == pytest.approx(np.full(4, 0.5), abs=1e-4)
        assert train[:, :4].std(axis=0) == pytest.approx(np.full(4, 1 / 8), abs=1e-4)
    assert (train[:, 4] == 0.5).all()  # it never varies
    for images, rows in ((data.train, values[:30]), (data.val, values[30:])):
        assert in_file(images, spec) == pytest.approx(rows, rel=1e-4, abs=1e-3)
    (batch,) = val_batches(data.val, spec, batch_size=64, device="cpu")
    assert batch.images.shape == (10, 1, 1, 5)
    assert np.array_equal(batch.images[:, 0, 0].numpy(), data.val.images[:, 0, :, 0])


@pytest.mark.parametrize(
    ("layout", "shape", "resolution", "channels"),
    [
        ("hwc", (4, 6, 2), [4, 6], 2),
        ("chw", (2, 4, 6), [4, 6], 2),
        ("hw", (4, 6), [4, 6], 1),
        ("cs", (3, 20), [1, 20], 3),
        ("d", (7,), [1, 7], 1),
    ],
)
def test_every_layout_is_one_image_and_back(
    layout: str, shape: tuple[int, ...], resolution: list[int], channels: int, tmp_path: Path
) -> None:
    values = np.random.default_rng(1).integers(0, 200, (12, *shape), dtype=np.int16)
    file = saved(tmp_path / "a.npy", values)
    window = [0, 100]
    spec = arrays(
        file, layout=layout, resolution=resolution, num_channels=channels, normalise=window, split="time", val=2
    )
    data = load(spec)
    assert data.train.images.shape == (10, *resolution, channels)
    assert in_file(data.train, spec) == pytest.approx(values[:10], abs=1e-3)


def test_the_same_numbers_in_any_file_are_the_same_samples(tmp_path: Path) -> None:
    values, classes = vectors(), ["cat", "dog"] * 20
    np.save(tmp_path / "a.npy", values)
    np.save(tmp_path / "classes.npy", classes)
    np.savez(tmp_path / "a.npz", other=np.zeros(3), x=values)
    columns = {f"f{i}": values[:, i] for i in range(5)}
    parquet.write_table(pa.table({**columns, "list": list(values), "kind": classes}), tmp_path / "a.parquet")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["group/x"] = values
    beside = {"labels": str(tmp_path / "classes.npy")}
    found = [
        load(arrays(tmp_path / name, **fields))
        for name, fields in (
            ("a.npy", beside),
            ("a.npz", {"member": "x", **beside}),
            ("a.h5", {"dataset": "group/x", **beside}),
            ("a.parquet", {"columns": list(columns), "labels": "kind"}),
            ("a.parquet", {"columns": ["list"], "labels": "kind"}),
        )
    ]
    for data in found:
        assert data.class_names == ("cat", "dog")
        assert np.array_equal(data.train.images, found[0].train.images)
        assert np.array_equal(data.train.labels, found[0].train.labels)


def test_no_group_is_on_both_sides(tmp_path: Path) -> None:
    groups = np.repeat(np.arange(10), 4)
    saved(tmp_path / "groups.npy", groups)
    values = np.repeat(groups[:, None], 5, axis=1).astype(np.float32)
    spec = arrays(saved(tmp_path / "a.npy", values), groups=str(tmp_path / "groups.npy"), normalise=[0, 1])
    data = load(spec)
    train, val = ({*images.images[:, 0, 0, 0].tolist()} for images in (data.train, data.val))
    assert not train & val
    assert len(data.val) == 12  # the last groups that have a quarter together


def test_what_is_no_number_is_refused_with_its_row(tmp_path: Path) -> None:
    values = vectors()
    values[[7, 9], 2] = np.nan, np.inf
    with pytest.raises(FtaeError, match=r"2 samples of 40 with NaN or inf, the first is row 7"):
        load(arrays(saved(tmp_path / "a.npy", values), normalise=[0, 1]))


@pytest.mark.parametrize(
    ("values", "fields", "message"),
    [
        (vectors(), {"resolution": [1, 6]}, r"samples of resolution \[1, 5\] with 1 channels, not \[1, 6\] and 1"),
        (vectors(), {"layout": "hw"}, r"has the shape \(40, 5\); layout hw has 3 axes"),
        (np.array(["a", "b"]), {}, "must hold real numbers"),
        (np.array([{}], dtype=object), {}, "cannot be read"),
        (np.zeros((0, 5)), {}, "has no samples"),
    ],
)
def test_an_array_that_does_not_fit(values: Any, fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "a.npy"
    np.save(file, values, allow_pickle=True)
    with pytest.raises(FtaeError, match=message):
        source_of(arrays(file, **fields)).check_listed()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train": "a.csv"}, "must end in .npy, .npz"),
        ({"train": "a.npz"}, "must say where in the .npz the array is"),
        ({"columns": ["a"]}, "has no effect on .npy"),
        ({"color": "grey"}, "has no effect on arrays"),
        ({"num_channels": 2}, "d has no channels"),
        ({"resolution": [2, 5]}, r"needs a resolution of \[1, LENGTH\]"),
        ({"flip": True}, "neither mirrored nor cropped"),
        ({"normalise": [1, 1]}, "with LOW below HIGH"),
        ({"labels": "kind"}, "must be an .npy with a value for each sample"),
        ({"val": "b.npy", "split": "time"}, "time has no effect"),
        ({"val": 3, "groups": "g.npy"}, "it needs val as a share"),
        ({"degrade": {"jpeg": 50}}, "jpeg is for images of 8 bits"),
    ],
)
def test_settings_that_do_not_fit(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        arrays(Path("a.npy"), **fields)


def test_the_unit_of_scaled_values_is_not_measured() -> None:
    data = arrays(Path("a.npy")).model_dump(mode="json")
    with pytest.raises(ValidationError, match=r"mae needs values .* data.normalise scales those of arrays"):
        run_spec(data=data, model={"family": "mlp_vae", "hidden": 8, "latent_dim": 2}, metrics=["mae"])
