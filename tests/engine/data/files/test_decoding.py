"""How one image file becomes a square of pixels."""

import io
from pathlib import Path

import numpy as np
import pytest
from image_files import BLUE, GREEN, RED, folder_spec, png
from PIL import Image

from ftae.engine.data.files.decoding import UnreadableImage, decode_image


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16, :16], pixels[:16, 16:], pixels[16:, :16] = RED, GREEN, BLUE
    image = Image.fromarray(pixels)
    # Stored as a camera held that way would store it; the viewer must see `pixels` again.
    stored = {
        1: image,
        2: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: image.transpose(Image.Transpose.ROTATE_180),
        4: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: image.transpose(Image.Transpose.TRANSPOSE),
        6: image.transpose(Image.Transpose.ROTATE_90),
        7: image.transpose(Image.Transpose.TRANSVERSE),
        8: image.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    stored.save(file, "jpeg", quality=95, exif=exif)
    decoded = decode_image(file.getvalue(), folder_spec(Path("d"), resolution=8)).astype(int)
    assert np.abs(decoded[[1, 1, 6], [1, 6, 1]] - [RED, GREEN, BLUE]).max() < 30


def test_transparency_is_laid_on_white() -> None:
    rgba = np.zeros((16, 16, 4), np.uint8)
    rgba[:, 8:] = (255, 0, 0, 255)
    decoded = decode_image(png(rgba), folder_spec(Path("d")))
    assert decoded[8, 2].tolist() == [255, 255, 255]
    assert decoded[8, 13].tolist() == [255, 0, 0]


def test_palette_with_transparency_is_laid_on_white() -> None:
    file = io.BytesIO()
    image = Image.new("P", (16, 16), 1)
    image.putpalette([*RED, *GREEN])
    image.save(file, "png", transparency=1)
    assert (decode_image(file.getvalue(), folder_spec(Path("d"))) == 255).all()


def test_grey_images_become_rgb_and_rgb_becomes_grey() -> None:
    grey = decode_image(png(np.full((16, 16), 77, np.uint8)), folder_spec(Path("d")))
    assert grey.shape == (16, 16, 3)
    assert (grey == 77).all()
    red = decode_image(png(np.full((16, 16, 3), RED, np.uint8)), folder_spec(Path("d"), color="grey"))
    assert red.shape == (16, 16, 1)
    assert (red == 76).all()


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    ramp = np.repeat(np.linspace(0, 65535, 16).astype(np.uint16)[None], 16, axis=0)
    decoded = decode_image(png(ramp), folder_spec(Path("d"), color="grey"))
    assert np.abs(decoded[8, :, 0].astype(float) - np.linspace(0, 255, 16)).max() <= 1


def test_thirty_two_bit_images_are_unreadable_with_a_reason() -> None:
    file = io.BytesIO()
    Image.fromarray(np.ones((16, 16), np.float32)).save(file, "tiff")
    with pytest.raises(UnreadableImage, match="32-bit values"):
        decode_image(file.getvalue(), folder_spec(Path("d")))


@pytest.mark.parametrize("size", [(48, 16), (16, 48), (20, 10), (9, 30)])
def test_centre_square_of_the_short_side(size: tuple[int, int]) -> None:
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    short = min(size)
    top, left = (height - short) // 2, (width - short) // 2
    pixels[top : top + short, left : left + short] = 255
    decoded = decode_image(png(pixels), folder_spec(Path("d"), resolution=8))
    assert decoded.shape == (8, 8, 3)
    assert decoded[2:-2, 2:-2].min() > 240


@pytest.mark.parametrize("resolution", [(8, 11), (9, 11), (11, 19)])
def test_rounding_never_leads_out_of_the_image(resolution: tuple[int, int]) -> None:
    for size in ((50, 25), (100, 25), (123, 150), (1080, 49)):
        data = png(np.full((*size, 3), 7, np.uint8))
        assert (decode_image(data, folder_spec(Path("d"), resolution=resolution)) == 7).all()


@pytest.mark.parametrize("suffix", ["png", "jpeg"])
def test_shrinking_is_antialiased(suffix: str) -> None:
    """One-pixel stripes must average out; without a filter they would survive as black or white."""
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    file = io.BytesIO()
    Image.fromarray(stripes).save(file, suffix)
    decoded = decode_image(file.getvalue(), folder_spec(Path("d"), resolution=24))
    assert np.abs(decoded.astype(int)[2:-2, 2:-2] - 128).max() < 12


def test_large_jpeg_decodes_as_the_full_decode_would() -> None:
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8))
    photo = coarse.resize((1600, 1200), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    photo.save(file, "jpeg", quality=95)
    decoded = decode_image(file.getvalue(), folder_spec(Path("d"), resolution=256)).astype(int)
    whole = photo.crop((200, 0, 1400, 1200)).resize((256, 256), Image.Resampling.LANCZOS)
    assert np.abs(decoded - np.asarray(whole)).mean() < 3
