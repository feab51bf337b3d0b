"""Where a run comes from, as MLflow's pages show it: who ran which command, on which commit, with which data."""

import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from ftae.specs.reading.names import redacted
from ftae.storage.journal import Event

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

LONGEST_DIGEST = 36  # of a data set, in MLflow's tables
COMMANDS = {"search": "ftae search", "production": "ftae train"}


def origin_tags(opened: Event) -> dict[str, str]:
    """The tags for command, user and commit, of an ``open`` event."""
    commit, _, dirty = str(opened.get("facts", {}).get("git_commit") or "").partition("-")
    tags = {
        "mlflow.source.name": COMMANDS[opened.get("kind", "search")],
        "mlflow.source.type": "LOCAL",
        "mlflow.user": opened.get("user"),
        "mlflow.source.git.commit": commit,
        "mlflow.source.git.dirty": "true" if dirty else None,
    }
    return {key: str(value) for key, value in tags.items() if value}


def dataset_input(opened: Event) -> "DatasetInput | None":
    """The data of an ``open`` event, with their digest and their numbers of images; None where no digest is known."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    facts, data = opened.get("facts", {}), opened["search"]["finetune"].get("data") or {}
    if not facts.get("dataset_fingerprint"):
        return None
    dataset = Dataset(
        name=_name(data),
        digest=facts["dataset_fingerprint"][:LONGEST_DIGEST],
        source_type=str(data.get("source") or "images"),
        source=redacted(json.dumps({key: value for key, value in data.items() if value not in (None, [], False)})),
        profile=json.dumps(facts.get("images") or {}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


def _name(data: Mapping[str, Any]) -> str:
    """The last two folders of the training images, such as ``cifar10/train``; the source without a folder."""
    train = data.get("train")
    return "/".join(PurePath(train).parts[-2:]) if isinstance(train, str) else str(data.get("source") or "images")
