"""A tuned model of arrays: samples in their own values and axes, and files of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ftae.engine.data.arrays import normalised
from ftae.engine.data.files.arrays import Raw, as_in_file, open_array
from ftae.engine.data.files.listing import check_output
from ftae.engine.data.source_base import Values
from ftae.errors import FtaeError
from ftae.inference.model import TunedModel
from ftae.inference.pictures import prepare_folder, training_scale
from ftae.specs.finetune.sources.arrays import Arrays


@dataclass(frozen=True)
class OwnValues:
    """Between samples as in the files of ``data``, in their axes and values, and those that the model computes with.

    ``scale``: the values that are 0 and 1 to the model, as of ``ImageSet``.
    """

    data: Arrays
    scale: Values

    def to_model(self, samples: Raw, *, where: str, first: int = 0) -> Tensor:
        """Samples as in the file, of ``sample_shape``, as float32 (N, C, H, W).

        Raises:
            FtaeError: a value is no finite number; the message counts rows of ``where`` from ``first``.
        """
        given = normalised(samples, self.scale, self.data)
        is_finite = np.isfinite(given).reshape(len(given), -1).all(axis=1)
        if not is_finite.all():
            row = first + int(np.argmin(is_finite))
            raise FtaeError(f"{where} has NaN or inf in row {row} (counted from 0); remove or fill them")
        return torch.from_numpy(np.ascontiguousarray(given.transpose(0, 3, 1, 2)))

    def from_model(self, images: Tensor) -> Raw:
        """The way back from ``to_model``, float32."""
        low, high = self.scale
        unit = images.cpu().numpy().transpose(0, 2, 3, 1)
        return np.ascontiguousarray(as_in_file(unit * (high - low) + low, self.data), dtype=np.float32)


def sample_shape(data: Arrays) -> tuple[int, ...]:
    """The shape of one sample of the model in a file."""
    return as_in_file(np.empty((1, *data.size, data.channels)), data).shape[1:]


def own_values(model: TunedModel) -> OwnValues | None:
    """For a model of arrays; None for any other. Raises as ``training_scale``."""
    data = model.spec.data
    return OwnValues(data, training_scale(data, model.scale)) if isinstance(data, Arrays) else None


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
    own = OwnValues(spec, training_scale(spec, model.scale))
    prepare_folder(out, overwrite=overwrite)
    target, partial = out / f"{file.stem}.npy", out / f"{file.stem}.npy.partial"
    try:
        made = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=values.shape)
        for start in range(0, len(values), model.spec.batch_size):
            part = slice(start, start + model.spec.batch_size)
            made[part] = own.from_model(model.run(own.to_model(values[part], where=str(file), first=start)))
        made.flush()
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    notify(f"{target}: {len(values)} samples in the values of {file}")
    return len(values)
