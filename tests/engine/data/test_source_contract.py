"""What every source of images keeps to: one class of tests over all of them.

A new source is listed in ``VARIANTS``, with what its images have.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from builders import run_spec
from image_files import load
from PIL import Image

from ftae.engine.data.batches import training_batch, val_batches
from ftae.engine.data.files.decoding import stored_type
from ftae.engine.data.source_base import shuffled
from ftae.engine.data.sources import SOURCES, normal_class_names, num_images, source_of
from ftae.inference.pictures import validation_names
from ftae.specs.finetune.data import SOURCE_SPECS, UNPAIRED_SOURCES, AnyData
from ftae.specs.finetune.data_spec import DataSpec

pytestmark = pytest.mark.usefixtures("cache")

SIDE = 16


def folder(place: Path, *, classes: tuple[str, ...], width: int = SIDE) -> str:
    rng = np.random.default_rng(list(place.name.encode()))  # no folder has an image of another
    for i in range(12):
        path = place / (classes[i % len(classes)] if classes else ".") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (SIDE, width, 3), dtype=np.uint8)).save(path)
    return str(place)


def flat(place: Path) -> dict[str, Any]:
    return {"source": "image_folder", "train": folder(place, classes=()), "val": 0.25}


def classes(place: Path) -> dict[str, Any]:
    return {"source": "image_folder", "train": folder(place, classes=("a", "b", "c")), "val": 0.25}


def two_folders(place: Path) -> dict[str, Any]:
    train, val = (folder(place / name, classes=("a", "b", "c")) for name in ("train", "val"))
    return {"source": "image_folder", "train": train, "val": val}


def zipped(place: Path) -> dict[str, Any]:
    return {"source": "archive", "train": folder_as_zip(folder(place, classes=("a", "b", "c"))), "val": 0.25}


def folder_as_zip(root: str) -> str:
    return shutil.make_archive(root, "zip", root)


def two_zips(place: Path) -> dict[str, Any]:
    two = two_folders(place)
    return {"source": "archive", "train": folder_as_zip(two["train"]), "val": folder_as_zip(two["val"])}


def tarred(place: Path) -> dict[str, Any]:
    place.mkdir(parents=True, exist_ok=True)
    return {"source": "shards", "train": shutil.make_archive(str(place / "a"), "tar", tar_root(place)), "val": 0.25}


def tar_root(place: Path) -> str:
    return folder(place / f"files-{place.name}", classes=("a", "b", "c"))


def two_tars(place: Path) -> dict[str, Any]:
    train, val = tarred(place / "train")["train"], tarred(place / "val")["train"]
    return {"source": "shards", "train": train, "val": f"{Path(val).parent}/*.tar"}


def side_by_side(place: Path) -> dict[str, Any]:
    return {"source": "pairs", "train": folder(place, classes=("a", "b"), width=2 * SIDE), "val": 0.25}


def pairs_in_folders(place: Path) -> dict[str, Any]:
    inputs, train = (folder(place / name, classes=()) for name in ("inputs", "train"))
    return {"source": "pairs", "inputs": inputs, "train": train, "val": 0.25}


def digit_edges(place: Path) -> dict[str, Any]:
    return {"source": "digit_edges", "classes": (3, 7, 1)}


def unpaired(place: Path) -> dict[str, Any]:
    folder(place / "trainA", classes=())
    folder(place / "trainB", classes=("a", "b"))
    return {"source": "unpaired", "train": str(place), "val": 0.25}


def unpaired_in_folders(place: Path) -> dict[str, Any]:
    inputs, train, val_inputs, val = (folder(place / name, classes=()) for name in ("a", "b", "val_a", "val_b"))
    sides = {"inputs": inputs, "train": train, "val_inputs": val_inputs, "val": val}
    return {"source": "unpaired", **sides, "val_paired": True}


def digit_domains(place: Path) -> dict[str, Any]:
    return {"source": "digit_domains", "classes": (3, 7, 1)}


def arrays(place: Path) -> dict[str, Any]:
    place.mkdir(parents=True)
    rng = np.random.default_rng(0)
    np.save(place / "samples.npy", rng.normal(7.0, 3.0, (24, 3, SIDE, SIDE)))
    np.save(place / "classes.npy", np.array(["a", "b", "c"] * 8))
    files = {"train": str(place / "samples.npy"), "labels": str(place / "classes.npy")}
    return {"source": "arrays", **files, "layout": "chw", "num_channels": 3, "normalise": "standard", "val": 0.25}


def arrays_in_groups(place: Path) -> dict[str, Any]:
    data = arrays(place)
    np.save(place / "groups.npy", np.arange(24) // 4)
    return {**data, "labels": None, "groups": str(place / "groups.npy")}


def digits(place: Path) -> dict[str, Any]:
    return {"source": "digits", "classes": (3, 7, 1)}


def photos(place: Path) -> dict[str, Any]:
    return {"source": "photos", "num_patches": 20}


def shapes(place: Path) -> dict[str, Any]:
    return {"source": "shapes", "num_images": 60}


@dataclass(frozen=True)
class Variant:
    """A way to describe a source. ``class_name``: one of its classes; None where it has no labels."""

    make: Callable[[Path], dict[str, Any]]
    class_name: str | None = None
    has_factors: bool = False


VARIANTS = {
    "flat folder": Variant(flat),
    "class folders": Variant(classes, "b"),
    "two folders": Variant(two_folders, "b"),
    "zip": Variant(zipped, "b"),
    "two zips": Variant(two_zips, "b"),
    "tar shard": Variant(tarred, "b"),
    "two tar shards": Variant(two_tars, "b"),
    "pairs side by side": Variant(side_by_side, "b"),
    "pairs in two folders": Variant(pairs_in_folders),
    "two domains": Variant(unpaired),
    "two domains in folders": Variant(unpaired_in_folders),
    "arrays": Variant(arrays, "b"),
    "arrays in groups": Variant(arrays_in_groups),
    "digit domains": Variant(digit_domains),
    "digits": Variant(digits, "7"),
    "digit edges": Variant(digit_edges, "7"),
    "photos": Variant(photos),
    "shapes": Variant(shapes, "circle", has_factors=True),
}


def spec_of(data: dict[str, Any], **fields: Any) -> AnyData:
    if data["source"] in UNPAIRED_SOURCES:
        model, losses = {"family": "cyclegan"}, {"adversarial": 1.0, "cycle": 10.0}
        return run_spec(
            model=model, data={"resolution": SIDE, **data, **fields}, losses=losses, metrics=["change"]
        ).data
    return run_spec(data={"resolution": SIDE, **data, **fields}, losses={"mse": 1.0}).data


def sources_of(field: Any) -> set[str]:
    """The names of the sources in a union of specs."""
    members = [kind for kind in get_args(field) if isinstance(kind, type) and issubclass(kind, DataSpec)]
    return {get_args(kind.model_fields["source"].annotation)[0] for kind in members}


def test_every_source_is_here(tmp_path: Path) -> None:
    here = {type(spec_of(variant.make(tmp_path / name))) for name, variant in VARIANTS.items()}
    assert here == set(SOURCES) == set(SOURCE_SPECS)
    assert sources_of(DataSpec.model_fields["replay"].annotation) == sources_of(get_args(AnyData)[0])


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
class TestEverySource:
    @pytest.fixture
    def spec(self, variant: Variant, tmp_path: Path) -> AnyData:
        return spec_of(variant.make(tmp_path / "images"))

    def test_names_are_unique_and_in_the_order_of_their_hashes(self, spec: AnyData) -> None:
        for part in source_of(spec).parts():
            names = part.listed().names
            assert len(set(names)) == len(names) > 0
            if spec.source != "photos":  # whose validation patches are cut elsewhere, and come last
                assert shuffled(names) == tuple(names)
            assert list(part.listed().names) == list(names)

    def test_images_are_counted_without_decoding(self, spec: AnyData, cache: Path) -> None:
        source = source_of(spec)
        counts = source.num_images()
        assert counts == tuple(len(part.listed().names) for part in source.parts())
        assert len(counts) == len(source.folders)
        train, val = num_images(spec)
        assert not (cache / "images").exists()
        data = load(spec)
        assert (train, val) == (len(data.train), len(data.val))

    def test_classes_are_known_without_decoding(self, variant: Variant, spec: AnyData, cache: Path) -> None:
        names = source_of(spec).class_names()
        assert normal_class_names(spec) == names
        assert not (cache / "images").exists()
        assert names == load(spec).class_names
        assert (names is not None) == (variant.class_name is not None)

    def test_the_spec_says_what_images_have(self, variant: Variant, spec: AnyData) -> None:
        assert spec.has_labels in (None, variant.class_name is not None)
        assert spec.has_factors == variant.has_factors

    def test_decoding_gives_the_shape_that_the_list_says(self, spec: AnyData) -> None:
        for part in source_of(spec).parts():
            listed = part.listed()
            assert listed.shape == (SIDE, SIDE, spec.stored_channels)
            for i in (0, len(listed.names) - 1):
                pixels = listed.decode(i)
                assert pixels.shape == listed.shape
                assert pixels.dtype == stored_type(spec)
                assert (listed.decode(i) == pixels).all()

    def test_content_is_json_and_always_the_same(self, spec: AnyData) -> None:
        contents = [json.dumps([part.content for part in source_of(spec).parts()]) for _ in range(2)]
        assert contents[0] == contents[1]

    def test_the_list_tells_what_loading_finds(self, spec: AnyData) -> None:
        listing = source_of(spec).check_listed()
        if listing is None:
            return
        data = load(spec)
        assert listing.num_val == len(data.val)
        assert listing.train_classes == (data.class_names or ())
        assert listing.val_labelled == (data.val.labels is not None)
        assert listing.notes == data.notes == ()

    def test_images_are_of_the_shape_asked_for(self, spec: AnyData) -> None:
        data = load(spec)
        assert len(data.train) > 0
        assert len(data.val) > 0
        for images in (data.train, data.val):
            assert images.images.shape == (len(images), SIDE, SIDE, spec.stored_channels)
            assert images.images.dtype == stored_type(spec)
            assert images.complete is not None
            assert images.complete.num_images == len(images)
        assert data.skipped == ()
        assert data.notes == ()

    def test_labels_are_of_the_classes(self, variant: Variant, spec: AnyData) -> None:
        data = load(spec)
        assert (data.class_names is not None) == (variant.class_name is not None)
        for images in (data.train, data.val):
            assert (images.labels is not None) == (variant.class_name is not None)
            if images.labels is not None and data.class_names is not None:
                assert images.labels.shape == (len(images),)
                assert set(images.labels.tolist()) <= set(range(len(data.class_names)))
                assert len(set(data.class_names)) == len(data.class_names)

    def test_factors_are_of_each_image(self, variant: Variant, spec: AnyData) -> None:
        data = load(spec)
        for images in (data.train, data.val):
            assert (images.factors is not None) == variant.has_factors
            if images.factors is not None:
                assert images.factors.shape[0] == len(images)
                assert images.factors.min() >= 0

    def test_each_validation_image_has_a_name_of_its_own(self, variant: Variant, spec: AnyData) -> None:
        data, names = load(spec), validation_names(spec)
        assert names is not None
        assert len(names.images) == len(data.val)
        assert len(set(names.images)) == len(names.images)
        assert (names.classes is not None) == (variant.class_name is not None)
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
        if spec.of_floats:
            pytest.skip("arrays are neither resized nor of colours")
        other = {**spec.model_dump(), **fields}
        if fields.get("color") == spec.color:
            other["color"] = "grey"
        changed = load(type(spec).model_validate(other))
        assert changed.fingerprint != load(spec).fingerprint

    def test_anomalies_are_kept_out_of_training(self, variant: Variant, tmp_path: Path) -> None:
        if variant.class_name is None:
            pytest.skip("it has no classes")
        name = variant.class_name
        spec = spec_of(variant.make(tmp_path / "images"), anomaly_classes=(name,))
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

    def test_anomalies_are_decoded_once_whatever_they_are(self, variant: Variant, tmp_path: Path, cache: Path) -> None:
        if variant.class_name is None:
            pytest.skip("it has no classes")
        data = variant.make(tmp_path / "images")
        if spec_of(data).of_floats:
            pytest.skip("arrays are normalised by the samples that are trained on")
        plain = load(spec_of(data))
        arrays = set(cache.glob("images/*/images.npy"))
        with_anomalies = load(spec_of(data, anomaly_classes=(variant.class_name,)))
        assert set(cache.glob("images/*/images.npy")) == arrays
        assert plain.fingerprint != with_anomalies.fingerprint
        assert normal_class_names(spec_of(data, anomaly_classes=(variant.class_name,))) == with_anomalies.class_names

    def test_a_share_of_the_labels_can_be_taken_away(self, variant: Variant, tmp_path: Path) -> None:
        if variant.class_name is None:
            pytest.skip("it has no classes")
        data = load(spec_of(variant.make(tmp_path / "images"), labelled_fraction=0.5))
        assert data.train.labels is not None
        assert data.val.labels is not None
        assert 0 < (data.train.labels >= 0).sum() < len(data.train)
        assert (data.val.labels >= 0).all()

    @pytest.mark.parametrize("replay", VARIANTS.values(), ids=VARIANTS)
    def test_any_domain_is_replayed_beside_it(self, variant: Variant, replay: Variant, tmp_path: Path) -> None:
        kinds = [spec_of(each.make(tmp_path / name)) for each, name in ((variant, "a"), (replay, "b"))]
        if any(kind.unpaired for kind in kinds) or kinds[0].paired != kinds[1].paired:
            pytest.skip("pairs are mixed with pairs alone, and two domains with nothing")
        domain = {"share": 0.5, **replay.make(tmp_path / "domain")}
        spec = spec_of(variant.make(tmp_path / "images"), replay=domain, color="rgb")
        data = load(spec)
        assert data.replay is not None
        assert (
            data.fingerprint
            == f"{load(spec.model_copy(update={'replay': None})).fingerprint}+{data.replay.fingerprint}"
        )
        batch = training_batch(data, spec, batch_size=4, batch=0, seed=0, device="cpu")
        assert batch.images.shape == (4, 3, SIDE, SIDE)
        assert (batch.labels is not None) == (variant.class_name is not None)
        if batch.labels is not None:
            assert batch.labels[2:].tolist() == [-1, -1]
            assert (batch.labels[:2] >= 0).all()
        count = sum(len(part.images) for part in val_batches(data.replay.val, spec, batch_size=4, device="cpu"))
        assert count == len(data.replay.val)
