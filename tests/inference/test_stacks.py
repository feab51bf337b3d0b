"""Files of several samples in use. A model that gives what it gets gives every file back."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import skimage
import tifffile
import torch
from builders import run_spec
from image_files import encoded, folder_spec, save_noise
from PIL import Image

from ftae.engine.data.files.decoding import UnreadableImage
from ftae.engine.data.files.dicom import read_dicom
from ftae.engine.data.files.listing import list_images
from ftae.engine.data.files.samples import sampled
from ftae.engine.models.families import build_model
from ftae.inference.folders import run_folder
from ftae.inference.model import TunedModel
from ftae.inference.stacks import open_file
from ftae.inference.written import file_names
from ftae.specs.finetune.data_spec import DataSpec

CPU = torch.device("cpu")
HU = {"window": [-1000, 1000]}
DICOM = Path(pydicom.__file__).parent / "data" / "test_files"


def give_back(content: bytes, data: DataSpec, path: Path) -> int:
    """As with a model that gives what it gets; returns the number of samples."""
    file = open_file(content, data)
    for i in range(file.number):
        file.take(i, file.given(i, CPU)[0])
    file.write(path)
    return file.number


# ------------------------------------------------------------------------------------------------- pages


@pytest.mark.parametrize(
    ("fields", "shape"),
    [({"color": "grey"}, (3, 16, 16)), ({"color": "rgb"}, (4, 16, 16, 3)), ({"bands": 5}, (4, 16, 16, 5))],
)
def test_pages_become_pages_that_ftae_reads_again(fields: Any, shape: tuple[int, ...], tmp_path: Path) -> None:
    pages = np.random.default_rng(0).integers(0, 4096, shape).astype(np.uint16)
    contig: Any = {"planarconfig": "contig"} if len(shape) == 4 else {}
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in" / "a.tif", pages, photometric="rgb" if shape[-1] == 3 else "minisblack", **contig)
    data = folder_spec(tmp_path / "out", pages="each", intensity={"bits": 12}, **fields)
    assert give_back((tmp_path / "in" / "a.tif").read_bytes(), data, tmp_path / "out" / "a.tiff") == len(pages)
    files = sampled(list_images(tmp_path / "out"), data)
    assert len(files.names) == len(pages)
    for page, name in zip(pages.reshape(*pages.shape[:3], -1), files.names, strict=True):
        np.testing.assert_array_equal(files.values(name, data), page)


def test_frames_of_pictures_become_a_tiff(tmp_path: Path) -> None:
    """Also where single pictures become PNG."""
    content = (Path(skimage.__file__).parent / "data" / "no_time_for_that_tiny.gif").read_bytes()
    data = folder_spec(tmp_path, pages="each", resolution=(14, 25))
    assert give_back(content, data, tmp_path / "a.png") == 24
    made = tifffile.imread(tmp_path / "a.tiff")
    assert (made.dtype, made.shape) == (np.uint8, (24, 14, 25, 3))
    still = encoded(Image.new("RGB", (25, 14), "red"), "png")
    assert give_back(still, data, tmp_path / "still.png") == 1
    assert Image.open(tmp_path / "still.png").size == (25, 14)


def test_frames_of_dicom_are_all_run(tmp_path: Path) -> None:
    content = (DICOM / "rtdose.dcm").read_bytes()
    values = np.stack([read_dicom(content, i).values[..., 0] for i in range(15)])
    data = folder_spec(tmp_path, resolution=10, color="grey", intensity={"per_image": "minmax"})
    assert give_back(content, data, tmp_path / "a.tiff") == 15
    # Each frame has a range of its own, which is not lost.
    np.testing.assert_allclose(tifffile.imread(tmp_path / "a.tiff"), values, rtol=1e-4)


@pytest.mark.parametrize("tiles", [{}, {"tiles": {"size": 32}}])
def test_what_is_shown_inverted_has_the_values_of_its_file(tiles: Any, tmp_path: Path) -> None:
    scan = pydicom.dcmread(DICOM / "CT_small.dcm")
    scan.PhotometricInterpretation = "MONOCHROME1"
    scan.save_as(tmp_path / "a.dcm")
    content = (tmp_path / "a.dcm").read_bytes()
    window = {"window": [-1000, 1200]}
    data = folder_spec(tmp_path, resolution=32 if tiles else 128, color="grey", intensity=window, **tiles)
    give_back(content, data, tmp_path / "a.tiff")
    values = read_dicom(content).values[..., 0]
    np.testing.assert_allclose(tifffile.imread(tmp_path / "a.tiff"), values.clip(-1000, 1200), atol=0.6)


# ------------------------------------------------------------------------------------------------ slices

TURNED = np.array([[0, 0, -1.5, 3], [2, 0, 0, -4], [0, -3, 0, 5], [0, 0, 0, 1.0]])


def save_volume(path: Path, values: np.ndarray, affine: np.ndarray = TURNED) -> bytes:
    image = nibabel.Nifti1Image(values, affine)
    image.header["descrip"] = b"of a scanner"
    image.to_filename(path)
    return path.read_bytes()


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_slices_become_a_volume_with_the_affine_and_the_header(axis: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(-900, 900, (16, 16, 16, 2)).astype(np.int16)
    values[:, :, :3] = values[:2] = values[:, :1] = -1000  # slices that training would leave out
    content = save_volume(tmp_path / "a.nii", values)
    data = folder_spec(tmp_path, slices={"axis": axis}, intensity=HU, color="rgb")
    assert give_back(content, data, tmp_path / "b.nii.gz") == 32
    made = nibabel.load(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(made.dataobj, values)
    np.testing.assert_array_equal(made.affine, nibabel.load(tmp_path / "a.nii").affine)
    assert (made.get_data_dtype(), made.header["descrip"]) == (np.int16, b"of a scanner")


@pytest.mark.parametrize("fields", [{}, {"random_crop_from": 19}])
def test_the_affine_says_where_resized_slices_lie(fields: Any, tmp_path: Path) -> None:
    ramps = np.meshgrid(*map(np.arange, (20, 24, 5)), indexing="ij")
    slopes = np.array([10, 7, 50])
    values = sum(slope * ramp for slope, ramp in zip(slopes, ramps, strict=True)).astype(np.float32)
    affine = np.array([[0, -2, 0, 1], [-3, 0, 0, 2], [0, 0, -4, 3], [0, 0, 0, 1.0]])
    content = save_volume(tmp_path / "a.nii", values, affine)
    data = folder_spec(tmp_path, slices={"axis": "axial"}, intensity={"window": [0, 600.5]}, color="grey", **fields)
    give_back(content, data, tmp_path / "b.nii.gz")
    made = nibabel.load(tmp_path / "b.nii.gz")
    assert made.shape == (16, 16, 5)
    voxels = np.stack(np.meshgrid(*map(np.arange, made.shape), indexing="ij"), axis=-1)
    there = nibabel.affines.apply_affine(np.linalg.inv(affine) @ made.affine, voxels)
    error = np.abs(np.asarray(made.dataobj) - there @ slopes)
    assert error[2:-2, 2:-2].max() < 0.5  # filters bend ramps at the borders


# ------------------------------------------------------------------------------------------------- tiles


@pytest.mark.parametrize("tiles", [{"size": 16}, {"size": 16, "stride": 7, "min_foreground": 0.9}])
def test_tiles_become_the_whole_image(tiles: Any, tmp_path: Path) -> None:
    whole = np.random.default_rng(0).integers(0, 256, (50, 41, 3), dtype=np.uint8)
    give_back(encoded(Image.fromarray(whole), "png"), folder_spec(tmp_path, tiles=tiles), tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), whole)


@pytest.mark.parametrize(
    "fields",
    [
        {"tiles": {"size": 32, "stride": 20}},
        {"resolution": 24, "tiles": {"size": 16}},
        {"random_crop_from": 20, "tiles": {"size": 20}},  # the model never sees the borders of a tile
        {"resolution": (16, 24), "tiles": {"size": 24}},
    ],
    ids=str,
)
def test_tiles_of_another_size_than_the_model_cover_the_image(fields: Any, tmp_path: Path) -> None:
    whole = np.asarray(Image.fromarray(np.eye(5, 4, dtype=np.uint8) * 200).resize((90, 70), Image.Resampling.BICUBIC))
    data = folder_spec(tmp_path, color="grey", **fields)
    give_back(encoded(Image.fromarray(whole), "png"), data, tmp_path / "a.png")
    assert np.abs(np.asarray(Image.open(tmp_path / "a.png")).astype(int) - whole).max() <= 2


def test_tiles_with_a_range_each_are_put_together_in_the_values_of_the_file(tmp_path: Path) -> None:
    whole = np.random.default_rng(0).integers(100, 4000, (40, 40)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", whole)
    data = folder_spec(tmp_path, color="grey", tiles={"size": 16, "stride": 9}, intensity={"per_image": "zscore"})
    give_back((tmp_path / "a.tif").read_bytes(), data, tmp_path / "b.tiff")
    np.testing.assert_allclose(tifffile.imread(tmp_path / "b.tiff"), whole, atol=0.1)


def test_where_tiles_overlap_the_middle_of_each_decides(tmp_path: Path) -> None:
    data = folder_spec(tmp_path, color="grey", tiles={"size": 16, "stride": 8})
    file = open_file(encoded(Image.new("L", (24, 16)), "png"), data)
    for i in range(2):
        file.take(i, torch.full((1, 16, 16), float(i)))
    file.write(tmp_path / "a.png")
    row = np.asarray(Image.open(tmp_path / "a.png"))[3].astype(int)
    assert (set(row[:8]), set(row[16:])) == ({0}, {255})
    assert (np.diff(row[7:17]) > 0).all()


def test_images_smaller_than_a_tile_are_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="its 12x20 pixels are less than"):
        open_file(encoded(Image.new("RGB", (12, 20)), "png"), folder_spec(tmp_path, tiles={"size": 16}))


# ------------------------------------------------------------------------------------------------ folders


def test_a_folder_of_volumes_and_pictures(tmp_path: Path) -> None:
    """Samples of several files share a batch; a file with a damaged sample is named, and not written."""
    scans = tmp_path / "scans"
    (scans / "sub").mkdir(parents=True)
    values = np.random.default_rng(0).integers(0, 900, (16, 16, 5)).astype(np.float32)
    save_volume(scans / "sub" / "a.nii.gz", values, np.eye(4))
    save_volume(scans / "sub" / "a.nii", values, np.eye(4))
    values[3, 3, 3] = np.nan
    save_volume(scans / "nan.nii", values, np.eye(4))
    save_noise(scans / "b.png", seed=0)
    fields = {"slices": {"axis": "axial"}, "intensity": {"window": [0, 900]}, "color": "grey"}
    spec = run_spec(data=folder_spec(tmp_path / "train", **fields).model_dump(mode="json"), batch_size=8)
    model = TunedModel(build_model(spec, None), spec, CPU, None)
    said: list[str] = []
    out = tmp_path / "out"
    assert run_folder(model, scans, out, overwrite=False, notify=said.append) == 3
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == {
        *("b.tiff", "sub/a.nii.gz.nii.gz", "sub/a.nii.nii.gz", "sheet.png")
    }
    assert [line for line in said if "skipped" in line] == [
        f"{scans}/nan.nii is skipped: some of its values are not finite numbers"
    ]
    one, other = (nibabel.load(out / "sub" / f"{name}.nii.gz").get_fdata() for name in ("a.nii", "a.nii.gz"))
    np.testing.assert_allclose(one, other, atol=1.0)
    assert one.shape == (16, 16, 5)


def test_a_tiff_of_pages_never_gets_the_name_of_a_folder() -> None:
    assert file_names(["a.tiff/b.png", "a.gif"], taken=[])["a.gif"] == "a.gif.png"
