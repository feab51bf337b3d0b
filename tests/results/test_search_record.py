"""What a journal says of a search as a whole: its kind, its end, and events of version 1."""

from pathlib import Path
from typing import Any

import pytest
from builders import production_spec, search_spec

from ftae.errors import FtaeError
from ftae.results.replay import replay
from ftae.results.search_record import STOPPED_BY_USER, Close, SearchRecord
from ftae.results.stored_spec import run_of, search_of
from ftae.results.verdict import beats_baseline, needs_warning
from ftae.storage.journal import Event, Journal

SEARCH = search_spec().model_dump(mode="json")


def opened(**fields: Any) -> Event:
    return {"event": "open", "time": 1.0, "search": SEARCH, "digest": "d", "facts": {}} | fields


def report(step: int, psnr: float = 20.0) -> Event:
    fields = {"metrics": {"val/psnr": psnr}, "timing": {}, "checkpoint": None, "images": None}
    return {"event": "report", "time": 2.0 + step, "trial": 1, "step": step, "value": psnr, **fields}


def folded(*events: Event) -> SearchRecord:
    record = SearchRecord(search={})
    for event in events:
        record.apply(event)
    return record


def write(folder: Path, *events: Event) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder)
    journal.append_all(events)
    journal.close()
    return folder


# -------------------------------------------------------------------------------------------------- the end


@pytest.mark.parametrize("close", [Close("complete"), Close("interrupted", "max_hours is over"), STOPPED_BY_USER])
def test_a_close_event_says_who_stopped_the_search(close: Close) -> None:
    assert ("by" in close.fields()) is close.by_user
    record = folded(opened(), {"event": "close", "time": 2.0, **close.fields()})
    assert record.close == close
    assert folded(opened(), {"event": "close", "time": 2.0, **close.fields()}, opened()).close is None


def test_in_version_1_only_the_reason_says_that_a_person_stopped_the_search() -> None:
    close = {"event": "close", "time": 2.0, "status": "interrupted", "reason": "stopped by the user"}
    assert folded(opened(), close).close == STOPPED_BY_USER
    by_user = folded(opened(), close | {"reason": "its driver was stopped by a batch system, the user says"}).close
    assert by_user is not None
    assert not by_user.by_user


# ----------------------------------------------------------------------------------------------- the formats


def test_a_journal_of_version_1_is_read_with_todays_names(tmp_path: Path) -> None:
    content = search_spec().model_dump(mode="json")
    content["finetune"]["prefix_cache_gb"] = content["finetune"].pop("frozen_cache_gb")
    content["finetune"]["model"]["outer_stages"] = content["finetune"]["model"].pop("resolution_adapters")
    suggest = {"event": "suggest", "time": 2.0, "trial": 1, "kind": "file", "params": {"optimizer.lr": 1e-3}}
    adapt = {"event": "adapt", "time": 3.0, "trial": 1, "changes": {"prefix_cache_gb": 1.0}, "reason": "memory"}
    record = replay(write(tmp_path / "small", opened(search=content), suggest, adapt))
    assert search_of(record) == search_spec()
    run = run_of(record, record.trials[1])
    assert (run.optimizer.lr, run.frozen_cache_gb) == (1e-3, 1.0)


def test_a_journal_of_a_newer_ftae_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "small", opened(format=3))
    with pytest.raises(FtaeError, match=r"small/journal\.jsonl was written by a newer ftae \(format 3, "):
        replay(folder)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"kind": "experiment"}, "'open' has the kind 'experiment'"),
        ({"kind": "production", "search": SEARCH | {"finetune": None}}, "'open' holds no run"),
        ({"search": SEARCH | {"search": {}}}, r"'open' holds no search\.num_trials"),
    ],
)
def test_an_open_event_that_holds_no_search_is_refused(fields: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(FtaeError, match=f"is damaged, or by another version of ftae: {why}"):
        replay(write(tmp_path / "small", opened(**fields)))


# -------------------------------------------------------------------------------------------- production runs


def production(*events: Event) -> SearchRecord:
    run = production_spec("digits").model_dump(mode="json")
    run |= {"search_space": {}, "objective": SEARCH["objective"], "search": {"num_trials": 1}}
    suggest = {"event": "suggest", "time": 1.0, "trial": 1, "kind": "file", "params": {}}
    return folded(opened(kind="production", search=run), suggest, *events)


def start(step: int) -> Event:
    return {"event": "start", "time": 50.0, "trial": 1, "step": step}


END = {"event": "end", "time": 40.0, "trial": 1, "status": "finished", "reason": None}


def test_the_untuned_model_of_a_production_run_is_its_first_report() -> None:
    assert production().baseline is None
    record = production(report(0, 20.0), report(12, 21.0), END)
    assert record.baseline is not None
    assert (record.baseline.kind, record.baseline.value, record.baseline.step) == ("baseline", 20.0, 0)
    assert beats_baseline(record, record.trials[1]) is True
    assert record.trials.keys() == {1}
    worse = production(report(0, 20.0), report(12, 19.0), END)
    assert needs_warning(worse, worse.trials[1])


def test_a_start_drops_what_a_production_run_reported_behind_its_step() -> None:
    record = production(report(0), report(4), report(8, 22.0), start(4), report(8, 23.0))
    assert [(r["step"], r["value"]) for r in record.trials[1].reports] == [(0, 20.0), (4, 20.0), (8, 23.0)]


def test_a_start_reopens_a_production_run_that_had_ended() -> None:
    ended = production(report(0), report(12, 21.0), END)
    assert (ended.ranked(), ended.running, ended.ended["finished"]) == ([ended.trials[1]], {}, 1)
    reopened = production(report(0), report(12, 21.0), END, start(12))
    trial = reopened.trials[1]
    assert (reopened.ranked(), reopened.running, reopened.ended["finished"]) == ([], {1: trial}, 0)
    assert (trial.status, trial.ended, trial.step) == ("running", None, 12)
    again = production(report(0), report(12, 21.0), END, start(12), report(24, 22.0), END)
    assert ([t.step for t in again.ranked()], again.ended["finished"]) == ([24], 1)


def test_a_start_of_a_searchs_trial_drops_nothing() -> None:
    """A trial that starts again from an earlier checkpoint repeats its reports, which the journal has already."""
    suggest = {"event": "suggest", "time": 1.0, "trial": 1, "kind": "file", "params": {}}
    record = folded(opened(), suggest, report(0), report(4), start(0))
    assert record.trials[1].step == 4
