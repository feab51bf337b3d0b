"""What the preflight does in worker processes: look at a node, and try a step. Says what is wrong, never raises it."""

import platform
from dataclasses import dataclass
from typing import Any

from ftae.engine.data import load_dataset
from ftae.engine.parallel import Group
from ftae.engine.probe import Probe, probe
from ftae.errors import FtaeError, TrainingFailed
from ftae.specs.finetune import FinetuneSpec
from ftae.specs.search import SearchSpec
from ftae.storage import open_store

WHAT_TO_DO = {
    "out of memory": "lower finetune.batch_size (grad_accumulation keeps the images of a step), set "
    "finetune.precision to bf16, or let fewer trials share a GPU (search.resources.gpus)",
    "non-finite loss": "lower finetune.optimizer.lr, or set finetune.precision to fp32",
    "non-finite gradient": "lower finetune.optimizer.lr, set finetune.max_grad_norm, or finetune.precision to fp32",
}


@dataclass(frozen=True)
class Look:
    """What is wrong with the storage and the images as one node sees them; None where nothing is."""

    storage: str | None
    images: str | None


def look(search: dict[str, Any], fingerprint: str, token: str, below: str) -> Look:
    """Find ``token`` in the storage, leave it at ``below`` too, and load the images, which also caches them here."""
    spec = SearchSpec.model_validate(search)
    return Look(_look_at_storage(spec, token, below), _look_at_images(spec, fingerprint))


def _look_at_storage(spec: SearchSpec, token: str, below: str) -> str | None:
    try:
        store = open_store(spec.search.storage, spec.name, "worker")
        # Nothing is written where another disk than the driver's would take it.
        if store.read(token) is None:
            return "does not see what the driver wrote there"
        store.write(below, token.encode())
    except (FtaeError, OSError) as error:
        return str(error)
    return None


def _look_at_images(spec: SearchSpec, fingerprint: str) -> str | None:
    try:
        load_dataset(_trial(spec, fingerprint).data)
    except (FtaeError, OSError) as error:
        return str(error)
    return None


def try_step(search: dict[str, Any], fingerprint: str) -> Probe | str:
    """Measure the file's own configuration as one of a trial's workers runs it; or say why it cannot be run."""
    spec = SearchSpec.model_validate(search)
    try:
        return probe(_trial(spec, fingerprint), Group(size=spec.search.resources.workers))
    except TrainingFailed as failure:
        return f"on {platform.node()}: {failure}; {WHAT_TO_DO[failure.reason]}"
    except (FtaeError, OSError) as error:
        return f"on {platform.node()}: {error}"


def _trial(spec: SearchSpec, fingerprint: str) -> FinetuneSpec:
    """The file's own configuration, as a trial gets it."""
    run = spec.trial_spec({})
    return run.model_copy(update={"data": run.data.model_copy(update={"fingerprint": fingerprint})})
