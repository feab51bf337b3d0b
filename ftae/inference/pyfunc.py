"""A tuned model as MLflow's ``python_function`` flavor serves it: the loader module that ``MLmodel`` names.

A model folder carries the source of this package, so that only what the model computes with must be installed. This
module, and all that it imports, needs neither Ray nor Optuna, and of MLflow nothing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from ftae.engine.data.files.arrays import as_in_file, as_sample
from ftae.errors import FtaeError
from ftae.inference.arrays import ArrayModel, Floats
from ftae.inference.model import load_model
from ftae.inference.source import ModelSource
from ftae.results.export import MODEL, PRODUCTION
from ftae.specs.files import load_production
from ftae.specs.finetune.sources.arrays import Arrays
from ftae.specs.reading.problems import one_of

METHODS = ("reconstruct", "translate", "encode", "decode", "sample", "score")


def _load_pyfunc(folder: str) -> "ServedModel":
    """The model in a folder that ``ftae export`` wrote, or that was logged. MLflow calls it by this name.

    Raises:
        FtaeError: the weights are missing or damaged, or the family is code that may not run here.
    """
    spec = load_production(Path(folder) / PRODUCTION).finetune
    tuned = load_model(ModelSource(spec, Path(folder) / MODEL, folder))
    return ServedModel(ArrayModel(tuned, folder))


class ServedModel:
    """A model behind the ``predict`` of MLflow. Images are float32 (B, C, H, W) in [0, 1].

    Those of a model of arrays are samples in the values of its file, also (B, C, H, W): a series is (B, C, 1, length),
    a vector (B, 1, 1, length).
    """

    def __init__(self, model: ArrayModel) -> None:
        self._model = model
        self._one_call = Lock()  # a call sets torch's threads and kernels for the process while it runs

    def predict(self, model_input: npt.ArrayLike, params: Mapping[str, Any] | None = None) -> Floats:
        """Run the method that ``params["method"]`` names.

        ============ ========================================= ==================================================
        method       input                                     result, float32
        ============ ========================================= ==================================================
        reconstruct  images (B, C, H, W)                       images (B, C, H, W)
        translate    images (B, C, H, W)                       images (B, C, H, W), of a model of pairs or domains;
                                                               with ``reverse``, A of B
        encode       images (B, C, H, W)                       latents (B, c, h, w), flat ones (B, D, 1, 1)
        decode       latents, as ``encode`` gives them         images (B, C, H, W)
        sample       not used                                  ``n`` new images (n, C, H, W) of the seed ``seed``;
                                                               for each label one batch of n
        score        images (B, C, H, W)                       the mean squared error of each image (B,)
        ============ ========================================= ==================================================

        The default is ``reconstruct``, ``translate`` or ``sample``, as the model does. A model conditioned on labels
        needs ``labels``: a class name for each image, or one for all. Images are those of the model; nothing is drawn,
        except in ``sample``.

        Raises:
            FtaeError: there is no such method, the input has another shape or range, or the labels do not fit.
        """
        given = {"method": self._model.spec.use, "n": 1, "seed": 0, "labels": [], "reverse": False, **(params or {})}
        method, labels = given["method"], list(given["labels"])
        if method not in METHODS:
            raise FtaeError(f"params: method {one_of(METHODS, str(method))}")
        with self._one_call:
            if method == "sample":
                return self._sample(given["n"], given["seed"], labels)
            values = np.asarray(model_input)
            each = labels * len(values) if len(labels) == 1 else labels or None
            if method == "decode":
                return self._channels_first(self._model.decode(self._latents(values), each))
            images = self._images(values)
            if method == "reconstruct":
                return self._channels_first(self._model.reconstruct(images, each))
            if method == "translate":
                return self._channels_first(self._model.translate(images, each, reverse=bool(given["reverse"])))
            if method == "score":
                return self._model.score(images, each)
            return _with_four_axes(self._model.encode(images, each))

    def _sample(self, n: int, seed: int, labels: Sequence[str]) -> Floats:
        classes: Sequence[str | None] = labels or [None]
        made = [self._model.sample(n, seed, label) for label in classes]
        return self._channels_first(np.concatenate(made))

    def _images(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Images with the channels last, or samples as in the file of a model of arrays."""
        data = self._model.spec.data
        if values.ndim != 4 or values.shape[1:] != data.shape:
            shape = ", ".join(map(str, data.shape))
            raise FtaeError(f"images must have the shape (B, {shape}), got {values.dtype} of {values.shape}")
        channels_last = values.transpose(0, 2, 3, 1)
        return as_in_file(channels_last, data) if isinstance(data, Arrays) else channels_last

    def _channels_first(self, images: Floats) -> Floats:
        """The way back from ``_images``."""
        data = self._model.spec.data
        channels_last = as_sample(images, data) if isinstance(data, Arrays) else images
        return np.ascontiguousarray(channels_last.transpose(0, 3, 1, 2))

    def _latents(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Latents in the shape of the model, of those with four axes."""
        shape = self._model.latent_shape
        is_padded = values.shape[1:] == (*shape, *(1,) * (3 - len(shape)))
        return values.reshape(len(values), *shape) if is_padded else values


def _with_four_axes(latents: Floats) -> Floats:
    return latents.reshape(*latents.shape, *(1,) * (4 - latents.ndim))
