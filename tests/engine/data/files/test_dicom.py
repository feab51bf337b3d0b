"""DICOM files: values in the unit of the scanner, colours, frames, patients, and files that cannot be read."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from image_files import folder_spec, load
from pydicom.uid import ExplicitVRLittleEndian

from ftae.engine.data.files.decoding import UnreadableImage
from ftae.engine.data.files.dicom import read_dicom
from ftae.engine.data.files.listing import list_images
from ftae.engine.data.files.values import decode_file
from ftae.errors import FtaeError

pytestmark = pytest.mark.usefixtures("cache")

SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"
WINDOW = {"window": [-1000, 1000]}


def shipped(name: str) -> bytes:
    return (SHIPPED / name).read_bytes()


def save_scan(path: Path, pixels: np.ndarray, *, patient: str = "", **tags: object) -> Path:
    """A CT of int16 or uint16, (H, W) or (frames, H, W)."""
    data = pydicom.Dataset()
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", f"1.2.3.{abs(hash(path)) % 10**9}"
    data.Modality, data.PatientID = "CT", patient
    if pixels.ndim == 3:
        data.NumberOfFrames = len(pixels)
    data.Rows, data.Columns = pixels.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, int(pixels.dtype.kind == "i")
    for keyword, value in tags.items():
        setattr(data, keyword, value)
    data.PixelData = pixels.tobytes()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def test_values_are_those_of_the_modality_lut() -> None:
    values = read_dicom(shipped("CT_small.dcm")).values
    assert (values.shape, values.min(), values.max()) == ((128, 128, 1), -896, 1167)


@pytest.mark.parametrize(
    "name",
    [
        "MR_small.dcm",
        "MR_small_RLE.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_implicit.dcm",
        "MR_small_jp2klossless.dcm",
    ],
)
def test_every_encoding_gives_the_same_values(name: str) -> None:
    frame = read_dicom(shipped(name))
    assert frame.values.dtype == np.int16
    np.testing.assert_array_equal(frame.values, read_dicom(shipped("MR_small.dcm")).values)


@pytest.mark.parametrize(
    "name",
    ["examples_rgb_color", "examples_palette", "SC_ybr_full_422_uncompressed", "examples_jpeg2k"],
)
def test_colours_need_no_intensity(name: str, tmp_path: Path) -> None:
    image = decode_file(shipped(f"{name}.dcm"), folder_spec(tmp_path))
    assert (image.shape, image.dtype) == ((16, 16, 3), np.uint8)
    assert image.std() > 5


def test_ybr_becomes_rgb(tmp_path: Path) -> None:
    """The same stripes are shipped in both colour spaces."""
    ybr, rgb = (read_dicom(shipped(name)).values for name in ("SC_ybr_full_422_uncompressed.dcm", "SC_rgb_rle.dcm"))
    assert np.abs(ybr[5].astype(int) - rgb[5]).mean() < 3


def test_monochrome1_is_inverted_after_the_window(tmp_path: Path) -> None:
    pixels = np.linspace(-2000, 2000, 256).astype(np.int16).reshape(16, 16)
    spec = folder_spec(tmp_path, color="grey", intensity=WINDOW)
    plain, inverted = (
        decode_file(save_scan(tmp_path / "a", pixels, PhotometricInterpretation=kind).read_bytes(), spec)
        for kind in ("MONOCHROME2", "MONOCHROME1")
    )
    assert (plain[0, 0, 0], plain[-1, -1, 0]) == (0, 65535)
    np.testing.assert_allclose(inverted, 65535 - plain, atol=1)


@pytest.mark.parametrize(("kind", "value"), [("MONOCHROME2", 10 - 1024), ("MONOCHROME1", 500 - 1024)])
def test_pixels_outside_the_scan_are_as_the_darkest(tmp_path: Path, kind: str, value: int) -> None:
    pixels = np.full((8, 8), -2000, dtype=np.int16)
    pixels[2:6, 2:6] = 500
    pixels[2, 2] = 10
    tags = {"PixelPaddingValue": -2000, "RescaleSlope": 1, "RescaleIntercept": -1024}
    values = read_dicom(save_scan(tmp_path / "a", pixels, PhotometricInterpretation=kind, **tags).read_bytes()).values
    assert values[0, 0, 0] == value
    assert values[3, 3, 0] == 500 - 1024


def test_files_are_found_by_suffix_or_by_their_beginning(tmp_path: Path) -> None:
    for name in ("a.dcm", "IM-0001", "1.2.840.113", "DICOMDIR"):
        shutil.copy(SHIPPED / "CT_small.dcm", tmp_path / name)
    (tmp_path / "README").write_text("no image")
    assert list_images(tmp_path).names == ("1.2.840.113", "IM-0001", "a.dcm")


def test_without_intensity_the_range_is_told(tmp_path: Path) -> None:
    for i in range(4):
        shutil.copy(SHIPPED / "CT_small.dcm", tmp_path / f"{i}.dcm")
    with pytest.raises(FtaeError, match=r"4 files of DICOM .* from -896 to 1167.*window: \[-896, 1167\]"):
        load(folder_spec(tmp_path))


def test_frames_are_samples_and_a_patient_is_on_one_side(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(6):
        frames = rng.integers(0, 1000, (4, 16, 16), dtype=np.int16)
        save_scan(tmp_path / f"{i}.dcm", frames, patient=f"Doe^{i // 2}")
    plain = load(folder_spec(tmp_path, intensity=WINDOW))
    assert (len(plain.train), len(plain.val)) == (20, 4)
    assert "6 files of 24 pages or frames, each a sample" in " ".join(plain.notes)
    data = load(folder_spec(tmp_path, intensity=WINDOW, groups={"tag": "PatientID"}))
    assert data.train.groups is not None
    assert (len(data.train), len(set(data.train.groups)), len(data.val)) == (16, 2, 8)
    assert "data.intensity.unit: HU" in " ".join(data.notes)
    assert "Doe" not in " ".join((*data.notes, *data.skipped))


def test_files_without_the_tag_are_refused(tmp_path: Path) -> None:
    for i in range(3):
        save_scan(tmp_path / f"{i}.dcm", np.zeros((16, 16), dtype=np.int16), patient="Doe" if i else "")
    spec = folder_spec(tmp_path, intensity=WINDOW, groups={"tag": "PatientID"})
    with pytest.raises(FtaeError, match=r"PatientID is missing in 1 of 3 files \(0.dcm\)"):
        load(spec)
    with pytest.raises(FtaeError, match="must be the keyword of a tag of DICOM, such as PatientID, got Patient"):
        load(folder_spec(tmp_path, intensity=WINDOW, groups={"tag": "Patient"}))


def test_what_cannot_be_read_is_skipped_with_a_reason(tmp_path: Path) -> None:
    for i in range(4):
        shutil.copy(SHIPPED / "CT_small.dcm", tmp_path / f"{i}.dcm")
    for name in ("MR_truncated.dcm", "test-SR.dcm", "JPEG-lossy.dcm", "no_meta.dcm"):
        shutil.copy(SHIPPED / name, tmp_path / name)
    (tmp_path / "cut.dcm").write_bytes(shipped("CT_small.dcm")[:3000])
    data = load(folder_spec(tmp_path, intensity=WINDOW, val=1))
    assert len(data.train) + len(data.val) == 4
    reasons = {entry.split("/")[-1].split(": ")[0]: entry for entry in data.skipped}
    assert sorted(reasons) == ["JPEG-lossy.dcm", "MR_truncated.dcm", "cut.dcm", "no_meta.dcm", "test-SR.dcm"]
    assert "less than expected" in reasons["MR_truncated.dcm"]
    assert "no pixel data" in reasons["test-SR.dcm"]
    assert "Unable to decode" in reasons["JPEG-lossy.dcm"]


def test_several_frames_are_not_one_image(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="30 frames"):
        decode_file(shipped("examples_ybr_color.dcm"), folder_spec(tmp_path))


@pytest.mark.parametrize(("name", "package"), [("a.dcm", "pydicom"), ("a.nii", "nibabel")])
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str) -> None:
    content = shipped("CT_small.dcm") if package == "pydicom" else bytes(344) + b"n+1\0"
    (tmp_path / name).write_bytes(content)
    monkeypatch.setitem(sys.modules, package, None)
    fields = {} if package == "pydicom" else {"slices": {"axis": "axial"}}
    with pytest.raises(FtaeError, match=rf"need the package {package}: pip install 'ftae\[medical\]'"):
        load(folder_spec(tmp_path, intensity=WINDOW, **fields))
