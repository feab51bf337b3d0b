"""Steps are not given the same memory again and again, and what a run has held does not stay."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from ftae.engine import process as freed_memory
from ftae.engine.training.loop import finetune
from ftae.specs.finetune.run import FinetuneSpec

CODE = """
import resource, threading
import torch
from ftae.engine.process import give_back_freed_memory, keep_freed_memory

def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        blocks = [torch.ones(500_000) for _ in range(30)]
        del blocks
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // times

def compare():
    faults(3)
    found.append(faults(10))
    keep_freed_memory()
    faults(3)
    found.append(faults(10))
    give_back_freed_memory()
    found.append(faults(1))

found = []
thread = threading.Thread(target=compare)  # as a worker's trial
thread.start()
thread.join()
print(*found)
"""


def test_a_run_leaves_the_allocator_to_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program that trains by way of the engine keeps its own settings; the processes of ftae set them."""
    settings: list[str] = []
    monkeypatch.setattr(freed_memory, "_call", lambda name, *arguments: settings.append(name))
    fields = {
        "model": {"family": "conv_ae", "channels": 4, "depth": 1},
        "data": {"source": "digits", "resolution": 16, "classes": [0, 1]},
        "losses": {"mse": 1.0},
        "optimizer": {"lr": 1e-3},
        "max_steps": 1,
        "num_evals": 1,
        "metrics": ["mse"],
    }
    list(finetune(FinetuneSpec.model_validate(fields), tmp_path))
    assert settings == []
    freed_memory.keep_freed_memory()
    assert settings == ["mallopt"] * 3


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only of glibc it is known how")
def test_what_was_freed_is_used_again() -> None:
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    before, after, given_back = map(int, result.stdout.split())
    assert before > 500, "the system gave it anew"
    assert after < before / 5
    assert given_back > 500
