"""Loads a model for use: in eval mode, without gradients, on tensors of images in [0, 1]."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ftae.engine.data.dataset import load_dataset
from ftae.engine.data.source_base import Values
from ftae.engine.data.sources import normal_class_names
from ftae.engine.models.autoencoder import Autoencoder, Encoding
from ftae.engine.models.families import build_model
from ftae.engine.process import device_of, set_deterministic_kernels, set_memory_format
from ftae.engine.training.checkpoint import evaluated_weights, read_spec
from ftae.engine.training.export_model import CLASSES, exported_scale, load_exported_model
from ftae.engine.training.loop import process_state_kept
from ftae.errors import FtaeError
from ftae.inference.source import ModelSource
from ftae.specs.finetune.data_spec import DataSpec
from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.reading.names import file_name_problem
from ftae.specs.reading.problems import one_of, quoted


@dataclass(frozen=True)
class TunedModel:
    """A loaded model.

    Computing changes the torch settings of the process (threads, kernels) for the duration of a call only, so that the
    numbers are those of the run.

    Attributes:
        class_names: the classes of the training images, in the order of their labels; None without labels.
        scale: of an exported model of arrays, the values that are 0 and 1 to it; None for any other.
    """

    autoencoder: Autoencoder
    spec: FinetuneSpec
    device: torch.device
    class_names: tuple[str, ...] | None
    scale: Values | None = None

    @cached_property
    def data(self) -> DataSpec:
        """The data of the run, with the values of black and white also where these are measured on training images.

        Raises:
            FtaeError: no export or search has kept them, and the training images are missing.
        """
        data = self.spec.data
        is_known = data.meaning is None or data.meaning.is_known
        return data if is_known else data.with_levels(load_dataset(data).train.levels)

    def label(self, name: str) -> int:
        """Return the label (an index) of a class.

        Raises:
            FtaeError: the model has no class of this name.
        """
        known = self.class_names or ()
        if name not in known:
            choices = one_of(known, name) if known else f"cannot be {name!r}: the model was trained without classes"
            raise FtaeError(f"the label of an image {choices}")
        return known.index(name)

    def labels_to_sample(self, num: int, name: str | None) -> tuple[Tensor | None, list[str]]:
        """Return labels to sample and a file name for each: ``num`` of the class ``name``, or ``num`` of every class.

        The labels, int64, are None for a model that is not conditioned on labels.

        Raises:
            FtaeError: there is no such class, or a class is named and the model is not conditioned on labels.
        """
        if not self.spec.model.needs_labels:
            if name is not None:
                raise FtaeError(f"{self.spec.model.family} is not conditioned on labels: leave out the label {name!r}")
            return None, [f"sample-{i:04d}" for i in range(num)]
        chosen = [name] if name is not None else list(self.class_names or ())
        for each in chosen:
            if (reason := file_name_problem(each)) is not None:
                raise FtaeError(f"the name of a class is used as a file name: it {reason}, got {quoted(each)}")
        labels = torch.tensor([self.label(each) for each in chosen], device=self.device).repeat_interleave(num)
        return labels, [f"{each}-{i:04d}" for each in chosen for i in range(num)]

    def check_latents(self) -> None:
        """Refuse to encode, decode, interpolate between images or sample latents.

        Raises:
            FtaeError: the model is a translator or a generator.
        """
        family = self.spec.model.family
        if self.spec.model.takes_noise:
            raise FtaeError(
                f"{family} takes no images: it can only sample, and interpolate between the seeds of samples"
            )
        if not self.spec.model.has_latents:
            raise FtaeError(
                f"{family} has no latents to encode to, to decode, to interpolate or to sample: it can only translate "
                "images"
            )

    @torch.no_grad()
    def encode(self, images: Tensor, labels: Tensor | None = None) -> Encoding:
        """Encode images (B, C, H, W) in [0, 1]. Metrics are measured on the ``mode`` of the encoding."""
        self.check_latents()
        with self.settings():
            return self.autoencoder.encode(self.autoencoder.to_range(images.to(self.device)), labels)

    @torch.no_grad()
    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Decode latents to float32 images (B, C, H, W), clamped to [0, 1], on the CPU."""
        self.check_latents()
        with self.settings():
            images = self.autoencoder.to_unit(self.autoencoder.decode(latents.to(self.device), labels))
            return images.float().clamp(0.0, 1.0).cpu()

    @torch.no_grad()
    def run(self, images: Tensor, labels: Tensor | None = None, *, reverse: bool = False) -> Tensor:
        """Reconstruct or translate images (B, C, H, W) in [0, 1]; returns images as ``decode`` does.

        Args:
            reverse: translate images like those that the model gives to images like those that it takes.

        Raises:
            FtaeError: the model has no way back.
        """
        if reverse:
            self.check_reverse()
        with self.settings():
            given = self.autoencoder.to_range(images.to(self.device))
            if reverse and self.autoencoder.reverse is not None:
                made = self.autoencoder.reverse(given)
            else:
                _, made = self.autoencoder.run(given, labels)
            return self.autoencoder.to_unit(made).float().clamp(0.0, 1.0).cpu()

    def check_reverse(self) -> None:
        """Refuse to translate in reverse.

        Raises:
            FtaeError: the model translates one way.
        """
        if not self.spec.model.both_ways:
            raise FtaeError(
                f"{self.spec.model.family} cannot translate in reverse: it has learned one way; cyclegan learns both"
            )

    def example_encoding(self) -> Encoding:
        """Encode one grey image: shows the shape of the latents, and whether there is a posterior or codes."""
        data = self.spec.data
        labels = torch.zeros(1, dtype=torch.int64, device=self.device) if self.spec.model.needs_labels else None
        return self.encode(torch.full((1, *data.shape), 0.5), labels)

    @contextmanager
    def settings(self) -> Iterator[None]:
        """Inside, torch uses the run's threads and deterministic kernels; afterwards its settings are restored."""
        with process_state_kept():
            set_deterministic_kernels(self.spec, self.device)
            yield


