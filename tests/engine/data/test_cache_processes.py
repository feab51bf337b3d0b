"""Several processes use one cache: they race, are killed, and run out of disk space."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from image_files import folder_spec, load, save, save_noise

from ftae.specs.finetune.sources.folders import ImageFolder

pytestmark = pytest.mark.usefixtures("cache")


def cached_arrays(cache: Path) -> list[Path]:
    return sorted(cache.glob("images/*/images.npy"))


LOAD = """
import json, sys
from ftae.engine.data.dataset import load_dataset
from ftae.errors import FtaeError
from ftae.specs.finetune.sources.folders import ImageFolder
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
