import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ftae.engine.data.dataset import Dataset, ImagesChanged, load_dataset
from ftae.engine.data.decoding import UnreadableImage, decode_image
from ftae.errors import FtaeError
from ftae.specs.finetune.data import Digits, ImageFolder, Photos

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "cache"
    monkeypatch.setenv("FTAE_CACHE", str(folder))
    load_dataset.cache_clear()
    yield folder
    load_dataset.cache_clear()


def load(spec: Any) -> Dataset:
    """As another process would: nothing resident."""
    load_dataset.cache_clear()
    return load_dataset(spec)


def folder_spec(train: Path, **fields: Any) -> ImageFolder:
    return ImageFolder(**{"source": "image_folder", "train": str(train), "resolution": 16, "val": 0.25, **fields})


def save(path: Path, color: Any = RED, size: tuple[int, int] = (16, 16), mode: str = "RGB", **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path, **options)
    return path


def save_noise(path: Path, seed: int, side: int = 64) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)
    return path


def photos_of(dataset: Dataset) -> np.ndarray:
    """All images of both sets, in order of their first pixel."""
    pixels = np.concatenate([dataset.train.images, dataset.val.images])
    return pixels[np.lexsort(pixels[:, 0, 0].T[::-1])]


def cached_arrays(cache: Path) -> list[Path]:
    return sorted(cache.glob("images/*/images.npy"))


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "png")
    return file.getvalue()


# -------------------------------------------------------------------------------- what a folder gives


def test_folder_without_classes_is_found_whatever_the_suffix(tmp_path: Path) -> None:
    for i, name in enumerate(["a.jpg", "b.JPEG", "c.png", "d.webp", "e.bmp", "f.tif", "g.TIFF", "h.Jpg"]):
        save(tmp_path / "d" / name, (i * 30, 0, 0))
    (tmp_path / "d" / "notes.txt").write_text("no image")
    save(tmp_path / "d" / "._a.jpg")
    save(tmp_path / "d" / ".ipynb_checkpoints" / "a.jpg")

    dataset = load(folder_spec(tmp_path / "d"))

    assert dataset.train.images.shape == (6, 16, 16, 3)
    assert dataset.val.images.shape == (2, 16, 16, 3)
    assert np.allclose(photos_of(dataset)[:, 8, 8, 0], np.arange(8) * 30, atol=2)
    assert dataset.train.labels is None
    assert dataset.val.labels is None
    assert dataset.class_names is None
    assert dataset.skipped == ()


def test_images_are_memory_mapped_and_read_only(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / "d" / f"{i}.png")
    dataset = load(folder_spec(tmp_path / "d"))
    for image_set in (dataset.train, dataset.val):
        assert isinstance(image_set.images, np.memmap)
        assert image_set.images.dtype == np.uint8
        with pytest.raises(ValueError, match="read-only"):
            image_set.images[0, 0, 0, 0] = 1


def test_classes_are_the_subfolders_however_deep_the_images(tmp_path: Path) -> None:
    colors = {"red": RED, "green": GREEN, "blue": BLUE}
    for name, color in colors.items():
        for i in range(4):
            save(tmp_path / "d" / name / ("deep" if i % 2 else ".") / f"{i}.png", color)
    (tmp_path / "d" / "annotations").mkdir()
    (tmp_path / "d" / "annotations" / "all.json").write_text("{}")

    dataset = load(folder_spec(tmp_path / "d"))

    assert dataset.class_names == ("blue", "green", "red")
    for image_set in (dataset.train, dataset.val):
        assert image_set.labels is not None
        assert image_set.labels.dtype == np.int64
        for pixels, label in zip(image_set.images, image_set.labels, strict=True):
            assert tuple(pixels[8, 8]) == colors[dataset.class_names[label]]


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / "elsewhere" / f"{i}.png")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "d")
    dataset = load(folder_spec(tmp_path / "d"))
    assert len(dataset.train) + len(dataset.val) == 4
    assert dataset.class_names == ("cat",)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_folder_is_named(tmp_path: Path) -> None:
    save(tmp_path / "d" / "cat" / "0.png")
    (tmp_path / "d" / "cat").chmod(0)
    try:
        with pytest.raises(FtaeError, match=r"cannot read the folder .*cat"):
            load(folder_spec(tmp_path / "d"))
    finally:
        (tmp_path / "d" / "cat").chmod(0o755)


