"""Full-state checkpoints: written atomically, so that one either exists whole or not at all."""

import hashlib
import io
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import safetensors.torch
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ftae.engine.models.autoencoder import Autoencoder
from ftae.engine.rng import rng_state, same_state, set_rng_state
from ftae.engine.run_folder import ASIDE, CHECKPOINTS, KEPT, AtomicFolder, put_back
from ftae.engine.tasks.adversarial import Adversary
from ftae.engine.tasks.optim import WeightAverage
from ftae.errors import FtaeError
from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.reading.formats import stored

MODEL, AVERAGE, TRAINING, REPORT = "model.safetensors", "average.safetensors", "training.pt", "report.json"

DISCRIMINATOR = "discriminator.safetensors"

HASHES = "sha256.json"  # of each of the others

# A run may go on for longer than it was planned; all else must be as it was.
MAY_DIFFER = ("max_steps", "num_evals", "num_threads", "frozen_cache_gb")


@dataclass(frozen=True)
class EvalReport:
    """What an evaluation found; everything it names is on disk before it is handed out.

    ``metrics``: ``val/<metric>`` and, after step 0, ``train/<term>`` (unweighted, mean since the last
    report), ``train/loss``, ``train/grad_norm`` (before clipping) and ``train/lr``; of a discriminator
    ``train/discriminator`` (its loss), its gradient's norm, its mean logits and ``train/adaptive_weight``.
    ``timing``: ``time/...`` in seconds and images a second; the only figures that differ between runs.
    ``checkpoint``: None at step 0. Paths are relative to the run's folder.
    """

    step: int
    metrics: dict[str, float]
    timing: dict[str, float]
    checkpoint: str | None
    images: str


class CheckpointWriter:
    """A checkpoint of a run as it is now, on its way to ``folder`` while its evaluation goes on.

    Everything that training needs to go on from here as if it had never stopped. Left before ``finish``, as a
    context, nothing of it stays.

    Raises:
        OSError: the folder could not be made.
    """

    def __init__(
        self,
        folder: Path,
        spec: FinetuneSpec,
        autoencoder: Autoencoder,
        optimizer: torch.optim.Optimizer,
        average: WeightAverage | None,
        *,
        adversary: Adversary | None = None,
    ) -> None:
        self._spec = spec
        self._state: dict[str, Any] = {"optimizer": optimizer.state_dict(), "rng": rng_state()}
        weights = {MODEL: autoencoder.state_dict()}
        if average is not None:
            weights[AVERAGE] = average.weights
        if adversary is not None:
            weights[DISCRIMINATOR] = adversary.net.state_dict()
            self._state["adversary"] = adversary.state()
        self._parts = AtomicFolder(folder)
        # By way of memory: the writers of both formats do not report a full disk as an OSError.
        for name, tensors in weights.items():
            self._parts.add(name, safetensors.torch.save(_cpu(tensors)))
        self._add_state()

    def _add_state(self) -> None:
        content = io.BytesIO()
        torch.save(self._state, content)
        self._parts.add(TRAINING, content.getvalue())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._parts.__exit__(*exception)

    def finish(self, report: EvalReport, collapse_signs: dict[str, float]) -> None:
        """Add what the evaluation found. Afterwards the checkpoint is there, on the disk itself.

        Raises:
            OSError: it could not be written.
        """
        random = rng_state()
        if not same_state(self._state["rng"], random):  # a user's own model may draw in an evaluation
            self._state["rng"] = random
            self._add_state()
        content = {"report": asdict(report), "vitals": collapse_signs, "spec": self._spec.model_dump(mode="json")}
        self._parts.add(REPORT, json.dumps(content).encode())
        self._parts.complete(HASHES)


def save_checkpoint(
    folder: Path,
    report: EvalReport,
    spec: FinetuneSpec,
    autoencoder: Autoencoder,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    collapse_signs: dict[str, float],
    *,
    adversary: Adversary | None = None,
) -> None:
    """Write a checkpoint of what has been evaluated already.

    Raises:
        OSError: it could not be written; nothing half-written stays.
    """
    with CheckpointWriter(folder, spec, autoencoder, optimizer, average, adversary=adversary) as saving:
        saving.finish(report, collapse_signs)


def load_checkpoint(
    folder: Path,
    spec: FinetuneSpec,
    autoencoder: Autoencoder,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    *,
    adversary: Adversary | None = None,
) -> tuple[EvalReport, dict[str, float]]:
    """Restore the full state in place; returns the report and the vital signs that were saved with it.

    Raises:
        FtaeError: the checkpoint is of another configuration, or by another version of ftae.
    """
    report, collapse_signs, content = _read_report(folder)
    saved = stored(FinetuneSpec, content, f"the checkpoint {folder}")  # with what an older ftae did not know of
    _same_run(saved.model_dump(mode="json"), spec.model_dump(mode="json"), folder)
    autoencoder.load_state_dict(_read_weights(folder / MODEL))
    if average is not None:
        average.load(_read_weights(folder / AVERAGE))
    training = torch.load(folder / TRAINING, weights_only=True, map_location="cpu")
    optimizer.load_state_dict(training["optimizer"])
    if adversary is not None:
        adversary.load(_read_weights(folder / DISCRIMINATOR), training["adversary"])
    set_rng_state(training["rng"])
    return report, collapse_signs


