"""The section "look": the stored pictures of reconstructions, cut into samples, a limited number of them.

A stored picture is a grid of fixed validation images, each as input | reconstruction | a third cell. That is the target
where the input is another image, and else the difference; pairs have the difference in a fourth. Of a generator there
is the output alone. The page gets inputs and targets once, and of each trial and step the reconstructions alone, as a
strip of samples; it makes the difference maps itself.
"""

import base64
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ftae.engine.run_folder import CELLS, CELLS_OF_PAIRS, GRID_MIN_SIDE
from ftae.reporting.plots import evenly
from ftae.results.conclusion import is_of_generators
from ftae.results.search_record import SearchRecord, TrialRecord
from ftae.specs.finetune.data import PAIRED_SOURCES, UNPAIRED_SOURCES
from ftae.specs.finetune.data_spec import Size
from ftae.storage.journal import Event
from ftae.storage.store import Store

Pixels = npt.NDArray[np.uint8]

MOST_BYTES = 4_000_000  # of all pictures of a page; base64 makes them a third larger
MOST_STEPS = 10  # of the winner
MOST_OTHERS = 8  # trials beside baseline, file and winner
MOST_SIDE = 256  # pixels of a sample; larger ones are made smaller
MOST_PIXELS = 60_000_000  # of a stored picture
LOSSLESS_SIDE = 64  # samples up to this size are kept to the last bit


