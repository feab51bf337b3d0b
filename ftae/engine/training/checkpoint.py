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

from ftae.engine.process import rng_state, same_state, set_rng_state
from ftae.engine.run_folder import ASIDE, CHECKPOINTS, KEPT, AtomicFolder, put_back
from ftae.engine.tasks import read_state
from ftae.engine.tasks.task import Task
from ftae.errors import FtaeError
from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.reading.format_versions import FORMAT, migrate, stored
from ftae.specs.reading.schema import MayDiffer, fields_with, without_means

MODEL, AVERAGE, TRAINING, REPORT = "model.safetensors", "average.safetensors", "training.pt", "report.json"
HASHES = "sha256.json"  # the hashes of all other files

# A run may be extended beyond its plan; everything else must be as it was.
MAY_DIFFER = fields_with(FinetuneSpec, MayDiffer)


@dataclass(frozen=True)
class EvalReport:
    """The findings of an evaluation; every file that it names is on disk before it is handed out.

    ``metrics``: ``val/<metric>`` and, after step 0, ``train/<term>`` (unweighted, mean since the last report),
    ``train/loss``, ``train/grad_norm`` (before clipping) and ``train/lr``, and what the task measures besides.
    ``timing``: ``time/...`` in seconds, and images per second; the only figures that differ between equal runs.
    ``checkpoint``: None at step 0. Paths are relative to the folder of the run.
    """

    step: int
    metrics: dict[str, float]
    timing: dict[str, float]
    checkpoint: str | None
    images: str


class CheckpointWriter:
    """Writes the state of a run as it is now to ``folder``, while its evaluation goes on.

    The checkpoint has all that training needs to continue as if it had never stopped. As a context, it leaves
    nothing behind unless ``finish`` was called.

    Raises:
        OSError: the folder could not be made.
    """

    def __init__(self, folder: Path, spec: FinetuneSpec, task: Task) -> None:
        self._spec = spec
        optimizers = {network.name: network.optimizer.state_dict() for network in task.networks}
        self._state: dict[str, Any] = {"optimizers": optimizers, "task": task.state(), "rng": rng_state()}
        self._files = AtomicFolder(folder)
        # Serialized in memory: the writers of both formats do not report a full disk as an OSError.
        for network in task.networks:
            for name, tensors in network.tensors().items():
                self._files.add(f"{name}.safetensors", safetensors.torch.save(_on_cpu(tensors)))
        self._add_state()

    def _add_state(self) -> None:
        content = io.BytesIO()
        torch.save(self._state, content)
        self._files.add(TRAINING, content.getvalue())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._files.__exit__(*exception)

    def finish(self, report: EvalReport, collapse_signs: dict[str, float]) -> None:
        """Add the findings of the evaluation. Afterwards the whole checkpoint is on the disk itself.

        Raises:
            OSError: it could not be written.
        """
        rng = rng_state()
        if not same_state(self._state["rng"], rng):  # a user's own model may draw random numbers in an evaluation
            self._state["rng"] = rng
            self._add_state()
        content = {
            "format": FORMAT,
            "report": asdict(report),
            "collapse_signs": collapse_signs,
            "spec": self._spec.model_dump(mode="json"),
        }
        self._files.add(REPORT, json.dumps(content).encode())
        self._files.complete(HASHES)


def load_checkpoint(folder: Path, spec: FinetuneSpec, task: Task) -> tuple[EvalReport, dict[str, float]]:
    """Restore the full state in place; returns the report and the collapse signs that were saved with it.

    Raises:
        FtaeError: the checkpoint belongs to another configuration, or was written by another version of ftae.
    """
    report, collapse_signs, content = _read_report(folder)
    saved = stored(FinetuneSpec, content, f"the checkpoint {folder}")  # with defaults for newer fields
    _check_same_run(saved.model_dump(mode="json"), spec.model_dump(mode="json"), folder)
    state = read_state(torch.load(folder / TRAINING, weights_only=True, map_location="cpu"))
    for network in task.networks:
        network.load(lambda name: _read_weights(folder / f"{name}.safetensors"), state["optimizers"][network.name])
    task.load_state(state["task"])
    set_rng_state(state["rng"])
    return report, collapse_signs


def _read_report(folder: Path) -> tuple[EvalReport, dict[str, float], dict[str, Any]]:
    """The report of a checkpoint, its collapse signs, and the spec of the run that wrote it."""
    try:
        content = migrate(
            dict(json.loads((folder / REPORT).read_text(encoding="utf-8"))), "checkpoint", f"the checkpoint {folder}"
        )
        saved, collapse_signs = dict(content["spec"]), dict(content["collapse_signs"])
        return EvalReport(**content["report"]), collapse_signs, saved
    except (ValueError, KeyError, TypeError) as error:
        raise FtaeError(
            f"the checkpoint {folder} is damaged, or by another version of ftae: {REPORT} describes no run"
        ) from error


def read_spec(folder: Path) -> FinetuneSpec | None:
    """The spec of the run that wrote the checkpoint ``folder``; None if that is no checkpoint.

    Raises:
        FtaeError: the checkpoint was written by another version of ftae, or is damaged.
    """
    if not (folder / REPORT).is_file():
        return None
    *_, saved = _read_report(folder)
    return stored(FinetuneSpec, saved, f"the checkpoint {folder}")


def evaluated_weights(folder: Path) -> dict[str, Tensor]:
    """The weights that the metrics of the checkpoint were measured with: averaged ones, if the run has an average.

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
    """The newest checkpoint of a run that is not damaged, or None; calls ``notify`` once for each damaged one."""
    for folder in _newest_first(run_folder):
        if not (wrong := damage(folder)):
            return folder
        notify(f"the checkpoint {folder} is damaged ({wrong}); going back to the one before it")
    return None


def damage(folder: Path) -> str | None:
    """The first fault in the files of a checkpoint, compared with the hashes taken when they were written, or None."""
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
    """Remove all but ``newest``, the last written, and the one before it, and what killed processes left unfinished."""
    # Later steps belong to an earlier run in this folder: a resume must not continue from them.
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


def _check_same_run(saved: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    saved, wanted = (without_means(FinetuneSpec, run) for run in (saved, wanted))
    keys = [key for key in (wanted | saved) if key not in MAY_DIFFER]
    differing = [key for key in keys if key not in saved or key not in wanted or saved[key] != wanted[key]]
    batches = ("batch_size", "grad_accumulation")
    known = all(isinstance(saved.get(key), int) for key in batches)
    if known and math.prod(saved[key] for key in batches) == math.prod(wanted[key] for key in batches):
        differing = [key for key in differing if key not in batches]  # the same images per step
    if differing:
        raise FtaeError(
            f"{folder} belongs to another configuration: {', '.join(differing)} differ. "
            "Resume with the settings it was made with, or train into another folder"
        )


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU, no two in the same memory; they are copied only where necessary."""
    found: dict[str, Tensor] = {}
    memory: set[int] = set()
    for name, tensor in tensors.items():
        here = tensor.detach().cpu().contiguous()
        found[name] = here.clone() if here.untyped_storage().data_ptr() in memory else here
        memory.add(here.untyped_storage().data_ptr())
    return found