def test_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for i in range(2):
        save(tmp_path / "d" / f"{i}.png")
    assert len(load(folder_spec(Path("~/d"))).train) == 1


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda d: None, r"there is no image folder .*d"),
        (lambda d: d.write_text("x"), r"d is a file"),
        (lambda d: (d.mkdir(), (d / "a.heic").write_text("x")), r"holds no images: .*\.jpg .*1 other files: \.heic 1"),
        (lambda d: (save(d / "a.png"), save(d / "cat" / "b.png")), r"1 images directly \(a\.png.*1 in sub-folders"),
        (lambda d: (d.mkdir(), (d / "a.png").write_text("x")), r"none of the 1 images.*a\.png: not an image"),
        (lambda d: save(d / "a.png"), r"at least 2 readable images"),
        (lambda d: (d.mkdir(), (d / "a.png").symlink_to(d / "gone")), r"no images: .*a\.png: a link to nothing"),
    ],
    ids=["missing", "file", "no images", "mixed", "all corrupt", "one image", "dangling link"],
)
def test_unusable_folders_are_refused(tmp_path: Path, cache: Path, prepare: Any, message: str) -> None:
    prepare(tmp_path / "d")
    with pytest.raises(FtaeError, match=message):
        load(folder_spec(tmp_path / "d"))
    assert cached_arrays(cache) == [] or "2 readable" in message
    assert list(cache.glob("*/*.partial")) == []


# ---------------------------------------------------------------------------------- how one image decodes


def test_damaged_images_are_skipped_and_named(tmp_path: Path) -> None:
    for i in range(6):
        save_noise(tmp_path / "d" / "cat" / f"{i}.jpg", i)
    whole = (tmp_path / "d" / "cat" / "3.jpg").read_bytes()
    (tmp_path / "d" / "cat" / "3.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "d" / "cat" / "4.jpg").write_bytes(b"")

    dataset = load(folder_spec(tmp_path / "d", val=0.5))

    assert len(dataset.train) == 2
    assert len(dataset.val) == 2
    assert dataset.val.labels is not None
    assert dataset.val.labels.tolist() == [0, 0]
    truncated, empty = dataset.skipped
    assert truncated.startswith(str(tmp_path / "d" / "cat" / "3.jpg: "))
    assert "truncated" in truncated
    assert empty == str(tmp_path / "d" / "cat" / "4.jpg: not an image in a known format")
    assert load(folder_spec(tmp_path / "d", val=0.5)).skipped == dataset.skipped  # from the cache, too
    assert (dataset.train.images.std(axis=(1, 2, 3)) > 5).all()  # no hole where the damaged ones were


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
    with pytest.raises(UnreadableImage, match="32-bit pixels"):
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


def test_random_crop_decodes_the_larger_side(tmp_path: Path) -> None:
    for i in range(2):
        save(tmp_path / "d" / f"{i}.png", size=(64, 64))
    assert load(folder_spec(tmp_path / "d", random_crop_from=24)).train.images.shape == (1, 24, 24, 3)


# -------------------------------------------------------------------------------------------- the split


def test_share_is_held_out_once_and_always_the_same(tmp_path: Path) -> None:
    for i in range(40):
        save(tmp_path / "d" / f"{i:02}.png", (i * 6, i, 0))
    dataset = load(folder_spec(tmp_path / "d", val=0.25))
    train, val = ({tuple(p[0, 0]) for p in s.images} for s in (dataset.train, dataset.val))
    assert len(train) == 30
    assert len(val) == 10
    assert not train & val
    numbers = dataset.val.images[:, 0, 0, 1].tolist()
    assert numbers != sorted(numbers)
    assert min(numbers) < 10

    smaller = load(folder_spec(tmp_path / "d", val=0.1))
    assert {tuple(p[0, 0]) for p in smaller.val.images} < val
    assert smaller.fingerprint != dataset.fingerprint

    save(tmp_path / "d" / "new.png", (1, 2, 3))  # no image changes sides because of a new one, but at the edge
    larger = {tuple(p[0, 0]) for p in load(folder_spec(tmp_path / "d", val=0.25)).val.images}
    assert len(larger & val) >= 9


@pytest.mark.parametrize(("val", "num_val"), [(0.001, 1), (0.999, 3)])
def test_each_side_of_the_split_keeps_an_image(tmp_path: Path, val: float, num_val: int) -> None:
    for i in range(4):
        save(tmp_path / "d" / f"{i}.png")
    dataset = load(folder_spec(tmp_path / "d", val=val))
    assert (len(dataset.train), len(dataset.val)) == (4 - num_val, num_val)


def test_val_folder_takes_the_labels_of_train(tmp_path: Path) -> None:
    for name in ("ant", "bee", "cat"):
        save(tmp_path / "train" / name / "0.png", BLUE)
    save(tmp_path / "val" / "cat" / "0.png", RED)
    save(tmp_path / "val" / "bee" / "0.png", GREEN)
    spec = folder_spec(tmp_path / "train", val=str(tmp_path / "val"))

    dataset = load(spec)

    assert dataset.class_names == ("ant", "bee", "cat")
    assert dataset.val.labels is not None
    by_label = {int(label): tuple(p[0, 0]) for p, label in zip(dataset.val.images, dataset.val.labels, strict=True)}
    assert by_label == {1: GREEN, 2: RED}

    save(tmp_path / "val" / "cat" / "1.png", RED)
    assert load(spec).fingerprint != dataset.fingerprint


def test_val_folder_without_classes_has_no_labels(tmp_path: Path) -> None:
    save(tmp_path / "train" / "cat" / "0.png")
    save(tmp_path / "val" / "0.png")
    dataset = load(folder_spec(tmp_path / "train", val=str(tmp_path / "val")))
    assert dataset.train.labels is not None
    assert dataset.val.labels is None


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        ("train/cat", "val/dog", r"class folders dog, but data\.train has only cat"),
        ("train", "val/dog", r"class folders dog, but data\.train has no class folders"),
        ("train/cat", "train/cat", r"separate folders"),
        ("train/cat", "train/val/cat", r"separate folders"),
    ],
)
def test_unusable_val_folders_are_refused(tmp_path: Path, train: str, val: str, message: str) -> None:
    save(tmp_path / train / "0.png")
    save(tmp_path / val / "1.png")
    val_root = tmp_path / val if "train" in val else tmp_path / "val"
    with pytest.raises(FtaeError, match=message):
        load(folder_spec(tmp_path / "train", val=str(val_root)))


