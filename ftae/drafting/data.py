"""What a search file must know of data: where they are, how many, how large, and what their values mean."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ftae.drafting.samples import SOURCES, TILE, patient_settings, tile_settings, volume_settings
from ftae.drafting.values import Look, look_at_files
from ftae.engine.data.archives.source import is_archive
from ftae.engine.data.files.arrays import Found, arrays_in
from ftae.engine.data.files.listing import list_images
from ftae.engine.data.shards.source import is_shards
from ftae.engine.data.sources import source_of
from ftae.errors import FtaeError
from ftae.specs.finetune.data import SOURCE_SPECS, AnyData
from ftae.specs.finetune.data_spec import DataSpec, Size
from ftae.specs.finetune.sources.arrays import INSIDE
from ftae.specs.reading.problems import dotted, problems

# The built-in sources: side that they look well at, the channels that they have (None: any), and what else they need.
BUILTIN: dict[str, int] = {"digits": 16, "digit_edges": 16, "digit_domains": 16, "shapes": 32, "photos": 64}
KINDS: dict[str, type[DataSpec]] = {kind.own_name(): kind for kind in SOURCE_SPECS}
ARRAYS = (".npy", *INSIDE)
VAL_NAMES = ("val", "valid", "validation", "test")
MASKS = "ground_truth"  # where MVTec has the places of defects
LABEL_COLUMNS = ("label", "labels", "target", "class", "species", "y")


@dataclass(frozen=True)
class DataFacts:
    """What was found of data.

    ``fields``: the section ``data`` of the file, but for its resolution and colour; ``why``: the reasons of some.
    ``size``: where only one fits, or is usual; ``look``: what files of images hold. ``channels``: None where any will
    do. ``fixed``: no other size fits.
    """

    fields: dict[str, Any]
    found: str
    why: dict[str, str] = field(default_factory=dict)
    size: Size | None = None
    fixed: bool = False
    channels: int | None = None
    look: Look | None = None

    @property
    def source(self) -> str:
        return str(self.fields["source"])


def look_at_data(names: Sequence[str], task: str | None) -> DataFacts:
    """Look at a folder, an archive or a file of arrays, or take the name of a built-in source; two names are A and B.

    Raises:
        FtaeError: there is nothing of this name, or nothing in it that a source reads.
    """
    if len(names) == 2:
        return _two_sides(names, task)
    (name,) = names
    path = Path(name).expanduser()
    if not path.exists() and name in BUILTIN:
        return _builtin(name)
    if is_shards(name):
        return _of_files({"source": "shards", "train": name}, "images in shards")
    if not path.exists():
        raise FtaeError(
            f"there is no data {name!r}: name a folder of images, an archive, shards, a file of arrays "
            f"({', '.join(ARRAYS)}), or a built-in source: {', '.join(BUILTIN)}"
        )
    if path.is_file() and path.suffix.lower() in ARRAYS:
        return _arrays(name)
    if (path / "trainA").is_dir() and (path / "trainB").is_dir():
        held_out = {"val": name} if (path / "testA").is_dir() and (path / "testB").is_dir() else {}
        fields = {"source": "unpaired", "train": name, **held_out}
        return _of_files(fields, "two domains without partners: trainA and trainB")
    if is_archive(path):
        return _of_files({"source": "archive", "train": name}, "an archive of images")
    if task == "translate":
        return _of_files({"source": "pairs", "train": name}, "pairs of images, side by side in each file")
    inner = {child.name for child in path.iterdir() if child.is_dir()} if path.is_dir() else set()
    val = next((child for child in VAL_NAMES if inner - {MASKS} == {"train", child}), None)
    if val is not None:
        source, kind = (
            ("shards", "shards") if is_shards(str(path / "train")) else ("image_folder", "a folder of images")
        )
        fields = {"source": source, "train": str(path / "train"), "val": str(path / val)}
        return _of_files(fields, f"{kind}, divided into train and {val}")
    return _of_files({"source": "image_folder", "train": name}, "a folder of images")


def parsed(fields: dict[str, Any]) -> AnyData:
    """The spec of a section ``data``.

    Raises:
        FtaeError: the fields do not fit each other.
    """
    kind: Any = KINDS[fields["source"]]
    try:
        spec: AnyData = kind.model_validate(fields)
    except ValidationError as error:
        found = [f"{dotted(('data', *place))}: {rule}" for place, rule in problems(kind, error)]
        raise FtaeError("; ".join(found)) from error
    return spec


def _builtin(name: str) -> DataFacts:
    side = BUILTIN[name]
    why = {"val": "drawn images, always the same are held out"} if name == "shapes" else {}
    channels = 3 if name == "photos" else None
    return DataFacts({"source": name}, f"the built-in {name}", why, (side, side), channels=channels)


def _two_sides(names: Sequence[str], task: str | None) -> DataFacts:
    given, wanted = names
    if _stems(given) == _stems(wanted):
        fields = {"source": "pairs", "inputs": given, "train": wanted}
        return _of_files(fields, "pairs: files of the same names in two folders")
    fields = {"source": "unpaired", "inputs": given, "train": wanted}
    return _of_files(fields, "two domains without partners, as the names of their files differ")


def _stems(folder: str) -> set[Path]:
    files = list_images(Path(folder).expanduser())
    return {Path(name).with_suffix("") for name in files.names}


def _of_files(fields: dict[str, Any], found: str) -> DataFacts:
    why: dict[str, str] = {}
    if fields["source"] in SOURCES:
        listed = _source(fields).list_images(fields["train"])
        for settings in (volume_settings, patient_settings):
            fields, why = _with(fields, why, settings(listed))
    look = _look(fields)
    shares_values = fields["source"] in ("pairs", "unpaired")
    fields, why = _with(fields, why, look.settings(shares_values=shares_values))
    if fields["source"] == "image_folder" and not look.measures:
        tiles = tile_settings(len(listed.names), look.least_side(0.9))
        fields, why = _with(fields, why, tiles)
        look = look.of_tiles(TILE) if tiles[0] else look
    return DataFacts(fields, found, why, channels=look.channels, look=look)


def _source(fields: dict[str, Any]) -> Any:
    return source_of(parsed({"resolution": 8, **fields}))


def _look(fields: dict[str, Any]) -> Look:
    source = _source(fields)
    halved = fields["source"] == "pairs" and "inputs" not in fields
    return look_at_files([files for _, files in source.opened_folders()], source.spec, halved=halved)


def _with(
    fields: dict[str, Any], why: dict[str, str], more: tuple[dict[str, Any], dict[str, str]]
) -> tuple[dict[str, Any], dict[str, str]]:
    return {**fields, **more[0]}, {**why, **more[1]}


# ---------------------------------------------------------------------------------------------- arrays


def _arrays(name: str) -> DataFacts:
    found = arrays_in(name)
    numbers = [each for each in found if each.kind.kind in "fiub" and len(each.shape) > 0]
    if name.lower().endswith(".parquet"):
        return _table(name, found, numbers)
    fitting = [each for each in numbers if 2 <= len(each.shape) <= 4]
    if not fitting:
        raise FtaeError(f"{name} has no array of samples: it must have 2 to 4 axes, the first that of samples")
    chosen = max(fitting, key=lambda each: each.shape)
    layout, size, channels = _layout(chosen.shape[1:])
    why = {"layout": f"a guess by the shape {list(chosen.shape)}; hwc, chw, hw, cs (channels x steps) or d (vectors)"}
    if len(fitting) > 1:
        others = ", ".join(str(next(iter(each.inside.values()))) for each in fitting if each is not chosen)
        why[next(iter(chosen.inside))] = f"the largest array in the file; it also has {others}"
    shape = {"layout": layout} | ({} if channels == 1 else {"num_channels": channels})
    fields = {"source": "arrays", "train": name, **chosen.inside, **shape}
    return _of_array(fields, chosen, why, size, channels)


def _of_array(fields: dict[str, Any], found: Found, why: dict[str, str], size: Size, channels: int) -> DataFacts:
    if found.kind == "uint8" and fields["layout"] != "d":
        fields["normalise"] = [0, 255]
        why["normalise"] = "the values of 8 bits"
    else:
        fields["normalise"] = "standard"
        why["normalise"] = "mean and deviation of the training samples; robust for outliers, [LOW, HIGH] if known"
    if found.shape[0] < 20:
        raise FtaeError(
            f"{fields['train']} has {found.shape[0]} samples as {list(found.shape)}, too few to tune a model"
        )
    text = f"an array of {found.shape[0]:,} samples"
    return DataFacts(fields, text, why, size, True, channels)


def _table(name: str, found: list[Found], numbers: list[Found]) -> DataFacts:
    """A column of lists, or the columns of numbers, with one of classes if it has a usual name."""
    lists = [each for each in numbers if len(each.shape) == 2]
    label = next((column for each in found if (column := _column(each)).lower() in LABEL_COLUMNS), None)
    columns = [_column(lists[0])] if lists else [_column(each) for each in numbers if _column(each) != label]
    if not columns:
        raise FtaeError(f"{name} has no column of numbers")
    why = {"columns": "the features: leave out what is no measurement, such as row numbers"}
    fields: dict[str, Any] = {"source": "arrays", "train": name, "columns": columns, "layout": "d"}
    if label is not None:
        fields["labels"], why["labels"] = label, "the classes, by its name"
    return _of_array(fields, (lists or numbers)[0], why, (1, lists[0].shape[1] if lists else len(columns)), 1)


def _column(found: Found) -> str:
    return str(found.inside["columns"][0])


def _layout(shape: tuple[int, ...]) -> tuple[str, Size, int]:
    """The likely layout of a sample, its size and its channels."""
    if len(shape) == 1:
        return "d", (1, shape[0]), 1
    if len(shape) == 2:
        is_series = shape[0] < 8 or shape[0] * 4 <= shape[1]
        return ("cs", (1, shape[1]), shape[0]) if is_series else ("hw", (shape[0], shape[1]), 1)
    if shape[0] < min(shape[1:]) and shape[0] <= shape[2]:
        return "chw", (shape[1], shape[2]), shape[0]
    return "hwc", (shape[0], shape[1]), shape[2]
