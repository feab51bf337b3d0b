"""Files of several samples: pages, slices of volumes, and tiles."""

import gzip
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import skimage
import tifffile
from image_files import encoded, folder_spec, load, save_noise
from PIL import Image
from pydantic import ValidationError

from ftae.engine.data.files.listing import list_images
from ftae.engine.data.files.nifti import Volume
from ftae.engine.data.files.samples import sampled
from ftae.engine.data.files.values import num_pages, read_values
from ftae.errors import FtaeError
from ftae.inference.pictures import named_folder
from ftae.specs.finetune.sources.folders import Archive
from ftae.specs.finetune.sources.two_sided import Pairs

pytestmark = pytest.mark.usefixtures("cache")

BITS = {"bits": 16}
NIBABEL = Path(nibabel.__file__).parent / "tests" / "data"
BRAINS = {"percentile": [1, 99]}


# ------------------------------------------------------------------------------------------------- pages


def stacks(root: Path, number: int = 4, pages: int = 5, kind: Any = np.uint16, **options: Any) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for i in range(number):
        stack = np.random.default_rng(i).integers(0, 60000, (pages, 16, 16)).astype(kind)
        tifffile.imwrite(root / f"{i}.tif", stack, photometric="minisblack", **options)
    return root


def test_each_page_is_a_sample_and_a_file_is_a_group(tmp_path: Path) -> None:
    root = stacks(tmp_path / "images")
    save_noise(root / "single.png", seed=9, side=16)
    spec = folder_spec(root, pages="each", intensity=BITS, color="grey")
    data = load(spec)
    assert len(data.train) + len(data.val) == 21
    assert data.train.groups is not None
    assert data.val.groups is not None
    assert not set(data.train.groups) & set(data.val.groups)
    files = sampled(list_images(root), spec)
    assert "3.tif#0004" in files.names
    page = tifffile.imread(root / "3.tif")[4]
    np.testing.assert_array_equal(files.decode("3.tif#0004", spec)[..., 0], page)


def test_pages_are_channels(tmp_path: Path) -> None:
    root = stacks(tmp_path / "images")
    spec = folder_spec(root, pages="channels", bands=(4, 0), intensity=BITS)
    image = list_images(root).decode("2.tif", spec)
    np.testing.assert_array_equal(image, tifffile.imread(root / "2.tif")[[4, 0]].transpose(1, 2, 0))
    assert load(spec).train.images.shape == (3, 16, 16, 2)
    with pytest.raises(FtaeError, match=r"say by data.bands"):
        load(folder_spec(root, pages="channels", intensity=BITS))


def test_the_first_page_is_used_and_told(tmp_path: Path) -> None:
    data = load(folder_spec(stacks(tmp_path / "images"), intensity=BITS))
    assert len(data.train) + len(data.val) == 4
    assert any("only the first of up to 5 frames or pages is used" in note for note in data.notes)


@pytest.mark.parametrize("name", ["multipage.tif", "no_time_for_that_tiny.gif"])
def test_pages_of_8_bits_are_pictures(tmp_path: Path, name: str) -> None:
    for i in range(2):
        (tmp_path / f"{i}{Path(name).suffix}").write_bytes((Path(skimage.__file__).parent / "data" / name).read_bytes())
    spec = folder_spec(tmp_path, pages="each")
    files = sampled(list_images(tmp_path), spec)
    assert len(files.names) > 3
    images = [files.decode(sample, spec) for sample in files.names[:2]]
    assert images[0].shape == (16, 16, 3)
    assert images[0].dtype == np.uint8


@pytest.mark.parametrize(
    "options",
    [
        {"byteorder": ">"},
        {"bigtiff": True},
        {"ome": True, "metadata": {"axes": "YX"}},
        {"compression": "zlib", "predictor": True},
        {"tile": (16, 16)},
    ],
)
def test_kinds_of_tiff_have_the_same_values(tmp_path: Path, options: dict[str, Any]) -> None:
    values = np.random.default_rng(0).integers(0, 60000, (32, 48)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, **options)
    data = (tmp_path / "a.tif").read_bytes()
    np.testing.assert_array_equal(read_values(data)[..., 0], values)
    assert num_pages(data) == 1