def test_missing_val_folder_is_named(tmp_path: Path) -> None:
    save(tmp_path / "d" / "0.png")
    with pytest.raises(FtaeError, match=r"no image folder .*nowhere"):
        load(folder_spec(tmp_path / "d", val=str(tmp_path / "nowhere")))


# -------------------------------------------------------------------------------------------- the cache


def test_loaded_once_per_process(tmp_path: Path) -> None:
    for i in range(2):
        save(tmp_path / "d" / f"{i}.png")
    spec = folder_spec(tmp_path / "d")
    assert load_dataset(spec) is load_dataset(folder_spec(tmp_path / "d"))


def test_second_load_decodes_nothing(tmp_path: Path, cache: Path) -> None:
    for i in range(3):
        save(tmp_path / "d" / f"{i}.png", (i, 0, 0))
    first = load(folder_spec(tmp_path / "d"))
    before = {p: p.stat().st_mtime_ns for p in cache.rglob("*")}
    second = load(folder_spec(tmp_path / "d"))
    assert {p: p.stat().st_mtime_ns for p in cache.rglob("*")} == before
    assert second.fingerprint == first.fingerprint
    assert (second.train.images == first.train.images).all()


def test_touching_or_moving_keeps_the_fingerprint(tmp_path: Path, cache: Path) -> None:
    for i in range(3):
        save(tmp_path / "d" / f"{i}.png", (i, 0, 0))
    first = load(folder_spec(tmp_path / "d")).fingerprint
    os.utime(tmp_path / "d" / "1.png", ns=(1, 1))
    assert load(folder_spec(tmp_path / "d")).fingerprint == first
    (tmp_path / "d").rename(tmp_path / "moved")
    assert load(folder_spec(tmp_path / "moved")).fingerprint == first
    assert len(cached_arrays(cache)) == 1


