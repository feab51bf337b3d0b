"""The messages that a worker sends about its trial. Ray and Tune are left out; whole searches run through them."""

import errno
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import search_spec
from PIL import Image

from ftae.engine.data.dataset import load_dataset
from ftae.engine.models import families as engine_build
from ftae.engine.models.autoencoder import Autoencoder
from ftae.engine.run_folder import AtomicFolder
from ftae.engine.training.checkpoint import latest_checkpoint
from ftae.engine.training.model_reuse import ModelReuse
from ftae.engine.training.trainer import Trainer
from ftae.search.ray import trial
from ftae.search.ray.messages import Adapted, Diverged, Failed, Message, Note, Report, Start, StorageFailed, from_json
from ftae.search.ray.trial import run_trial
from ftae.storage import store as retry
from ftae.storage.store import open_store

USER_MODULE = '''
"""A network that does not fit above a batch size, once it has seen some batches."""

import weakref

import torch
from torch import nn

alive, beside = weakref.WeakSet(), []


class Large(nn.Module):
    def __init__(self, fits, after=0):
        super().__init__()
        beside.append(len(alive))
        alive.add(self)
        self.encoder = nn.Conv2d(1, 2, 3, padding=1)
        self.decoder = nn.Conv2d(2, 1, 3, padding=1)
        self.fits, self.left = fits, after

    def encode(self, images):
        self.left -= self.training
        if self.training and self.left < 0 and len(images) > self.fits:
            raise torch.OutOfMemoryError("tried to allocate too much")
        return self.encoder(images)

    def decode(self, latents):
        return self.decoder(latents)


class Even(Large):
    def encode(self, images):
        if self.training and len(images) % 2:
            raise ValueError("an odd batch")
        return self.encoder(images)
'''

SPACE: dict[str, Any] = {
    "optimizer.lr": {"low": 1e-4, "high": 1e6, "log": True},
    "losses.mse": {"choices": [0.0, 1.0]},
    "freeze_depth": {"choices": [0, 2]},
}
RUN: dict[str, Any] = {
    "data": {"source": "digits", "resolution": 16},
    "optimizer": {"name": "sgd", "lr": 1e-2},
    "max_grad_norm": None,
    "num_evals": 3,
    "metrics": ["psnr"],
}


class Stopped(Exception):
    """Tune ends a trial inside a report."""