def test_lzw_is_read_by_pillow_page_by_page() -> None:
    pages = [np.random.default_rng(i).integers(0, 255, (8, 8), dtype=np.uint8) for i in range(2)]
    first, second = map(Image.fromarray, pages)
    data = encoded(first, "tiff", save_all=True, append_images=[second], compression="tiff_lzw")
    for i, page in enumerate(pages):
        np.testing.assert_array_equal(read_values(data, i)[..., 0], page)


def test_a_cut_off_stack_is_skipped_with_a_reason(tmp_path: Path) -> None:
    root = stacks(tmp_path / "images")
    whole = (root / "0.tif").read_bytes()
    (root / "cut.tif").write_bytes(whole[: len(whole) // 2])
    (root / "wrong.tif").write_bytes(b"II*\0no tiff")
    data = load(folder_spec(root, pages="each", intensity=BITS))
    assert len(data.train) + len(data.val) == 20
    assert {entry.split("/")[-1].split("#")[0].split(": ")[0] for entry in data.skipped} == {"cut.tif", "wrong.tif"}


# ------------------------------------------------------------------------------------------------ slices


def save_volume(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine).to_filename(path)
    return path


def test_slices_are_turned_to_the_body(tmp_path: Path) -> None:
    """The anatomical volume is stored from right to left; nibabel turns all of it."""
    data = (NIBABEL / "anatomical.nii").read_bytes()
    turned = np.asanyarray(nibabel.as_closest_canonical(nibabel.load(NIBABEL / "anatomical.nii")).dataobj)
    volume = Volume(data)
    assert [volume.num_slices(axis) for axis in ("sagittal", "coronal", "axial")] == [33, 41, 25]
    np.testing.assert_array_equal(volume.slice("sagittal", 5)[..., 0], turned[5].T[::-1])
    np.testing.assert_array_equal(volume.slice("coronal", 7)[..., 0], turned[:, 7].T[::-1])
    np.testing.assert_array_equal(volume.slice("axial", 9)[..., 0], turned[..., 9].T[::-1])


def test_axes_may_be_stored_in_any_order(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 999, (3, 4, 5)).astype(np.int16)
    affine = np.array([[0, 0, -1, 0], [1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])
    path = save_volume(tmp_path / "a.nii", values, affine)
    turned = np.asanyarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj)
    volume = Volume(path.read_bytes())
    for axis, name in enumerate(("sagittal", "coronal", "axial")):
        for i in range(turned.shape[axis]):
            np.testing.assert_array_equal(volume.slice(name, i)[..., 0], turned.take(i, axis).T[::-1])


def test_slices_of_a_volume_are_samples_of_one_group(tmp_path: Path) -> None:
    for i in range(4):
        values = np.random.default_rng(i).integers(100, 999, (16, 16, 10)).astype(np.int16)
        values[:, :, :2] = 0
        values[:, :14, 2:4] = 0
        save_volume(tmp_path / f"{i}.nii.gz", values)
    slices = {"axis": "axial", "min_foreground": 0.2}
    data = load(folder_spec(tmp_path, slices=slices, intensity=BRAINS, color="grey"))
    assert data.val.groups is not None
    assert len(set(data.val.groups)) == 1
    assert (len(data.train), len(data.val)) == (18, 6)
    assert data.train.images.dtype == np.uint16
    text = " ".join(data.notes)
    assert "16 slices with less foreground than data.slices.min_foreground left out" in text
    assert "all samples of a file are a group" in text


@pytest.mark.parametrize("intensity", [{"percentile": [10, 99]}, {"dtype_range": True}])
def test_what_was_measured_changes_neither_samples_nor_pixels(intensity: Any, tmp_path: Path) -> None:
    """An export keeps it; its images are those of the search."""
    for i in range(4):
        values = np.random.default_rng(i).integers(100, 999, (16, 16, 6)).astype(np.int16)
        values[:, :2] = values[..., :2] = -3000
        save_volume(tmp_path / f"{i}.nii.gz", values)
    spec = folder_spec(tmp_path, slices={"axis": "axial"}, intensity=intensity, color="grey")
    first = load(spec)
    again = load(spec.with_levels(first.train.levels))
    assert (again.fingerprint, again.train.levels) == (first.fingerprint, first.train.levels)


def test_volumes_over_time_are_all_used(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes((NIBABEL / "example4d.nii.gz").read_bytes())
    spec = folder_spec(tmp_path, slices={"axis": "axial", "min_foreground": 0}, intensity=BRAINS)
    files = sampled(list_images(tmp_path), spec)
    assert (len(files.names), files.names[0], files.names[-1]) == (48, "a.nii.gz#0000-0000", "a.nii.gz#0001-0023")
    values = np.asanyarray(nibabel.load(tmp_path / "a.nii.gz").dataobj)
    assert files.values("a.nii.gz#0001-0003", spec).mean() == values[..., 3, 1].mean()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"intensity": BRAINS}, r"2 volumes \(0.nii, ...\): say by data.slices: {axis: axial}"),
        ({"slices": {"axis": "axial"}}, r"2 files of DICOM or NIfTI .* from 0 to 99"),
        ({"slices": {"axis": "axial", "min_foreground": 0.9}, "intensity": BRAINS}, "no sample that data.slices keeps"),
    ],
)
def test_what_is_not_said_is_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    values = np.zeros((16, 16, 4), dtype=np.int16)
    values[4:9, 4:9] = np.arange(100).reshape(5, 5, 4)
    for i in range(2):
        save_volume(tmp_path / f"{i}.nii", values)
    with pytest.raises(FtaeError, match=message):
        load(folder_spec(tmp_path, val=0.5, **fields))


