"""Images in archives: they are what the same files in a folder are, and a damaged archive is one message."""

import io
import json
import math
import os
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import all_pixels, folder_spec, load, png, save_noise
from PIL import Image

from ftae.engine.data.archives import zip as zip_archives
from ftae.engine.data.archives.source import open_archive
from ftae.engine.data.dataset import Dataset
from ftae.engine.data.sources import source_of
from ftae.errors import FtaeError
from ftae.inference.pictures import named_folder
from ftae.specs.finetune.sources.folders import Archive

pytestmark = pytest.mark.usefixtures("cache")

SIDE = 16
Files = Mapping[str, bytes]


def pictures(number: int = 8, *, side: int = SIDE, name: str = "{:08d}") -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    return {name.format(i): png(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for i in range(number)}


def write_zip(path: Path, files: Files, labels: Any = ...) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        if labels is not ...:
            archive.writestr("dataset.json", json.dumps({"labels": labels}))
    return path


def write_lmdb(path: Path, entries: Files) -> Path:
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(path), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        for key, value in entries.items():
            transaction.put(key.encode(), value)
    return path


def checksum(data: bytes) -> bytes:
    crc = pytest.importorskip("google_crc32c").value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def write_records(path: Path, examples: Sequence[bytes]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        for data in examples:
            length = struct.pack("<Q", len(data))
            file.write(length + checksum(length) + data + checksum(data))
    return path


def message(*fields: tuple[int, bytes]) -> bytes:
    return b"".join(varint(number << 3 | 2) + varint(len(value)) + value for number, value in fields)


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def feature(name: str, kind: int, values: bytes) -> tuple[int, bytes]:
    """A named feature of an example; ``kind``: 1 for bytes, 3 for whole numbers."""
    return 1, message((1, name.encode()), (2, message((kind, message((1, values))))))


def raw_example(image: bytes) -> bytes:
    """What StyleGAN writes: channels before height and width."""
    pixels = np.asarray(Image.open(io.BytesIO(image))).transpose(2, 0, 1)
    shape = b"".join(map(varint, pixels.shape))
    return message((1, message(feature("shape", 3, shape), feature("data", 1, pixels.tobytes()))))


def spec_of(path: Path, **fields: Any) -> Archive:
    return Archive(**{"train": str(path), "resolution": SIDE, "val": 0.25, **fields})


def write_folder(root: Path, files: Files) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def test_the_same_images_are_the_same_in_every_archive(tmp_path: Path) -> None:
    named, files = pictures(name="{:08d}.png"), pictures()
    folder = load(folder_spec(write_folder(tmp_path / "d", named)))
    zipped = load(spec_of(write_zip(tmp_path / "d.zip", named)))
    assert zipped.fingerprint == folder.fingerprint
    keyed = load(spec_of(write_lmdb(tmp_path / "d.lmdb", files)))
    sizes = {f"{SIDE}-{int(n):05d}": data for n, data in files.items()}
    sized = load(spec_of(write_lmdb(tmp_path / "sizes", {"length": b"8", **sizes})))
    raw = load(spec_of(write_records(tmp_path / "d-r04.tfrecords", list(map(raw_example, files.values())))))
    encoded = [message((1, message(feature("image/encoded", 1, data)))) for data in files.values()]
    whole = load(spec_of(write_records(tmp_path / "e.tfrecord", encoded)))
    for data in (zipped, keyed, sized, raw, whole):
        assert (all_pixels(data) == all_pixels(folder)).all()
    for data in (raw, whole):  # of the same names
        assert (data.val.images == keyed.val.images).all()


@pytest.mark.parametrize("kind", ["zip", "lmdb", "tfrecords"])
def test_threads_read_the_right_images(kind: str, tmp_path: Path) -> None:
    files = pictures(60, name="{:08d}.png" if kind == "zip" else "{:08d}")
    write: dict[str, Callable[[Path], Path]] = {
        "zip": lambda path: write_zip(path, files),
        "lmdb": lambda path: write_lmdb(path, files),
        "tfrecords": lambda path: write_records(
            path, [message((1, message(feature("image/encoded", 1, data)))) for data in files.values()]
        ),
    }
    images = open_archive(write[kind](tmp_path / f"d.{kind}"), SIDE)
    names = [*files] * 20
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(images.read, names)) == [files[name] for name in names]


# ------------------------------------------------------------------------------------------- labels


def labelled(path: Path, labels: Any) -> Dataset:
    return load(spec_of(write_zip(path, pictures(4, name="00000/img{:08d}.png"), labels)))


def named_labels(*labels: Any) -> list[Any]:
    return [[f"00000/img{i:08d}.png", label] for i, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ((10, 2, 2, 10), ("2", "10")),
        (([0, 1], [1, 0], [1, 0], [0, 1]), ("0", "1")),
    ],
)
def test_labels_are_numbers_or_vectors_of_one_1(labels: Any, names: tuple[str, ...], tmp_path: Path) -> None:
    data = labelled(tmp_path / "d.zip", named_labels(*labels))
    assert data.class_names == names
    assert data.train.labels is not None
    first = pictures(4)["00000000"]
    found = {png(image): label for image, label in zip(data.train.images, data.train.labels, strict=True)}
    assert found.get(first, 1) == 1  # the second class


