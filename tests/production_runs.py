"""A small production run for tests, and what it leaves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from builders import production_spec

from ftae.results.replay import replay
from ftae.specs import FinetuneSpec, ProductionSpec

RUN: dict[str, Any] = {
    "data": {"source": "digits", "resolution": 16},
    "optimizer": {"lr": 3e-3},
    "schedule": {"name": "cosine"},
    "ema_half_life_fraction": 0.1,
    "num_evals": 3,
    "metrics": ["psnr"],
    "num_threads": 1,
}
# Nothing listens there: most tests need no tracker.
NOWHERE = "http://127.0.0.1:9"


def spec(*, uri: str | None = NOWHERE, experiment: str | None = None, **changes: Any) -> ProductionSpec:
    """A run of 12 steps that reports at steps 0, 4, 8 and 12. ``changes``: leaves of finetune by dotted path."""
    production = production_spec("digits", **RUN | changes)
    tracking = production.tracking.model_copy(update={"uri": uri, "experiment": experiment})
    return production.model_copy(update={"tracking": tracking, "from_search": {"search": "small", "trial": 7}})


def untracked(name: str, finetune: FinetuneSpec) -> ProductionSpec:
    """A run of which no tracker hears: making the tables of the embedded one takes seconds."""
    return ProductionSpec.model_validate({"name": name, "finetune": finetune, "tracking": {"uri": NOWHERE}})


def silent(line: str) -> None:
    pass


def interrupt_after(reports: int) -> Callable[[str], None]:
    """Do what Ctrl-C does, right after this many reports."""
    seen: list[str] = []

    def notify(line: str) -> None:
        seen.extend([line] if line.startswith("step") else [])
        if len(seen) == reports:
            raise KeyboardInterrupt

    return notify


def reports(out: Path) -> list[dict[str, Any]]:
    """The reports of a run without the times, which differ between runs."""
    trial = replay(out).trials[1]
    return [{key: value for key, value in report.items() if key not in ("time", "timing")} for report in trial.reports]


def steps(out: Path) -> list[int]:
    return [report["step"] for report in reports(out)]


def model_bytes(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "model").iterdir()}
