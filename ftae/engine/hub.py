"""Models on the Hugging Face hub: pinned to a commit, fetched into the hub's own cache on this disk."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ftae.engine.model_files import DIFFUSERS_CONFIG, PIPELINE, HubId, diffusers_weights, hub_id
from ftae.errors import FtaeError
from ftae.specs.models import AnyModel, DiffusersModel

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

SECONDS = 10.0  # that the hub may take to answer


def pinned(model: AnyModel, before: AnyModel | None = None) -> AnyModel:
    """``model`` with its commit on the hub, so that whatever loads it gets the same weights; others as they are.

    ``before``: the model of the run to go on with. Where it is the same, so is its commit.

    Raises:
        FtaeError: the hub does not have it, or cannot be reached while it is not in the cache.
    """
    if not isinstance(model, DiffusersModel):
        return model
    earlier = [before.pretrained] if isinstance(before, DiffusersModel) else []
    return model.model_copy(update={"pretrained": pinned_id(model.pretrained, earlier)})


def pinned_id(pretrained: str, earlier: Iterable[str] = ()) -> str:
    """``owner/name@commit`` for a model of the hub; anything else as it is.

    ``earlier``: names that were pinned before; one of the same repository counts where ``pretrained`` asks for no
    revision. Raises as ``pinned``.
    """
    wanted = hub_id(pretrained)
    if wanted is None or wanted.commit or Path(wanted.repository.partition("/")[0]).is_dir():
        return pretrained  # where it is no model at all, loading it says why
    if wanted.revision is None and (known := [e for e in earlier if e.partition("@")[0] == wanted.repository]):
        return known[0]
    try:
        commit = _info(wanted).sha
    except Exception as error:
        if (cached := _cached(wanted)) is None:
            raise _unreachable(pretrained, error) from error
        commit = cached.name
    return f"{wanted.repository}@{commit}"


def fetched(wanted: HubId, pretrained: str, subfolder: str | None) -> Path:
    """The folder of this disk that holds the model's repository: what of it is read, fetched if it is not there.

    ``pretrained``: as the file names it, for messages. Raises as ``pinned``.
    """
    from huggingface_hub import snapshot_download

    from ftae.engine.quiet_libraries import quiet_libraries

    cached = _cached(wanted)
    if cached is not None and wanted.commit and _is_whole(cached / (subfolder or "")):
        return cached
    try:
        with quiet_libraries():
            info = _info(wanted)
            names = _files_to_read([file.rfilename for file in info.siblings or ()], subfolder)
            return Path(snapshot_download(wanted.repository, revision=info.sha, allow_patterns=names))
    except Exception as error:  # of the network, of the hub, of the disk
        if cached is not None and _is_whole(cached / (subfolder or "")):
            return cached
        raise _unreachable(pretrained, error) from error


def _info(wanted: HubId) -> "ModelInfo":
    from huggingface_hub import HfApi

    from ftae.engine.quiet_libraries import quiet_libraries

    with quiet_libraries():
        return HfApi().model_info(wanted.repository, revision=wanted.revision, timeout=SECONDS)


def _cached(wanted: HubId) -> Path | None:
    """What the cache holds of a revision, maybe not all of it: a folder whose name is the commit."""
    from huggingface_hub import snapshot_download

    with suppress(Exception):  # it holds nothing, or cannot be read
        return Path(
            snapshot_download(
                wanted.repository, revision=wanted.revision, local_files_only=True, allow_patterns=DIFFUSERS_CONFIG
            )
        )
    return None


def _is_whole(folder: Path) -> bool:
    names = {file.name for file in folder.iterdir() if file.is_file()} if folder.is_dir() else set()
    sets = diffusers_weights(names)
    return DIFFUSERS_CONFIG in names and bool(sets) and not sets[0].absent_shards


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

    from ftae.engine.weights_file import first_line

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
