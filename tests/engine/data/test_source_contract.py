"""What every source of images keeps to: one class of tests over all of them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from ftae.engine.data.batches import training_batch, val_batches
from ftae.engine.data.dataset import Dataset, load_dataset
from ftae.engine.data.named_images import validation_names
from ftae.specs.finetune.data import AnyData, DataSpec
from ftae.specs.finetune.run import FinetuneSpec

SIDE = 16


def folder(place: Path, *, classes: tuple[str, ...]) -> str:
    rng = np.random.default_rng(0)
    for i in range(12):
        path = place / (classes[i % len(classes)] if classes else ".") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)
    return str(place)


def flat(place: Path) -> dict[str, Any]:
    return {"source": "image_folder", "train": folder(place, classes=()), "val": 0.25}


def classes(place: Path) -> dict[str, Any]:
    return {"source": "image_folder", "train": folder(place, classes=("a", "b", "c")), "val": 0.25}


def two_folders(place: Path) -> dict[str, Any]:
    train, val = (folder(place / name, classes=("a", "b", "c")) for name in ("train", "val"))
    return {"source": "image_folder", "train": train, "val": val}


def digits(place: Path) -> dict[str, Any]:
    return {"source": "digits", "classes": (3, 7, 1)}


def photos(place: Path) -> dict[str, Any]:
    return {"source": "photos", "num_patches": 20}


def shapes(place: Path) -> dict[str, Any]:
    return {"source": "shapes", "num_images": 60}


Make = Callable[[Path], dict[str, Any]]
SOURCES: tuple[Make, ...] = (flat, classes, two_folders, digits, photos, shapes)
LABELLED = {classes: "b", two_folders: "b", digits: "7", shapes: "circle"}  # and one of its classes
REPLAYED: tuple[Make, ...] = (flat, classes, two_folders, digits, photos)
FACTORS = (shapes,)


def run_on(data: dict[str, Any], **fields: Any) -> FinetuneSpec:
    return FinetuneSpec.model_validate(
        {
            "model": {"family": "conv_ae", "channels": 4, "depth": 1, "latent_channels": 4},
            "data": {"resolution": SIDE, **data, **fields},
            "losses": {"mse": 1.0},
            "optimizer": {"lr": 1e-3},
            "batch_size": 4,
            "max_steps": 6,
        }
    )


def load(spec: AnyData) -> Dataset:
    load_dataset.cache_clear()
    return load_dataset(spec)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FTAE_CACHE", str(tmp_path / "cache"))
    load_dataset.cache_clear()
    yield
    load_dataset.cache_clear()


def sources_of(field: Any) -> set[str]:
    """The names of the sources in a union of specs."""
    members = [kind for kind in get_args(field) if isinstance(kind, type) and issubclass(kind, DataSpec)]
    return {get_args(kind.model_fields["source"].annotation)[0] for kind in members}


def test_every_source_is_here(tmp_path: Path) -> None:
    union = get_args(AnyData)[0]
    assert {make(tmp_path / make.__name__)["source"] for make in SOURCES} == sources_of(union)
    replay = DataSpec.model_fields["replay"].annotation
    assert {make(tmp_path / make.__name__)["source"] for make in REPLAYED} == sources_of(replay)


@pytest.mark.parametrize("make", SOURCES)
class TestEverySource:
    @pytest.fixture
    def spec(self, make: Make, tmp_path: Path) -> AnyData:
        return run_on(make(tmp_path / "images")).data

    def test_images_are_of_the_shape_asked_for(self, spec: AnyData) -> None:
        data = load(spec)
        assert len(data.train) > 0
        assert len(data.val) > 0
        for images in (data.train, data.val):
            assert images.images.shape == (len(images), SIDE, SIDE, spec.channels)
            assert images.images.dtype == np.uint8
            assert images.origin is not None
            assert images.origin.num_images == len(images)
        assert data.skipped == ()
        assert data.notes == ()

    def test_labels_are_of_the_classes(self, make: Make, spec: AnyData) -> None:
        data = load(spec)
        assert (data.class_names is not None) == (make in LABELLED)
        for images in (data.train, data.val):
            assert (images.labels is not None) == (make in LABELLED)
            if images.labels is not None and data.class_names is not None:
                assert images.labels.shape == (len(images),)
                assert set(images.labels.tolist()) <= set(range(len(data.class_names)))
                assert len(set(data.class_names)) == len(data.class_names)

    def test_factors_are_of_each_image(self, make: Make, spec: AnyData) -> None:
        data = load(spec)
        for images in (data.train, data.val):
            assert (images.factors is not None) == (make in FACTORS)
            if images.factors is not None:
                assert images.factors.shape[0] == len(images)
                assert images.factors.min() >= 0

    def test_each_validation_image_has_a_name_of_its_own(self, make: Make, spec: AnyData) -> None:
        data, names = load(spec), validation_names(spec)
        assert names is not None
        assert len(names.images) == len(data.val)
        assert len(set(names.images)) == len(names.images)
        assert (names.classes is not None) == (make in LABELLED)
        if names.classes is not None and data.val.labels is not None and data.class_names is not None:
            assert list(names.classes) == [data.class_names[label] for label in data.val.labels]

    def test_the_same_spec_gives_the_same_images(
        self, spec: AnyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """On a machine that has decoded them, and on one that has not; and so does one that pins them."""
        first = load(spec)
        pixels = [np.array(images.images) for images in (first.train, first.val)]
        monkeypatch.setenv("FTAE_CACHE", str(tmp_path / "another"))
        for _ in range(2):
            again = load(spec)
            assert again.fingerprint == first.fingerprint
            for images, before in zip((again.train, again.val), pixels, strict=True):
                assert (images.images == before).all()
        assert load(spec.model_copy(update={"fingerprint": first.fingerprint})).fingerprint == first.fingerprint

    @pytest.mark.parametrize("fields", [{"resolution": 8}, {"color": "rgb"}, {"random_crop_from": 20}])
    def test_another_size_or_colour_is_another_fingerprint(self, fields: dict[str, Any], spec: AnyData) -> None:
        other = {**spec.model_dump(), **fields}
        if fields.get("color") == spec.color:
            other["color"] = "grey"
        changed = load(type(spec).model_validate(other))
        assert changed.fingerprint != load(spec).fingerprint

    def test_anomalies_are_kept_out_of_training(self, make: Make, tmp_path: Path) -> None:
        if make not in LABELLED:
            pytest.skip("it has no classes")
        name = LABELLED[make]
        spec = run_on(make(tmp_path / "images"), anomaly_classes=(name,)).data
        data = load(spec)
        assert data.class_names is not None
        assert name not in data.class_names
        assert data.anomalies is not None
        assert len(data.anomalies) > 0
        assert data.anomalies.labels is None
        for images in (data.train, data.val):
            assert images.labels is not None
            assert set(images.labels.tolist()) <= set(range(len(data.class_names)))
        names = validation_names(spec)
        assert names is not None
        assert names.classes is not None
        assert len(names.images) == len(data.val) + len(data.anomalies)
        assert [each == name for each in names.classes] == [False] * len(data.val) + [True] * len(data.anomalies)

    def test_a_share_of_the_labels_can_be_taken_away(self, make: Make, tmp_path: Path) -> None:
        if make not in LABELLED:
            pytest.skip("it has no classes")
        data = load(run_on(make(tmp_path / "images"), labelled_fraction=0.5).data)
        assert data.train.labels is not None
        assert data.val.labels is not None
        assert 0 < (data.train.labels >= 0).sum() < len(data.train)
        assert (data.val.labels >= 0).all()

    @pytest.mark.parametrize("replay", REPLAYED)
    def test_any_domain_is_replayed_beside_it(self, make: Make, replay: Make, tmp_path: Path) -> None:
        domain = {"share": 0.5, **replay(tmp_path / "domain")}
        spec = run_on(make(tmp_path / "images"), replay=domain, color="rgb").data
        data = load(spec)
        assert data.replay is not None
        assert (
            data.fingerprint
            == f"{load(spec.model_copy(update={'replay': None})).fingerprint}+{data.replay.fingerprint}"
        )
        batch = training_batch(data, spec, batch_size=4, batch=0, seed=0, device="cpu")
        assert batch.images.shape == (4, 3, SIDE, SIDE)
        assert (batch.labels is not None) == (make in LABELLED)
        if batch.labels is not None:
            assert batch.labels[2:].tolist() == [-1, -1]
            assert (batch.labels[:2] >= 0).all()
        count = sum(len(part.images) for part in val_batches(data.replay.val, spec, batch_size=4, device="cpu"))
        assert count == len(data.replay.val)
