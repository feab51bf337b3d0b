"""Images in shards: they are what the same files in a folder are, local or in an object store."""

import io
import json
import os
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import all_pixels, folder_spec, load, png
from pydantic import ValidationError

from ftae.engine.data.batches import train_batch
from ftae.engine.data.dataset import Dataset
from ftae.engine.data.shards import blocks
from ftae.engine.data.shards.places import REQUESTS, Shard, ShardFiles, find_shards
from ftae.engine.data.shards.samples import Choice
from ftae.engine.data.shards.source import ShardImages, is_shards, open_shards
from ftae.errors import FtaeError
from ftae.inference.pictures import named_folder
from ftae.specs.finetune.sources.folders import Shards

pytestmark = pytest.mark.usefixtures("cache")
SIDE = 16
Files = Mapping[str, bytes]


def pictures(number: int = 12, *, name: str = "{}/{:04d}.png") -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    names = [name.format("ab"[i % 2], i) for i in range(number)]
    return {each: png(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)) for each in names}


def write_tar(path: Path, files: Files) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_zip(path: Path, files: Files) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_parquet(path: Path, files: Files, *, names: Sequence[str] | None = None, **columns: Any) -> Path:
    """As Hugging Face's datasets writes it; ``names``: those of the classes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": data, "path": name} for name, data in files.items()]
    table = pa.table({"image": images, **columns})
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(names)}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=3)
    return path


def write_folder(root: Path, files: Files) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def halves(files: Files) -> tuple[dict[str, bytes], dict[str, bytes]]:
    items = list(files.items())
    return dict(items[: len(items) // 2]), dict(items[len(items) // 2 :])


def spec_of(train: Path | str, **fields: Any) -> Shards:
    return Shards(**{"train": str(train), "resolution": SIDE, "val": 0.25, **fields})


def same(one: Dataset, other: Dataset) -> bool:
    """Whether two data sets give the same batches, with the same labels."""
    assert one.class_names == other.class_names
    for a, b in ((one.train, other.train), (one.val, other.val)):
        assert a.labels is not None
        assert b.labels is not None
        assert (a.labels == b.labels).all()
        assert (a.images == b.images).all()
    return True


@pytest.mark.parametrize("kind", ["tar", "zip", "parquet"])
def test_the_same_images_are_the_same_in_shards(kind: str, tmp_path: Path) -> None:
    files = pictures()
    write = {"tar": write_tar, "zip": write_zip, "parquet": write_parquet}[kind]
    for number, part in enumerate(halves(files)):
        write(tmp_path / "shards" / f"{number:03d}.{kind}", part)
    folder = load(folder_spec(write_folder(tmp_path / "d", files)))
    for where in ("shards", f"shards/*.{kind}", f"shards/{{000..001}}.{kind}"):
        assert same(load(spec_of(tmp_path / where)), folder)


@pytest.mark.parametrize("block", [100, 2**22])
def test_shards_in_an_object_store_are_read_by_place(
    block: int, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import boto3

    monkeypatch.setattr(blocks, "BLOCK", block)
    files = pictures()
    folder = load(folder_spec(write_folder(tmp_path / "d", files)))
    client, name = boto3.client("s3"), bucket.removeprefix("s3://")
    for kind, write in (("tar", write_tar), ("zip", write_zip), ("parquet", write_parquet)):
        for number, part in enumerate(halves(files)):
            shard = write(tmp_path / kind / f"{number}.{kind}", part)
            client.upload_file(str(shard), name, f"{kind}/{number}.{kind}")
        remote = load(spec_of(f"{bucket}/{kind}"))
        assert same(remote, folder)
        assert load(spec_of(f"{bucket}/{kind}/{{0..1}}.{kind}")).fingerprint == remote.fingerprint
    client.upload_file(str(write_tar(tmp_path / "other.tar", halves(pictures(13))[1])), name, "tar/1.tar")
    assert load(spec_of(f"{bucket}/tar")).fingerprint != folder.fingerprint
    with pytest.raises(FtaeError, match=r"there is no shard .*/tar/2.tar"):
        load(spec_of(f"{bucket}/tar/{{0..2}}.tar"))


def test_samples_have_labels_in_files_beside_them(tmp_path: Path) -> None:
    files = pictures(name="{0}{1}.png")
    named: dict[str, bytes] = {}
    for i, (name, data) in enumerate(files.items()):
        key = name.removesuffix(".png")
        about = json.dumps({"kind": f"k{i % 3}"}).encode()
        named |= {name: data, f"{key}.cls": str(i % 11).encode(), f"{key}.json": about}
    shard = write_tar(tmp_path / "0.tar", named)
    numbered = load(spec_of(shard))
    assert numbered.class_names == tuple(map(str, range(11)))  # as numbers: 10 is the last
    assert load(spec_of(shard, label="kind")).class_names == ("k0", "k1", "k2")
    assert (all_pixels(numbered) == all_pixels(load(folder_spec(write_folder(tmp_path / "d", files))))).all()
    del named["a0.cls"]
    with pytest.raises(FtaeError, match=r"1 image of 12 have no label"):
        load(spec_of(write_tar(tmp_path / "1.tar", named)))


def test_a_sample_of_several_images_needs_a_choice(tmp_path: Path) -> None:
    files = pictures(name="{0}{1}.png")
    both = files | {name.replace(".png", ".mask.png"): data for name, data in pictures(name="{0}{1}.png").items()}
    shard = write_tar(tmp_path / "0.tar", both)
    with pytest.raises(FtaeError, match=r"a0 has several images, mask.png, png; say by data.image"):
        load(spec_of(shard))
    assert (all_pixels(load(spec_of(shard, image="png"))) == all_pixels(load(spec_of(shard, image="mask.png")))).all()
    with pytest.raises(FtaeError, match=r"no images with data.image jpg in 1 shard"):
        load(spec_of(shard, image="jpg"))


def test_columns_have_the_names_of_classes(tmp_path: Path) -> None:
    files = pictures(name="{0}{1}.png")
    labels = [i % 2 for i in range(len(files))]
    named = load(spec_of(write_parquet(tmp_path / "a.parquet", files, names=["cat", "dog"], label=labels)))
    assert named.class_names == ("cat", "dog")
    other = write_parquet(tmp_path / "b.parquet", files, label=labels, kind=[str(i) for i in labels])
    assert load(spec_of(other)).class_names == ("0", "1")
    assert load(spec_of(other, label="kind")).class_names == ("0", "1")
    with pytest.raises(FtaeError, match=r"data.label must be a column, of image, label, kind; got size"):
        load(spec_of(other, label="size"))
    with pytest.raises(FtaeError, match=r"data.image must name a column with images, of image; got kind"):
        load(spec_of(other, image="kind"))


def test_other_shards_are_measured_as_their_folder(tmp_path: Path) -> None:
    files = pictures()
    folder = write_folder(tmp_path / "d", files)
    write_tar(tmp_path / "shards" / "0.tar", files)
    there = named_folder(str(folder), folder_spec(folder))
    for where in (tmp_path / "shards", tmp_path / "shards" / "0.tar", tmp_path / "shards" / "*.tar"):
        here = named_folder(str(where), folder_spec(folder))
        assert here.names == there.names
        assert (here.images.images == there.images.images).all()


def test_what_is_a_place_of_shards(tmp_path: Path) -> None:
    write_tar(tmp_path / "a" / "0.tar", pictures(2))
    write_parquet(tmp_path / "b" / "0.parquet", pictures(2))
    write_zip(tmp_path / "c" / "0.zip", pictures(2))
    for where in ("a", "b", "c", "a/0.tar", "b/0.parquet", "no/{0..3}.tar"):
        assert is_shards(str(tmp_path / where)), where
    assert is_shards("s3://bucket/folder")
    write_tar(tmp_path / "pictures" / "backup.tar", pictures(2))
    write_folder(tmp_path / "pictures", pictures(2))
    (tmp_path / "table").mkdir()
    pq.write_table(pa.table({"x": [1.0, 2.0]}), tmp_path / "table" / "0.parquet")
    write_folder(tmp_path / "scans", {"1.2.840.0": b"DICM", "1.2.840.1": b"DICM"})
    write_zip(tmp_path / "scans" / "notes.zip", {"a.txt": b""})
    write_folder(tmp_path / "a", {"README.md": b"of shards", ".DS_Store": b""})
    assert is_shards(str(tmp_path / "a"))
    for where in ("scans", "pictures", "pictures/a", "table", "c/0.zip", "missing"):
        assert not is_shards(str(tmp_path / where)), where


def test_shards_have_no_metadata() -> None:
    with pytest.raises(ValidationError, match=r"metadata\.csv, which shards do not have"):
        spec_of("a.tar", label_column="kind")


PATIENTS = {f"{'ab'[i % 2]}/{i:04d}.png": f"patient {i // 3}" for i in range(12)}


def with_patients(files: Files, **wrong: Any) -> dict[str, bytes]:
    """With a file ``json`` of each sample, which names its patient."""
    named = {name.replace(".png", ".json"): {"patient": PATIENTS[name]} for name in files} | wrong
    return {**files, **{name: json.dumps(about).encode() for name, about in named.items()}}


@pytest.mark.parametrize("kind", ["tar", "zip", "parquet"])
def test_groups_in_shards_are_those_in_the_metadata_of_a_folder(kind: str, tmp_path: Path, cache: Path) -> None:
    files = pictures()
    for number, part in enumerate(halves(files)):
        path = tmp_path / "shards" / f"{number}.{kind}"
        if kind == "parquet":
            write_parquet(path, part, patient=[PATIENTS[name] for name in part])
        else:
            (write_tar if kind == "tar" else write_zip)(path, with_patients(part))
    root = write_folder(tmp_path / "d", files)
    by_path = {"groups": {"path": "([0-9]{3})[0-9].png"}, "val": 0.2}
    assert same(load(spec_of(tmp_path / "shards", **by_path)), load(folder_spec(root, **by_path)))
    rows = [f"{name},{patient}\n" for name, patient in PATIENTS.items()]
    (root / "metadata.csv").write_text("".join(["file_name,patient\n", *rows]))
    by_column = {"groups": {"column": "patient"}}
    held_out = load(spec_of(tmp_path / "shards", **by_column))
    assert same(held_out, load(folder_spec(root, **by_column)))
    assert len(held_out.val) == 3
    assert held_out.fingerprint != load(spec_of(tmp_path / "shards")).fingerprint
    for index in cache.glob("shards/*/*"):  # names of groups may be those of people
        assert b"patient" not in index.read_bytes().replace(b"\0", b"")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"a/0000.json": {"sex": "f"}}, r"a/0000.json must be a JSON object with data.groups.column, patient"),
        ({"a/0000.json": ["Ada"]}, r"a/0000.json must be a JSON object with data.groups.column, patient"),
        ({"a/0000.json": {"patient": ["Ada"]}}, r"must have a whole number or text, got a value of the type list$"),
        ({"a/0000.json": {"patient": None}}, r"must have a whole number or text, got nothing$"),
    ],
)
def test_an_image_without_a_group_is_one_message(wrong: dict[str, Any], message: str, tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "0.tar", with_patients(pictures(), **wrong))
    with pytest.raises(FtaeError, match=message):
        load(spec_of(shard, groups={"column": "patient"}))
    assert load(spec_of(shard)).class_names == ("a", "b")  # nothing else needs the file


def test_a_shard_without_groups_is_one_message(tmp_path: Path) -> None:
    files = pictures()
    with pytest.raises(FtaeError, match=r"a/0000.png has no file json with data.groups.column, patient"):
        load(spec_of(write_tar(tmp_path / "0.tar", files), groups={"column": "patient"}))
    shard = write_parquet(tmp_path / "0.parquet", files, sex=["f"] * 12)
    with pytest.raises(FtaeError, match=r"data.groups.column must be a column, of image, sex; got patient"):
        load(spec_of(shard, groups={"column": "patient"}))


def test_labels_and_groups_are_in_one_file(tmp_path: Path) -> None:
    files = pictures(name="{0}{1}.png")
    for i, name in enumerate(list(files)):
        key = name.removesuffix(".png")
        files[f"{key}.json"] = json.dumps({"kind": f"k{i % 3}", "patient": i // 2}).encode()
        files[f"{key}.cls"] = str(i % 2).encode()
    shard = write_tar(tmp_path / "0.tar", files)
    by_patient = {"groups": {"column": "patient"}}
    assert load(spec_of(shard, label="kind", **by_patient)).class_names == ("k0", "k1", "k2")
    assert load(spec_of(shard, **by_patient)).class_names == ("0", "1")


def test_a_name_that_an_index_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FtaeError, match=r"must have no character 0: a\\x00b.png"):
        load(spec_of(write_parquet(tmp_path / "0.parquet", {"a\0b.png": png(np.zeros((SIDE, SIDE, 3), np.uint8))})))


def test_names_that_repeat_belong_to_their_shards(tmp_path: Path) -> None:
    for number, part in enumerate(halves(pictures(name="{0}{1}.png"))):
        renamed = {f"{i:03d}.png": data for i, data in enumerate(part.values())}
        write_tar(tmp_path / "s" / f"{number}.tar", renamed)
    data = load(spec_of(tmp_path / "s"))
    assert len(data.train) + len(data.val) == 12
    assert data.class_names == ("0", "1")


def test_an_unreadable_image_is_left_out_wherever_it_lies(tmp_path: Path) -> None:
    """Rows are written in the order of the shards, and gaps are closed."""
    files = pictures()
    broken = files | {"a/0000.png": b"no image", "b/0005.png": b"neither"}
    folder = load(folder_spec(write_folder(tmp_path / "d", broken)))
    assert len(folder.skipped) == 2
    assert same(load(spec_of(write_tar(tmp_path / "0.tar", broken))), folder)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"x" * 2000), "is no tar, or was cut off, compressed or damaged"),
        (lambda path: write_tar(path, {"../a.png": b""}), r"must be a path below a folder.*\.\./a\.png"),
        (lambda path: write_tar(path, {"a.txt": b""}), "no images in 1 shard"),
        (lambda path: write_tar(path.with_suffix(".txt"), {}), "holds no shards: looked for .tar .parquet .zip"),
    ],
)
def test_a_shard_that_cannot_be_read_is_one_message(write: Any, message: str, tmp_path: Path) -> None:
    write(tmp_path / "s.tar")
    with pytest.raises(FtaeError, match=message):
        load(spec_of(tmp_path))


def test_formats_are_not_mixed_and_sets_do_not_overlap(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", pictures())
    write_tar(tmp_path / "val-0.tar", pictures())
    with pytest.raises(FtaeError, match=r"share 1 shard, as .*/val-0.tar"):
        load(spec_of(tmp_path / "*.tar", val=str(tmp_path / "val-*.tar")))
    write_zip(tmp_path / "a.zip", pictures())
    with pytest.raises(FtaeError, match=r"several formats, \.tar, \.zip"):
        load(spec_of(tmp_path))
    with pytest.raises(FtaeError, match=r"one of s3://.*, got ftp://\.\.\."):
        find_shards("ftp://host/a.tar", (".tar",))


def test_the_index_is_made_once(tmp_path: Path, cache: Path) -> None:
    shard = write_tar(tmp_path / "0.tar", pictures())
    spec = spec_of(shard)
    first = load(spec)
    (index,) = cache.glob("shards/*/index.npz")
    before = index.stat().st_mtime_ns
    again = load(spec)
    assert index.stat().st_mtime_ns == before
    assert again.fingerprint == first.fingerprint
    os.truncate(index, 10)
    assert load(spec).fingerprint == first.fingerprint
    batch = train_batch(first.train, spec, batch_size=4, batch=0, seed=0, device="cpu")
    assert batch.images.shape == (4, 3, SIDE, SIDE)


def test_many_small_reads_of_a_shard_are_few_requests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 1000)
    content = np.random.default_rng(0).integers(0, 256, 10_500, dtype=np.uint8).tobytes()
    (tmp_path / "a.tar").write_bytes(content)
    files = find_shards(str(tmp_path / "a.tar"), (".tar",))
    asked: list[tuple[int, int]] = []

    class Counted:
        def read(self, shard: Shard, start: int, length: int) -> bytes:
            asked.append((start, length))
            return files.read(shard, start, length)

    reader, (shard,) = blocks.Blocks(cast("ShardFiles", Counted())), files.shards
    places = [(start, 70) for start in range(0, 10_500, 70)] + [(2_800, 450), (10_400, 100), (10_400, 300), (5, 0)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda place: reader.read(shard, *place), places))
    assert found == [content[start : start + length] for start, length in places]
    assert sorted(set(asked)) == sorted(asked)  # no block is asked for twice
    assert {start for start, _ in asked} == set(range(0, 10_500, 1000))


@pytest.mark.parametrize(("beside", "is_read_by_blocks"), [(1_000, True), (2_000_000, False)])
def test_images_far_apart_are_read_without_what_lies_between(
    beside: int, is_read_by_blocks: bool, bucket: str, tmp_path: Path
) -> None:
    import boto3

    files = pictures(2, name="{0}{1}.png")
    raw = {name.replace(".png", ".raw"): bytes(beside) for name in files}
    shard = write_tar(tmp_path / "0.tar", dict(sorted((files | raw).items())))
    boto3.client("s3").upload_file(str(shard), bucket.removeprefix("s3://"), "0.tar")
    images = open_shards(f"{bucket}/0.tar", Choice(None, None))
    reader = images.read_in_order()
    assert isinstance(reader, ShardImages)
    assert (reader.blocks is not None) == is_read_by_blocks
    assert {name: reader.read(name) for name in images.names} == files


@pytest.mark.parametrize("length", [100_000, 3_000_000, 12_000_000])
def test_no_byte_is_read_twice(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the size of images, and with as many readers as there are."""
    asked: list[int] = []

    class Counted:
        def read(self, shard: Shard, start: int, length: int) -> bytes:
            asked.append(length)
            return bytes(length)

    shard = Shard("a", 60 * length, ())
    reader = blocks.Blocks(cast("ShardFiles", Counted()))
    with ThreadPoolExecutor(REQUESTS) as pool:
        assert all(
            len(data) == length for data in pool.map(lambda i: reader.read(shard, i * length, length), range(60))
        )
    assert sum(asked) <= 60 * length + blocks.BLOCK


def test_a_block_that_cannot_be_read_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(bytes(100))
    files = find_shards(str(tmp_path / "a.tar"), (".tar",))
    (tmp_path / "a.tar").unlink()
    with pytest.raises(FtaeError, match=r"cannot read the shard .*a.tar: No such file"):
        blocks.Blocks(files).read(files.shards[0], 0, 10)
