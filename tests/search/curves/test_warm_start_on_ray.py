"""A search on Ray that learns from an earlier one, and is resumed when that one is gone."""

import shutil
from pathlib import Path

import pytest
from builders import search_spec

from ftae.errors import FtaeError
from ftae.results.replay import replay
from ftae.search.driver import run_search
from ftae.specs import SearchSpec

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("ray_session")]  # four whole searches


def spec(storage: Path, name: str, **settings: object) -> SearchSpec:
    settings = {"num_trials": 2, "max_concurrent": 1, "keep_checkpoints": 1, "storage": str(storage)} | settings
    return search_spec(name=name, search=settings, **{"finetune.num_evals": 3, "finetune.metrics": ["psnr"]})


def test_a_search_takes_what_it_needs_of_earlier_ones_once(tmp_path: Path) -> None:
    run_search(spec(tmp_path, "first"))
    said: list[str] = []
    record = run_search(spec(tmp_path, "second", warm_start=["first"]), notify=said.append)
    assert "warm start    2 trials of first" in said
    [earlier] = record.facts["warm_start"]
    first = replay(tmp_path / "first")
    assert [trial["params"] for trial in earlier["trials"]] == [first.trials[number].params for number in (1, 2)]
    shutil.rmtree(tmp_path / "first")
    resumed = run_search(spec(tmp_path, "second", warm_start=["first"], num_trials=3), resume=True)
    assert resumed.ended.total() == 3
    assert resumed.facts["warm_start"] == [earlier]
    with pytest.raises(FtaeError, match=r"search\.warm_start differ"):
        run_search(spec(tmp_path, "second", num_trials=4), resume=True)
    with pytest.raises(FtaeError, match="there is no search 'first'"):
        run_search(spec(tmp_path, "third", warm_start=["first"]))