def load_model(source: ModelSource) -> TunedModel:
    """Load the model of ``source``, on the CPU where the run wanted a GPU and this machine has none.

    Needs no training images, and for an exported model no pretrained model either. Leaves the random generators and the
    settings of torch as they were.

    Raises:
        FtaeError: the weights are missing, are damaged, or do not fit the model.
    """
    spec, weights = source.spec, source.weights
    if spec.device == "cuda" and not torch.cuda.is_available():
        spec = spec.model_copy(update={"device": "auto"})
    device = device_of(spec)
    class_names = _class_names(spec, weights)
    num_classes = None if class_names is None else len(class_names)
    with process_state_kept():
        set_deterministic_kernels(spec, device)
        if weights is None:
            autoencoder = build_model(spec, num_classes)
        elif read_spec(weights) is None:
            autoencoder = load_exported_model(spec, weights, num_classes)
        else:
            autoencoder = build_model(spec, num_classes)
            _restore(autoencoder, weights)
    autoencoder.to(device).eval()
    set_memory_format(autoencoder, spec, device)
    return TunedModel(autoencoder, spec, device, class_names, None if weights is None else exported_scale(weights))


def _restore(autoencoder: Autoencoder, checkpoint: Path) -> None:
    weights = evaluated_weights(checkpoint)
    try:
        autoencoder.load_state_dict(autoencoder.state_dict() | weights)
    except RuntimeError as error:
        misfit = str(error).splitlines()[1].strip()
        raise FtaeError(
            f"the weights of {checkpoint} do not fit this model: {misfit} Use the resolution, the colour and the "
            "classes of the training images"
        ) from error


def _class_names(spec: FinetuneSpec, weights: Path | None) -> tuple[str, ...] | None:
    """Return the class names stored with an exported model, else those of the training images if they are here."""
    if weights is not None and (weights / CLASSES).is_file():
        return _read_class_names(weights / CLASSES)
    try:
        return normal_class_names(spec.data)
    except FtaeError:  # the images are elsewhere; building a model that needs classes then fails
        return None


def _read_class_names(file: Path) -> tuple[str, ...]:
    """Read the class names of an exported model. They come from whoever made the model, and become file names."""
    try:
        names = json.loads(file.read_text())
    except (ValueError, OSError) as error:
        raise FtaeError(f"{file} cannot be read: {error}") from error
    if not isinstance(names, list):
        raise FtaeError(f"{file} must be a list of class names, got {quoted(names)}")
    for name in names:
        if (reason := file_name_problem(name)) is not None:
            raise FtaeError(f"{file}: the name of a class {reason}, got {quoted(name)}")
    return tuple(names)
