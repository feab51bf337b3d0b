"""A run and its consumer share a process without disturbing each other."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ftae.engine.training.loop import ProcessState, finetune
from ftae.errors import TrainingFailed
from ftae.specs.finetune.run import FinetuneSpec
from tests.builders import run_spec


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """Settings of the consumer that no run would choose."""
    before = ProcessState.now()
    torch.set_num_threads(2)
    torch.backends.cudnn.benchmark = True
    torch.use_deterministic_algorithms(True, warn_only=False)
    yield
    before.restore()


def settings_now() -> tuple[Any, ...]:
    state = ProcessState.now()
    return state.num_threads, state.cudnn_benchmark, state.deterministic, state.cublas


def spec_of(**changes: Any) -> FinetuneSpec:
    return run_spec(**{"max_steps": 6, "num_evals": 3, "metrics": ["mse"], "num_threads": 1} | changes)


def draw() -> list[float]:
    return [torch.rand(1).item(), torch.randn(1).item(), np.random.rand(), random.random(), random.gauss(0.0, 1.0)]


def seed() -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)


def test_the_consumer_draws_the_same_numbers_as_without_a_run(tmp_path: Path) -> None:
    seed()
    expected = [draw() for _ in range(6)]
    seed()
    found = [draw()]
    for _ in finetune(spec_of(), tmp_path):
        found.append(draw())  # 4 reports
    found.append(draw())
    assert found == expected


@pytest.mark.parametrize("consume", [draw, seed, lambda: torch.set_num_threads(3)])
def test_the_run_gets_the_same_numbers_whatever_its_consumer_does(consume: Callable[[], Any], tmp_path: Path) -> None:
    alone = [report.metrics for report in finetune(spec_of(), tmp_path / "alone")]
    disturbed = []
    for report in finetune(spec_of(), tmp_path / "disturbed"):
        disturbed.append(report.metrics)
        consume()
    assert disturbed == alone


def test_two_runs_may_take_turns(tmp_path: Path) -> None:
    specs = [spec_of(), spec_of(seed=1, num_threads=2)]
    alone = [[r.metrics for r in finetune(spec, tmp_path / f"alone-{i}")] for i, spec in enumerate(specs)]
    turns = zip(*(finetune(spec, tmp_path / f"turns-{i}") for i, spec in enumerate(specs)), strict=True)
    assert [[r.metrics for r in reports] for reports in zip(*turns, strict=True)] == alone


@pytest.mark.parametrize("how", ["to the end", "closed", "dropped", "refused", "failed"])
def test_settings_of_torch_are_those_of_the_consumer_again(how: str, tmp_path: Path) -> None:
    before = settings_now()
    if how == "failed":
        wild = spec_of(**{"optimizer.lr": 1e30, "max_grad_norm": None})
        with pytest.raises(TrainingFailed):
            list(finetune(wild, tmp_path))
    elif how == "refused":
        with pytest.raises(Exception, match="matches no stage"):
            next(finetune(spec_of(freeze=["none"]), tmp_path))
    else:
        reports = finetune(spec_of(), tmp_path)
        assert next(reports).step == 0
        assert settings_now() == before
        if how == "to the end":
            list(reports)
        elif how == "closed":
            reports.close()  # type: ignore[attr-defined]
        del reports
    assert settings_now() == before
