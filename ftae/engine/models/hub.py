"""Models on the Hugging Face hub: pinned to a commit, fetched into the hub's own cache on this disk."""

import logging
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ftae.engine.models.model_folder import DIFFUSERS_CONFIG, PIPELINE, HubId, diffusers_weights, hub_id, looks_local
from ftae.engine.process import first_line, quiet_libraries
from ftae.errors import FtaeError
from ftae.specs.finetune.models import DiffusersModel
from ftae.specs.finetune.run import FinetuneSpec

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo


logger = logging.getLogger(__name__)

SECONDS = 10.0  # that the hub may take to answer


def pinned(run: FinetuneSpec, earlier: Iterable[str | None] = ()) -> FinetuneSpec:
    """``run`` with the commit of its model on the hub, so that whoever loads it gets the same weights.

    ``earlier``: the models of the run to go on with. Raises as ``pinned_id``.
    """
    if not isinstance(run.model, DiffusersModel):
        return run
    model = run.model.model_copy(update={"pretrained": pinned_id(run.model.pretrained, earlier)})
    return run.model_copy(update={"model": model})


def pinned_id(pretrained: str, earlier: Iterable[str | None] = ()) -> str:
    """``owner/name@commit`` for a model of the hub; anything else as it is.

    ``earlier``: names that were pinned before. One of the same repository counts where ``pretrained`` asks for no
    revision.

    Raises:
        FtaeError: the hub does not have it, or cannot be reached while the cache does not have it either.
    """
    wanted = hub_id(pretrained)
    if wanted is None or wanted.commit or looks_local(pretrained):
        return pretrained  # where it is no model at all, loading it says why
    known = [name for name in earlier if name is not None and name.startswith(f"{wanted.repository}@")]
    if wanted.revision is None and known:
        return known[0]
    try:
        _info(wanted)
        folder = _snapshot(wanted, DIFFUSERS_CONFIG)  # so that the cache knows the revision without the hub, too
    except Exception as error:  # of the network, of the hub
        if (cached := _cached(wanted)) is None:
            raise _unreachable(pretrained, error) from error
        folder = cached
    return f"{wanted.repository}@{folder.name}"


def fetched(wanted: HubId, pretrained: str, subfolder: str | None) -> Path:
    """The folder of this disk that holds the model's repository: what of it is read, fetched if it is not there.

    ``pretrained``: as the file names it, for messages. Raises as ``pinned_id``.
    """
    cached = _cached(wanted)
    there = None if cached is None else _weights_in(cached / (subfolder or ""))
    if cached is not None and wanted.commit and there == (None, "safetensors"):
        return cached  # the first choice, whatever else the hub has
    if there is None:
        logger.warning("fetching %s from the hub", pretrained)
    try:
        names = [file.rfilename for file in _info(wanted).siblings or ()]
        return _snapshot(wanted, _files_to_read(names, subfolder))
    except Exception as error:  # of the network, of the hub, of the disk
        if cached is not None and there is not None:
            return cached
        raise _unreachable(pretrained, error) from error


def _info(wanted: HubId) -> "ModelInfo":
    from huggingface_hub import HfApi

    with quiet_libraries():
        return HfApi().model_info(wanted.repository, revision=wanted.revision, timeout=SECONDS)


def _snapshot(wanted: HubId, names: str | list[str], *, cached: bool = False) -> Path:
    """The folder of a revision in the cache, whose name is the commit, with the files of these names in it."""
    from huggingface_hub import snapshot_download

    with quiet_libraries():
        folder = snapshot_download(
            wanted.repository, revision=wanted.revision, allow_patterns=names, local_files_only=cached
        )
    return Path(folder)


def _cached(wanted: HubId) -> Path | None:
    """What the cache holds of a revision, maybe not all of it."""
    with suppress(Exception):  # it holds nothing, or cannot be read
        return _snapshot(wanted, DIFFUSERS_CONFIG, cached=True)
    return None


def _weights_in(folder: Path) -> tuple[str | None, str] | None:
    """The variant and the format that loading a folder would take; None if a part of the model is not there."""
    names = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    sets = diffusers_weights(names)
    whole = DIFFUSERS_CONFIG in names and sets and not sets[0].absent_shards
    return (sets[0].variant, sets[0].format) if whole else None


def _files_to_read(names: list[str], subfolder: str | None) -> list[str]:
    """The configuration and one set of weights; of a whole pipeline what tells its parts."""
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
