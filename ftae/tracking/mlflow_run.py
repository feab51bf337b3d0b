"""One MLflow run: the state it must get, and values in the form that MLflow takes."""

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftae.specs.reading.overrides import leaves
from ftae.tracking.mlflow_server import MAX_NAME, MAX_PARAM, MAX_TAG, Server, clip, points

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Metric, Run

RUN_STATUS = {
    "finished": "FINISHED",
    "complete": "FINISHED",
    "pruned": "KILLED",
    "interrupted": "KILLED",
    "diverged": "FAILED",
    "failed": "FAILED",
}


@dataclass
class RunState:
    """A run as it must become, and the part of that which is not written yet. Times are in milliseconds.

    ``name``, ``params``, ``tags`` and ``status`` are those that the run will have when all is written.
    """

    name: str
    started: int
    tags: dict[str, str]
    run_id: str = ""  # empty: the run does not exist yet
    params: dict[str, str] = field(default_factory=dict)
    status: str = "RUNNING"
    written_status: str = "RUNNING"
    ended: int = 0
    new_name: str = ""  # empty: it has not changed
    new_params: dict[str, str] = field(default_factory=dict)
    new_tags: dict[str, str] = field(default_factory=dict)
    metrics: "list[Metric]" = field(default_factory=list)
    images: dict[int, Path] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    datasets: "list[DatasetInput]" = field(default_factory=list)

    @classmethod
    def of(cls, found: "Run") -> "RunState":
        """The state of a run that the server has."""
        info, data = found.info, found.data
        run = cls(info.run_name, info.start_time, data.tags, info.run_id, data.params)
        run.status = run.written_status = info.status
        return run

    def show(self, result: str) -> None:
        """Show a result in the name, behind what it begins with: ``trial-0007: 24.31 dB``."""
        name = f"{self.name.partition(': ')[0]}: {result}"
        if name != self.name:
            self.name = self.new_name = name

    def set_tags(self, tags: Mapping[str, str]) -> None:
        for name, value in tags.items():
            if self.tags.get(name) != value:
                self.tags[name] = self.new_tags[name] = value

    def set_params(self, params: Mapping[str, str]) -> None:
        """Set params. MLflow refuses to change one, so a changed value (an extended search) becomes a tag."""
        for name, value in params.items():
            if name not in self.params:
                self.params[name] = self.new_params[name] = value
            elif self.params[name] != value:
                self.set_tags({f"ftae.{name}": value})

    def add_report(self, event: Mapping[str, Any], folder: Path) -> None:
        """Add the metrics and the picture of a ``report`` event; its paths are below ``folder``."""
        # MLflow shows metrics of this prefix on a page of their own, apart from the curves.
        timing = {f"system/{name.partition('/')[2]}": value for name, value in event["timing"].items()}
        self.metrics += points({**event["metrics"], **timing}, milliseconds(event), event["step"])
        if event["images"]:
            self.images[event["step"]] = folder / event["images"]

    def resume(self) -> None:
        """Set the run running again, if it had ended."""
        if self.status != "RUNNING":
            self.status = "RUNNING"
            self.set_tags({"ftae.status": "running"} | ({"ftae.reason": ""} if "ftae.reason" in self.tags else {}))

    def end(self, status: str, at: int, reason: str | None = None) -> None:
        """End the run. ``status``: of a trial, or of a driver that left."""
        self.status, self.ended = RUN_STATUS.get(status, "KILLED"), at  # an unknown status is of a later ftae
        self.set_tags({"ftae.status": status} | ({"ftae.reason": clip(reason, MAX_TAG)} if reason else {}))

    @property
    def is_written(self) -> bool:
        pending = (self.new_name, *self._pending)
        return bool(self.run_id) and self.status == self.written_status and not any(pending)

    @property
    def _pending(self) -> "tuple[list[Any] | dict[Any, Any], ...]":
        return self.new_params, self.new_tags, self.metrics, self.images, self.files, self.datasets

    def write(self, server: Server) -> None:
        """Write what is not written yet to a run that exists."""
        for path in filter(Path.is_file, self.files):
            server.upload(self.run_id, path)
        if server.upload_images(self.run_id, self.images, self.started):
            self.set_tags({"mlflow.loggedImages": "True"})
        for dataset in self.datasets:
            server.log_dataset(self.run_id, dataset)
        if self.new_name:
            server.rename(self.run_id, self.new_name)
        server.log(self.run_id, self.metrics, self.new_params, self.new_tags)
        if self.status != self.written_status:
            server.set_status(self.run_id, self.status, self.ended)
        self.written_status, self.new_name = self.status, ""
        for pending in self._pending:
            pending.clear()


# ------------------------------------------------------------------------------------------------ values


def flatten(values: Mapping[str, Any]) -> dict[str, str]:
    """Return nested values as text by their dotted names; a character that MLflow refuses in a name is ``_<hex>``."""
    flat: dict[str, str] = {}
    for path, value in leaves(values).items():
        name = re.sub(r"[^\w.\- ]", lambda match: f"_{ord(match[0]):x}", path)
        flat[name[:MAX_NAME]] = clip(value if isinstance(value, str) else json.dumps(value), MAX_PARAM)
    return flat


def table_json(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows in the form of pandas' ``orient="split"``, which MLflow shows as a table.

    MLflow takes a dot in the name of a column for a path into the cell, and shows nothing; dots become slashes.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))

    def cell(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    names = [column.replace(".", "/") for column in columns]
    return json.dumps({"columns": names, "data": [[cell(row.get(column)) for column in columns] for row in rows]})


def milliseconds(event: Mapping[str, Any]) -> int:
    """The time of an event."""
    return int(event["time"] * 1000)


def now() -> int:
    return int(time.time() * 1000)
