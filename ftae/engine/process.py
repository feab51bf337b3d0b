"""What a run asks of its process and gives back: device, kernels, memory, random state, quiet libraries."""

import ctypes
import logging
import os
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from ftae.errors import FtaeError
from ftae.specs.finetune.models import CustomModel
from ftae.specs.finetune.run import FinetuneSpec
from ftae.wording import size


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


def has_gpu() -> bool:
    """Whether torch sees a GPU on this machine."""
    return torch.cuda.is_available()


def device_of(spec: FinetuneSpec) -> torch.device:
    """The device that a run uses.

    Raises:
        FtaeError: the spec asks for a GPU and torch sees none.
    """
    if spec.device == "cuda" and not has_gpu():
        raise FtaeError("device: cuda is asked for, but torch sees no GPU here; set it to auto or cpu")
    return torch.device("cuda" if has_gpu() and spec.device != "cpu" else "cpu")


def set_deterministic_kernels(spec: FinetuneSpec, device: torch.device) -> None:
    """Make the same spec, seed and machine give the same numbers in this process.

    On a GPU only as far as CUDA has such kernels; torch warns of the others. The training loop restores these settings
    whenever the consumer of a run has control.
    """
    if spec.num_threads is not None:
        torch.set_num_threads(spec.num_threads)
    torch.backends.cudnn.benchmark = False
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first use
        torch.use_deterministic_algorithms(True, warn_only=True)


def set_memory_format(model: nn.Module, spec: FinetuneSpec, device: torch.device) -> None:
    """Give the weights the faster memory format: contiguous for bf16 on a CPU, else channels last.

    In the other format small models take up to 1.5 times as long. A user's own module keeps its format: it may call
    view() on its activations.
    """
    if isinstance(spec.model, CustomModel):
        return
    in_bf16 = spec.precision == "bf16" and device.type == "cpu"
    model.to(memory_format=torch.contiguous_format if in_bf16 else torch.channels_last)


# ------------------------------------------------------------------------------------------------ memory


def check_room(build: Callable[[], nn.Module], options: Mapping[str, Any]) -> None:
    """Refuse a network whose weights do not fit into this machine, before the system kills the process.

    ``options``: the options of the network, for the message. Draws nothing from the random generators.

    Raises:
        FtaeError: the weights alone take more memory than the machine has.
    """
    with torch.device("meta"):
        net = build()
    needed = sum(t.numel() * t.element_size() for t in (*net.parameters(), *net.buffers()))
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > available:
        chosen = ", ".join(f"{name} {value}" for name, value in options.items()) or "its defaults"
        raise FtaeError(
            f"the model cannot be built with {chosen}: its weights take {size(needed)}, "
            f"this machine has {size(available)}"
        )


# Options of mallopt, from malloc.h of glibc: how many free bytes at the end of a heap are returned to the system; how
# many more than needed a heap takes (the 64 MB heap of a thread is kept unless it is emptier than this); the size from
# which a block is mapped by itself, outside of the heaps.
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> None:
    """Let the allocator keep freed blocks of up to a gigabyte. For processes of ftae alone: workers and commands.

    By default every step returns the memory of its activations to the system and gets it back page by page, filled
    with zeros: 10,000 page faults, a tenth of a step on images of 32 pixels.
    """
    for option, number_of_bytes in ((TRIM_THRESHOLD, 2**30), (TOP_PAD, 2**27), (MMAP_THRESHOLD, 2**30)):
        _call_libc("mallopt", option, number_of_bytes)


def give_back_freed_memory() -> None:
    """Return the memory that a finished run has freed to the system."""
    _call_libc("malloc_trim", 0)


def _call_libc(name: str, *arguments: int) -> None:
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*arguments)


# --------------------------------------------------------------------------------------------- libraries

LIBRARIES = ("diffusers", "huggingface_hub", "transformers")
_QUIET_LOCK = threading.RLock()  # of two overlapping blocks, the first to end would restore what the second had set


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep libraries from logging, warning and drawing progress bars inside the block."""
    import huggingface_hub  # noqa: F401  # here, since its import sets the level of its logger

    with _QUIET_LOCK, warnings.catch_warnings(), ExitStack() as restored:
        warnings.simplefilter("ignore")
        for logger in map(logging.getLogger, LIBRARIES):
            restored.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL + 1)
        _hide_progress_bars(restored)
        yield


def _hide_progress_bars(restored: ExitStack) -> None:
    from huggingface_hub.utils.tqdm import disable_progress_bars, progress_bar_states

    restored.callback(progress_bar_states.update, dict(progress_bar_states))  # the last callback is the first to run
    restored.callback(progress_bar_states.clear)
    disable_progress_bars()
    if "diffusers" in sys.modules:  # importing it takes seconds
        from diffusers.utils import logging as diffusers_logging

        if diffusers_logging.is_progress_bar_enabled():
            restored.callback(diffusers_logging.enable_progress_bar)
            diffusers_logging.disable_progress_bar()


def first_line(error: BaseException) -> str:
    """The type of a library's exception and the first line of its text, cut where that is long."""
    lines = str(error).strip().splitlines() or [""]
    text = lines[0] if len(lines[0]) <= 160 else f"{lines[0][:157]}..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
