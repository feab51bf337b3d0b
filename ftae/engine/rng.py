"""The random generators of the process: torch's, numpy's and Python's."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_generators(seed: int) -> None:
    """Start every random generator of the process from ``seed``."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def rng_state() -> dict[str, Any]:
    """The state of every random generator of the process, as tensors and plain values."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "python": list(random.getstate()[1]),
        "python_gauss": random.getstate()[2],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore a state that ``rng_state`` returned."""
    torch.set_rng_state(state["torch"])
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    random.setstate((3, tuple(state["python"]), state["python_gauss"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def same_state(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two states that ``rng_state`` returned are equal."""

    def plain(state: dict[str, Any]) -> list[Any]:
        parts = [part for value in state.values() for part in (value if isinstance(value, list) else [value])]
        return [part.tolist() if isinstance(part, torch.Tensor) else part for part in parts]

    return plain(a) == plain(b)


@contextmanager
def keep_random_state() -> Iterator[None]:
    """Restore the random generators at the end of the block to their state at its start."""
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)
