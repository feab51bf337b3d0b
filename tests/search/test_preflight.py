"""Checks before the first trial of a search, on a real cluster."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from builders import search_spec

from ftae.engine.data.dataset import load_dataset
from ftae.engine.sizing import Probe
from ftae.errors import FtaeError
from ftae.search.preflight import _check_memory, check_measured, preflight
from ftae.search.ray import preflight_tasks
from ftae.search.ray.hang_detector import reason_of
from ftae.search.ray.nodes import live_nodes
from ftae.search.ray.preflight_tasks import dry_run, dry_run_step
from ftae.search.tracking_sync import TrackingSync
from ftae.specs import SearchSpec
from ftae.storage.backends import FolderStore
from ftae.storage.journal import Journal
from ftae.storage.store import Store, open_store
from ftae.tracking import tracker_for

pytestmark = pytest.mark.usefixtures("ray_session")


class Notes(list[str]):
    def __call__(self, message: str) -> None:
        self.append(message)


def spec(storage: Path, **changes: Any) -> SearchSpec:
    """``changes``: values by path, ``__`` between its parts."""
    changes = {path.replace("__", "."): value for path, value in changes.items()}
    base: dict[str, Any] = {
        "finetune.data": {"source": "digits", "resolution": 16},
        "finetune.optimizer": {"lr": 1e-3},
        "finetune.num_evals": 3,
        "finetune.metrics": ["psnr"],
        "search_space": {"optimizer.lr": {"low": 1e-4, "high": 1e7, "log": True}},
        "search": {"num_trials": 6, "storage": str(storage)},
    }
    return search_spec(**base | changes).with_absolute_paths()


def store_of(search: SearchSpec) -> Store:
    store = open_store(search.search.storage, search.name, "driver")
    store.folder.mkdir(parents=True, exist_ok=True)
    return store


def check(search: SearchSpec, *, checkpoint_bytes: int = 1000) -> tuple[Probe, Notes]:
    """The preflight of a search, and its dry run."""
    data, notes = load_dataset(search.finetune.data), Notes()
    capacity = preflight(search, store_of(search), data, checkpoint_bytes, notes, is_local=True)
    probe = dry_run(search, data.fingerprint, notes)
    check_measured(probe, search, capacity, notes)
    return probe, notes


def refusal(search: SearchSpec, **options: Any) -> str:
    with pytest.raises(FtaeError) as caught:
        check(search, **options)
    assert list(store_of(search).folder.iterdir()) == []
    return str(caught.value)


def test_a_valid_search_is_measured_and_leaves_no_files(tmp_path: Path) -> None:
    search = spec(tmp_path)
    probe, notes = check(search)
    assert (probe.device, probe.memory_bytes) == ("cpu", None)
    assert 0 < probe.step_seconds < probe.eval_seconds
    assert list((tmp_path / "small").iterdir()) == []
    line = notes[-1]  # a slow machine may have noted that it takes long
    assert line.startswith(f"preflight     1 node; {probe}; about ")
    assert line.endswith(" the search at 2 at a time")


def test_the_number_of_trials_at_a_time_is_limited(tmp_path: Path) -> None:
    for limit, expected in [({"max_concurrent": 1}, 1), ({"max_concurrent": 9}, 2), ({"num_trials": 1}, 1)]:
        changes = {f"search__{key}": value for key, value in limit.items()}
        assert check(spec(tmp_path, **changes))[1][-1].endswith(f"at {expected} at a time")


# -------------------------------------------------------------------------------------------- refusals


def test_a_local_ray_that_is_too_small_is_refused_at_once(tmp_path: Path) -> None:
    assert refusal(spec(tmp_path, search__resources={"cpus": 3})) == (
        "search.resources.cpus: a trial asks for 3, the largest node of the cluster has 2 CPUs. "
        "Lower it, or join a larger cluster"
    )
    message = refusal(spec(tmp_path, search__resources={"cpus": 1, "workers": 4}))
    assert message.startswith("search.resources: a trial asks for 4 workers of 1 CPUs, 0 GPUs, the nodes have ")


def test_a_search_that_needs_too_much_storage_is_refused(tmp_path: Path) -> None:
    message = refusal(spec(tmp_path, search__max_storage_gb=0.5), checkpoint_bytes=10**9)
    assert message.startswith("search.max_storage_gb: 0.5 GB are allowed, the search takes about 10 GB. Allow more, ")
    message = refusal(spec(tmp_path), checkpoint_bytes=10**15)
    assert message.startswith(f"search.storage: {tmp_path / 'small'} has ")
    assert " free, the search takes about 1e+04 TB more. Make room, name another storage, " in message


def test_other_images_on_a_node_are_refused(tmp_path: Path) -> None:
    search = spec(tmp_path)
    with pytest.raises(FtaeError) as caught:
        preflight_tasks.check_nodes(search, store_of(search), "another", live_nodes(), Notes())
    assert list(store_of(search).folder.iterdir()) == []
    message = str(caught.value)
    assert message.startswith(f"finetune.data: the images cannot be used on {live_nodes()[0].name}: the images of ")
    assert message.endswith("Put the same images at the same path on every node, or on a storage that all share")


def test_a_storage_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    search = spec(tmp_path)
    nowhere = FolderStore(tmp_path / "file" / "small")
    (tmp_path / "file").write_text("")
    with pytest.raises(FtaeError, match=r"search\.storage: .*/file/small cannot be used from here: "):
        preflight_tasks.check_nodes(search, nowhere, "", live_nodes(), Notes())


def test_a_diverging_configuration_is_refused_with_advice(tmp_path: Path) -> None:
    wild = {"lr": 1e6, "name": "sgd"}
    message = refusal(spec(tmp_path, finetune__optimizer=wild, finetune__max_grad_norm=None))
    assert message.startswith("a step of the file's own configuration was tried and failed: on ")
    assert "non-finite" in message
    assert "; lower finetune.optimizer.lr" in message


def test_a_configuration_that_trains_nothing_is_refused(tmp_path: Path) -> None:
    message = refusal(spec(tmp_path, finetune__losses={"kl": 1.0}, finetune__freeze_depth=2))
    assert "freeze leaves nothing to train" in message


HUNGRY = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 1, 3, padding=1)

    def encode(self, images):
        if len(images) > 4:
            raise torch.OutOfMemoryError("tried to allocate too much")
        return self.encoder(images)

    def decode(self, latents):
        return self.decoder(latents)
"""


