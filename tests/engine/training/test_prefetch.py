"""Batches made ahead: their order, their failures, and that no thread is left."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ftae.engine.data.batches import Batch, training_batch
from ftae.engine.training import trainer as training
from ftae.engine.training.distributed import Group
from ftae.engine.training.loop import finetune
from ftae.engine.training.prefetch import made_ahead
from ftae.engine.training.trainer import Trainer
from ftae.errors import TrainingFailed
from ftae.specs.finetune.run import FinetuneSpec
from tests.builders import run_spec
from tests.small_models import MODELS, assert_same

NOISE = {"noise": 0.2}


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert [thread for thread in threading.enumerate() if thread.name.startswith("batches")] == []


def test_items_come_in_order_whichever_is_made_first() -> None:
    third_is_made = threading.Event()

    def make(number: int) -> int:
        if number == 2:
            third_is_made.set()
        assert number > 0 or third_is_made.wait(60)
        return 10 * number

    assert list(made_ahead(make, range(5), threads=3)) == [0, 10, 20, 30, 40]


def test_each_thread_is_one_item_ahead() -> None:
    begun: list[int] = []
    items = made_ahead(begun.append, range(100), threads=2)
    next(items)
    items.close()  # waits for what is being made
    assert set(begun) <= {0, 1, 2}


def test_threads_compute_as_their_consumer_does() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert list(made_ahead(lambda _: torch.get_num_threads(), range(2), threads=1)) == [3, 3]
    finally:
        torch.set_num_threads(before)


def test_a_failure_comes_in_place_of_its_item() -> None:
    def make(number: int) -> int:
        if number == 1:
            raise LookupError("image 1 is gone")
        return number

    items = made_ahead(make, range(4), threads=2)
    assert next(items) == 0
    with pytest.raises(LookupError, match="image 1 is gone"):
        next(items)


# ----------------------------------------------------------------------------------------------- in runs

RUNS: dict[str, dict[str, Any]] = {
    "degraded": {"data.degrade": {"noise": 0.2, "blur": 1.0, "jpeg": 30}, "data.flip": True, "grad_accumulation": 2},
    "replayed": {"data.degrade": NOISE, "data.replay": {"source": "digits", "classes": [1], "share": 0.25}},
    "generator": {
        "model": MODELS["dcgan"],
        "losses": {"adversarial": 1.0},
        "discriminator": {"channels": 4, "augment": {"name": "ada"}},
        "metrics": ["sharpness"],
    },
    "two domains": {
        "model": {"family": "cyclegan", "channels": 2, "blocks": 1},
        "data.source": "digit_domains",
        "losses": {"adversarial": 1.0, "cycle": 10.0},
        "discriminator": {"channels": 4, "depth": 1, "pool_size": 4},
        "metrics": ["mse"],
    },
}


def weights(spec: FinetuneSpec, group: Group) -> list[dict[str, Any]]:
    """Of all networks, after steps in two parts."""
    trainer = Trainer(spec, group)
    for step in (2, 5):
        trainer.train_to(step)
    return [network.model.state_dict() for network in trainer.task.networks]


@pytest.mark.parametrize("name", RUNS)
def test_the_bits_are_those_of_batches_made_in_the_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, group = run_spec(**{"num_threads": 1, **RUNS[name]}), Group(0, 2) if name == "degraded" else Group()
    found = []
    for threads in (0, 1, 3):

        def batches(trainer: Trainer, step: int, threads: int = threads) -> Iterator[Batch]:
            numbers = trainer._numbers(step)
            inside = (trainer._batch(number) for number in numbers)
            return made_ahead(trainer._batch, numbers, threads=threads) if threads else inside

        monkeypatch.setattr(Trainer, "batches_until", batches)
        found.append(weights(spec, group))
    assert_same(found[1], found[0])
    assert_same(found[2], found[0])


def test_degraded_batches_are_made_beside_the_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    makers: list[str] = []

    def noted(*arguments: Any, **options: Any) -> Batch:
        makers.append(threading.current_thread().name)
        return training_batch(*arguments, **options)

    monkeypatch.setattr(training, "training_batch", noted)
    Trainer(run_spec(**{"data.degrade": NOISE})).train_to(3)
    assert len(makers) == 3
    assert all(maker.startswith("batches") for maker in makers)
    makers.clear()
    Trainer(run_spec()).train_to(3)
    assert makers == [threading.current_thread().name] * 3


def test_a_failing_maker_fails_the_run_as_it_would_in_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*arguments: Any, batch: int, **options: Any) -> Batch:
        if batch == 1:
            raise OSError(5, "the disk is gone")
        return training_batch(*arguments, batch=batch, **options)

    monkeypatch.setattr(training, "training_batch", failing)
    reports = finetune(run_spec(**{"data.degrade": NOISE}), tmp_path)
    next(reports)
    with pytest.raises(OSError, match="the disk is gone"):
        next(reports)


def test_nothing_lives_on_after_a_step_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Trainer, "_read", lambda *_: 1 / 0)
    reports = finetune(run_spec(**{"data.degrade": NOISE}), tmp_path)
    next(reports)
    with pytest.raises(TrainingFailed, match="ZeroDivisionError"):
        next(reports)
