"""What all tests share: an own image cache, and one Ray cluster for those that need it."""

import gc
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["FTAE_ALLOW_CODE"] = "1"  # the tests' own modules

MEMORY = Path("/dev/shm")


def pytest_configure(config: pytest.Config) -> None:
    """The files of quick tests, some 100 MB, are kept in memory: on a disk they wait for each write to be there."""
    if config.option.markexpr.startswith("not slow") and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 2e9:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Each process takes whole files, and one of them takes all that share a Ray, so that it is started once."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    @cache
    def unit(file: str) -> str:
        text = (config.rootpath / file).read_text(encoding="utf-8")
        return "Ray" if re.search('"ray_session"|ray_session: None', text) else file

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return unit(nodeid.split("::")[0])

    config.option.loadscopereorder = False  # in the order of their collection
    return Files(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes share the tests, the files that start more come first: they take longest, and wait."""

    @cache
    def starts_none(file: Path) -> bool:
        text = file.read_text(encoding="utf-8")
        return re.search("ray_session|subprocess|multiprocessing|Drivers", text) is None

    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: starts_none(item.path))


def pytest_collection_finish() -> None:
    """Tests collect garbage, and all that was imported is none: to look through it takes half a second each time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or libraries report leaks at exit


@pytest.fixture(scope="session", autouse=True)
def image_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Images decoded by tests go to a folder of their own, shared with the workers they start."""
    before = os.environ.get("FTAE_CACHE")
    os.environ["FTAE_CACHE"] = str(tmp_path_factory.mktemp("image-cache"))
    yield
    if before is None:
        del os.environ["FTAE_CACHE"]
    else:
        os.environ["FTAE_CACHE"] = before


@pytest.fixture(autouse=True)
def ended_leases(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A search that a test leaves open renews its lease no more, or hundreds would until the session ends."""
    from ftae.storage.lease import Lease

    taken, take = list[Lease](), Lease.take

    def noted(lease: Lease) -> None:
        taken.append(lease)
        take(lease)

    monkeypatch.setattr(Lease, "take", noted)
    yield
    for lease in taken:
        lease._released.set()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The URL of an S3 server on this machine, for the whole session."""
    moto = pytest.importorskip("moto.server", reason="no local S3 server: pip install 'ftae[dev]'")
    pytest.importorskip("s3fs", reason="no client of object stores: pip install 'ftae[s3]'")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty bucket; the environment names its server and who asks."""
    import boto3
    import s3fs

    names = {"ENDPOINT_URL": s3_server, "ACCESS_KEY_ID": "tests", "SECRET_ACCESS_KEY": "tests"}
    for name, value in {**names, "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    bucket = f"tests-{uuid.uuid4().hex}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    yield f"s3://{bucket}"
    s3fs.S3FileSystem.clear_instance_cache()  # they remember the server


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """The Ray that ``ftae search`` starts, for the whole session; ``run_search`` finds it there."""
    from ftae.search.ray import session

    with session.ray_session():
        yield
