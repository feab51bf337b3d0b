"""A tuned model with NumPy arrays in and out."""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ftae.errors import FtaeError
from ftae.inference.array_files import OwnValues, own_values, sample_shape
from ftae.inference.model import TunedModel
from ftae.inference.sampling import sample
from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.finetune.sources.arrays import Arrays

Floats = npt.NDArray[np.float32]


class ArrayModel:
    """A tuned model that takes and gives arrays; their shapes, types and ranges are those of ``ftae.Model``.

    Where methods speak of images (N, H, W, C) in [0, 1], a model of arrays takes and gives samples in the axes and the
    values of its file.

    Attributes:
        description: what the model is, in a few words.
    """

    def __init__(self, tuned: TunedModel, description: str) -> None:
        self._tuned, self.description = tuned, description

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.image_shape))
        return f"<ftae.Model: {self.description}; {self.spec.model.family}, {self._noun} {shape}>"

    @property
    def spec(self) -> FinetuneSpec:
        """The fine-tuning run that made the model."""
        return self._tuned.spec

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The classes of the training images, in the order of their labels; None without labels."""
        return self._tuned.class_names

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape (H, W, C) of one image; for a model of arrays, that of one sample in its file."""
        data = self.spec.data
        return sample_shape(data) if isinstance(data, Arrays) else (*data.size, data.channels)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of the latents of one image: (D,), or (C, h, w) for spatial latents."""
        return tuple(self._tuned.example_encoding().mode.shape[1:])

    # --------------------------------------------------------------------------------------------- arrays

    def reconstruct(self, images: npt.ArrayLike, labels: Sequence[str] | None = None) -> Floats:
        """Encode and decode images.

        Args:
            images: (N, H, W, C), uint8 in [0, 255] or floats in [0, 1].
            labels: N class names, for a model conditioned on labels.

        Returns:
            The reconstructions: float32 (N, H, W, C) in [0, 1].

        Raises:
            FtaeError: the images have another shape, type or range, or the labels do not fit the model.
        """
        self._check_use("reconstruct")
        return self._outputs(images, labels)

    def translate(self, images: npt.ArrayLike, labels: Sequence[str] | None = None, *, reverse: bool = False) -> Floats:
        """Translate images: what a model of pairs, or of two domains, makes of A.

        Args:
            images: (N, H, W, C), uint8 in [0, 255] or floats in [0, 1].
            labels: N class names, for a model conditioned on labels.
            reverse: the images are of B, and the model makes A of them.

        Returns:
            The translated images: float32 (N, H, W, C) in [0, 1].

        Raises:
            FtaeError: the model reconstructs its images, or has no way back; or the images have another shape, type or
                range, or the labels do not fit the model.
        """
        self._check_use("translate")
        return self._outputs(images, labels, reverse=reverse)

    def encode(self, images: npt.ArrayLike, labels: Sequence[str] | None = None) -> Floats:
        """Encode images to latents: the mode of the posterior, or the quantised latents; nothing is drawn.

        Args:
            images: (N, H, W, C), uint8 in [0, 255] or floats in [0, 1].
            labels: N class names, for a model conditioned on labels.

        Returns:
            The latents: float32 (N, \\*latent_shape), without any scaling factor applied.

        Raises:
            FtaeError: the images have another shape, type or range, or the labels do not fit the model.
        """
        given = self._images(images)
        return _as_array(self._in_batches(lambda part, known: self._tuned.encode(part, known).mode, given, labels))

    def decode(self, latents: npt.ArrayLike, labels: Sequence[str] | None = None) -> Floats:
        """Decode latents to images.

        Args:
            latents: (N, \\*latent_shape), real numbers, as ``encode`` returns them.
            labels: N class names, for a model conditioned on labels.

        Returns:
            The images: float32 (N, H, W, C), clamped to [0, 1].

        Raises:
            FtaeError: the latents have another shape, or the labels do not fit the model.
        """
        given = np.asarray(latents)
        if given.dtype.kind not in "fiu" or given.shape[1:] != self.latent_shape:
            expected = ", ".join(map(str, self.latent_shape))
            raise FtaeError(f"latents must be real numbers of shape (N, {expected}), got {_described(given)}")
        made = self._in_batches(self._tuned.decode, torch.from_numpy(given.astype(np.float32)), labels)
        return self._given_back(made)

    def score(self, images: npt.ArrayLike, labels: Sequence[str] | None = None) -> Floats:
        """Score images by their error of reconstruction: the larger, the less an image is like those of training.

        Args:
            images: (N, H, W, C), uint8 in [0, 255] or floats in [0, 1].
            labels: N class names, for a model conditioned on labels.

        Returns:
            The mean squared error of each image, float32 (N,): the ``mse`` of ``ftae evaluate``, of values in [0, 1];
            for a model of arrays, of normalised values.

        Raises:
            FtaeError: the model translates images; or these have another shape, type or range, or the labels do not fit
                the model.
        """
        self._check_use("reconstruct")

        def errors(part: Tensor, known: Tensor | None) -> Tensor:
            return (self._tuned.run(part, known) - part).square().flatten(1).mean(1)

        return _as_array(self._in_batches(errors, self._images(images), labels))

    def sample(
        self,
        n: int,
        seed: int = 0,
        label: str | None = None,
        *,
        fitted: bool = False,
        truncation: float | None = None,
    ) -> Floats:
        """Sample new images. The same seed gives the same images; NumPy's and torch's own generators are not used.

        Latents come from the model's prior; for a model with codes, from the codes of the training images. A generator
        makes image i of the noise that belongs to the seed ``seed + i``, as evaluations do.

        Args:
            n: the number of images; for a model conditioned on labels, the number for each class.
            seed: 0 or more.
            label: the class to sample; by default every class in turn, in the order of ``class_names``.
            fitted: draw latents from a Gaussian fitted to those of the training images instead of the prior.
            truncation: for StyleGAN2: the factor by which styles are drawn towards their mean; 1 draws nothing.

        Returns:
            The images: float32 (n, H, W, C), or (n x classes, H, W, C), in [0, 1].

        Raises:
            FtaeError: the model has no prior, there is no such class, or the training images are needed and missing.
        """
        if n < 1 or seed < 0:
            raise FtaeError(f"n must be at least 1 and seed at least 0, got n={n} and seed={seed}")
        labels, names = self._tuned.labels_to_sample(n, label)
        images, _ = sample(self._tuned, labels, len(names), seed=seed, fitted=fitted, truncation=truncation)
        return self._given_back(images)

    # -------------------------------------------------------------------------------------------- private

    @property
    def _noun(self) -> str:
        return "samples" if self.spec.data.of_floats else "images"

    def _check_use(self, wanted: str) -> None:
        """Refuse a method that belongs to another kind of model."""
        use = self.spec.use
        if use != wanted:
            gives = {
                "reconstruct": "gives the images that it gets",
                "translate": "gives other images than it gets",
                "sample": "gets no images",
            }
            raise FtaeError(f"{self.description} {gives[use]}: use {use}")

    def _outputs(self, images: npt.ArrayLike, labels: Sequence[str] | None, *, reverse: bool = False) -> Floats:
        run = partial(self._tuned.run, reverse=reverse)
        return self._given_back(self._in_batches(run, self._images(images), labels))

    @cached_property
    def _own_values(self) -> OwnValues | None:
        return own_values(self._tuned)

    def _given_back(self, images: Tensor) -> Floats:
        """Images (N, C, H, W) as users get them."""
        own = self._own_values
        return _as_array(images.permute(0, 2, 3, 1)) if own is None else own.from_model(images)

    def _images(self, images: npt.ArrayLike) -> Tensor:
        """Check images and convert them to float32 (N, C, H, W) in [0, 1]."""
        given, own = np.asarray(images), self._own_values
        if given.shape[1:] != self.image_shape or not given.ndim:
            shape = ", ".join(map(str, self.image_shape))
            raise FtaeError(f"{self._noun} must have the shape (N, {shape}), got {_described(given)}")
        if own is not None:
            if given.dtype.kind not in "fiub":
                raise FtaeError(f"samples must be real numbers as in the file, got {_described(given)}")
            return own.to_model(given, where="the array")
        meaning = self.spec.data.meaning
        if given.dtype.kind in "iu" and (levels := self._levels()) is not None:
            low, high = levels
            pixels = ((given.astype(np.float64) - low) / (high - low)).clip(0.0, 1.0).astype(np.float32)
        elif meaning is None and given.dtype == np.uint8:
            pixels = given.astype(np.float32) / np.float32(255)
        elif given.dtype.kind == "f":
            # The comparison is false for NaN, too.
            if given.size and not (given.min() >= 0.0 and given.max() <= 1.0):
                raise FtaeError(f"float images must lie in [0, 1], got values from {given.min():g} to {given.max():g}")
            pixels = given.astype(np.float32)
        else:
            numbers = "uint8 in [0, 255]" if meaning is None else "whole numbers as in the files"
            raise FtaeError(f"images must be {numbers} or floats in [0, 1], got {_described(given)}")
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))

    def _levels(self) -> tuple[float, float] | None:
        """The values in the files that are black and white, where ``data.intensity`` says what values mean."""
        meaning = self._tuned.data.meaning
        return None if meaning is None else meaning.levels

    def _labels(self, labels: Sequence[str] | None, count: int) -> Tensor | None:
        if not self.spec.model.needs_labels:
            if labels is not None:
                raise FtaeError(f"{self.spec.model.family} is not conditioned on labels: leave out labels")
            return None
        if labels is None or isinstance(labels, str) or len(labels) != count:
            known = ", ".join(self.class_names or ())
            raise FtaeError(f"{self.spec.model.family} needs labels: one class name for each image, of {known}")
        return torch.tensor([self._tuned.label(str(name)) for name in labels], dtype=torch.int64)

    def _in_batches(
        self, run: Callable[[Tensor, Tensor | None], Tensor], given: Tensor, labels: Sequence[str] | None
    ) -> Tensor:
        known = self._labels(labels, len(given))
        if not len(given):
            raise FtaeError("there must be at least one image, got an array of none")
        parts = []
        for start in range(0, len(given), self.spec.batch_size):
            part = slice(start, start + self.spec.batch_size)
            on_device = None if known is None else known[part].to(self._tuned.device)
            parts.append(run(given[part], on_device))
        return torch.cat(parts)


def _as_array(values: Tensor) -> Floats:
    result: Any = np.ascontiguousarray(values.float().cpu().numpy())
    return result  # type: ignore[no-any-return]


def _described(given: npt.NDArray[Any]) -> str:
    return f"{given.dtype} of shape {given.shape}"
