"""Image files and folders for tests, and data specs that read them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ftae.engine.data.dataset import Dataset, load_dataset
from ftae.specs.finetune.sources.folders import ImageFolder

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def load(spec: Any) -> Dataset:
    """The dataset as a new process would load it."""
    load_dataset.cache_clear()
    return load_dataset(spec)


def folder_spec(train: Path, **fields: Any) -> ImageFolder:
    return ImageFolder(**{"source": "image_folder", "train": str(train), "resolution": 16, "val": 0.25, **fields})


def save(path: Path, color: Any = RED, size: tuple[int, int] = (16, 16), mode: str = "RGB", **options: Any) -> Path:
    """An image of one colour; the folder is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path, **options)
    return path


def save_noise(path: Path, seed: int, side: int = 64) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)
    return path


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(pixels: np.ndarray) -> bytes:
    return encoded(Image.fromarray(pixels), "png")


def all_pixels(dataset: Dataset) -> np.ndarray:
    """The images of training and validation, sorted by their first pixel."""
    pixels = np.concatenate([dataset.train.images, dataset.val.images])
    return pixels[np.lexsort(pixels[:, 0, 0].T[::-1])]