def test_sub_folders_are_no_labels_beside_a_dataset_json(tmp_path: Path) -> None:
    plain = labelled(tmp_path / "d.zip", None)
    assert plain.class_names is None
    vectors = labelled(tmp_path / "e.zip", named_labels([0.5, 2], [1, 3], [0, 0], [1, 1]))
    assert vectors.class_names is None
    assert f"{tmp_path}/e.zip: the vectors of 2 numbers in dataset.json name no classes" in vectors.notes[0]
    folders = load(spec_of(write_zip(tmp_path / "f.zip", pictures(4, name="00000/img{:08d}.png"))))
    assert folders.class_names == ("00000",)
    assert len({plain.fingerprint, folders.fingerprint}) == 2
    ints = labelled(tmp_path / "g.zip", named_labels(0, 0, 1, 1))
    others = labelled(tmp_path / "h.zip", named_labels(0, 1, 1, 1))
    assert len({plain.fingerprint, ints.fingerprint, others.fingerprint}) == 3


def test_labels_of_tfrecords_lie_beside_them(tmp_path: Path) -> None:
    write_records(tmp_path / "d-r04.tfrecords", list(map(raw_example, pictures(4).values())))
    with (tmp_path / "d-rxx.labels").open("wb") as file:
        np.save(file, np.eye(3, dtype=np.float32)[[0, 2, 2, 0]])
    assert load(spec_of(tmp_path)).class_names == ("0", "2")
    with (tmp_path / "d-rxx.labels").open("wb") as file:
        np.save(file, np.array([{}] * 4), allow_pickle=True)
    with pytest.raises(FtaeError, match=r"d-rxx\.labels must hold an array of labels as NumPy saves it"):
        load(spec_of(tmp_path))


# ------------------------------------------------------------------------------------------- sizes


def test_the_size_is_the_smallest_that_is_not_enlarged(tmp_path: Path) -> None:
    sizes = {size: pictures(4, side=size) for size in (8, 16, 32)}
    entries = {f"{size}-{int(n):05d}": data for size, files in sizes.items() for n, data in files.items()}
    write_lmdb(tmp_path / "d", {"length": b"4", **entries})
    for level, size in ((3, 8), (4, 16), (5, 32)):
        write_records(tmp_path / "r" / f"d-r0{level}.tfrecords", list(map(raw_example, sizes[size].values())))
    for place in (tmp_path / "d", tmp_path / "r"):
        for side, expected in ((8, 8), (12, 16), (16, 16), (64, 32)):
            files = open_archive(place, side)
            assert files.size == expected
            assert files.notes == (f"of the sizes 8, 16, 32 that it holds, {expected} is read",)
            assert len(files.names) == 4
    assert open_archive(tmp_path / "r" / "d-r03.tfrecords", 64).notes == ()


# ------------------------------------------------------------------------------------------- fingerprint


def test_the_fingerprint_is_of_names_and_bytes_alone(tmp_path: Path, cache: Path) -> None:
    files = pictures(name="{:08d}.png")
    first = load(spec_of(write_zip(tmp_path / "d.zip", files)))
    moved = write_zip(tmp_path / "other.zip", files)
    os.utime(moved, (1, 1))
    assert load(spec_of(moved)).fingerprint == first.fingerprint
    assert len(list(cache.glob("images/*/images.npy"))) == 1
    changed = files | {"00000000.png": files["00000001.png"]}
    assert load(spec_of(write_zip(tmp_path / "d.zip", changed))).fingerprint != first.fingerprint
    assert load(spec_of(moved, fingerprint=first.fingerprint)).fingerprint == first.fingerprint


def test_validate_reads_some_images_of_a_large_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    whole = zip_archives._Members.read
    monkeypatch.setattr(zip_archives._Members, "read", lambda self, name: read.append(name) or whole(self, name))
    source_of(spec_of(write_zip(tmp_path / "d.zip", pictures(300, name="{:08d}.png")))).check_listed()
    assert len(read) == 200


# ------------------------------------------------------------------------------------------- damage


def test_damaged_images_are_skipped_by_name(tmp_path: Path) -> None:
    files = pictures(name="{:08d}.png") | {"00000002.png": b"no image"}
    archive = write_zip(tmp_path / "d.zip", files)
    data = bytearray(archive.read_bytes())
    data[data.index(files["00000005.png"]) + 100] ^= 255
    archive.write_bytes(data)
    skipped = load(spec_of(archive)).skipped
    assert [entry.removeprefix(f"{archive}/").partition(":")[0] for entry in skipped] == [
        "00000002.png",
        "00000005.png",
    ]
    assert "damaged in the archive: Bad CRC-32" in skipped[1]

    records = write_records(tmp_path / "d.tfrecord", [*map(raw_example, pictures(5).values()), b"\xff\xff"])
    data = bytearray(records.read_bytes())
    data[400] ^= 255
    records.write_bytes(data)
    skipped = load(spec_of(records)).skipped
    assert skipped == (
        f"{records}/00000000: the data of record 0 do not match their checksum",
        f"{records}/00000005: no Example with shape and data, or with image/encoded",
    )


