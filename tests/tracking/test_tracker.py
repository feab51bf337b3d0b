"""The protocol of trackers: which one a spec names, and that none changes the process."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from builders import search_spec

from ftae.search.tracking_sync import sync
from ftae.specs import SearchSpec
from ftae.storage.backends import FolderStore
from ftae.storage.journal import Event, Journal
from ftae.storage.store import Store
from ftae.tracking import TRACKERS, Outcome, Tracker, tracker_for

PROCESS = """
import logging, os, sys
import ftae.tracking
assert "mlflow" not in sys.modules

def settings():
    names = ("urllib3.connectionpool", "mlflow")
    return dict(os.environ), {name: logging.getLogger(name).level for name in names if name in sys.modules}

before = settings()
from pathlib import Path
from builders import search_spec
from ftae.storage.journal import Journal
from ftae.storage.backends import FolderStore
from ftae.storage.store import Store
search, folder = search_spec(), Path(sys.argv[1]) / "small"
folder.mkdir()
journal = Journal(folder)
event = journal.append("open", search=search.model_dump(mode="json"), digest="d", facts={})
tracker = ftae.tracking.tracker_for(search, FolderStore(folder))
assert "mlflow" in sys.modules
after_import = settings()
assert after_import[0] == before[0], "the environment changed"
tracker.send([event])
assert settings() == after_import, (settings(), after_import)
print(logging.getLogger("urllib3.connectionpool").level)
"""


def test_neither_importing_nor_calling_a_tracker_changes_the_process(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", PROCESS, str(tmp_path)],
        env={"PATH": "/usr/bin", "PYTHONPATH": f"{root}:{root / 'tests'}", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "0\n", "")


class Notebook:
    """Another tracker, all in one class; it keeps what arrives in memory."""

    def __init__(self, spec: SearchSpec) -> None:
        self.destination = {"uri": str(spec.tracking.uri), "experiment": spec.name}
        self.events: list[Event] = []
        self.outcome = Outcome()

    def check(self) -> None:
        pass

    def send(self, events: Sequence[Event]) -> None:
        self.events += events

    def publish(self, outcome: Outcome) -> None:
        self.outcome = outcome

    def register(self, name: str) -> str:
        return "1"


def test_another_tracker_is_one_module_and_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Notebook] = []

    def make_tracker(spec: SearchSpec, store: Store, storage: Path) -> Tracker:
        made.append(Notebook(spec))
        return made[-1]

    module: Any = ModuleType("notebook_tracker")
    module.make_tracker = make_tracker
    monkeypatch.setitem(sys.modules, "notebook_tracker", module)
    monkeypatch.setitem(TRACKERS, "notebook", "notebook_tracker")
    search = search_spec()
    elsewhere = search.tracking.model_copy(update={"uri": "notebook://mine"})
    search = search.model_copy(update={"tracking": elsewhere})
    assert isinstance(tracker_for(search, FolderStore(tmp_path)), Notebook)
    journal = Journal(tmp_path)
    # Which addresses a file may name is for the specs to say.
    stored = search_spec().model_dump(mode="json") | {"tracking": {"uri": None, "experiment": None}}
    journal.append("open", search=stored, digest="d", facts={})
    journal.close()
    monkeypatch.setattr("ftae.search.tracking_sync.spec_of", lambda record: search)
    assert sync(FolderStore(tmp_path)) == 1
    assert [event["event"] for event in made[-1].events] == ["open"]
    assert made[-1].outcome.leaderboard == []


@pytest.mark.parametrize("uri", [None, "http://server", "postgresql+psycopg://server/db", "sqlite:///file.db", "odd"])
def test_mlflow_is_the_tracker_of_every_other_address(uri: str | None, tmp_path: Path) -> None:
    search = search_spec()
    tracking = search.tracking.model_copy(update={"uri": uri})
    found = tracker_for(search.model_copy(update={"tracking": tracking}), FolderStore(tmp_path / "small"))
    assert type(found).__module__ == "ftae.tracking.mlflow_tracker"
    assert found.destination == {"uri": uri or f"sqlite:///{tmp_path}/mlflow.db", "experiment": "small"}
