"""Folders of images to measure with, what is decoded of them, and how a script would read them."""

from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from ftae.engine.data.batches import Batch
from ftae.engine.data.files import listing
from ftae.engine.data.files.decoding import Array, Pixels
from ftae.specs.finetune.data_spec import DataSpec

SPAWN: SpawnContext = get_context("spawn")  # a new process must not inherit what this one has imported or read


class Decoded:
    """How many image files were decoded and of how many bytes, counted over all processes that have this."""

    def __init__(self) -> None:
        self._files, self._bytes = SPAWN.Value("q", 0), SPAWN.Value("q", 0)

    def note(self, num_bytes: int) -> None:
        for total, more in ((self._files, 1), (self._bytes, num_bytes)):
            with total.get_lock():
                total.value += more

    def watch(self) -> None:
        """Count what this process decodes from here on."""
        decode = listing.decode_file

        def counted(data: bytes, spec: DataSpec) -> Array:
            self.note(len(data))
            return decode(data, spec)

        listing.decode_file = counted

    def take(self) -> dict[str, float]:
        """What was counted since the last time."""
        found = {"decoded": self._files.value, "decoded_mb": self._bytes.value / 1e6}
        self._files.value = self._bytes.value = 0
        return found


def write_jpegs(folder: Path, count: int) -> None:
    """Smooth random images of 64 to 96 pixels a side, quality 90, in two classes."""
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        width, height = rng.integers(64, 97, 2)
        coarse.resize((int(width), int(height)), Image.Resampling.BICUBIC).save(path, quality=90)


def write_pngs(folder: Path, images: Pixels) -> None:
    """Grey images, (N, side, side, 1), as they are, in one class."""
    (folder / "a").mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(folder / "a" / f"{i}.png")


def script_loader(folder: Path, spec: DataSpec, batch_size: int, workers: int, decoded: Decoded) -> DataLoader[Any]:
    """What torchvision's documentation shows: ImageFolder, transforms, DataLoader."""
    # Not in the processes of ftae, whose memory would grow by it.
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import CenterCrop, Compose, Grayscale, RandomHorizontalFlip, Resize, ToTensor

    def load(path: str) -> Image.Image:
        decoded.note(Path(path).stat().st_size)
        with Image.open(path) as image:
            return image.convert("RGB" if spec.color == "rgb" else "L")

    side = spec.resolution
    steps: list[Callable[[Any], Any]] = [Resize(side), CenterCrop(side), ToTensor()]
    steps += [RandomHorizontalFlip()] if spec.flip else []
    steps = [Grayscale(), *steps] if spec.color == "grey" else steps
    images = ImageFolder(str(folder), Compose(steps), loader=load)
    # Workers that live on from epoch to epoch, and are forked as they are in a script on Linux.
    kept = {"num_workers": workers, "persistent_workers": True, "multiprocessing_context": "fork"} if workers else {}
    return DataLoader(images, batch_size, shuffle=True, drop_last=True, **kept)


def endless(loader: DataLoader[Any]) -> Iterator[Batch]:
    """Its batches, epoch after epoch."""
    while True:
        for images, labels in loader:
            yield Batch(images, images, labels)


def pss(of: str = "") -> int:
    """Bytes of this process's memory, each page shared by n processes counted as 1/n of it.

    ``of``: only of the files whose path has that in it.
    """
    its, total = not of, 0
    for line in Path("/proc/self/smaps" if of else "/proc/self/smaps_rollup").read_text().splitlines():
        key, _, rest = line.partition(" ")
        if not key.endswith(":"):  # the head of a mapping: addresses, and in the end its file
            its = of in line
        elif key == "Pss:" and its:
            total += int(rest.split()[0]) * 1024
    return total


def one_thread() -> None:
    torch.set_num_threads(1)