def encrypted(path: Path) -> Path:
    write_zip(path, pictures(name="{:08d}.png"))
    data = bytearray(path.read_bytes())
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(mark) + place] |= 1
    path.write_bytes(data)
    return path


def cut(path: Path, share: float = 0.5) -> Path:
    data = path / "data.mdb" if path.is_dir() else path
    os.truncate(data, math.floor(data.stat().st_size * share))
    return path


DAMAGED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "cut zip": (lambda p: cut(write_zip(p / "d.zip", pictures(name="{}.png"))), "was cut off or damaged"),
    "encrypted": (lambda p: encrypted(p / "d.zip"), "is encrypted .*takes no passwords"),
    "escaping": (lambda p: write_zip(p / "d.zip", pictures(name="../../{}.png")), r"without a root and '\.\.'; not so"),
    "absolute": (lambda p: write_zip(p / "d.zip", pictures(name="/tmp/{}.png")), "not so /tmp/0.png"),
    "no images": (lambda p: write_zip(p / "d.zip", {"a.txt": b""}), "holds no images"),
    "unlabelled": (lambda p: write_zip(p / "d.zip", pictures(2, name="{}.png"), [["0.png", 1]]), "no label for 1 of 2"),
    "labels": (lambda p: write_zip(p / "d.zip", pictures(2, name="{}.png"), 3), "dataset.json must be"),
    "ragged": (
        lambda p: write_zip(p / "d.zip", pictures(2, name="{}.png"), [["0.png", [1]], ["1.png", [1, 0]]]),
        "dataset.json must have numbers, or vectors of one length",
    ),
    "cut LMDB": (lambda p: cut(write_lmdb(p / "d", pictures(60))), "was cut off: it has .* of .* bytes"),
    "no LMDB": (lambda p: write_folder(p, {"data.mdb": b"x" * 9999}), "is no LMDB, or is damaged"),
    "cut records": (
        lambda p: cut(write_records(p / "d.tfrecords", list(map(raw_example, pictures(4).values()))), 0.6),
        "record 2 was cut off",
    ),
    "no records": (lambda p: write_folder(p, {"d.tfrecords": b"x" * 99}) / "d.tfrecords", "record 0 has a length that"),
    "no levels": (lambda p: write_folder(p, {"d.tfrecords": b"x" * 99}), "must hold the files NAME-rXX.tfrecords"),
    "missing": (lambda p: p / "gone.zip", "there is no archive .*gone.zip"),
    "folder": (lambda p: p, "is no archive .*zip, LMDB, TFRecords; source: image_folder reads a folder"),
    "other file": (lambda p: write_folder(p, {"d.rar": b"Rar!"}) / "d.rar", "is no archive"),
}


@pytest.mark.parametrize(("make", "match"), DAMAGED.values(), ids=DAMAGED)
def test_what_is_no_archive_is_one_message(make: Callable[[Path], Path], match: str, tmp_path: Path) -> None:
    with pytest.raises(FtaeError, match=match):
        open_archive(make(tmp_path), SIDE)


def test_members_that_claim_too_much_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zip_archives, "MOST_BYTES", 2000)
    files = pictures(4, name="{}.png") | {"bomb.png": bytes(2001)}
    assert open_archive(write_zip(tmp_path / "d.zip", files), SIDE).unusable == (
        "bomb.png: claims 2,001 bytes, more than 2,000",
    )


@pytest.mark.parametrize(("package", "name"), [("lmdb", "d.lmdb"), ("google_crc32c", "d.tfrecords")])
def test_a_missing_package_is_named_with_the_command(
    package: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / name).touch()
    with pytest.raises(FtaeError, match=rf"needs the package {package.replace('_', '-')}: pip install 'ftae\["):
        open_archive(tmp_path / name, SIDE)


def test_a_model_is_evaluated_on_an_archive_as_on_a_folder(tmp_path: Path) -> None:
    files = pictures(name="a/{}.png")
    folder, archive = write_folder(tmp_path / "d", files), write_zip(tmp_path / "d.zip", files)
    (here, there) = (named_folder(str(place), folder_spec(folder)) for place in (folder, archive))
    assert here.names == there.names
    assert (here.images.images == there.images.images).all()


def test_a_folder_of_archives_names_the_other_source(tmp_path: Path) -> None:
    write_zip(tmp_path / "d.zip", pictures(name="{}.png"))
    for place in (tmp_path, tmp_path / "d.zip"):
        with pytest.raises(FtaeError, match="source: archive reads"):
            source_of(folder_spec(place)).parts()
    save_noise(tmp_path / "d.png", 0)
    assert source_of(folder_spec(tmp_path)).num_images() == (1,)