def test_changed_content_changes_the_fingerprint_and_the_pixels(tmp_path: Path) -> None:
    """Same size and same mtime, as after an unpacked archive or `cp -p`."""
    for i in range(3):
        save(tmp_path / "d" / f"{i}.bmp", (i, 0, 0))
    path = tmp_path / "d" / "1.bmp"
    first = load(folder_spec(tmp_path / "d"))
    stat = path.stat()
    save(path, (200, 0, 0))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    assert path.stat().st_mtime_ns == stat.st_mtime_ns

    second = load(folder_spec(tmp_path / "d"))
    assert second.fingerprint != first.fingerprint
    assert photos_of(second)[:, 0, 0, 0].tolist() == [0, 2, 200]


def test_renaming_changes_the_fingerprint(tmp_path: Path) -> None:
    for i in range(2):
        save(tmp_path / "d" / "cat" / f"{i}.png")
    first = load(folder_spec(tmp_path / "d")).fingerprint
    (tmp_path / "d" / "cat").rename(tmp_path / "d" / "dog")
    assert load(folder_spec(tmp_path / "d")).fingerprint != first


def test_fingerprint_depends_on_what_changes_pixels_only(tmp_path: Path) -> None:
    for i in range(2):
        save(tmp_path / "d" / f"{i}.png")
    first = load(folder_spec(tmp_path / "d")).fingerprint
    assert load(folder_spec(tmp_path / "d", flip=True)).fingerprint == first
    assert load(folder_spec(tmp_path / "d", random_crop_from=20)).fingerprint != first
    assert load(folder_spec(tmp_path / "d", color="grey")).fingerprint != first


def test_unwritable_cache_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "d" / "0.png")
    (tmp_path / "occupied").write_text("a file where the cache folder should be")
    monkeypatch.setenv("FTAE_CACHE", str(tmp_path / "occupied"))
    with pytest.raises(FtaeError, match=r"image cache .*occupied.*FTAE_CACHE"):
        load(folder_spec(tmp_path / "d"))


# ------------------------------------------------------------------------------------ the images of a search


def change(folder: Path, how: str) -> None:
    if how == "one changed":
        save(folder / "0.png", BLUE)
    elif how == "one came":
        save(folder / "new.png", GREEN)
    elif how == "one went":
        (folder / "0.png").unlink()
    else:
        folder.rename(folder.with_name("elsewhere"))


@pytest.mark.parametrize("how", ["one changed", "one came", "one went", "the folder went"])
@pytest.mark.parametrize("val", ["share", "folder"])
def test_pinned_images_stay_what_they_were_on_a_machine_that_has_them(val: str, how: str, tmp_path: Path) -> None:
    for i in range(4):
        for name in ("train", "val"):
            save(tmp_path / name / f"{i}.png", (i * 60, len(name), 0))
    fields = {"val": 0.25 if val == "share" else str(tmp_path / "val")}
    before = load(folder_spec(tmp_path / "train", **fields))
    change(tmp_path / ("train" if val == "share" else "val"), how)
    pinned = load(folder_spec(tmp_path / "train", **fields, fingerprint=before.fingerprint))
    assert pinned.fingerprint == before.fingerprint
    assert (photos_of(pinned) == photos_of(before)).all()


