"""Finds the model that a name stands for: a folder, a trial of a search, or the untuned model behind either."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError

from ftae.engine.run_folder import CHECKPOINTS
from ftae.engine.training.checkpoint import damage, read_spec, usable_checkpoint
from ftae.errors import FtaeError, SpecError
from ftae.results.export import MODEL, PRODUCTION, chosen_trial
from ftae.results.replay import replay
from ftae.results.stored_spec import run_of, search_of
from ftae.results.summary import find_search
from ftae.specs.files import load_any, load_production
from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.reading.overrides import apply_overrides
from ftae.specs.reading.problems import dotted, problems
from ftae.specs.reading.schema import AfterTraining, fields_with
from ftae.specs.reading.yaml_file import read_value
from ftae.storage.journal import FILE_NAME
from ftae.storage.store import Store, searches_in

SETTABLE = fields_with(FinetuneSpec, AfterTraining)


@dataclass(frozen=True)
class ModelSource:
    """A model before it is loaded.

    Attributes:
        spec: the fine-tuning run that made the model.
        weights: a checkpoint or the folder of an exported model; None for the untuned model of ``spec.model``.
        description: a few words for messages, such as ``trial 3 of small``.
    """

    spec: FinetuneSpec
    weights: Path | None
    description: str


def find_model(
    name: str, storage: str, *, trial: int | None = None, baseline: bool = False, notify: Callable[[str], None]
) -> ModelSource:
    """Find the model that ``name`` stands for.

    Args:
        name: a folder written by ``ftae export`` or ``ftae train``, a checkpoint, the folder of a search, or the name
            of a search below ``storage``. With ``baseline`` also a search or production file.
        storage: the folder or object store that holds the searches.
        trial: the number of a trial, for a search; the best trial by default.
        baseline: take the untuned model that the run or search started from.
        notify: receives one line for each damaged checkpoint that is passed over.

    Raises:
        FtaeError: there is no such model; the message lists the choices.
    """
    path = Path(name).expanduser()
    if trial is not None and baseline:
        raise FtaeError("trial and baseline name two different models; give one of them")
    if (store := _search(name, path, storage)) is not None:
        return _of_search(store, trial, baseline)
    found = _of_path(path, baseline, notify)
    if found is None:
        raise FtaeError(f"there is no model {name!r}; {_choices(storage)}")
    if trial is not None:
        raise FtaeError(f"trial {trial} can only be chosen from a search; {name} is one model ({found.description})")
    return found if not baseline else ModelSource(found.spec, None, f"the untuned model of {name}")


def with_settings(source: ModelSource, texts: Sequence[str]) -> ModelSource:
    """Apply ``path=value`` overrides to the spec of ``source``.

    Raises:
        FtaeError: a path is outside ``SETTABLE``, or the result is not valid.
    """
    values: dict[str, Any] = {}
    for text in texts:
        path, equals, value = text.partition("=")
        path = path.removeprefix("finetune.")
        if not equals or path.partition(".")[0] not in SETTABLE:
            raise FtaeError(
                f"--set {text}: must be path=value with a path in {', '.join(SETTABLE)}; "
                "no other setting has an effect on a trained model"
            )
        try:
            values[path] = read_value(value)
        except yaml.YAMLError as error:
            raise FtaeError(f"--set {text}: the value is not valid YAML") from error
    if any(path.startswith("data.") for path in values):
        values.setdefault("data.fingerprint", None)  # other data settings give other images
    # The run's own device falls back to the CPU; a device that the user names does not.
    if values.get("device") == "cuda" and not torch.cuda.is_available():
        raise FtaeError("--set device=cuda: torch finds no GPU on this machine; leave the setting out, or use cpu")
    return ModelSource(changed(source.spec, values), source.weights, source.description)


def changed(spec: FinetuneSpec, values: Mapping[str, Any]) -> FinetuneSpec:
    """Replace the leaves of ``spec`` that ``values`` names by their dotted paths.

    Raises:
        SpecError: the result is not valid; lists every problem.
    """
    try:
        return apply_overrides(spec, values)
    except ValidationError as error:
        lines = [f"{dotted(location)}: {rule}" for location, rule in problems(FinetuneSpec, error)]
        raise SpecError(lines) from error


def _search(name: str, path: Path, storage: str) -> Store | None:
    # A production run has a journal, too, but its folder is one model.
    if path.exists() and (not (path / FILE_NAME).is_file() or (path / PRODUCTION).is_file()):
        return None
    if not path.exists() and ("/" in name or name not in searches_in(storage)):
        return None
    return find_search(name, storage)


def _of_search(store: Store, number: int | None, baseline: bool) -> ModelSource:
    record = replay(store.folder)
    search = search_of(record)
    if baseline or number == 0:
        return ModelSource(_pinned(search.trial_spec({}), record.facts), None, f"the untuned model of {search.name}")
    trial = chosen_trial(record, store, number)
    assert trial.checkpoint is not None
    spec = _pinned(run_of(record, trial), record.facts)
    return ModelSource(spec, store.fetch(trial.checkpoint), f"trial {trial.number} of {search.name}")


def _pinned(spec: FinetuneSpec, facts: Mapping[str, Any]) -> FinetuneSpec:
    """Pin the run to the images that the search started with."""
    data = spec.data.model_copy(update={"fingerprint": facts.get("dataset_fingerprint")})
    return spec.model_copy(update={"data": data})


def _of_path(path: Path, baseline: bool, notify: Callable[[str], None]) -> ModelSource | None:
    if path.is_file():
        if not baseline:
            raise FtaeError(
                f"{path} is a file: it describes a model but contains no weights. Use --baseline for the untuned "
                "model, or name a search, or a folder written by ftae export or ftae train"
            )
        return ModelSource(load_any(path).finetune.with_absolute_paths(), None, str(path))
    if (spec := read_spec(path)) is not None:
        if (wrong := damage(path)) and not baseline:
            raise FtaeError(f"the checkpoint {path} is damaged: {wrong}")
        return ModelSource(spec, path, f"the checkpoint {path}")
    if (path / CHECKPOINTS).is_dir() and (checkpoint := usable_checkpoint(path, notify)) is not None:
        spec = read_spec(checkpoint)
        assert spec is not None
        return ModelSource(spec, checkpoint, f"{path} at {checkpoint.name}")
    if not (path / PRODUCTION).is_file():
        return None
    if not (path / MODEL).is_dir() and not baseline:
        raise FtaeError(f"the run in {path} has no checkpoint yet; continue it, or name another folder")
    return ModelSource(load_production(path / PRODUCTION).finetune, path / MODEL, str(path))


def _choices(storage: str) -> str:
    searches = searches_in(storage)
    files = [file for parent in ("exports", "runs") for file in sorted(Path(parent).glob(f"*/{PRODUCTION}"))]
    folders = [str(file.parent) for file in files]
    here = f"found here: {', '.join(folders)}" if folders else "none found in exports or runs"
    there = f"found in {storage}: {', '.join(searches)}" if searches else f"none found in {storage}"
    return f"name a folder written by ftae export or ftae train ({here}), a checkpoint folder, or a search ({there})"
