"""Where the results of a search come from: data, weights, versions, commit.

Written into the journal as ``facts`` whenever a driver opens the search, and from there into every export.
"""

import getpass
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ftae.engine.data.dataset import Dataset
from ftae.engine.models.pretrained import hub
from ftae.engine.models.pretrained.model_folder import model_digest, weights_digest
from ftae.results.search_record import SearchRecord
from ftae.results.stored_spec import search_of
from ftae.specs.finetune.models import DiffusersModel
from ftae.specs.reading.base import Spec
from ftae.specs.search.distributions import Choices
from ftae.specs.search.search import ProductionSpec, SearchSpec

PACKAGES = ("ftae", "torch", "torchvision", "diffusers", "ray", "optuna", "mlflow")
PRETRAINED = "model.pretrained"
DEFAULT_MAY_DIFFER = ("sampler", "scheduler")  # between versions of ftae

# Must be the same in all trials of a search, or they cannot be compared.
SAME_FOR_ALL = ("dataset_fingerprint", "pretrained_digest", "perceptual_digest", "features_digest")


def provenance(spec: SearchSpec | ProductionSpec, data: Dataset) -> dict[str, Any]:
    """Data, weights, versions and commit, as JSON values."""
    run = spec.finetune
    return {
        "dataset_fingerprint": data.fingerprint,
        "pretrained_digest": model_digest(run.model),
        "perceptual_digest": weights_digest(None if run.perceptual is None else run.perceptual.weights),
        "features_digest": weights_digest(None if run.features is None else run.features.weights),
        "levels": data.train.levels,
        "skipped_images": list(data.skipped),
        "images": {"train": len(data.train), "val": len(data.val)},
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "git_commit": _git_commit(),
    }


def as_begun(spec: SearchSpec, before: SearchRecord | None) -> SearchSpec:
    """``spec`` with the defaults under which the search to resume began, where the file leaves a choice to ftae.

    Another version may have had another sampler, scheduler or number of evaluations by default. A mixture of both would
    be neither.
    """
    if before is None:
        return spec
    begun = search_of(before)
    settings = {name: getattr(begun.search, name) for name in DEFAULT_MAY_DIFFER if _is_open(spec.search, name)}
    spec = spec.model_copy(update={"search": spec.search.model_copy(update=settings)})
    if not _is_open(spec.finetune, "num_evals"):
        return spec
    run = spec.finetune.model_copy(update={"num_evals": begun.finetune.num_evals})
    return spec.model_copy(update={"finetune": run})


def _is_open(section: Spec, name: str) -> bool:
    """Whether the file says nothing about a setting."""
    return name not in section.model_fields_set


def pinned(spec: SearchSpec, before: SearchRecord | None) -> SearchSpec:
    """``spec`` with the commits of its models on the hub, so that all trials begin with the same weights.

    ``before``: the search to resume, which keeps its commits. Raises as ``hub.pinned_id``.
    """
    searched, earlier = spec.search_space.get(PRETRAINED), [] if before is None else _models(before.search)
    spec = spec.model_copy(update={"finetune": hub.pinned(spec.finetune, earlier)})
    if not isinstance(searched, Choices) or not isinstance(spec.finetune.model, DiffusersModel):
        return spec
    choices = Choices(choices=tuple(hub.pinned_id(str(choice), earlier) for choice in searched.choices))
    return spec.model_copy(update={"search_space": spec.search_space | {PRETRAINED: choices}})


def _models(search: Mapping[str, Any]) -> list[str]:
    return [
        search["finetune"]["model"].get("pretrained"),
        *search["search_space"].get(PRETRAINED, {}).get("choices", ()),
    ]


def current_user() -> str | None:
    """Who runs this process; None for a user without a name, as containers have them."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of the current folder, with ``-dirty`` if files have changed; None outside a repository."""
    git = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