def _read_report(folder: Path) -> tuple[EvalReport, dict[str, float], dict[str, Any]]:
    """The report of a checkpoint, its vital signs, and the run that made it."""
    try:
        content = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        saved, collapse_signs = dict(content["spec"]), dict(content["vitals"])
        return EvalReport(**content["report"]), collapse_signs, saved
    except (ValueError, KeyError, TypeError) as error:
        raise FtaeError(
            f"the checkpoint {folder} is damaged, or by another version of ftae: {REPORT} describes no run"
        ) from error


def read_spec(folder: Path) -> FinetuneSpec | None:
    """The run that made the checkpoint ``folder``; None if it is no checkpoint.

    Raises:
        FtaeError: it is one of another version of ftae, or damaged.
    """
    if not (folder / REPORT).is_file():
        return None
    *_, saved = _read_report(folder)
    return stored(FinetuneSpec, saved, f"the checkpoint {folder}")


def evaluated_weights(folder: Path) -> dict[str, Tensor]:
    """The weights the checkpoint's metrics were measured with: averaged where there is an average.

    Raises:
        FtaeError: the checkpoint is damaged.
    """
    if wrong := damage(folder):
        raise FtaeError(f"the checkpoint {folder} is damaged: {wrong}")
    weights = _read_weights(folder / MODEL)
    if (folder / AVERAGE).is_file():
        weights |= _read_weights(folder / AVERAGE)
    return weights


def _read_weights(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise FtaeError(f"the weights cannot be read: {error}") from error


def latest_checkpoint(run_folder: Path) -> Path | None:
    """The newest checkpoint of a run, or None."""
    return next(iter(_newest_first(run_folder)), None)


def usable_checkpoint(run_folder: Path, notify: Callable[[str], None]) -> Path | None:
    """The newest checkpoint of a run that is not damaged, or None; ``notify`` is told of each that is."""
    for folder in _newest_first(run_folder):
        if not (wrong := damage(folder)):
            return folder
        notify(f"the checkpoint {folder} is damaged ({wrong}); going back to the one before it")
    return None


def damage(folder: Path) -> str | None:
    """What is wrong with the files of a checkpoint, by the hashes taken when they were written; None if nothing."""
    try:
        hashes: Any = json.loads((folder / HASHES).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"{HASHES} is missing"
    except (ValueError, RecursionError) as error:
        return f"{HASHES}: {error}"
    if not isinstance(hashes, dict) or not {MODEL, TRAINING, REPORT} <= hashes.keys():
        return f"{HASHES} lacks a file"
    for name, expected in hashes.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if _sha256(folder / name) != expected:
            return f"{name} is not what was written"
    return None


def remove_older_checkpoints(newest: Path) -> None:
    """Leave ``newest``, the last written, and the one before it; what a killed process had half-written goes too."""
    # A run that began again in this folder must not be resumed from its predecessor's later steps.
    kept = [folder for folder in _newest_first(newest.parent.parent) if folder.name <= newest.name][:KEPT]
    stale = [folder for folder in newest.parent.glob("step-*") if folder not in kept]
    for folder in [*stale, *newest.parent.glob(".step-*.tmp"), *newest.parent.glob(f".step-*{ASIDE}")]:
        shutil.rmtree(folder, ignore_errors=True)


def _newest_first(run_folder: Path) -> list[Path]:
    put_back(run_folder / CHECKPOINTS, "step-*")
    return sorted((run_folder / CHECKPOINTS).glob("step-*"), reverse=True)


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _same_run(saved: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    keys = [key for key in (wanted | saved) if key not in MAY_DIFFER]
    differing = [key for key in keys if key not in saved or key not in wanted or saved[key] != wanted[key]]
    batches = ("batch_size", "grad_accumulation")
    has_both = all(isinstance(saved.get(key), int) for key in batches)
    if has_both and math.prod(saved[key] for key in batches) == math.prod(wanted[key] for key in batches):
        differing = [key for key in differing if key not in batches]  # the same images a step
    if differing:
        raise FtaeError(
            f"{folder} belongs to another configuration: {', '.join(differing)} differ. "
            "Resume with the settings it was made with, or train into another folder"
        )


def _cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous, on the CPU, no two in the same memory; copies only where that takes some."""
    found: dict[str, Tensor] = {}
    memory: set[int] = set()
    for name, tensor in tensors.items():
        here = tensor.detach().cpu().contiguous()
        found[name] = here.clone() if here.untyped_storage().data_ptr() in memory else here
        memory.add(here.untyped_storage().data_ptr())
    return found
