"""What a run asks of its process: device, kernels, memory, quiet libraries."""

import ctypes
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from ftae.errors import FtaeError
from ftae.specs.finetune.models import CustomModel
from ftae.specs.finetune.run import FinetuneSpec
from ftae.wording import size


def set_deterministic_kernels(spec: FinetuneSpec, device: torch.device) -> None:
    """For this process: same spec, seed and machine give the same numbers.

    As far as CUDA has such kernels; it warns of the others.
    """
    if spec.num_threads is not None:
        torch.set_num_threads(spec.num_threads)
    torch.backends.cudnn.benchmark = False
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS at its first use
        torch.use_deterministic_algorithms(True, warn_only=True)


def set_memory_format(autoencoder: nn.Module, spec: FinetuneSpec, device: torch.device) -> None:
    """Give the weights the faster memory format: in bf16 on a CPU, small models take up to half as long again in the
    other. A user's own module keeps its own: it may call view() on its activations.
    """
    if isinstance(spec.model, CustomModel):
        return
    in_bf16 = spec.precision == "bf16" and device.type == "cpu"
    autoencoder.to(memory_format=torch.contiguous_format if in_bf16 else torch.channels_last)


def check_room(build: Callable[[], nn.Module], options: Mapping[str, Any]) -> None:
    """Refuse a network whose weights this machine cannot hold, before the system ends the process that tries.

    ``options``: what was asked for, for the message. Nothing is drawn from the random generators.

    Raises:
        FtaeError: its weights alone take more than there is.
    """
    with torch.device("meta"):
        net = build()
    needed = sum(t.numel() * t.element_size() for t in (*net.parameters(), *net.buffers()))
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        asked = ", ".join(f"{name} {value}" for name, value in options.items()) or "its defaults"
        raise FtaeError(
            f"the model cannot be built with {asked}: its weights take {size(needed)}, this machine has {size(there)}"
        )


# Of glibc's malloc.h: what is free at the end of a heap goes back to the system from this on; what an emptied heap of a
# thread (64 MB) has to fall short of to stay; and larger blocks than this never are in a heap.
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> None:
    """Have the allocator of this process keep blocks of up to a gigabyte: for a process that is ftae's own.

    By default each step gives its activations back and is given them again, page by page and full of zeros: 10,000
    page faults, a tenth of a step on images of 32 pixels.
    """
    for setting, number_of_bytes in ((TRIM_THRESHOLD, 2**30), (TOP_PAD, 2**27), (MMAP_THRESHOLD, 2**30)):
        _call("mallopt", setting, number_of_bytes)


def give_back_freed_memory() -> None:
    """What a run has held need not stay with the process."""
    _call("malloc_trim", 0)


def _call(name: str, *arguments: int) -> None:
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*arguments)


LIBRARIES = ("diffusers", "huggingface_hub", "transformers")

_ONE_AT_A_TIME = threading.RLock()  # else the first to leave would be undone by the second, for good


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Inside, they neither log nor warn nor draw progress bars; afterwards they are as they were."""
    import huggingface_hub  # noqa: F401  # it sets its own level as it is imported

    with _ONE_AT_A_TIME, warnings.catch_warnings(), ExitStack() as restored:
        warnings.simplefilter("ignore")
        for logger in map(logging.getLogger, LIBRARIES):
            restored.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL + 1)
        for disable, enable in _progress_bars():
            restored.callback(enable)
            disable()
        yield


def _progress_bars() -> Iterator[tuple[Callable[[], object], Callable[[], object]]]:
    """How to hide and show those that would be drawn."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if not are_progress_bars_disabled():
        yield disable_progress_bars, enable_progress_bars
    if "diffusers" in sys.modules:  # importing it only to silence it would take seconds
        from diffusers.utils import logging as its_logging

        if its_logging.is_progress_bar_enabled():
            yield its_logging.disable_progress_bar, its_logging.enable_progress_bar


def first_line(error: BaseException) -> str:
    """What matters of a library's exception: its type, and the first line of what it says, cut where it is long."""
    lines = str(error).strip().splitlines() or [""]
    text = lines[0] if len(lines[0]) <= 160 else f"{lines[0][:157]}..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def device_of(spec: FinetuneSpec) -> torch.device:
    """Where a run takes place.

    Raises:
        FtaeError: a GPU is asked for by name and there is none.
    """
    there = torch.cuda.is_available()
    if spec.device == "cuda" and not there:
        raise FtaeError("device: cuda is asked for, but torch sees no GPU here; set it to auto or cpu")
    return torch.device("cuda" if there and spec.device != "cpu" else "cpu")
