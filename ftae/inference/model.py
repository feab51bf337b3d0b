"""A model, loaded for use: images in [0, 1] in and out, in eval mode, without gradients."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ftae.engine.data.sources import normal_class_names
from ftae.engine.models.autoencoder import Autoencoder, Encoding
from ftae.engine.models.families import build_model
from ftae.engine.process import device_of, set_deterministic_kernels, set_memory_format
from ftae.engine.rng import keep_random_state
from ftae.engine.training.checkpoint import evaluated_weights, read_spec
from ftae.engine.training.export_model import CLASSES, load_exported_model
from ftae.errors import FtaeError
from ftae.inference.source import ModelSource
from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.reading.names import file_name_problem
from ftae.specs.reading.problems import one_of, quoted


@dataclass(frozen=True)
class TunedModel:
    """``class_names``: the labels it was trained with, by index; None where there were none."""

    autoencoder: Autoencoder
    spec: FinetuneSpec
    device: torch.device
    class_names: tuple[str, ...] | None

    def label(self, name: str) -> int:
        """The index of a class.

        Raises:
            FtaeError: the model knows none of this name.
        """
        known = self.class_names or ()
        if name not in known:
            choices = one_of(known, name) if known else f"was trained without classes, got {name!r}"
            raise FtaeError(f"the label of an image {choices}")
        return known.index(name)

    def labels_to_sample(self, num: int, name: str | None) -> tuple[Tensor | None, list[str]]:
        """Labels of what to draw, and a name for each: ``num`` of the class ``name``, or of each class.

        The labels are None for a model that is not conditioned on them.

        Raises:
            FtaeError: there is no such class, or the model asks for none.
        """
        if not self.spec.model.needs_labels:
            if name is not None:
                raise FtaeError(f"--label has no effect: {self.spec.model.family} is not conditioned on labels")
            return None, [f"sample-{i:04d}" for i in range(num)]
        chosen = [name] if name is not None else list(self.class_names or ())
        for each in chosen:
            if (reason := file_name_problem(each)) is not None:
                raise FtaeError(f"the name of a class becomes that of a file: it {reason}, got {quoted(each)}")
        labels = torch.tensor([self.label(each) for each in chosen], device=self.device).repeat_interleave(num)
        return labels, [f"{each}-{i:04d}" for each in chosen for i in range(num)]

    @torch.no_grad()
    def encode(self, images: Tensor, labels: Tensor | None = None) -> Encoding:
        """Of images (B, C, H, W) in [0, 1]; its ``mode`` is what metrics are measured on."""
        return self.autoencoder.encode(self.autoencoder.to_range(images.to(self.device)), labels)

    @torch.no_grad()
    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) in [0, 1], clamped, on the CPU."""
        images = self.autoencoder.to_unit(self.autoencoder.decode(latents.to(self.device), labels))
        return images.float().clamp(0.0, 1.0).cpu()

    def reconstruct(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) in [0, 1], there and back."""
        return self.decode(self.encode(images, labels).mode, labels)


def load_model(source: ModelSource) -> TunedModel:
    """The model of ``source`` where it is to run: a GPU that the run asked for need not be here.

    Neither the training images nor, for a released model, the pretrained one are needed. Draws nothing
    from the random generators.

    Raises:
        FtaeError: its weights are missing, damaged or do not fit.
    """
    spec, weights = source.spec, source.weights
    if spec.device == "cuda" and not torch.cuda.is_available():
        spec = spec.model_copy(update={"device": "auto"})
    device = device_of(spec)
    set_deterministic_kernels(spec, device)
    class_names = _class_names(spec, weights)
    num_classes = None if class_names is None else len(class_names)
    with keep_random_state():
        if weights is None:
            autoencoder = build_model(spec, num_classes)
        elif read_spec(weights) is None:
            autoencoder = load_exported_model(spec, weights, num_classes)
        else:
            autoencoder = build_model(spec, num_classes)
            _restore(autoencoder, weights)
    autoencoder.to(device).eval()
    set_memory_format(autoencoder, spec, device)
    return TunedModel(autoencoder, spec, device, class_names)


def _restore(autoencoder: Autoencoder, checkpoint: Path) -> None:
    weights = evaluated_weights(checkpoint)
    try:
        autoencoder.load_state_dict(autoencoder.state_dict() | weights)
    except RuntimeError as error:
        misfit = str(error).splitlines()[1].strip()
        raise FtaeError(
            f"the weights of {checkpoint} are not of this model: {misfit} It takes images of the resolution and colour "
            "that it was trained with; the classes of its images must be what they were"
        ) from error


def _class_names(spec: FinetuneSpec, weights: Path | None) -> tuple[str, ...] | None:
    """As the model was released with, or those of the training images, if they are here."""
    if weights is not None and (weights / CLASSES).is_file():
        return _read_class_names(weights / CLASSES)
    try:
        return normal_class_names(spec.data)
    except FtaeError:  # the images are elsewhere; a model that depends on their classes says so itself
        return None


def _read_class_names(file: Path) -> tuple[str, ...]:
    """The names that a released model comes with, from whoever made it: they become names of files."""
    try:
        names = json.loads(file.read_text())
    except (ValueError, OSError) as error:
        raise FtaeError(f"{file} cannot be read: {error}") from error
    if not isinstance(names, list):
        raise FtaeError(f"{file} must be a list of the names of classes, got {quoted(names)}")
    for name in names:
        if (reason := file_name_problem(name)) is not None:
            raise FtaeError(f"{file}: the name of a class {reason}, got {quoted(name)}")
    return tuple(names)
