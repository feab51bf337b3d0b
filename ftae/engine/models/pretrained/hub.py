"""Models on the Hugging Face hub: pinned to a commit, and fetched into the cache of the hub on this disk."""

import logging
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ftae.engine.models.pretrained.model_folder import (
    DIFFUSERS_CONFIG,
    PIPELINE,
    HubId,
    diffusers_weights,
    hub_id,
    looks_local,
)
from ftae.engine.process import first_line, quiet_libraries
from ftae.errors import FtaeError
from ftae.specs.finetune.models import DiffusersModel
from ftae.specs.finetune.run import FinetuneSpec

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo


logger = logging.getLogger(__name__)

SECONDS = 10.0  # timeout of a request to the hub


def pinned(run: FinetuneSpec, earlier: Iterable[str | None] = ()) -> FinetuneSpec:
    """``run`` with the commit of its model on the hub, so that everybody who loads the model gets the same weights.

    ``earlier``: the models that earlier runs were pinned to. Raises as ``pinned_id``.
    """
    if not isinstance(run.model, DiffusersModel):
        return run
    model = run.model.model_copy(update={"pretrained": pinned_id(run.model.pretrained, earlier)})
    return run.model_copy(update={"model": model})


def pinned_id(pretrained: str, earlier: Iterable[str | None] = ()) -> str:
    """``owner/name@commit`` for a model on the hub; any other ``pretrained`` unchanged.

    ``earlier``: ids that were pinned before. Where ``pretrained`` names no revision, the first of the same repository
    is taken.

    Raises:
        FtaeError: the hub does not have the model, or it can be neither reached nor replaced by the cache.
    """
    wanted = hub_id(pretrained)
    if wanted is None or wanted.commit or looks_local(pretrained):
        return pretrained  # if this is no model at all, loading it raises
    known = [name for name in earlier if name is not None and name.startswith(f"{wanted.repository}@")]
    if wanted.revision is None and known:
        return known[0]
    try:
        _info(wanted)
        folder = _snapshot(wanted, DIFFUSERS_CONFIG)  # with a file, the cache knows the revision without the hub
    except Exception as error:  # the network, the hub
        if (cached := _cached(wanted)) is None:
            raise _unreachable(pretrained, error) from error
        folder = cached
    return f"{wanted.repository}@{folder.name}"


def fetched(wanted: HubId, pretrained: str, subfolder: str | None) -> Path:
    """The folder on this disk with the repository of the model; files that loading reads are fetched if missing.

    ``pretrained``: the model as the spec names it, for messages. Raises as ``pinned_id``.
    """
    cached = _cached(wanted)
    found = None if cached is None else _weights_in(cached / (subfolder or ""))
    if cached is not None and wanted.commit and found == (None, "safetensors"):
        return cached  # nothing else on the hub would be preferred
    if found is None:
        logger.warning("fetching %s from the hub", pretrained)
    try:
        names = [file.rfilename for file in _info(wanted).siblings or ()]
        return _snapshot(wanted, _files_to_read(names, subfolder))
    except Exception as error:  # the network, the hub, the disk
        if cached is not None and found is not None:
            return cached
        raise _unreachable(pretrained, error) from error


def _info(wanted: HubId) -> "ModelInfo":
    from huggingface_hub import HfApi

    with quiet_libraries():
        return HfApi().model_info(wanted.repository, revision=wanted.revision, timeout=SECONDS)


def _snapshot(wanted: HubId, names: str | list[str], *, cached: bool = False) -> Path:
    """The cache folder of a revision, named by its commit, with at least the files of these names in it."""
    from huggingface_hub import snapshot_download

    with quiet_libraries():
        folder = snapshot_download(
            wanted.repository, revision=wanted.revision, allow_patterns=names, local_files_only=cached
        )
    return Path(folder)


def _cached(wanted: HubId) -> Path | None:
    """The cache folder of a revision, which may lack files; None where the cache has nothing of it."""
    with suppress(Exception):  # nothing is cached, or the cache cannot be read
        return _snapshot(wanted, DIFFUSERS_CONFIG, cached=True)
    return None


def _weights_in(folder: Path) -> tuple[str | None, str] | None:
    """The variant and format that loading a folder would choose; None if the model is incomplete."""
    names = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    sets = diffusers_weights(names)
    is_complete = DIFFUSERS_CONFIG in names and sets and not sets[0].absent_shards
    return (sets[0].variant, sets[0].format) if is_complete else None


def _files_to_read(names: list[str], subfolder: str | None) -> list[str]:
    """The configuration and one set of weights; for a whole pipeline, the configurations of its parts."""
    here = PurePosixPath(subfolder or ".")
    inside = [PurePosixPath(name).name for name in names if PurePosixPath(name).parent == here]
    if DIFFUSERS_CONFIG not in inside:
        return [PIPELINE, *(name for name in names if PurePosixPath(name).name == DIFFUSERS_CONFIG)]
    sets = diffusers_weights(inside)
    return [str(here / name) for name in (DIFFUSERS_CONFIG, *(sets[0].names if sets else ()))]


def _unreachable(pretrained: str, error: Exception) -> FtaeError:
    from huggingface_hub import errors

    reasons: list[tuple[type[Exception], str]] = [
        (errors.GatedRepoError, "it is gated: accept its terms on the hub, and set HF_TOKEN"),
        (errors.RepositoryNotFoundError, "the hub has no such model, or it is private and HF_TOKEN is not set"),
        (errors.RevisionNotFoundError, "the hub has the model, but no such revision"),
        (errors.OfflineModeIsEnabled, "HF_HUB_OFFLINE is set, and it is not in the cache"),
    ]
    reason = next((words for kind, words in reasons if isinstance(error, kind)), first_line(error))
    return FtaeError(
        f"model.pretrained: there is no folder {pretrained!r} here, and as a hub id it could not be fetched: {reason}"
    )