def test_pages_without_effect_are_told(tmp_path: Path) -> None:
    data = load(folder_spec(stacks(tmp_path / "images", pages=1), pages="each", intensity=BITS))
    assert "data.pages: each has no effect" in " ".join(data.notes)


def test_slices_without_volumes_are_refused(tmp_path: Path) -> None:
    save_noise(tmp_path / "a.png", seed=1)
    with pytest.raises(FtaeError, match=r"data.slices has no effect: .* holds no NIfTI"):
        load(folder_spec(tmp_path, slices={"axis": "axial"}))


def test_a_model_of_slices_is_measured_on_pictures(tmp_path: Path) -> None:
    spec = folder_spec(tmp_path, color="grey", slices={"axis": "axial"}, intensity={"bits": 8})
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(tmp_path / "a.png")
    assert len(named_folder(str(tmp_path), spec).images) == 1


def test_damaged_volumes_are_skipped_with_a_reason(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 999, (16, 16, 8)).astype(np.int16)
    for i in range(3):
        save_volume(tmp_path / f"{i}.nii.gz", values + i)
    whole = (tmp_path / "0.nii.gz").read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[:900])
    (tmp_path / "short.nii").write_bytes(gzip.decompress(whole)[:2000])
    (tmp_path / "wrong.nii").write_bytes(b"no volume")
    save_volume(tmp_path / "complex.nii", values.astype(np.complex64))
    data = load(folder_spec(tmp_path, slices={"axis": "axial"}, intensity=BRAINS, color="grey"))
    assert (len(data.train), len(data.val)) == (16, 8)
    assert [entry.split("/")[-1].split(": ")[0] for entry in data.skipped] == [
        *("complex.nii", "cut.nii.gz", "short.nii", "wrong.nii")
    ]


# ------------------------------------------------------------------------------------------------- tiles


