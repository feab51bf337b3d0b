"""What a process keeps from one run for the next: models, frozen networks, and results of untuned models.

Each is, to the bit, what a new process would build or find, and it leaves the random generators in the same state.
"""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ftae.engine.data.stores.folder import cache_folder, digest, make_once
from ftae.engine.models.autoencoder import Autoencoder
from ftae.engine.models.families import build_seeded_model, new_model, prepare_model
from ftae.engine.models.pretrained.model_folder import WEIGHTS, files_read, hub_commit, model_digest, weights_files
from ftae.engine.objectives.auxiliary import AuxiliaryNetworks, build_auxiliary_networks
from ftae.engine.process import rng_state, set_rng_state
from ftae.engine.tasks import task_kind
from ftae.engine.training.evaluator import Findings
from ftae.errors import FtaeError
from ftae.specs.finetune.models import CustomModel
from ftae.specs.finetune.networks import NetworkSpec
from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.reading.schema import TrainingOnly, fields_with

BASELINES = 16  # the number of untuned models whose results are kept

# Settings that do not change the evaluation of the untuned model. Of the losses, only those matter that add a head or
# make another task.
TRAINING_ONLY = fields_with(FinetuneSpec, TrainingOnly)


class NoReuse:
    """Builds a new model and new networks for every run, and evaluates every baseline."""

    def model(self, spec: FinetuneSpec, num_classes: int | None, device: torch.device) -> Autoencoder:
        """The model that ``build_seeded_model`` gives, on ``device``."""
        return build_seeded_model(spec, num_classes).to(device)

    def auxiliary(self, spec: FinetuneSpec, num_classes: int | None, device: torch.device) -> AuxiliaryNetworks:
        """The networks that ``build_auxiliary_networks`` gives."""
        return build_auxiliary_networks(spec, num_classes, device)

    def baseline(
        self,
        spec: FinetuneSpec,
        fingerprint: str,
        device: torch.device,
        picture: Path,
        evaluate: Callable[[Path], Findings],
    ) -> Findings:
        """What ``evaluate`` finds for the untuned model on the images of ``fingerprint``; it draws ``picture``."""
        return evaluate(picture)


class ModelReuse(NoReuse):
    """Serves the runs of one process that come one after the other.

    Keeps the last model with its initial weights, the frozen networks of the last run, and the findings about untuned
    models. Does not keep what may change unnoticed: a user's own module, whose constructor may have a memory, and a
    model from the hub that is not pinned to a commit.
    """

    def __init__(self) -> None:
        self._cached: _CachedModel | None = None
        self._networks: dict[str, tuple[str, Any]] = {}
        self._baselines: OrderedDict[str, tuple[Findings, bytes]] = OrderedDict()

    def forget(self) -> None:
        """Free the memory of everything that is kept."""
        self._cached = None
        self._networks.clear()
        self._baselines.clear()

    def model(self, spec: FinetuneSpec, num_classes: int | None, device: torch.device) -> Autoencoder:
        """As in ``NoReuse``. A model that is still in use is not handed out a second time."""
        key = _model_key(spec, num_classes, device)
        if self._cached is not None and (key != self._cached.key or self._cached.in_use()):
            self._cached = None  # frees its memory before the next model needs it
        if key is None:
            return build_seeded_model(spec, num_classes).to(device)
        if self._cached is None:
            self._cached = _CachedModel(key, spec, num_classes)
        return self._cached.fresh_copy(spec, num_classes).to(device)

    def auxiliary(self, spec: FinetuneSpec, num_classes: int | None, device: torch.device) -> AuxiliaryNetworks:
        """As in ``NoReuse``. Networks that are in use are handed out as well, since nothing ever changes them."""
        before, self._networks = self._networks, {}
        keys = {
            "reference": _model_key(spec, num_classes, device),
            "perceptual": _network_key(spec.perceptual, spec, device),
            "features": _network_key(spec.features, spec, device),
        }

        def take(name: str, build: Callable[[], Any]) -> Any:
            key = keys[name]
            if key is None:
                return build()
            kept = before.get(name)
            self._networks[name] = kept if kept is not None and kept[0] == key else (key, build())
            return self._networks[name][1]

        return build_auxiliary_networks(spec, num_classes, device, take)

    def baseline(
        self,
        spec: FinetuneSpec,
        fingerprint: str,
        device: torch.device,
        picture: Path,
        evaluate: Callable[[Path], Findings],
    ) -> Findings:
        key = _baseline_key(spec, fingerprint, device)
        if key is None:
            return evaluate(picture)
        if key not in self._baselines:
            found = evaluate(picture)
            self._baselines[key] = found, picture.read_bytes()
            if len(self._baselines) > BASELINES:
                self._baselines.popitem(last=False)
        (metrics, collapse_signs), png = self._baselines[key]
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(png)
        return dict(metrics), dict(collapse_signs)