@pytest.mark.parametrize("how", ["one changed", "one came", "one went"])
def test_pinned_images_that_no_machine_has_any_more_are_refused(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(4):
        save(tmp_path / "d" / f"{i}.png", (i, 0, 0))
    pinned = folder_spec(tmp_path / "d", fingerprint=load(folder_spec(tmp_path / "d")).fingerprint)
    monkeypatch.setenv("FTAE_CACHE", str(tmp_path / "another"))
    assert load(pinned).fingerprint == pinned.fingerprint
    change(tmp_path / "d", how)
    monkeypatch.setenv("FTAE_CACHE", str(tmp_path / "a third"))
    with pytest.raises(ImagesChanged, match=r"the images of .*/d are not those of data.fingerprint .*Put them back"):
        load(pinned)
    (tmp_path / "cache" / "datasets" / str(pinned.fingerprint) / "keys.json").unlink()
    monkeypatch.setenv("FTAE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ImagesChanged):
        load(pinned)


def test_pinned_images_whose_copy_was_deleted_are_decoded_again(tmp_path: Path, cache: Path) -> None:
    for i in range(4):
        save(tmp_path / "d" / f"{i}.png", (i, 0, 0))
    pinned = folder_spec(tmp_path / "d", fingerprint=load(folder_spec(tmp_path / "d")).fingerprint)
    shutil.rmtree(cache / "images")
    assert len(load(pinned).train) == 3
    with pytest.raises(ImagesChanged, match=r"the images of digits are not those"):
        load(Digits(source="digits", resolution=16, fingerprint="x"))


# ------------------------------------------------------------------------------------- several processes

LOAD = """
import json, sys
from ftae.engine.data.dataset import load_dataset
from ftae.errors import FtaeError
from ftae.specs.finetune.data import ImageFolder
spec = ImageFolder.model_validate_json(sys.argv[1])
{prepare}
print("ready", flush=True)
sys.stdin.readline()
try:
    dataset = load_dataset(spec)
except FtaeError as error:
    print(json.dumps(["FtaeError", str(error)]))
else:
    images = dataset.train.images
    print(json.dumps([dataset.fingerprint, len(images), int(images.sum())]))
"""


def start_loader(spec: ImageFolder, prepare: str = "") -> subprocess.Popen[str]:
    """A process that has imported everything and loads ``spec`` when told to."""
    process = subprocess.Popen(
        [sys.executable, "-c", LOAD.format(prepare=prepare), spec.model_dump_json()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_racing_processes_share_one_array(tmp_path: Path, cache: Path) -> None:
    for i in range(60):
        save_noise(tmp_path / "d" / f"{i}.png", i, side=128)
    processes = [start_loader(folder_spec(tmp_path / "d", resolution=64)) for _ in range(3)]
    for process in processes:
        go(process)
    results = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
    assert results[0] == results[1] == results[2]
    assert results[0][0] != "FtaeError"
    assert len(cached_arrays(cache)) == 1
    assert list(cache.glob("*/*.partial")) == []


def test_killed_process_leaves_nothing_half_made(tmp_path: Path, cache: Path) -> None:
    for i in range(60):
        save_noise(tmp_path / "d" / f"{i}.png", i, side=256)
    spec = folder_spec(tmp_path / "d", resolution=128)
    process = start_loader(spec)
    go(process)
    deadline = time.monotonic() + 600
    while not list(cache.glob("images/*.partial/images.npy")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert cached_arrays(cache) == [cache / "images" / p.name / "images.npy" for p in cache.glob("images/*.partial")]

    dataset = load(spec)
    assert len(dataset.train) + len(dataset.val) == 60
    assert list(cache.glob("*/*.partial")) == []


def test_full_disk_is_one_message_and_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    """A file-size limit makes write() fail half-way, as a disk that fills up does."""
    for i in range(20):
        save(tmp_path / "d" / f"{i}.png", (i, 0, 0))
    spec = folder_spec(tmp_path / "d", resolution=64)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))"
    process = start_loader(spec, limit)
    go(process)
    kind, message = json.loads(process.communicate(timeout=60)[0])
    assert kind == "FtaeError"
    assert f"{20 * 64 * 64 * 3:,} bytes" in message
    assert str(cache) in message
    assert "FTAE_CACHE" in message
    assert cached_arrays(cache) == []
    assert list(cache.glob("*/*.partial")) == []

    assert len(load(spec).train) == 15  # room again


# --------------------------------------------------------------------------------------- built-in sources


def test_digits_keep_sklearns_pixels_and_labels() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    dataset = load(Digits(source="digits", resolution=8))
    assert dataset.train.images.shape == (1438, 8, 8, 1)
    assert dataset.val.images.shape == (359, 8, 8, 1)
    assert dataset.class_names == tuple("0123456789")
    assert dataset.train.labels is not None
    assert dataset.val.labels is not None
    ours = {
        (pixels.tobytes(), int(label))
        for image_set in (dataset.train, dataset.val)
        for pixels, label in zip(image_set.images, image_set.labels, strict=True)  # type: ignore[arg-type]
    }
    theirs = np.rint(digits.images * 255 / 16).astype(np.uint8)
    assert ours == {(p.tobytes(), int(t)) for p, t in zip(theirs, digits.target, strict=True)}
    assert dataset.train.images.max() == 255


def test_digits_are_enlarged_and_can_be_rgb() -> None:
    dataset = load(Digits(source="digits", resolution=28, color="rgb"))
    assert dataset.train.images.shape[1:] == (28, 28, 3)
    first = np.asarray(dataset.train.images[0])
    assert (first[..., 0] == first[..., 1]).all()
    assert (first[..., 0] == first[..., 2]).all()
    assert first.std() > 30


def test_digit_classes_are_filtered_and_renumbered() -> None:
    everything = load(Digits(source="digits", resolution=8))
    some = load(Digits(source="digits", resolution=8, classes=(7, 3, 3)))
    assert some.class_names == ("3", "7")
    assert some.train.labels is not None
    assert everything.train.labels is not None
    assert set(some.train.labels.tolist()) == {0, 1}
    sevens = {p.tobytes() for p in everything.train.images[everything.train.labels == 7]}
    ours = {p.tobytes() for p in some.train.images[some.train.labels == 1]}
    assert len(ours & sevens) > 0.9 * len(ours)
    assert some.fingerprint != everything.fingerprint


def test_digit_shifts() -> None:
    plain, inverted, rotated, noisy = (
        load(Digits(source="digits", resolution=8, shift=shift)) for shift in ("none", "invert", "rotate", "noise")
    )
    assert (inverted.val.images == 255 - plain.val.images).all()
    assert (rotated.val.images == np.rot90(plain.val.images, axes=(1, 2))).all()
    grey = (plain.val.images > 100) & (plain.val.images < 155)  # far enough from both ends not to be clipped much
    noise = noisy.val.images[grey].astype(float) - plain.val.images[grey]
    assert abs(noise.mean()) < 3
    assert noise.std() == pytest.approx(0.2 * 255, rel=0.05)
    assert len({d.fingerprint for d in (plain, inverted, rotated, noisy)}) == 4


def test_noise_does_not_depend_on_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = Digits(source="digits", resolution=8, shift="noise", classes=(4,))
    first = np.array(load(spec).train.images)
    monkeypatch.setenv("FTAE_CACHE", str(tmp_path / "another"))
    assert (load(spec).train.images == first).all()


@pytest.mark.parametrize("color", ["rgb", "grey"])
def test_photo_patches_come_from_separate_parts(color: Any) -> None:
    from sklearn.datasets import load_sample_images

    spec = Photos(source="photos", resolution=48, num_patches=40, val=0.25, color=color)
    dataset = load(spec)
    channels = spec.channels
    assert dataset.train.images.shape == (30, 48, 48, channels)
    assert dataset.val.images.shape == (10, 48, 48, channels)
    assert dataset.train.labels is None
    assert dataset.class_names is None

    photos = [
        np.asarray(Image.fromarray(p).convert("L" if color == "grey" else "RGB")).reshape(427, 640, channels)
        for p in load_sample_images().images
    ]
    columns = {
        "train": [_left_edge(patch, photos) for patch in dataset.train.images],
        "val": [_left_edge(patch, photos) for patch in dataset.val.images],
    }
    assert max(columns["train"]) + 48 <= 480 <= min(columns["val"])


def _left_edge(patch: np.ndarray, photos: list[np.ndarray]) -> int:
    """The column in which ``patch`` was cut."""
    for photo in photos:
        windows = np.lib.stride_tricks.sliding_window_view(photo[..., 0], (1, 48))[:, :, 0]
        for top, left in np.argwhere((windows[: 427 - 47] == patch[0, :, 0]).all(axis=2)):
            if (photo[top : top + 48, left : left + 48] == patch).all():
                return int(left)
    raise AssertionError("the patch is in no photograph")


@pytest.mark.parametrize(("side", "part"), [(200, "validation"), (512, "training")])
def test_photo_patch_larger_than_its_part_is_refused(side: int, part: str) -> None:
    with pytest.raises(FtaeError, match=rf"{part} patch of {side} x {side} pixels does not fit.*resolution"):
        load(Photos(source="photos", resolution=side))
