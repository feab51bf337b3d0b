"""The draft of a search: model and data looked at, what fits both, checked as a file would be."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ftae.drafting.data import DataFacts, look_at_data, parsed
from ftae.drafting.document import Entry, document
from ftae.drafting.model import ModelFacts, look_at_model
from ftae.drafting.recipe import recipe
from ftae.drafting.training import Known
from ftae.engine.data.dataset import check_listed
from ftae.engine.data.sources import normal_class_names, num_images
from ftae.engine.models.autoencoder import Autoencoder
from ftae.engine.models.families import build_model
from ftae.engine.process import has_gpu
from ftae.errors import FtaeError
from ftae.specs.finetune.data_spec import Size
from ftae.specs.finetune.models import DiffusersModel
from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.reading.problems import dotted, one_of, problems
from ftae.specs.reading.yaml_file import read_value
from ftae.specs.search.search import SearchSpec

MOST_SIDE = 256  # larger images cost more than a first search should
MOST_HAVE = 0.9  # share of the images that need not be enlarged
TASKS = ("reconstruct", "denoise", "anomaly", "translate", "sample")


@dataclass(frozen=True)
class Draft:
    """A search file that fits a model and data.

    Attributes:
        text: the file, with the reasons as comments.
        spec: what it says.
        notes: what was seen of model and data.
    """

    text: str
    spec: SearchSpec
    notes: tuple[str, ...]


def draft(
    model: str, data: Sequence[str], task: str | None = None, file: str | None = None, scaling: str | None = None
) -> Draft:
    """Look at a model and at data, and draft a search.

    Args:
        model: a folder, a file of weights, a hub id, or the name of a family to train from scratch.
        data: a folder, an archive, a file of arrays, or the name of a built-in source; two folders are A and B.
        task: one of ``TASKS``; None takes what model and data are for.
        file: the file that the text will be in, for the commands in it; by default one named as the search.
        scaling: how the latents of a single file are scaled (see ``look_at_model``).

    Raises:
        FtaeError: one of them is missing or damaged, or they do not fit each other or the task.
    """
    if task is not None and task not in TASKS:
        raise FtaeError(f"task {one_of(TASKS, task)}")
    facts, found = look_at_model(model, scaling), look_at_data(data, task)
    task = task or _usual_task(facts, found)
    _check_task(task, facts, found)
    fields, why = _data_section(facts, found, task)
    spec = parsed(fields)
    train, val = num_images(spec)
    known = Known(facts, spec, task, train, val, normal_class_names(spec) or (), has_gpu())
    text, result = _written(model, data, known, fields, why, file)
    if facts.is_here:
        built = _built(result.finetune, known)
        stages = tuple((stage.name, str(stage.group)) for stage in built.stages)
        known = replace(known, stages=stages, size=sum(weights.numel() for weights in built.parameters()))
        text, result = _written(model, data, known, fields, why, file)
    seen = (f"model: {facts.found}", f"data: {found.found}, {train:,} to train on and {val:,} held out")
    return Draft(text, result, (*seen, *check_listed(result.finetune)))


def _built(run: FinetuneSpec, known: Known) -> Autoencoder:
    try:
        return build_model(run, len(known.classes) or None)
    except FtaeError as error:
        if run.data.of_floats and not isinstance(run.model, DiffusersModel):
            raise FtaeError(f"{error}. Samples of arrays keep their size; mlp_vae takes any") from error
        raise


def _usual_task(model: ModelFacts, data: DataFacts) -> str:
    if model.kind.takes_noise:
        return "sample"
    is_translated = not model.kind.has_latents or data.source in ("pairs", "unpaired", "digit_edges", "digit_domains")
    return "translate" if is_translated else "reconstruct"


def _check_task(task: str, model: ModelFacts, data: DataFacts) -> None:
    family = model.fields["family"]
    if (task == "sample") != model.kind.takes_noise:
        raise FtaeError(
            f"{family} makes images of noise: its task is sample"
            if model.kind.takes_noise
            else f"{family} is no generator: sample is the task of dcgan and stylegan2"
        )
    unpaired = data.source in ("unpaired", "digit_domains")
    if unpaired != model.kind.both_ways:
        raise FtaeError(
            f"{data.source} has images without partners, which cyclegan alone learns from, not {family}"
            if unpaired
            else f"cyclegan translates between two domains without partners, {data.source} has none: name two folders"
        )
    if task == "translate" and not unpaired and data.source not in ("pairs", "digit_edges"):
        raise FtaeError(f"{data.source} has no pairs to translate between: name two folders with the same file names")
    if task == "anomaly" and data.look is not None and len(data.look.classes) < 2:
        raise FtaeError("anomaly needs classes: put normal images and anomalies into sub-folders of the data")


# ---------------------------------------------------------------------------------------------- the data


def _data_section(model: ModelFacts, data: DataFacts, task: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The section ``data``, and its reasons."""
    fields, why = dict(data.fields), dict(data.why)
    fields["resolution"], why["resolution"] = _resolution(model, data)
    if data.source != "arrays":
        _add_color(fields, why, model, data)
    if task == "denoise":
        fields["degrade"] = {"noise": 0.1}
        why["degrade"] = "sigma of the noise, of the range 0 to 1; also blur, jpeg, blocks: as your images are degraded"
    if task == "anomaly":
        classes = normal_class_names(parsed(fields)) or () if data.look is None else data.look.classes
        fields["anomaly_classes"], why["anomaly_classes"] = _anomalies(classes)
    spec = parsed(fields)
    if not isinstance(spec.val, str) and "val" not in fields and data.source != "photos":
        number = sum(num_images(spec))
        fields["val"] = 0.2 if number < 1000 else 0.1 if number < 20_000 else 0.02
        why.setdefault("val", f"of {number:,}: enough to tell trials apart, always the same; or a folder of its own")
    return fields, why


