"""What the last digits of a result depend on beside the numbers: the same for a run and for the use of its model."""

import os

import torch

from ftae.engine.autoencoder import Autoencoder
from ftae.specs.finetune import FinetuneSpec
from ftae.specs.models import CustomModel


def choose_kernels(spec: FinetuneSpec, device: torch.device) -> None:
    """For this process: same spec, seed and machine give the same numbers.

    As far as CUDA has such kernels; it warns of the others.
    """
    if spec.num_threads is not None:
        torch.set_num_threads(spec.num_threads)
    torch.backends.cudnn.benchmark = False
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS at its first use
        torch.use_deterministic_algorithms(True, warn_only=True)


def lay_out(autoencoder: Autoencoder, spec: FinetuneSpec, device: torch.device) -> None:
    """Give the weights the faster memory format: in bf16 on a CPU, small models take up to half as long again in the
    other. A user's own module keeps its own: it may call view() on its activations.
    """
    if isinstance(spec.model, CustomModel):
        return
    in_bf16 = spec.precision == "bf16" and device.type == "cpu"
    autoencoder.to(memory_format=torch.contiguous_format if in_bf16 else torch.channels_last)
