"""Nodes that do not see the driver's files: each is a process of this machine with its own mounts."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from builders import search_dict
from PIL import Image


def search(images: Path, storage: Path) -> dict[str, Any]:
    data = {"source": "image_folder", "train": str(images), "resolution": 16, "color": "grey"}
    losses = {"mse": 1.0}
    return search_dict(**{"finetune.data": data, "finetune.losses": losses, "search": {"storage": str(storage)}})


# The driver's own node has no room for a trial, and is not checked. Prints the message about the others.
CHECK = """
import json, os, signal, subprocess, sys, time
from pathlib import Path

import ray

from ftae.engine.data.dataset import load_dataset
from ftae.errors import FtaeError
from ftae.search.ray.nodes import nodes_with_room
from ftae.search.ray.preflight_tasks import check_nodes
from ftae.specs import SearchSpec
from ftae.storage.store import open_store

place = Path(sys.argv[1])
spec = SearchSpec.model_validate_json(sys.argv[2])
images, storage = spec.finetune.data.train, spec.search.storage
views = {
    "apart": f"mount -t tmpfs none {images} && mount -t tmpfs none {storage}",
    "sealed": f"mount --bind {storage} {storage} && mount -o remount,ro,bind {storage}",
}
ray.init(address="local", num_cpus=0, include_dashboard=False, log_to_driver=False)
head = ray.get_runtime_context().gcs_address
started = []
try:
    for name, view in views.items():
        options = f"--block --address={head} --num-cpus=1 --node-name={name} --object-store-memory=100000000"
        command = f"{view} && exec {sys.executable} -m ray.scripts.scripts start {options}"
        started.append(
            subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", command],
                env=os.environ | {"FTAE_CACHE": str(place / name)},
                stdout=sys.stderr,
                start_new_session=True,
            )
        )
        deadline = time.monotonic() + 600
        while len(nodes_with_room(spec.search.resources)) < len(started):  # two at a time would take the same sockets
            assert time.monotonic() < deadline
            time.sleep(0.1)
    nodes = sorted(nodes_with_room(spec.search.resources), key=lambda node: node.name)
    store = open_store(storage, spec.name, "driver")
    try:
        check_nodes(spec, store, load_dataset(spec.finetune.data).fingerprint, nodes, lambda message: None)
    except FtaeError as error:
        print(json.dumps([str(error), *(node.name for node in nodes)]))
finally:
    for process in started:
        os.killpg(process.pid, signal.SIGTERM)
    for process in started:
        process.wait()
"""


@pytest.mark.slow
@pytest.mark.skipif(
    subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode != 0,
    reason="may not make a mount namespace",
)
def test_faults_of_several_nodes_are_one_message_with_their_names(tmp_path: Path) -> None:
    images, storage = tmp_path / "images", tmp_path / "searches"
    images.mkdir()
    storage.mkdir()
    for number in range(20):
        Image.new("L", (16, 16), 10 * number).save(images / f"{number}.png")
    command = [sys.executable, "-c", CHECK, str(tmp_path), json.dumps(search(images, storage))]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    message, apart, sealed = json.loads(done.stdout.splitlines()[-1])
    of_storage, of_images = message.splitlines()
    assert of_storage == (
        f"search.storage: {storage}/small cannot be used on {apart}: does not see what the driver wrote there; "
        f"on {sealed}: Read-only file system. Mount one folder there on all nodes, writable, or name an object store"
    )
    assert of_images.startswith(f"finetune.data: the images cannot be used on {apart}: {images} holds no images: ")
    assert of_images.endswith("Put the same images at the same path on every node, or on a storage that all share")
    assert list((storage / "small").iterdir()) == []
