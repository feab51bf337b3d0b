"""Files are read by their values: any type, any number of bands, any aspect ratio."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from image_files import folder_spec
from PIL import Image

from ftae.engine.data.dataset import load_dataset
from ftae.engine.data.files.decoding import UnreadableImage
from ftae.engine.data.files.values import decode_file, read_values
from ftae.errors import FtaeError

RNG = np.random.default_rng(0)


def tiff(values: np.ndarray[Any, Any], **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def png(values: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "png")
    return file.getvalue()


def random(kind: Any, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    if np.dtype(kind).kind == "f":
        return RNG.normal(0, 1000, shape).astype(kind)
    return RNG.integers(np.iinfo(kind).min, np.iinfo(kind).max, shape, endpoint=True, dtype=kind)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16, np.int32, np.float32])
@pytest.mark.parametrize("bands", [1, 3, 5])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_is_read_as_it_was_written(kind: Any, bands: int, order: Any) -> None:
    values = random(kind, (9, 7, bands))
    plain = values[..., 0] if bands == 1 else values
    photometric = "rgb" if bands == 3 else "minisblack"
    planar = None if bands == 1 else "contig"
    data = tiff(plain, byteorder=order, photometric=photometric, planarconfig=planar)
    assert (read_values(data) == values).all()
    if bands > 1:
        data = tiff(np.moveaxis(values, 2, 0), photometric=photometric, planarconfig="separate")
        assert (read_values(data) == values).all()


def test_16_bits_of_a_grey_png_are_kept() -> None:
    values = random(np.uint16, (9, 7))
    assert (read_values(png(values))[..., 0] == values).all()


@pytest.mark.parametrize(
    ("intensity", "levels"),
    [
        ({"window": [-1000, 1000]}, (-1000, 1000)),
        ({"dtype_range": True}, (-32768, 32767)),
        ({"window": [-2000.5, 2000]}, (-2000.5, 2000)),
    ],
)
def test_stored_values_become_those_of_the_file_again(intensity: Any, levels: tuple[float, float]) -> None:
    values = random(np.int16, (16, 16)) % 999
    spec = folder_spec(Path("d"), color="grey", intensity=intensity).with_levels(levels)
    stored = decode_file(tiff(values), spec)[..., 0]
    again = levels[0] + stored / 65535 * (levels[1] - levels[0])
    assert np.abs(again - values).max() <= (levels[1] - levels[0]) / 65535 * 0.51
    assert (np.rint(again) == values).all()


def test_each_image_may_be_scaled_by_itself() -> None:
    values = random(np.uint16, (16, 16)) // 7 + 100
    stored = decode_file(
        png(values.astype(np.uint16)), folder_spec(Path("d"), color="grey", intensity={"per_image": "minmax"})
    )
    assert (stored.min(), stored.max()) == (0, 65535)
    flat = np.full((16, 16), 700, np.uint16)
    for way in ("minmax", "zscore"):  # without contrast, but no number that is none
        spec = folder_spec(Path("d"), color="grey", intensity={"per_image": way})
        assert len(np.unique(decode_file(png(flat), spec))) == 1


def test_bands_are_chosen() -> None:
    values = random(np.uint8, (16, 16, 5))
    data = tiff(values, photometric="minisblack", planarconfig="contig")
    assert (decode_file(data, folder_spec(Path("d"), bands=2)) == values[..., :2]).all()
    assert (decode_file(data, folder_spec(Path("d"), bands=[4, 0, 2])) == values[..., [4, 0, 2]]).all()
    with pytest.raises(UnreadableImage, match=r"it has 5 bands, data\.bands names band 5"):
        decode_file(data, folder_spec(Path("d"), bands=6))
    with pytest.raises(UnreadableImage, match=r"say by data\.bands"):
        decode_file(data, folder_spec(Path("d"), intensity={"bits": 8}))


def test_values_without_a_meaning_are_refused() -> None:
    values = random(np.float32, (16, 16, 2))
    with pytest.raises(UnreadableImage, match=r"its values are float32, say what they mean by data\.intensity"):
        decode_file(tiff(values, planarconfig="contig", photometric="minisblack"), folder_spec(Path("d"), bands=2))
    values[3, 4, 1] = np.nan
    spec = folder_spec(Path("d"), bands=2, intensity={"window": [0, 1]})
    with pytest.raises(UnreadableImage, match="not finite"):
        decode_file(tiff(values, planarconfig="contig", photometric="minisblack"), spec)


@pytest.mark.parametrize("data", [b"II*\0", tiff(random(np.uint16, (64, 64)))[:900], b"\x89PNG\r\n\x1a\n", b""])
def test_damaged_files_are_unreadable_with_a_reason(data: bytes) -> None:
    with pytest.raises(UnreadableImage, match=r"\S"):
        decode_file(data, folder_spec(Path("d"), intensity={"bits": 16}))


@pytest.mark.parametrize("meaning", [{}, {"intensity": {"bits": 8}}])
@pytest.mark.parametrize("size", [(16, 32), (24, 8), (8, 20)])
def test_the_centre_with_the_aspect_ratio_is_cut_out(meaning: Any, size: tuple[int, int]) -> None:
    """The left half is black; it stays the left half, and rows of the top and bottom are cut."""
    pixels = np.zeros((60, 60), np.uint8)
    pixels[:, 30:] = 255
    spec = folder_spec(Path("d"), color="grey", resolution=size, **meaning)
    decoded = decode_file(png(pixels), spec)
    assert decoded.shape == (*size, 1)
    most = np.iinfo(decoded.dtype).max
    assert (decoded[:, : size[1] // 2 - 2] < 0.05 * most).all()
    assert (decoded[:, size[1] // 2 + 2 :] > 0.95 * most).all()


def test_percentiles_are_those_of_training_images(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / f"{i}.tiff").write_bytes(tiff(np.linspace(0, 1000, 256, dtype=np.float32).reshape(16, 16)))
    data = load_dataset(folder_spec(tmp_path, color="grey", intensity={"percentile": [10, 90]}))
    assert data.train.levels == pytest.approx((100, 900), abs=4)
    assert load_dataset(folder_spec(tmp_path, color="grey", intensity={"percentile": [10, 90]})).train.levels
    for path in tmp_path.glob("*.tiff"):
        path.write_bytes(tiff(np.full((16, 16), 3, np.float32)))
    load_dataset.cache_clear()
    with pytest.raises(FtaeError, match=r"the percentiles \[10.0, 90.0\] of .* are both 3"):
        load_dataset(folder_spec(tmp_path, color="grey", intensity={"percentile": [10, 90]}))
