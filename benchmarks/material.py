"""What ``search_efficiency.py`` searches with: pretrained models and folders of images, given or made."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import PIL.Image

from ftae.engine.data.dataset import load_dataset
from ftae.engine.data.source_base import ImageSet
from ftae.specs.finetune.sources.builtin import Digits, Photos

ROOT = Path(__file__).parent.parent
KL_CONFIG = {  # 0.95 million parameters; three levels, so that an image of 32 pixels has latents of 8 x 8
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 16,
    "sample_size": 32,
}


def digits_model(folder: Path) -> Path:
    """The model of ``search_spaces/pretrain_digits.yaml``, trained into ``folder``."""
    file = ROOT / "search_spaces" / "pretrain_digits.yaml"
    command = [sys.executable, "-m", "ftae", "train", str(file), "--out", str(folder / "digits-vae")]
    command += ["--set", f"tracking.uri=sqlite:///{folder / 'pretraining.db'}"]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return folder / "digits-vae" / "model"


def digits_images(folder: Path) -> Path:
    """All ten digits, inverted, at 16 pixels: 1,437 to train on and 360 to validate on, as PNG."""
    data = load_dataset(Digits(source="digits", resolution=16, shift="invert"))
    _write(data.train, folder / "digits" / "train")
    _write(data.val, folder / "digits" / "val")
    return folder / "digits"


def untrained_kl(folder: Path) -> Path:
    """An AutoencoderKL of ``KL_CONFIG`` with random weights."""
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model: Any = AutoencoderKL(**KL_CONFIG)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder / "kl")
    return folder / "kl"


def photo_patches(folder: Path) -> Path:
    """Patches of photographs at 32 pixels: 2,000 to train on and 500 to validate on, as PNG."""
    data = load_dataset(Photos(source="photos", resolution=32, num_patches=2500))
    _write(data.train, folder / "photos" / "train")
    _write(data.val, folder / "photos" / "val")
    return folder / "photos"


def fewer(images: Path, folder: Path, num_val: int) -> Path:
    """A copy of an image folder in which ``num_val`` validation images are left, of all classes alike."""
    target = folder / f"{images.name}-{num_val}"
    shutil.copytree(images / "train", target / "train")
    classes = sorted(path for path in (images / "val").iterdir() if path.is_dir())
    for number, path in enumerate(classes):
        kept = num_val // len(classes) + (number < num_val % len(classes))
        (target / "val" / path.name).mkdir(parents=True)
        for file in sorted(path.iterdir())[:kept]:
            shutil.copy(file, target / "val" / path.name)
    return target


def num_images(folder: Path) -> int:
    return sum(file.is_file() for file in folder.rglob("*"))


def check_resolution(model: Path, images: Path) -> None:
    """Raises ValueError where the images are not as large as the workloads have them."""
    config = json.loads((model / "config.json").read_text())
    side = PIL.Image.open(next(file for file in sorted(images.rglob("*")) if file.is_file())).size
    if len(config["block_out_channels"]) != 3 or side != (32, 32):
        raise ValueError(f"the workloads need a model of three levels and images of 32x32; these are {side} images")


def _write(images: ImageSet, folder: Path) -> None:
    for number, pixels in enumerate(images.images):
        label = 0 if images.labels is None else int(images.labels[number])
        file = folder / str(label) / f"{number:05d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(file)