def test_a_batch_that_does_not_fit_into_memory_is_refused_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hungry_nets.py").write_text(HUNGRY)
    monkeypatch.syspath_prepend(tmp_path)
    model = {"family": "hungry_nets:Net", "image_range": "0..1"}
    changes: dict[str, Any] = {"finetune__model": model, "finetune__losses": {"mse": 1.0}}
    search = spec(tmp_path, **changes, finetune__batch_size=8)
    reason = dry_run_step(search.model_dump(mode="json"), load_dataset(search.finetune.data).fingerprint)
    assert isinstance(reason, str)
    assert "out of memory at step 0; lower finetune.batch_size" in reason
    # Two workers take four images each.
    shared = spec(tmp_path, **changes, finetune__batch_size=8, search__resources={"workers": 2})
    tried = dry_run_step(shared.model_dump(mode="json"), load_dataset(search.finetune.data).fingerprint)
    assert isinstance(tried, Probe)


def test_a_worker_that_dies_is_an_error_of_its_task(tmp_path: Path) -> None:
    task = ray.remote(lambda: os._exit(1)).options(max_retries=0).remote()
    [(name, error)] = preflight_tasks.results({task: "worker"}, "", Notes())
    assert name == "worker"
    assert "died unexpectedly" in reason_of(error)


# ---------------------------------------------------------------------------------------------- memory


def on_gpu(peak_bytes: float, memory_bytes: int | None = 40 * 10**9) -> Probe:
    return Probe(0.1, 1.0, int(peak_bytes), memory_bytes, "cpu" if memory_bytes is None else "A100", "n1")


def test_trials_that_share_a_gpu_must_fit_into_its_memory(tmp_path: Path) -> None:
    def check_gpus(gpus: float, peak_bytes: float) -> None:
        _check_memory(on_gpu(peak_bytes), spec(tmp_path, search__resources={"gpus": gpus}), live_nodes(), 8, Notes())

    check_gpus(1.0, 39e9)
    check_gpus(0.25, 9e9)
    check_gpus(0.5, 19e9)
    with pytest.raises(FtaeError) as caught:
        check_gpus(0.25, 12e9)
    assert str(caught.value) == (
        "search.resources.gpus: 0.25 lets 4 trials share a GPU, but each takes 12.5 GB of the 40 GB of a A100. "
        "Set it to 0.34, or set finetune.checkpoint_stages to true, or lower finetune.batch_size"
    )
    check_gpus(0.34, 12e9)


def test_processes_that_may_not_fit_into_a_node_are_a_warning(tmp_path: Path) -> None:
    [node] = live_nodes()
    small, large = node.memory / 3, node.memory / 1.5
    for peak, at_a_time, warnings in [(small, 2, 0), (large, 1, 0), (large, 2, 1)]:
        notes = Notes()
        _check_memory(on_gpu(peak, None), spec(tmp_path), [node], at_a_time, notes)
        assert len(notes) == warnings
    assert notes[0].startswith("warning: 2 processes at a time take up to ")


# -------------------------------------------------------------------------------------------- tracking


def test_tracking_that_cannot_be_reached_is_noted(tmp_path: Path) -> None:
    search, notes = spec(tmp_path, tracking={"uri": "http://127.0.0.1:9"}), Notes()
    store = store_of(search)
    Journal(store.folder).append("open", search=search.model_dump(mode="json"), digest="", facts={})
    tracking_sync = TrackingSync(store, lambda: tracker_for(search, store), notes)
    tracking_sync.start()
    while not notes:
        time.sleep(0.05)
    tracking_sync.finish(30.0)
    [reason] = notes
    assert reason.startswith("MLflow at http://127.0.0.1:9: ")
    assert "Connection refused" in reason
    assert reason.endswith("; the search continues and sends the rest later")