class Worker:
    """Runs trials in this process and keeps their messages; ``on_message`` is called with each of them."""

    def __init__(self, storage: str, space: dict[str, Any], **finetune: Any) -> None:
        run = {f"finetune.{path}": value for path, value in (RUN | finetune).items()}
        uri = "http://127.0.0.1:9"
        self.search = search_spec(**run, search_space=space, search={"storage": storage}, tracking={"uri": uri})
        self.fingerprint = load_dataset(self.search.finetune.data).fingerprint
        self.store = open_store(storage, "small", "reader")
        self.messages = list[Message]()
        self.on_message: Callable[[Message], object] = lambda message: None
        self._stop_at: int | None = None

    def report(self, metrics: dict[str, Any]) -> None:
        message = from_json(metrics["message"])
        self.messages.append(message)
        self.on_message(message)
        if isinstance(message, Report) and message.step == self._stop_at:
            raise Stopped

    def run(self, stop_at: int | None = None, changes: dict[str, Any] | None = None, **params: Any) -> list[Any]:
        """Run trial 1; returns its messages, with the step in place of a report."""
        self.messages, self._stop_at = [], stop_at
        values = {path.replace("__", "."): value for path, value in params.items()}
        config = {"number": 1, "kind": "sampled", "params": values, "changes": changes or {}}
        try:
            run_trial(config, search=self.search.model_dump(mode="json"), fingerprint=self.fingerprint)
        except Stopped:
            assert stop_at is not None
        return [message.step if isinstance(message, Report) else message for message in self.messages]

    @property
    def reports(self) -> list[Report]:
        return [message for message in self.messages if isinstance(message, Report)]

    @property
    def values(self) -> list[float]:
        return [report.metrics["val/psnr"] for report in self.reports]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Worker]]:
    def make(storage: str = str(tmp_path), space: dict[str, Any] = SPACE, **finetune: Any) -> Worker:
        worker = Worker(storage, space, **finetune)
        monkeypatch.setattr(trial.tune, "report", worker.report)
        return worker

    (tmp_path / "large_nets.py").write_text(USER_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(trial, "this_node", lambda: "here")
    yield make
    sys.modules.pop("large_nets", None)


@pytest.fixture
def worker(make: Callable[..., Worker]) -> Worker:
    return make()


def is_report(message: Message, step: int) -> bool:
    return isinstance(message, Report) and message.step == step


def started(step: int) -> Start:
    return Start("here", os.getpid(), step)


def test_a_worker_reuses_its_model_until_it_runs_out_of_memory(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    build, take_step = engine_build.build_autoencoder, Trainer.train_step

    def counted(model: Any, *args: Any) -> Autoencoder:
        built.append(model.family)
        return build(model, *args)

    def step(training: Trainer, *batches: Any) -> None:
        if training.spec.batch_size == 8:
            raise torch.OutOfMemoryError("tried to allocate too much")
        take_step(training, *batches)

    monkeypatch.setattr(engine_build, "build_autoencoder", counted)
    monkeypatch.setattr(trial, "MODEL_REUSE", ModelReuse())
    for lr in (1e-3, 1e-4):
        shutil.rmtree(worker.store.folder / "trials", ignore_errors=True)
        assert worker.run(optimizer__lr=lr)[-1] == 12
    assert len(built) == 1
    monkeypatch.setattr(Trainer, "train_step", step)
    shutil.rmtree(worker.store.folder / "trials")
    messages = worker.run(optimizer__lr=1e-3)
    assert len([message for message in messages if isinstance(message, Adapted)]) == 2
    assert messages[-1] == 12
    assert len(built) == 3


def test_a_trial_reports_what_is_on_disk(worker: Worker) -> None:
    assert worker.run(optimizer__lr=1e-3) == [started(0), 0, 4, 8, 12]
    folder = worker.store.folder / "trials" / "0001"
    assert all((folder / report.images).is_file() for report in worker.reports)
    assert folder / (worker.reports[-1].checkpoint or "") == latest_checkpoint(folder)


@pytest.mark.parametrize("storage", ["folder", "object store"])
def test_a_stopped_trial_continues_anywhere_from_its_last_report(
    storage: str, make: Callable[..., Worker], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make()
    whole.run()
    other = {} if storage == "folder" else {"storage": request.getfixturevalue("bucket")}
    worker = make(**other)
    worker.store.remove("trials")
    below = "trials/0001/checkpoints"
    kept: list[list[str]] = []
    worker.on_message = lambda message: kept.append(worker.store.names(below)) if isinstance(message, Report) else None
    assert worker.run(stop_at=8) == [started(0), 0, 4, 8]
    first = worker.values
    if storage != "folder":
        assert not any(open_store(other["storage"], "small", "worker").folder.rglob("step-*")), (
            "a worker leaves no files behind"
        )
        monkeypatch.setenv("FTAE_CACHE", str(whole.store.folder / "another machine's"))
    assert worker.run() == [started(8), 8, 12]
    assert (first, worker.values) == (whole.values[:3], whole.values[2:])
    four, eight, twelve = (f"step-{step:08d}" for step in (4, 8, 12))
    assert kept == [[], [four], [four, eight], [four, eight], [eight, twelve]]


def test_files_that_a_killed_worker_left_in_its_mirror_are_not_used(make: Callable[..., Worker], bucket: str) -> None:
    worker = make(bucket)
    mirror = open_store(bucket, "small", "worker").folder
    (mirror / "trials/0001/checkpoints/step-00000012").mkdir(parents=True)  # of a search that was deleted
    assert worker.run(stop_at=4) == [started(0), 0, 4]


@pytest.mark.parametrize("storage", ["folder", "object store"])
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    storage: str, make: Callable[..., Worker], request: pytest.FixtureRequest
) -> None:
    worker = make(**({} if storage == "folder" else {"storage": request.getfixturevalue("bucket")}))
    worker.run(stop_at=8)
    before = worker.values
    file = "trials/0001/checkpoints/step-00000008/model.safetensors"
    worker.store.write(file, (worker.store.read(file) or b"")[:-1])
    note, *rest = worker.run()
    assert rest == [started(4), 4, 8, 12]
    assert "step-00000008 is damaged (model.safetensors is not what was written); going back to" in note.text
    assert worker.values[:2] == before[1:]


def test_a_damaged_checkpoint_is_noted_once(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    worker.run(stop_at=8)
    (worker.store.folder / "trials/0001/checkpoints/step-00000008/model.safetensors").unlink()
    complete, refusals = AtomicFolder.complete, iter([errno.ENOSPC] * 2)

    def full_twice(folder: AtomicFolder, hashes: str) -> None:
        if (number := next(refusals, None)) is not None:
            raise OSError(number, os.strerror(number))
        complete(folder, hashes)

    monkeypatch.setattr(AtomicFolder, "complete", full_twice)
    note, start, *rest = worker.run()
    assert "step-00000008 is damaged" in note.text
    assert start == started(4)
    assert rest.count(4) == 3, "it has tried three times"
    assert rest[-2:] == [8, 12]
    assert not any("damaged" in str(message) for message in rest)


# ------------------------------------------------------------------------------- faults of the params


def test_params_that_cannot_be_trained_have_diverged(worker: Worker) -> None:
    assert worker.run(optimizer__lr=1e6) == [started(0), 0, Diverged("non-finite loss at step 1")]


def test_a_fault_of_the_user_fails_the_trial(worker: Worker) -> None:
    reason = "freeze leaves nothing to train that losses (kl) depend on"
    assert worker.run(losses__mse=0.0, freeze_depth=2) == [started(0), 0, Failed(reason)]


def test_params_on_which_the_model_raises_have_diverged(make: Callable[..., Worker]) -> None:
    space = {"batch_size": {"choices": [4, 3]}}
    model = {"family": "large_nets:Even", "kwargs": {"fits": 8}, "image_range": "0..1"}
    worker = make(space=space, model=model, losses={"mse": 1.0}, batch_size=4)
    [begun, baseline, failed] = worker.run(batch_size=3)
    assert (begun, baseline) == (started(0), 0)
    assert re.fullmatch(r"raised ValueError: an odd batch \(large_nets\.py:\d+\) at step 0", failed.reason)


def large(make: Callable[..., Worker], fits: int, batch_size: int = 8, after: int = 0, **fields: Any) -> Worker:
    model = {"family": "large_nets:Large", "kwargs": {"fits": fits, "after": after}, "image_range": "0..1"}
    space = {"optimizer.lr": SPACE["optimizer.lr"]}
    fields = {"checkpoint_stages": False} | fields
    return make(space=space, model=model, losses={"mse": 1.0}, batch_size=batch_size, **fields)


def adapted(step: int) -> Adapted:
    reason = f"out of memory at step {step}; continues with a batch of 4 x 2"
    return Adapted({"batch_size": 4, "grad_accumulation": 2}, reason)


def test_a_batch_that_does_not_fit_is_halved_from_the_last_checkpoint_on(make: Callable[..., Worker]) -> None:
    worker = large(make, fits=4, after=6)
    assert worker.run() == [started(0), 0, 4, adapted(6), 4, 8, 12]
    values = worker.values
    worker.store.remove("trials")
    undisturbed = large(make, fits=8)
    undisturbed.run()
    assert set(sys.modules["large_nets"].beside) == {0}, "the first model is gone before the next one is built"
    assert values[:2] == undisturbed.values[:2]
    assert values[-1] == pytest.approx(undisturbed.values[-1], rel=1e-4)


def test_activations_are_computed_again_before_a_batch_is_halved(make: Callable[..., Worker]) -> None:
    worker = large(make, fits=4, checkpoint_stages="auto")
    again = Adapted({"checkpoint_stages": True}, "out of memory at step 0; continues with checkpoint_stages")
    assert worker.run() == [started(0), 0, again, 0, adapted(0), 0, 4, 8, 12]


def test_an_adapted_trial_keeps_its_changes_when_it_continues(make: Callable[..., Worker]) -> None:
    worker = large(make, fits=4)
    assert worker.run(stop_at=4) == [started(0), 0, adapted(0), 0, 4]
    changes = {"batch_size": 4, "grad_accumulation": 2}
    assert worker.run(changes=changes) == [started(4), 4, 8, 12]


@pytest.mark.parametrize(
    ("batch_size", "fits", "messages"),
    [
        (8, 2, [adapted(0), 0, Diverged("out of memory at step 0")]),
        (5, 4, [Diverged("out of memory at step 0")]),
    ],
    ids=["half does not fit either", "odd"],
)
def test_a_trial_that_cannot_be_made_to_fit_has_diverged(
    batch_size: int, fits: int, messages: list[Any], make: Callable[..., Worker]
) -> None:
    assert large(make, fits, batch_size).run() == [started(0), 0, *messages]


# ------------------------------------------------------------------------------ faults of the storage


def test_a_short_fault_of_the_storage_costs_nothing(worker: Worker) -> None:
    trials = worker.store.folder / "trials"

    def fault(message: Message) -> None:
        if is_report(message, 8) and len(worker.values) == 3:
            trials.rename(trials.with_name("away"))
            trials.write_text("in the way")
        elif isinstance(message, Note) and "fails" in message.text:
            trials.unlink()
            trials.with_name("away").rename(trials)

    worker.on_message = fault
    start, *first, away, again, back, last = worker.run()
    assert (start, first, again, last) == (started(0), [0, 4, 8], 8, 12)
    assert away.text.startswith("the storage fails: [Errno 20] Not a directory")
    assert back == Note("the storage works again")


def test_a_lasting_fault_of_the_storage_is_sent(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "RETRY_SECONDS", 0.6)
    worker.store.write("trials", b"a file where the trials should go")
    start, note, end = worker.run()
    assert start == started(0)
    assert isinstance(note, Note)
    assert isinstance(end, StorageFailed)
    assert end.reason.startswith("trial 1 cannot use its files: [Errno 20] Not a directory")


def test_a_storage_that_takes_no_checkpoint_is_not_retried_for_ever(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "RETRY_SECONDS", 2.0)

    def fault(message: Message) -> None:
        if is_report(message, 8):  # also when it is repeated, which works
            monkeypatch.setattr(AtomicFolder, "complete", refuse)

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    worker.on_message = fault
    messages = worker.run()
    away = messages.index(Note("the storage fails: [Errno 28] No space left on device; trying again for 2 s"))
    *again, end = messages[away + 1 :]
    assert set(again) == {8}
    assert isinstance(end, StorageFailed)
    assert end.reason.startswith("trial 1 cannot use its files: [Errno 28]")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(4):
        (tmp_path / "photos").mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path / "photos"


@pytest.mark.parametrize("cached", [True, False])
def test_images_that_change_during_a_search(
    cached: bool, photos: Path, make: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"source": "image_folder", "train": str(photos), "resolution": 16, "val": 0.25, "color": "grey"}
    worker = make(data=data)
    worker.run()
    before = worker.values
    shutil.rmtree(worker.store.folder / "trials")
    (photos / "0.png").rename(photos / "renamed.png")
    if not cached:
        monkeypatch.setenv("FTAE_CACHE", str(photos.parent / "another machine's"))
    load_dataset.cache_clear()
    messages = worker.run()
    if cached:
        assert messages == [started(0), 0, 4, 8, 12]
        assert worker.values == before
    else:
        reason = f"the images of {photos} are not those of data.fingerprint {worker.fingerprint}: files were added"
        assert isinstance(messages[1], StorageFailed)
        assert messages[1].reason.startswith(reason)
        assert len(messages) == 2
