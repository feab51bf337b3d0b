"""Images are written with the values that files of the training images have."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from image_files import folder_spec
from PIL import Image

from ftae.engine.data.files.values import decode_file
from ftae.inference.written import save_image, suffix_of


@pytest.mark.parametrize(
    ("fields", "kind", "ends"),
    [
        ({"color": "grey", "intensity": {"bits": 12}}, np.uint16, (0, 4095)),
        ({"color": "rgb", "intensity": {"bits": 16}}, np.uint16, (0, 65535)),
        ({"color": "grey", "intensity": {"window": [-1000, 1000]}}, np.int16, (-1000, 1000)),
        ({"color": "grey", "intensity": {"window": [0.5, 2]}}, np.float32, (0.5, 2)),
        ({"color": "grey", "intensity": {"window": [-1, 1]}}, np.float32, (-1, 1)),  # of files of floats, surely
        ({"color": "grey", "intensity": {"per_image": "minmax"}}, np.float32, (0, 1)),
        ({"bands": 5}, np.uint8, (0, 255)),
    ],
)
def test_a_tiff_has_the_values_of_the_files(fields: Any, kind: Any, ends: tuple[float, float], tmp_path: Path) -> None:
    spec = folder_spec(tmp_path, resolution=(16, 24), **fields)
    image = torch.linspace(0, 1, spec.channels * 16 * 24).reshape(spec.shape)
    save_image(image, tmp_path / "x.tiff", spec)
    assert suffix_of(spec) == ".tiff"
    values = tifffile.imread(tmp_path / "x.tiff")
    assert (values.dtype, values.min(), values.max()) == (kind, *ends)
    stored = decode_file((tmp_path / "x.tiff").read_bytes(), spec)
    again = stored.astype(np.float64).transpose(2, 0, 1) / np.iinfo(stored.dtype).max
    width = 1 if kind == np.float32 else ends[1] - ends[0]
    assert np.abs(again - image.numpy()).max() <= 0.51 / min(width, 65535) + 1e-4


def test_pictures_of_8_bits_are_png(tmp_path: Path) -> None:
    spec = folder_spec(tmp_path, color="grey")
    save_image(torch.full((1, 16, 16), 0.5), tmp_path / "x.png", spec)
    assert suffix_of(spec) == ".png"
    assert (np.asarray(Image.open(tmp_path / "x.png")) == 128).all()
