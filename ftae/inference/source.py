"""Which model a command means: a folder, a trial of a search, or the untuned model that one of them began with."""

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
from ftae.results.export import chosen_trial
from ftae.results.replay import replay
from ftae.results.search_record import run_of, search_of
from ftae.results.summary import find_search
from ftae.specs.files import load_any, load_production
from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.reading.overrides import apply_overrides
from ftae.specs.reading.problems import dotted, problems
from ftae.specs.reading.roles import AfterTraining, fields_with
from ftae.specs.reading.yaml_file import read_value
from ftae.storage.journal import FILE_NAME
from ftae.storage.store import Store, searches_in

PRODUCTION, MODEL = "production.yaml", "model"

SETTABLE = fields_with(FinetuneSpec, AfterTraining)


@dataclass(frozen=True)
class ModelSource:
    """A model, before it is loaded.

    ``spec``: the run that made it. ``weights``: a checkpoint, or a folder that ``export_model`` wrote; None for
    the model as ``spec.model`` gives it. ``told``: what it is, in a few words.
    """

    spec: FinetuneSpec
    weights: Path | None
    told: str


def find_model(
    name: str, storage: str, *, trial: int | None = None, baseline: bool = False, notify: Callable[[str], None]
) -> ModelSource:
    """The model that ``name`` names.

    That is a folder that ``ftae export`` or ``ftae train`` wrote, a checkpoint, or a search: its folder, or its
    name below ``storage``. Of a search it is ``trial``, by default the best. ``baseline``: the model as it was
    before that, for which ``name`` may also be a search or production file. ``notify`` is told of checkpoints
    that are damaged.

    Raises:
        FtaeError: there is no such model; the message names the choices.
    """
    path = Path(name).expanduser()
    if trial is not None and baseline:
        raise FtaeError("--trial and --baseline name two models; give one of them")
    if (store := _search(name, path, storage)) is not None:
        return _of_search(store, trial, baseline)
    found = _of_path(path, baseline, notify)
    if found is None:
        raise FtaeError(f"{name!r} names no model; {_choices(storage)}")
    if trial is not None:
        raise FtaeError(f"--trial {trial} is for a search; {name} is one model ({found.told})")
    return found if not baseline else ModelSource(found.spec, None, f"the untuned model of {name}")


def with_settings(source: ModelSource, texts: Sequence[str]) -> ModelSource:
    """``source`` with the ``path=value`` of ``--set`` in its run.

    Raises:
        FtaeError: it is none of ``SETTABLE``, or not valid.
    """
    values: dict[str, Any] = {}
    for text in texts:
        path, equals, value = text.partition("=")
        path = path.removeprefix("finetune.")
        if not equals or path.partition(".")[0] not in SETTABLE:
            raise FtaeError(
                f"--set {text}: must be path=value with a path in {', '.join(SETTABLE)}: "
                "the rest of a run has no effect on a model that is trained"
            )
        try:
            values[path] = read_value(value)
        except yaml.YAMLError as error:
            raise FtaeError(f"--set {text}: the value is not valid YAML") from error
    if any(path.startswith("data.") for path in values):
        values.setdefault("data.fingerprint", None)  # they are other images
    if values.get("device") == "cuda" and not torch.cuda.is_available():  # a run's own falls back to the CPU
        raise FtaeError("--set device=cuda: cuda is asked for, but torch sees no GPU here; leave it out, or set cpu")
    return ModelSource(changed(source.spec, values), source.weights, source.told)


def changed(spec: FinetuneSpec, values: Mapping[str, Any]) -> FinetuneSpec:
    """``spec`` with some leaves replaced.

    Raises:
        SpecError: with every problem of the result.
    """
    try:
        return apply_overrides(spec, values)
    except ValidationError as error:
        lines = [f"{dotted(location)}: {rule}" for location, rule in problems(FinetuneSpec, error)]
        raise SpecError(lines) from error


def _search(name: str, path: Path, storage: str) -> Store | None:
    if path.exists() and not (path / FILE_NAME).is_file():
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
    """The run on the images that the search began with."""
    data = spec.data.model_copy(update={"fingerprint": facts.get("dataset_fingerprint")})
    return spec.model_copy(update={"data": data})


def _of_path(path: Path, baseline: bool, notify: Callable[[str], None]) -> ModelSource | None:
    if path.is_file():
        if not baseline:
            raise FtaeError(
                f"{path} is a file, which describes a model but holds none: --baseline takes the untuned model it "
                "begins with; else name a search, or a folder that ftae export or ftae train wrote"
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
        raise FtaeError(f"{path} holds a run that has no checkpoint yet; go on with it, or name another folder")
    return ModelSource(load_production(path / PRODUCTION).finetune, path / MODEL, str(path))


def _choices(storage: str) -> str:
    searches = searches_in(storage)
    files = [file for parent in ("exports", "runs") for file in sorted(Path(parent).glob(f"*/{PRODUCTION}"))]
    folders = [str(file.parent) for file in files]
    here = f"here are {', '.join(folders)}" if folders else "there is none here in exports or runs"
    there = f"holds {', '.join(searches)}" if searches else "holds none"
    return (
        f"name a folder that ftae export or ftae train wrote ({here}), a checkpoint folder, "
        f"or a search ({storage} {there})"
    )
