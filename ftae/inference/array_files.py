"""A tuned model with files of arrays: what the model makes of them, in the original values."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ftae.engine.data.arrays import normalised
from ftae.engine.data.files.arrays import as_in_file, open_array
from ftae.engine.data.files.listing import check_output
from ftae.errors import FtaeError
from ftae.inference.model import TunedModel
from ftae.inference.pictures import prepare_folder, training_scale
from ftae.specs.finetune.sources.arrays import Arrays


def run_array(model: TunedModel, file: Path, out: Path, *, overwrite: bool, notify: Callable[[str], None]) -> int:
    """Write what the model makes of every sample of ``file`` to ``out``, as an ``.npy`` of the same name.

    The array is float32, of the layout and in the values of ``file``: they are normalised as those of training were,
    and that is inverted. Returns the number of samples.

    Raises:
        FtaeError: ``file`` cannot be read, has other samples than the model takes, or values that are no finite
            numbers; the model is no export, and the training samples, by which they are normalised, are missing; or
            ``out`` is not empty.
    """
    spec = model.spec.data
    assert isinstance(spec, Arrays)
    if model.spec.model.needs_labels:
        raise FtaeError(f"{model.spec.model.family} is conditioned on labels, which an array has not: use ftae.Model")
    check_output(out, {"the array to read": str(file), **spec.image_folders()}, writes_folders=False)
    values = open_array(str(file), spec.model_copy(update={"random_crop_from": None}))
    if not len(values):
        raise FtaeError(f"{file} has no samples")
    scale = training_scale(spec, model.scale)
    low, high = scale
    prepare_folder(out, overwrite=overwrite)
    target = out / f"{file.stem}.npy"
    made = np.lib.format.open_memmap(target, mode="w+", dtype=np.float32, shape=values.shape)
    for start in range(0, len(values), model.spec.batch_size):
        part = slice(start, start + model.spec.batch_size)
        given = normalised(values[part], scale, spec)
        if not np.isfinite(given).all():
            raise FtaeError(f"{file} has NaN or inf near row {start} (counted from 0); remove or fill them")
        images = model.run(torch.from_numpy(np.ascontiguousarray(given.transpose(0, 3, 1, 2))))
        made[part] = as_in_file(images.numpy().transpose(0, 2, 3, 1) * (high - low) + low, spec)
    made.flush()
    notify(f"{target}: {len(values)} samples in the values of {file}")
    return len(values)