@pytest.fixture
def large(tmp_path: Path) -> Path:
    for i in range(4):
        save_noise(tmp_path / "images" / f"{i}.png", seed=i, side=40)
    return tmp_path / "images"


def test_tiles_cover_the_image_and_stay_together(large: Path) -> None:
    spec = folder_spec(large, tiles={"size": 16, "stride": 12})
    data = load(spec)
    assert (len(data.train), len(data.val)) == (27, 9)
    files = sampled(list_images(large), spec)
    assert files.names[:3] == ("0.png#r0c0", "0.png#r0c1", "0.png#r0c2")
    whole = np.asarray(Image.open(large / "1.png"))
    np.testing.assert_array_equal(files.decode("1.png#r1c2", spec), whole[12:28, 24:40])


def test_an_archive_has_the_samples_of_its_folder(large: Path) -> None:
    """With the same pixels in the same order; labels are those of sub-folders in both."""
    fields = {"tiles": {"size": 16}, "groups": {"path": "([0-9])"}}
    archive = shutil.make_archive(str(large), "zip", large)
    folder = load(folder_spec(large, **fields))
    zipped = load(Archive(**{"train": archive, "resolution": 16, "val": 0.25, **fields}))
    assert folder.fingerprint == zipped.fingerprint
    np.testing.assert_array_equal(folder.val.images, zipped.val.images)


def test_pairs_have_no_samples() -> None:
    with pytest.raises(ValidationError, match="is of single images, not of pairs"):
        Pairs(train="x", resolution=16, tiles={"size": 16})


def test_one_way_to_take_samples_is_chosen() -> None:
    for fields in ({"pages": "each", "tiles": {"size": 16}}, {"slices": {"axis": "axial"}, "tiles": {"size": 16}}):
        with pytest.raises(ValidationError, match="all say what a sample is"):
            folder_spec(Path("x"), **fields)
    with pytest.raises(ValidationError, match=r"must be at most size \(16\)"):
        folder_spec(Path("x"), tiles={"size": 16, "stride": 17})


def test_dark_tiles_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "retina.jpg").write_bytes((Path(skimage.__file__).parent / "data" / "retina.jpg").read_bytes())
    tiles = {"size": 256, "stride": 192}
    every, kept = (
        sampled(list_images(tmp_path), folder_spec(tmp_path, tiles={**tiles, "min_foreground": least}))
        for least in (0.0, 0.1)
    )
    assert len(every.names) == 64
    assert 40 < len(kept.names) < 64
    assert "retina.jpg#r0c0" not in kept.names


def test_what_is_darker_than_black_makes_no_foreground_of_air(tmp_path: Path) -> None:
    """Pixels outside the circle of a scan, far below air, are not what air is compared with."""
    values = np.full((32, 32), -1000, dtype=np.int16)
    values[:4, :4] = -3000
    values[16:, 16:] = 200
    tifffile.imwrite(tmp_path / "a.tif", values)
    tiles = {"size": 16, "min_foreground": 0.5}
    files = sampled(list_images(tmp_path), folder_spec(tmp_path, tiles=tiles, intensity={"window": [-1000, 1000]}))
    assert files.names == ("a.tif#r1c1",)


def test_small_images_are_skipped_with_a_reason(large: Path) -> None:
    save_noise(large / "small.png", seed=1, side=12)
    (skipped,) = load(folder_spec(large, tiles={"size": 16})).skipped
    assert skipped.endswith("small.png: its 12x12 pixels are less than data.tiles.size (16)")


def test_samples_are_looked_for_once(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = folder_spec(large, tiles={"size": 16})
    names = sampled(list_images(large), spec).names
    monkeypatch.setattr("ftae.engine.data.files.samples.find_samples", None)
    assert sampled(list_images(large), spec).names == names
    save_noise(large / "5.png", seed=5, side=40)
    with pytest.raises(TypeError):
        sampled(list_images(large), spec)