@dataclass(frozen=True)
class Layout:
    """Where the samples are in a stored picture.

    ``size``: height and width of a cell; ``scale``: how often each pixel is repeated; ``cells_each``: cells of a
    sample, of which a generator has its output alone; ``target``: the number of the cell with the target, 0 where that
    is the input; None where it is unknown.
    """

    size: Size
    scale: int
    cells_each: int
    target: int | None

    @classmethod
    def of(cls, record: SearchRecord) -> "Layout | None":
        """The layout that the data of a search lead to; None where the journal does not tell."""
        data = record.search["finetune"].get("data")
        size = _size(data.get("resolution")) if isinstance(data, dict) else None
        if size is None:
            return None
        scale = max(1, -(-GRID_MIN_SIDE // min(size)))
        cell = (size[0] * scale, size[1] * scale)
        if data.get("source") in UNPAIRED_SOURCES:
            truly_paired = data.get("val_paired", True)  # those without files always are
            return cls(cell, scale, CELLS_OF_PAIRS if truly_paired else CELLS, 3 if truly_paired else None)
        is_paired = data.get("source") in PAIRED_SOURCES
        each = CELLS_OF_PAIRS if is_paired else CELLS
        if is_of_generators(record):
            return cls(cell, scale, 1, None)
        return cls(cell, scale, each, 2 if is_paired or data.get("degrade") is not None else 0)

    def cells(self, picture: Pixels) -> Pixels | None:
        """The samples of a picture (N, cells, H, W, 3), not enlarged; None if it has another layout."""
        height, width = picture.shape[:2]
        each = self.cells_each
        high, wide = self.size
        if height % high or width % (each * wide):
            return None
        rows, columns = height // high, width // (each * wide)
        small = picture[:: self.scale, :: self.scale]
        high, wide = high // self.scale, wide // self.scale
        cells = small.reshape(rows, high, columns, each, wide, 3).transpose(0, 2, 3, 1, 4, 5)
        return cells.reshape(rows * columns, each, high, wide, 3)


def _size(resolution: object) -> Size | None:
    """Height and width of what a journal has as a resolution; None where that is damaged."""
    sides: list[Any] = resolution if isinstance(resolution, list) else [resolution, resolution]
    if len(sides) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides):
        return None
    return sides[0], sides[1]


class Gallery:
    """The pictures of a page, as plain values for its script.

    Pictures that are missing, damaged, or do not lie in the folder of the search are left out.
    """

    def __init__(self, store: Store, record: SearchRecord, winner: TrialRecord | None) -> None:
        self._store, self._record, self._winner = store, record, winner
        self._layout = Layout.of(record)
        self._size = 0
        self._fixed: dict[str, Any] = {}
        self._trials: dict[int, dict[int, str]] = {}
        for number, report in self._wanted():
            if self._size < MOST_BYTES and report["step"] not in self._trials.get(number, {}):
                self._add(number, report)

    def content(self) -> dict[str, Any] | None:
        """What the page shows; None without any picture.

        ``trials`` has by trial and step a strip of samples, one below the other; ``target`` and ``input`` are such
        strips, too, where the stored pictures have them.
        """
        if not self._trials:
            return None
        ordered = {str(number): self._trials[number] for number in sorted(self._trials)}
        winner = self._winner.number if self._winner is not None and self._winner.number in self._trials else None
        return {**self._fixed, "trials": ordered, "baseline": min(self._trials), "winner": winner}

    def _wanted(self) -> Iterator[tuple[int, Event]]:
        """Reports with pictures, the more important ones first."""
        record, winner = self._record, self._winner
        untuned = [] if record.baseline is None else record.baseline.reports[-1:]
        yield from ((0, report) for report in untuned)
        ranked = record.ranked()
        first = [trial for trial in (winner, record.trials.get(1)) if trial is not None]
        for trial in first:
            yield from self._last(trial)
        if winner is not None:
            yield from ((winner.number, report) for report in evenly(winner.reports, MOST_STEPS))
        others = [*ranked[1 : MOST_OTHERS - 1], *ranked[-1:]] if ranked else list(record.trials.values())[-MOST_OTHERS:]
        for trial in others:
            yield from self._last(trial)
        if record.kind == "search" and 1 in record.trials:
            yield from ((1, report) for report in evenly(record.trials[1].reports, MOST_STEPS))

    def _last(self, trial: TrialRecord) -> Iterator[tuple[int, Event]]:
        yield from ((trial.number, report) for report in trial.reports[-1:])

    def _add(self, number: int, report: Event) -> None:
        picture = self._read(report["images"])
        if picture is None:
            return
        cells = None if self._layout is None else self._layout.cells(picture)
        if cells is None:
            samples = _smaller(picture[np.newaxis], 4 * MOST_SIDE)
            fixed: Mapping[str, Pixels] = {}
        else:
            samples = _smaller(cells[:, min(1, cells.shape[1] - 1)], MOST_SIDE)
            fixed = self._given(cells)
        shape = {"count": len(samples), "height": samples.shape[1], "width": samples.shape[2], "whole": cells is None}
        if not self._fixed:
            self._fixed = shape | {name: self._encoded(_smaller(strip, MOST_SIDE)) for name, strip in fixed.items()}
        if all(self._fixed[name] == value for name, value in shape.items()):
            self._trials.setdefault(number, {})[report["step"]] = self._encoded(samples)

    def _given(self, cells: Pixels) -> Mapping[str, Pixels]:
        """What is the same in every picture: the target, where it is known, and the input where that is another one."""
        assert self._layout is not None
        if self._layout.cells_each == 1:
            return {}
        target = self._layout.target
        known = {} if target is None else {"target": cells[:, target]}
        return known if target == 0 else {**known, "input": cells[:, 0]}

    def _read(self, path: str | None) -> Pixels | None:
        if not path:
            return None
        try:
            file = self._store.fetch(path).resolve()
            if not file.is_relative_to(self._store.folder.resolve()) or not file.is_file():
                return None
            with warnings.catch_warnings(action="ignore"), Image.open(file, formats=["PNG"]) as image:
                if image.width * image.height > MOST_PIXELS:
                    return None
                return np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # Pillow's, for damaged files
            return None

    def _encoded(self, strip: Pixels) -> str:
        """A strip of samples (N, H, W, 3) as a data URL."""
        buffer = io.BytesIO()
        lossless = strip.shape[2] <= LOSSLESS_SIDE
        image = Image.fromarray(strip.reshape(-1, *strip.shape[2:]))
        image.save(buffer, "WEBP", lossless=lossless, quality=70 if lossless else 92, method=4)
        self._size += buffer.tell()
        return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _smaller(samples: Pixels, most: int) -> Pixels:
    """Samples (N, H, W, 3) whose sides are at most ``most``."""
    height, width = samples.shape[1:3]
    if max(height, width) <= most:
        return np.ascontiguousarray(samples)
    share = most / max(height, width)
    size = max(1, round(width * share)), max(1, round(height * share))
    resized: Sequence[Pixels] = [
        np.asarray(Image.fromarray(sample).resize(size, Image.Resampling.BOX)) for sample in samples
    ]
    return np.stack(resized)
