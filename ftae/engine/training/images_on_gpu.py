"""Images that stay on the GPU, where they take little of it: batches are made there, and nothing is copied for them."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch

from ftae.engine.data.dataset import Dataset, load_dataset
from ftae.engine.data.files.decoding import Array
from ftae.engine.data.stores.on_demand import ImagesOnDemand
from ftae.specs.finetune.data_spec import DataSpec

SHARE = 0.05  # of the memory of a GPU, for the images of each run on it


def dataset_on(device: torch.device, spec: DataSpec) -> Dataset:
    """``load_dataset(spec)``, with its images on ``device``, too, where that is a GPU and they take little of it."""
    return _dataset_on_gpu(device, spec) if device.type == "cuda" else load_dataset(spec)


@lru_cache(maxsize=1)  # the next trial of a worker has the same images
def _dataset_on_gpu(device: torch.device, spec: DataSpec) -> Dataset:
    room = int(SHARE * torch.cuda.get_device_properties(device).total_memory)
    return with_images_on(device, load_dataset(spec), spec, room=room)


def with_images_on(device: torch.device, data: Dataset, spec: DataSpec, *, room: int) -> Dataset:
    """``data`` with its images on ``device``, too, if they take no more than ``room`` bytes there.

    Images that are degraded stay where that is done, and so do those that are decoded as they are needed.
    """
    if data.replay is not None and spec.replay is not None:
        data = replace(data, replay=with_images_on(device, data.replay, spec.replay, room=room // 2))
        room //= 2
    sets = [data.train, data.val, *([] if data.anomalies is None else [data.anomalies])]
    arrays = {id(images.stored): images.stored for images in sets}
    whole = [array for array in arrays.values() if not isinstance(array, ImagesOnDemand)]
    if spec.degrade is not None or len(whole) < len(arrays) or sum(array.nbytes for array in whole) > room:
        return data
    copies = {id(array): _copied(array, device) for array in whole}
    train, val, *anomalies = (replace(images, on_gpu=copies[id(images.stored)]) for images in sets)
    return replace(data, train=train, val=val, anomalies=anomalies[0] if anomalies else None)


def _copied(array: Array, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.array(array).view(np.int16 if array.dtype == np.uint16 else array.dtype)).to(device)