class _CachedModel:
    """A model that is built once and handed out to one run after the other, each time in its initial state."""

    def __init__(self, key: str, spec: FinetuneSpec, num_classes: int | None) -> None:
        self.key = key
        self._bare, self._encoding = new_model(spec, num_classes)
        self._rng = rng_state()
        self._trainable = {name: p.requires_grad for name, p in self._bare.named_parameters()}
        self._initial = _initial_tensors(self._bare, spec, num_classes)
        self._current: Callable[[], Autoencoder | None] = lambda: None

    def in_use(self) -> bool:
        return self._current() is not None

    def fresh_copy(self, spec: FinetuneSpec, num_classes: int | None) -> Autoencoder:
        """The model as ``build_seeded_model`` would give it: same tensors, same state of the random generators.

        Raises as ``build_seeded_model``.
        """
        with torch.no_grad():
            for name, tensor in _tensors(self._bare):
                tensor.copy_(self._initial[name])
        for name, parameter in self._bare.named_parameters():
            parameter.grad = None
            parameter.requires_grad_(self._trainable[name])
        autoencoder = self._bare.without_head().eval()
        self._current = weakref.ref(autoencoder)
        set_rng_state(self._rng)
        return prepare_model(autoencoder, self._encoding, spec, num_classes)


def _tensors(autoencoder: Autoencoder) -> Iterator[tuple[str, Tensor]]:
    yield from autoencoder.named_parameters()
    yield from autoencoder.named_buffers()


def _initial_tensors(autoencoder: Autoencoder, spec: FinetuneSpec, num_classes: int | None) -> dict[str, Tensor]:
    """Copies of the tensors; for a pretrained model from one file, which all processes of this machine map."""
    own = {name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in _tensors(autoencoder)}
    if spec.model.pretrained is None:
        return own
    key = digest([model_digest(spec.model), _model_settings(spec, num_classes), torch.__version__])
    folder = cache_folder() / "models" / key
    try:
        num_bytes = sum(t.nbytes for t in own.values())
        make_once(folder, num_bytes, lambda partial: _write(partial / WEIGHTS, own))
        shared = load_file(folder / WEIGHTS)
    except (FtaeError, OSError, SafetensorError):  # no room, or a damaged file: private copies do as well
        return own
    same = shared.keys() == own.keys() and all(torch.equal(shared[name], own[name]) for name in own)
    return shared if same else own


def _write(file: Path, tensors: dict[str, Tensor]) -> None:
    file.write_bytes(save(tensors))


def _model_settings(spec: FinetuneSpec, num_classes: int | None) -> list[Any]:
    """Everything that the initial state of a model depends on, except files."""
    return [spec.model.model_dump(mode="json"), *spec.data.shape, num_classes, spec.seed]


def _model_key(spec: FinetuneSpec, num_classes: int | None, device: torch.device) -> str | None:
    """None for a model that must not be kept."""
    model, files = spec.model, files_read(spec.model)
    may_change = model.pretrained is not None and not files and hub_commit(model.pretrained) is None
    if isinstance(model, CustomModel) or may_change:
        return None
    return digest([_model_settings(spec, num_classes), _state_of_files(files), str(device)])


def _network_key(network: NetworkSpec | None, spec: FinetuneSpec, device: torch.device) -> str | None:
    if network is None:
        return None
    shape = list(spec.data.shape)  # an encoder is built for the images
    return digest(
        [network.model_dump(mode="json"), shape, _state_of_files(weights_files(network.weights)), str(device)]
    )


def _baseline_key(spec: FinetuneSpec, fingerprint: str, device: torch.device) -> str | None:
    """None for a model that must not be kept."""
    model = _model_key(spec, None, device)
    if model is None:
        return None
    settings = {name: value for name, value in spec.model_dump(mode="json").items() if name not in TRAINING_ONLY}
    networks = [_network_key(network, spec, device) for network in (spec.perceptual, spec.features)]
    has_head = spec.losses.ce > 0.0
    return digest([model, settings, networks, has_head, task_kind(spec), fingerprint, torch.get_num_threads()])


def _state_of_files(files: list[Path]) -> list[Any]:
    """A value that differs whenever one of the files has changed."""
    stats = [(str(file), file.stat()) for file in files if file.is_file()]
    return [[name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for name, stat in stats]
