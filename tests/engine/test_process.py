"""A run changes its process only as far as it must, and all of it can be undone."""

import platform
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import run_spec

from ftae.engine import process
from ftae.engine.models.families import build_model
from ftae.engine.process import rng_state, same_state
from ftae.engine.training.loop import finetune
from ftae.errors import FtaeError

CODE = """
import resource, threading
import torch

def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        blocks = [torch.ones(500_000) for _ in range(30)]
        del blocks
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // times

def compare():
    faults(3)
    found.append(faults(10))
    # Only now: a large block that an import frees raises glibc's own thresholds.
    from ftae.engine.process import give_back_freed_memory, keep_freed_memory
    keep_freed_memory()
    faults(3)
    found.append(faults(10))
    give_back_freed_memory()
    found.append(faults(1))

found = []
thread = threading.Thread(target=compare)  # as the trial of a worker
thread.start()
thread.join()
print(*found)
"""


def test_building_a_model_leaves_the_random_generators_alone() -> None:
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    before = rng_state()
    first, again = (build_model(run_spec(**{"losses.ce": 0.1}), 2).state_dict() for _ in range(2))
    assert same_state(before, rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_run_leaves_the_allocator_to_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that trains through the API keeps its own settings; workers and commands of ftae set theirs."""
    settings: list[str] = []
    monkeypatch.setattr(process, "_call_libc", lambda name, *arguments: settings.append(name))
    list(finetune(run_spec(max_steps=1, num_evals=1), tmp_path))
    assert settings == []
    process.keep_freed_memory()
    assert settings == ["mallopt"] * 3


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is of glibc")
def test_freed_memory_is_used_again_and_can_be_given_back() -> None:
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    before, after, given_back = map(int, result.stdout.split())
    assert before > 500, "by default, the system gives new pages each time"
    assert after < before / 5
    assert given_back > 500


def test_a_model_that_this_machine_cannot_hold_is_refused_before_it_is_built() -> None:
    spec = run_spec(**{"model": {"family": "conv_ae", "channels": 65536}, "losses": {"mse": 1.0}})
    weights = r"its weights take 1\.\d+ TB, this machine has [\d.]+ GB"
    with pytest.raises(FtaeError, match=rf"^the model cannot be built with channels 65536: {weights}$"):
        build_model(spec, None)


def test_the_check_of_room_draws_nothing() -> None:
    before = torch.get_rng_state()
    process.check_room(lambda: torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Conv2d(1, 2, 3)), {})
    assert torch.equal(torch.get_rng_state(), before)
