"""A search in an object store, on a real S3 server: open to every machine, and to one driver at a time."""

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import eval_report
from simulated import snapshot, state_spec

from ftae.errors import FtaeError
from ftae.results.export import chosen_trial
from ftae.results.summary import best, find_search
from ftae.search.state import SearchState
from ftae.search.tracking_sync import SEARCH_FILE, send_new
from ftae.storage import journal, lease
from ftae.storage.backends import JOURNAL_PIECES, FolderStore
from ftae.storage.store import Store, open_store

SPEC = state_spec(scheduler="asha", num_trials=6, space={"optimizer.lr": {"low": 1e-4, "high": 1.0, "log": True}})

OnMachine = Callable[..., Store]


@pytest.fixture
def on_machine(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OnMachine:
    """Opens the search on a machine, which has its own mirror."""
    for name, value in {"RENEW_SECONDS": 0.1, "LEASE_SECONDS": 1.0, "SETTLE_SECONDS": 0.2}.items():
        monkeypatch.setattr(lease, name, value)

    def on_machine(machine: str, role: Any = "driver") -> Store:
        monkeypatch.setenv("FTAE_CACHE", str(tmp_path / machine))
        return open_store(bucket, SPEC.name, role)

    return on_machine


def step_of(state: SearchState, number: int) -> bool:
    """Send the next report of a trial, better for later trials; returns whether the trial continues."""
    trial = state.record.trials[number]
    step = trial.step + 4 if trial.reports else 0
    report = eval_report(step, 20.0 + number)
    state.store.write(f"trials/{number:04d}/{report.images}", b"picture")
    if report.checkpoint:
        state.store.write(f"trials/{number:04d}/{report.checkpoint}/model.safetensors", b"weights")
    return state.report(number, report)


def run(state: SearchState, until: int = 99) -> SearchState:
    """Run one trial after the other, up to the first report of trial ``until``."""
    while (trial := state.next_trial()) is not None:
        while step_of(state, trial.number):
            if trial.number == until:
                return state
    return state


def die(state: SearchState) -> None:
    """Leave what a killed driver leaves: nothing is closed or released."""
    lease = state.writer.lease
    lease._released.set()
    with lease._renewing:  # the last renewal has ended
        pass


def events(folder: Path) -> list[tuple[str, int | None]]:
    return [(event["event"], event.get("trial")) for event, _ in journal.read(folder)]


def test_another_machine_resumes_the_search_of_a_killed_driver(on_machine: OnMachine, tmp_path: Path) -> None:
    first = run(SearchState(SPEC, on_machine("one")), until=3)
    die(first)
    notes: list[str] = []
    again = SearchState(SPEC, on_machine("two"), notify=notes.append)
    assert len(notes) == 1
    assert "held this search; watching for 1 s" in notes[0]
    assert again.record.trials == first.record.trials
    assert snapshot(again) == snapshot(first)
    run(again)
    assert again.is_complete
    (tmp_path / "undisturbed").mkdir()
    undisturbed = run(SearchState(SPEC, FolderStore(tmp_path / "undisturbed")))
    assert [t.params for t in again.record.ranked()] == [t.params for t in undisturbed.record.ranked()]
    assert snapshot(again) == snapshot(undisturbed)
    die(undisturbed)
    again.close("complete")
    assert again.store.names("") == [JOURNAL_PIECES, "trials"], "the lease was released"


def test_the_same_machine_resumes_at_once(on_machine: OnMachine) -> None:
    first = run(SearchState(SPEC, on_machine("one")), until=2)
    with pytest.raises(FtaeError, match="is being run by another ftae process"):
        SearchState(SPEC, on_machine("one"))
    die(first)
    first.writer.journal.close()
    path = first.writer.journal.path
    path.write_bytes(path.read_bytes()[:-100])  # the mirror is behind the store, which counts
    notes: list[str] = []
    again = SearchState(SPEC, on_machine("one"), notify=notes.append)
    assert notes == []
    assert again.record.trials == first.record.trials
    assert snapshot(again) == snapshot(first)
    again.close("interrupted")


def test_a_living_driver_is_left_alone(on_machine: OnMachine) -> None:
    state = SearchState(SPEC, on_machine("one"))
    with pytest.raises(FtaeError, match=r"s3://.*/small is being run by .* \(process \d+\)"):
        SearchState(SPEC, on_machine("two"))
    run(state, until=1)
    state.close("interrupted")


def test_a_driver_that_was_replaced_cannot_write(on_machine: OnMachine) -> None:
    replaced = run(SearchState(SPEC, on_machine("one")), until=2)
    die(replaced)
    state = run(SearchState(SPEC, on_machine("two")), until=3)
    before = events(state.store.folder)
    for _ in range(2):
        with pytest.raises(FtaeError, match=r"small was taken over by another ftae driver; this one ends"):
            replaced.note(2, "it does not know that it was replaced")
    with pytest.raises(FtaeError, match="was taken over"):
        replaced.close("failed")
    state.close("interrupted")
    reader = on_machine("three", "reader")
    reader.refresh()
    assert events(reader.folder) == [*before, ("close", None)]


def test_an_event_that_reached_the_store_but_not_the_disk_is_stored_once(on_machine: OnMachine) -> None:
    notes: list[str] = []
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)

    def notify(message: str) -> None:
        notes.append(message)
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)

    state = SearchState(SPEC, on_machine("one"), notify=notify)
    resource.setrlimit(resource.RLIMIT_FSIZE, (state.writer.journal.path.stat().st_size + 20, unlimited[1]))
    assert state.next_trial() is not None
    assert [message.split(":")[0] for message in notes] == ["the storage fails", "the storage works again"]
    reader = on_machine("two", "reader")
    reader.refresh()
    assert (reader.folder / journal.FILE_NAME).read_bytes() == state.writer.journal.path.read_bytes()
    assert events(reader.folder) == [("open", None), ("suggest", 0)]
    state.close("interrupted")


def test_results_are_read_and_sent_from_any_machine(on_machine: OnMachine, bucket: str) -> None:
    state = run(SearchState(SPEC, on_machine("one")))
    state.store.write(SEARCH_FILE, b"name: small")
    state.close("complete")
    on_machine("two")
    store = find_search("small", bucket)
    found = best(store)
    assert (found["trial"], found["value"], found["baseline"]) == (6, 26.0, 20.0)
    assert [path.read_bytes() for path in Path(found["checkpoint"]).iterdir()] == [b"weights"]
    assert chosen_trial(state.record, store, 6).number == 6
    with pytest.raises(FtaeError, match=r"there is no search 'other' in .*; choose one of small"):
        find_search("other", bucket)

    class Tracker:
        destination = {"uri": "http://there"}

        def send(self, batch: list[dict[str, Any]]) -> None:
            images = [store.folder / event["images"] for event in batch if event.get("images")]
            assert {image.read_bytes() for image in images} == {b"picture"}
            assert (store.folder / SEARCH_FILE).read_bytes() == b"name: small"

    assert send_new(store, Tracker()) == len(events(store.folder))  # type: ignore[arg-type]
    on_machine("three")
    assert send_new(find_search("small", bucket), Tracker()) == 0  # type: ignore[arg-type]
