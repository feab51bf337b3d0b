"""The contract of a store, held by a folder and by an object store on a real S3 server."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ftae.errors import FtaeError
from ftae.storage.backends import JOURNAL_PIECES, ObjectStore
from ftae.storage.journal import FILE_NAME
from ftae.storage.store import Role, Store, is_url, open_store, searches_in

Open = Callable[..., Store]


@pytest.fixture
def mirrors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FTAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "searches"


@pytest.fixture(params=["folder", "object store"])
def opened(request: pytest.FixtureRequest, tmp_path: Path, mirrors: Path) -> Open:
    """A function that opens a search by its name, in a role."""
    storage = str(tmp_path / "searches") if request.param == "folder" else request.getfixturevalue("bucket") + "/some/"
    return lambda name="small", role="driver": open_store(storage, name, role)


@pytest.fixture
def remote(bucket: str, mirrors: Path) -> Callable[[Role], ObjectStore]:
    """A function that opens a search in an object store in a role, with the mirror of that role."""

    def opened(role: Role) -> ObjectStore:
        store = open_store(bucket, "small", role)
        assert isinstance(store, ObjectStore)
        return store

    return opened


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ----------------------------------------------------------------------------------------- the contract


def test_what_one_role_writes_another_reads(opened: Open) -> None:
    store = opened()
    assert store.read("a/b") is None
    store.write("a/b", b"one")
    store.write("a/b", b"two")
    assert (store.read("a/b"), opened(role="reader").read("a/b")) == (b"two", b"two")
    assert store.name == "small"
    assert str(store).endswith("/small")


def test_only_one_of_many_writers_creates_a_file(opened: Open) -> None:
    made = list[bool]()
    stores = [opened(role=role) for role in ("driver", "worker", "reader") for _ in range(3)]
    threads = [threading.Thread(target=lambda s=s: made.append(s.create("lease", b"x"))) for s in stores]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [False] * 8 + [True]
    assert not opened().create("lease", b"y")
    assert opened().read("lease") == b"x"


def test_names_and_removal_stop_at_the_folder(opened: Open) -> None:
    store = opened()
    for path in ("trials/0001/a", "trials/0001/b/c", "trials/00011/a", "trials/0002"):
        store.write(path, b"x")
    assert store.names("trials") == ["0001", "00011", "0002"]
    assert store.names("trials/0001") == ["a", "b"]
    assert store.names("nothing") == []
    for path in ("trials/0001", "trials/0002", "trials/0002", "nothing"):
        store.remove(path)
    assert store.names("trials") == ["00011"]


def test_what_a_worker_pushes_other_roles_fetch(opened: Open) -> None:
    worker, reader = opened(role="worker"), opened(role="reader")
    for name, content in (("b", b"2"), ("a", b"1"), ("deep/c", b"")):
        file = worker.folder / "trials/0001" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    worker.push("trials/0001")
    worker.push("trials/0001/a")
    worker.release("trials/0001")
    expected = {"a": b"1", "b": b"2", "deep/c": b""}
    assert files_in(reader.fetch("trials/0001")) == expected
    assert reader.fetch("trials/0001/deep/c").read_bytes() == b""
    assert files_in(worker.fetch("trials/0001")) == expected
    assert not worker.fetch("trials/0002").exists()
    worker.remove("trials/0001")
    assert opened().names("trials") == []


def test_searches_are_listed(opened: Open, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    storage = str(tmp_path / "searches")
    if isinstance(opened(), ObjectStore):
        storage = request.getfixturevalue("bucket") + "/some"
    assert searches_in(storage) == []
    for name in ("two", "one", "no search"):
        store = opened(name)
        assert not store.exists()
        store.write("search.yaml", b"x")
        if name != "no search":
            store.replicate(0, b"line\n")
            (store.folder / FILE_NAME).write_bytes(b"line\n")
            assert store.exists()
    assert searches_in(storage) == ["one", "two"]


def test_a_folder_is_the_storage_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    store = open_store("~/searches", "small", "driver")
    assert store.folder == tmp_path / "searches" / "small"
    assert store.fetch("a/b") == store.folder / "a/b"
    assert not store.folder.exists()
    store.write("a", b"")
    store.release("a")
    assert [path.name for path in store.folder.iterdir()] == ["a"], "no temporary file stays"


@pytest.mark.parametrize("scheme", ["nosuch", "sftp", "http", "file", "simplecache::s3", "S3"])
def test_an_object_store_without_exclusive_creation_is_refused(scheme: str) -> None:
    assert is_url("s3://bucket/x")
    assert not is_url("/some/folder")
    for call in (lambda url: open_store(url, "small", "driver"), searches_in):
        with pytest.raises(FtaeError, match=r"must be .* one of s3://, gs://, .*, got .*elsewhere two drivers could"):
            call(f"{scheme}://user:secret@bucket")  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(("scheme", "package"), [("gs", "gcsfs"), ("az", "adlfs")])
def test_a_missing_client_is_named_by_the_scheme(scheme: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(FtaeError, match=rf"search.storage: {scheme}:// needs pip install '{package}'"):
        open_store(f"{scheme}://bucket", "small", "driver")


# ------------------------------------------------------------------------------ the journal in an object store


def test_the_journal_is_one_object_per_event_and_mirrored(remote: Callable[[Role], ObjectStore]) -> None:
    driver, reader = remote("driver"), remote("reader")
    for offset, line in ((0, b"one\n"), (4, b"three\n")):
        driver.replicate(offset, line)
        driver.replicate(offset, line)  # sent again, because no answer came
    assert driver.names(JOURNAL_PIECES) == ["000000000000000", "000000000000004"]
    (reader.folder / FILE_NAME).write_bytes(b"one\nthr")  # a reader was killed while it wrote
    reader.refresh()
    assert (reader.folder / FILE_NAME).read_bytes() == b"one\nthree\n"
    with pytest.raises(FtaeError, match=r"small was taken over by another ftae driver; this one ends"):
        driver.replicate(4, b"other\n")
    driver.replicate(99, b"x\n")
    with pytest.raises(FtaeError, match="the part before byte 99 is missing"):
        reader.refresh()


def test_the_mirror_of_a_deleted_search_is_emptied_for_the_next_one(remote: Callable[[Role], ObjectStore]) -> None:
    driver = remote("driver")
    driver.replicate(0, b"a long old line\n")
    driver.write("trials/0001/a", b"old")
    driver.refresh()
    driver.fetch("trials/0001")
    for path in (JOURNAL_PIECES, "trials"):
        remote("reader").remove(path)
    driver.refresh()
    assert files_in(driver.folder).get(FILE_NAME) == b""
    driver.replicate(0, b"new\n")
    driver.refresh()
    assert {n: c for n, c in files_in(driver.folder).items() if not n.startswith(".")} == {FILE_NAME: b"new\n"}
