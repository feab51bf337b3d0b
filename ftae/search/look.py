"""What one node sees of a search's storage and images. Runs on every node, so it imports little."""

from dataclasses import dataclass
from typing import Any

from ftae.engine.data import load_dataset
from ftae.errors import FtaeError
from ftae.specs.search import SearchSpec
from ftae.storage import open_store


@dataclass(frozen=True)
class Look:
    """What is wrong with the storage and with the images; None where nothing is."""

    storage: str | None
    images: str | None


def look(search: dict[str, Any], fingerprint: str, token: str, below: str) -> Look:
    """Find ``token`` in the storage, leave it at ``below`` too, and load the images, which also caches them here."""
    spec = SearchSpec.trusted(search)
    return Look(_storage(spec, token, below), _images(spec, fingerprint))


def _storage(spec: SearchSpec, token: str, below: str) -> str | None:
    try:
        store = open_store(spec.search.storage, spec.name, "worker")
        # Nothing is written where another disk than the driver's would take it.
        if store.read(token) is None:
            return "does not see what the driver wrote there"
        store.write(below, token.encode())
    except OSError as error:
        return error.strerror or str(error)
    except FtaeError as error:
        return str(error)
    return None


def _images(spec: SearchSpec, fingerprint: str) -> str | None:
    try:
        load_dataset(spec.finetune.data.model_copy(update={"fingerprint": fingerprint}))
    except (FtaeError, OSError) as error:
        return str(error)
    return None