def _resolution(model: ModelFacts, data: DataFacts) -> tuple[int | list[int], str]:
    if data.fixed:
        assert data.size is not None
        return _as_written(data.size), "that of the array: nothing is resized"
    if model.size is not None:
        return _as_written(model.size), "that of the model, which takes no other"
    factor = max(model.factor, 8)
    if data.look is None:
        assert data.size is not None
        side = -(-data.size[0] // factor) * factor
        return side, f"any multiple of {factor}"
    side = max(min(data.look.least_side(MOST_HAVE), MOST_SIDE) // factor * factor, factor)
    if model.kind.takes_noise:
        side = 2 ** (side.bit_length() - 1)
        return side, "the largest power of two that nine in ten images have"
    reason = f"the largest multiple of {factor} that nine in ten images have, {MOST_SIDE} at most"
    if data.look.size is not None and data.look.size[0] != data.look.size[1]:
        height, width = (extent // factor * factor for extent in data.look.size)
        reason += f"; the centre of each is cut out, [{height}, {width}] takes them whole"
    if side > data.look.least_side(0.5):
        reason = "the least that the model takes; most images are smaller and are enlarged"
    return side, reason


def _as_written(size: Size) -> int | list[int]:
    height, width = size
    return height if height == width else [height, width]


def _add_color(fields: dict[str, Any], why: dict[str, str], model: ModelFacts, data: DataFacts) -> None:
    channels = model.channels or data.channels or 1
    if "bands" in fields and model.is_shared and model.channels != data.channels:
        why["bands"] += "; the model gets new convolutions for them"
        return
    if "bands" in fields:
        fields["bands"] = channels
        if channels < (data.channels or 0):
            why["bands"] = f"the model takes {channels}: the first of {data.channels}, or a list such as [3, 2, 1]"
        return
    if channels not in (1, 3):
        raise FtaeError(f"the model takes {channels} channels, the images have {data.channels}")
    color = "rgb" if channels == 3 else "grey"
    if data.source != "photos" or color == "grey":
        fields["color"] = color
    if model.channels is None:
        why["color"] = "as the images are" if data.channels else "drawn images have no colours"
    elif data.channels not in (None, model.channels):
        why["color"] = f"what the model takes; the images are {'grey' if data.channels == 1 else 'in colour'}"
    else:
        why["color"] = "what the model takes"


NORMAL_NAMES = ("good", "normal", "ok", "healthy", "negative")


def _anomalies(classes: Sequence[str]) -> tuple[list[str], str]:
    if len(classes) < 2:
        raise FtaeError("anomaly needs classes, of which some are the anomalies; these data have none")
    normal = [name for name in classes if name.lower() in NORMAL_NAMES]
    if normal:
        return [name for name in classes if name not in normal], f"all but {', '.join(normal)}; never trained on"
    return [classes[-1]], f"CHOOSE: one of {len(classes)}, only to begin with; they are never trained on"


# ------------------------------------------------------------------------------------------------ the text


def _written(
    model: str, data: Sequence[str], known: Known, fields: dict[str, Any], why: dict[str, str], file: str | None
) -> tuple[str, SearchSpec]:
    name, plan = _name(model, data), recipe(known)
    sections = (
        Entry("name", name),
        Entry(
            "finetune",
            (
                Entry("model", known.model.fields, known.model.found),
                Entry("data", tuple(Entry(key, value, why.get(key, "")) for key, value in _in_order(fields))),
                *plan.finetune,
            ),
            "a complete run, which is also the first configuration that is tried",
        ),
        Entry("search_space", plan.space, "any value of finetune, by its path"),
        Entry("objective", plan.objective, plan.why_objective),
        Entry("search", plan.search),
    )
    file = shlex.quote(file or f"{name}.yaml")
    scaling = known.model.fields.get("scaling")
    given = ["--scaling", str(scaling["factor"] if isinstance(scaling, dict) else scaling)] if scaling else []
    command = shlex.join(["ftae", "init", model, *data, "--task", known.task, *given])
    heading = [
        f"{plan.title}. Drafted by:",
        "",
        f"  {command}",
        "",
        "Read the reasons, change what you know better, then:",
        "",
        f"  ftae validate {file}      # stages, rungs, sizes; tells what does not fit",
        f"  ftae search {file}",
        f"  ftae export {name}",
        "",
        *plan.advice,
    ]
    text = document(heading, sections)
    try:
        spec = SearchSpec.model_validate(read_value(text))
    except ValidationError as error:
        reasons = [f"{dotted(place)}: {rule}" for place, rule in problems(SearchSpec, error)]
        raise FtaeError(f"{model} and {' '.join(data)} do not fit each other: {'; '.join(reasons)}") from error
    return text, spec


FIRST = ("source", "train", "inputs", "val", "val_inputs", "resolution", "color", "bands")


def _in_order(fields: dict[str, Any]) -> list[tuple[str, Any]]:
    return sorted(fields.items(), key=lambda item: FIRST.index(item[0]) if item[0] in FIRST else len(FIRST))


def _name(model: str, data: Sequence[str]) -> str:
    """A name for the search, of letters, digits and dashes."""
    parts = [Path(part.rstrip("/")).stem for part in (model, data[-1])]
    words = re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")
    return words[:60].strip("-") or "search"
