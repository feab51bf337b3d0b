"""The values of black and white, where only the files tell them: percentiles, and the range of their type."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ftae.engine.data.files.decoding import UnreadableImage, quiet_pillow
from ftae.engine.data.files.listing import ImageFiles
from ftae.engine.data.files.values import Values
from ftae.engine.data.source_base import Levels
from ftae.engine.data.stores.folder import cache_folder, digest, make_once
from ftae.errors import FtaeError
from ftae.specs.finetune.sources.folders import ImageFolder

MOST_MEASURED = 200  # images
VALUES_AN_IMAGE = 20_000


def measured(spec: ImageFolder, files: ImageFiles, training: Sequence[str], content: Sequence[Any]) -> ImageFolder:
    """``spec`` with what percentiles or the range of a type are, where it does not have that; any other one as it is.

    Args:
        training: the names of training images, in the order in which they are stored. The first 200 are measured, the
            type is that of the first.
        content: the fingerprint of the files, and what else the choice of training images depends on.

    Raises:
        FtaeError: none of these images can be read, or they leave no range.
    """
    meaning = spec.intensity
    if meaning is None or meaning.is_known:
        return spec
    chosen = training[:MOST_MEASURED]
    said = meaning.model_dump(mode="json", exclude={"measured"})
    folder = cache_folder() / "levels" / digest([content, len(chosen), said])

    def write(partial: Path) -> None:
        (partial / "levels.json").write_text(json.dumps(_levels(spec, files, chosen)))

    make_once(folder, 64, write)
    return spec.with_levels(json.loads((folder / "levels.json").read_text()))


def _levels(spec: ImageFolder, files: ImageFiles, names: Sequence[str]) -> Levels:
    assert spec.intensity is not None
    if spec.intensity.percentile is None:
        kind = next(iter(_values(spec, files, names))).dtype
        if kind.kind not in "ui":
            raise FtaeError(f"data.intensity: dtype_range has no meaning for {kind} ({files.root}); say a window")
        return float(np.iinfo(kind).min), float(np.iinfo(kind).max)
    numbers = np.concatenate([_thinned(values) for values in _values(spec, files, names)])
    low, high = (float(value) for value in np.percentile(numbers, spec.intensity.percentile))
    if not low < high:
        raise FtaeError(
            f"data.intensity: the percentiles {list(spec.intensity.percentile)} of {files.root} are both {low:g}; "
            "choose others, or say a window"
        )
    return low, high


def _values(spec: ImageFolder, files: ImageFiles, names: Sequence[str]) -> list[Values]:
    found = []
    with quiet_pillow():
        for name in sorted(names):  # so that a file of many samples is opened once
            try:
                found.append(files.values(name, spec))
            except UnreadableImage:  # is named when all images are decoded
                continue
    if not found:
        raise FtaeError(f"data.intensity: no training image of {files.root} can be read to measure its values")
    return found


def _thinned(values: Values) -> Values:
    """Evenly spaced values; those that are no finite numbers are left out."""
    flat = values.ravel()
    flat = flat[:: -(-len(flat) // VALUES_AN_IMAGE)].astype(np.float64)
    return flat[np.isfinite(flat)]
