"""Exports a model as ONNX graphs, encoder and decoder, translator or generator, and compares them with PyTorch."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from ftae.engine.data.batches import val_batches
from ftae.engine.data.dataset import load_dataset
from ftae.engine.models.autoencoder import Autoencoder
from ftae.engine.training.export_model import load_exported_model
from ftae.errors import FtaeError, one_message
from ftae.specs.finetune.run import FinetuneSpec

ENCODER, DECODER, TRANSLATOR, GENERATOR = "encoder.onnx", "decoder.onnx", "translator.onnx", "generator.onnx"
REVERSE = "translator_reverse.onnx"
NEEDED = ("onnx", "onnxscript", "onnxruntime")
LATENTS = "latents"  # the output of the encoder
OPSET = 20
COMPARED_IMAGES = 64
LARGEST_DIFFERENCE = 0.01  # of pixels in [0, 1]; rounding gives 1e-5


class _Encoder(nn.Module):
    """Images (B, C, H, W) in [0, 1], and labels int64 (B,) for a model conditioned on them -> latents without noise."""

    def __init__(self, model: Autoencoder) -> None:
        super().__init__()
        self.net, self.model = model.net, [model]

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        [model] = self.model
        return model.encode(model.to_range(images), labels).mode


class _Decoder(nn.Module):
    """Latents, and labels int64 (B,) for a model conditioned on them -> images (B, C, H, W), clamped to [0, 1]."""

    def __init__(self, model: Autoencoder) -> None:
        super().__init__()
        self.net, self.model = model.net, [model]

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        [model] = self.model
        return model.to_unit(model.decode(latents, labels)).clamp(0.0, 1.0)


class _Translator(nn.Module):
    """Images (B, C, H, W) in [0, 1] -> translated images (B, C, H, W), clamped to [0, 1]."""

    def __init__(self, model: Autoencoder) -> None:
        super().__init__()
        self.net, self.model = model.net, [model]

    def forward(self, images: Tensor) -> Tensor:
        [model] = self.model
        return model.to_unit(model.run(model.to_range(images))[1]).clamp(0.0, 1.0)


class _Generator(nn.Module):
    """Standard normal noise (B, L) -> images (B, C, H, W), clamped to [0, 1]."""

    def __init__(self, model: Autoencoder) -> None:
        super().__init__()
        self.net, self.model = model.net, [model]

    def forward(self, noise: Tensor) -> Tensor:
        [model] = self.model
        return model.to_unit(model.run(noise)[1]).clamp(0.0, 1.0)


class _Reverse(nn.Module):
    """As ``_Translator``, in the other direction."""

    def __init__(self, model: Autoencoder) -> None:
        super().__init__()
        self.net, self.model = model.net, [model]

    def forward(self, images: Tensor) -> Tensor:
        [model] = self.model
        assert model.reverse is not None
        return model.to_unit(model.reverse(model.to_range(images))).clamp(0.0, 1.0)


def check_onnx_installed() -> None:
    """Raises FtaeError where a package is missing."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise FtaeError(f"ONNX needs {', '.join(missing)}: pip install 'ftae[onnx]'")


@torch.no_grad()
def export_onnx(spec: FinetuneSpec, model_folder: Path, folder: Path) -> dict[str, float]:
    """Write the model that ``export_model`` wrote to ``model_folder`` as ``encoder.onnx`` and ``decoder.onnx``.

    A translator is one graph, ``translator.onnx``, and so is a generator, ``generator.onnx``; the way back, where there
    is one, is another, ``translator_reverse.onnx``. The batch has any length; a model conditioned on labels takes
    ``labels``, int64 (B,), as a second input.

    Returns:
        The largest absolute difference from PyTorch on validation images: of ``latents`` and of ``images`` in [0, 1],
        or of ``translations`` and, on the way back, of ``originals``.

    Raises:
        FtaeError: the family has an operation without ONNX equivalent, or ONNX computes something else.
    """
    data = load_dataset(spec.data)
    model = load_exported_model(spec, model_folder, data.num_classes).eval()
    cpu = torch.device("cpu")
    batches = val_batches(data.val, spec.data, batch_size=COMPARED_IMAGES, device=cpu, noise_dim=model.noise_dim)
    batch = next(batches)
    labels: dict[str, Tensor] = {}
    if spec.model.needs_labels:
        assert batch.labels is not None
        labels = {"labels": batch.labels}
    if model.encode(model.as_input(batch.inputs), labels.get("labels")).codes:
        raise FtaeError(f"{spec.model.family} cannot be written as ONNX: its quantizer has no equivalent there")
    graphs = _graphs(model, has_latents=spec.model.has_latents)
    given, found = batch.inputs, {}
    with one_message(f"{spec.model.family} cannot be written as ONNX"), _quiet():
        for graph in graphs:
            inputs = {graph.input: given} | labels
            expected = graph.net(**inputs)
            _write(graph.net, inputs, graph.output, folder / graph.file)
            found[graph.output] = float((_run(folder / graph.file, inputs) - expected).abs().max())
            given = expected
    of_images = max(value for name, value in found.items() if name != LATENTS)
    if not of_images <= LARGEST_DIFFERENCE:  # false for NaN, too
        raise FtaeError(
            f"{spec.model.family} cannot be written as ONNX: its images differ from PyTorch's by "
            f"{of_images:.3g} of the range, more than {LARGEST_DIFFERENCE}"
        )
    return found


@dataclass(frozen=True)
class _Graph:
    """A network to write, and the names of its file, input and output. The next graph takes its output."""

    net: nn.Module
    file: str
    input: str
    output: str


def _graphs(model: Autoencoder, *, has_latents: bool) -> list[_Graph]:
    if model.noise_dim is not None:
        return [_Graph(_Generator(model), GENERATOR, "noise", "images")]
    if not has_latents:
        there = _Graph(_Translator(model), TRANSLATOR, "images", "translations")
        return [there] if model.reverse is None else [there, _Graph(_Reverse(model), REVERSE, "images", "originals")]
    return [
        _Graph(_Encoder(model), ENCODER, "images", LATENTS),
        _Graph(_Decoder(model), DECODER, LATENTS, "images"),
    ]


def _write(net: nn.Module, inputs: Mapping[str, Tensor], output: str, path: Path) -> None:
    size = torch.export.Dim("batch")
    program = torch.onnx.export(
        net.eval(),
        kwargs=dict(inputs),
        input_names=list(inputs),
        output_names=[output],
        dynamic_shapes={name: {0: size} for name in inputs},
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(path)


def _run(path: Path, inputs: Mapping[str, Tensor]) -> Tensor:
    """The output of a graph, for one image first and then for all: the batch must have any length."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, None):
        [made] = session.run(None, {name: value[:count].numpy() for name, value in inputs.items()})
    return torch.from_numpy(made)


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside the block the exporter says nothing of its progress and of what it leaves out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
