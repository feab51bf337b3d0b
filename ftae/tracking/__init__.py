"""Experiment trackers: where people look at searches and production runs.

``Tracker`` is the protocol, ``tracker_for`` the factory. MLflow is the only tracker so far; the modules ``mlflow_*``
are the only importers of mlflow. Importing this package loads none of it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from ftae.errors import FtaeError
from ftae.specs.search.search import ProductionSpec, SearchSpec
from ftae.storage.journal import Event
from ftae.storage.store import Store

LONGEST_DESCRIPTION = 4000  # characters: trackers limit texts, and people may write above it


class TrackingUnavailable(FtaeError):
    """The tracker did not take what was sent. ``permanent``: it refused, and another attempt will not help."""

    def __init__(self, message: str, *, permanent: bool = False) -> None:
        self.permanent = permanent
        super().__init__(message)


@dataclass(frozen=True)
class OutcomeModel:
    """The model that a search or a production run has led to.

    Attributes:
        report: the ``report`` event of the evaluation that measured it; it names the trial and the step.
        params: the settings that tell it from other models of the search.
        write: writes it to a new folder, from which MLflow loads it; raises FtaeError if it cannot. Called only for a
            model that the tracker does not have.
    """

    report: Event
    params: Mapping[str, Any]
    write: Callable[[Path], None] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Outcome:
    """What a search or a production run has led to.

    Attributes:
        leaderboard: one row per trial; None where there is nothing to rank.
        best_config: the YAML of the best trial's run; None without a best trial.
        files: local files and folders, by the name of the folder that they are uploaded to; an empty name is the top.
        description: what there is to say, as Markdown of at most ``LONGEST_DESCRIPTION`` characters.
        tags: facts as text.
        metrics: of the best trial and the baseline.
        num_ended: of the tuned trials, which is where the metrics lie on a curve.
        model: the best model; None without one.
    """

    leaderboard: Sequence[Mapping[str, Any]] | None = None
    best_config: str | None = None
    description: str | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    num_ended: int = 0
    model: OutcomeModel | None = None


class Tracker(Protocol):
    """Shows one search or production run in an experiment tracker. No method may change settings of the process.

    Every method raises ``TrackingUnavailable`` when not everything arrived; the caller then sends the same again. So
    every method must be idempotent: what is sent twice is there once.
    """

    @property
    def destination(self) -> Mapping[str, str]:
        """The server and the experiment; another destination needs everything from the first event on."""
        ...

    def check(self) -> None:
        """Make sure that the destination takes this search, without sending anything."""
        ...

    def send(self, events: Sequence[Event]) -> None:
        """Send journal events, in their order."""
        ...

    def publish(self, outcome: Outcome) -> None:
        """Show an outcome, which replaces the one before."""
        ...

    def page(self, trial: int | None = None) -> str:
        """Return the address of the page of this search or of one of its trials, relative to that of the tracker.

        Raises:
            FtaeError: the tracker does not have it.
        """
        ...

    def register(self, name: str) -> str:
        """Make the published model a version, and the champion, of a registered model; returns the version."""
        ...


# The module of the tracker for a ``tracking.uri``, by its scheme; "" is the store embedded in the folder of searches.
# The module has a function ``make_tracker(spec, store, storage) -> Tracker``.
TRACKERS = dict.fromkeys(
    ("", "sqlite", "http", "https", "postgresql", "mysql", "mssql"), "ftae.tracking.mlflow_tracker"
)


def tracker_for(spec: SearchSpec | ProductionSpec, store: Store, storage: Path | None = None) -> Tracker:
    """Make the tracker that ``spec.tracking`` names, for the search or run in ``store``; nothing is contacted yet.

    ``storage``: the folder of the embedded store; by default the folder that the search is in.
    """
    scheme = (spec.tracking.uri or "").partition(":")[0].partition("+")[0]
    module = TRACKERS.get(scheme, TRACKERS[""])  # which says what is wrong with an unknown scheme
    make_tracker: Callable[[SearchSpec | ProductionSpec, Store, Path], Tracker] = import_module(module).make_tracker
    return make_tracker(spec, store, storage or store.folder.parent)


def store_uri(uri: str | None, storage: Path) -> str:
    """Return ``uri``, or where it is None, the URI of the SQLite store embedded in ``storage``."""
    return uri if uri is not None else f"sqlite:///{storage.absolute() / 'mlflow.db'}"
