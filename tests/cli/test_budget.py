"""A search with a budget on the command line and in Python: it ends, it is shown, it goes on."""

import json
from pathlib import Path

import pytest
import yaml
from builders import search_dict
from commands import Ftae, commands_in

import ftae as api

SEARCH = search_dict(
    **{
        "finetune.max_steps": 4,
        "finetune.num_evals": 1,
        "finetune.metrics": ["psnr"],
        "search": {"budget": 1.0, "max_concurrent": 2, "scheduler": {"name": "fifo"}, "sampler": "random"},
        "tracking.uri": "http://127.0.0.1:9",  # nobody listens: creating the embedded store takes long
    }
)


@pytest.fixture
def ftae(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ftae:
    """Runs a command in ``tmp_path``, which holds search.yaml."""
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(SEARCH))
    return commands_in(tmp_path, monkeypatch, capsys)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.faults  # two whole searches
def test_a_search_ends_with_its_budget_and_goes_on_with_more(ftae: Ftae) -> None:
    status, _, err = ftae("search", "search.yaml")
    assert status == 0
    assert "1/1 full training, 1 trial done, 0 running" in err
    assert "search.budget has no room for another trial: 1 trial took 1 of 1 full training" in err
    assert ftae("status", "small")[1].splitlines()[1:3] == [
        "trials       1 done",
        "budget       1 of 1 full training used",
    ]
    assert ftae("show", "small")[1].startswith("small: complete, 1 of 1 full training")
    shown = json.loads(ftae("show", "small", "--json")[1])
    assert (shown["budget"], shown["used_budget"]) == (1.0, 1.0)

    status, _, err = ftae("extend", "small", "--trials", "2")
    assert (status, err.splitlines()[-1]) == (
        1,
        "error: small is complete, and no further trial fits into its budget (1 of 1 full training used); "
        "to add full trainings: ftae extend small --budget N",
    )
    assert ftae("extend", "small", "--budget", "2")[0] == 0
    search = api.open_search("small")
    assert (search.status, search.budget, search.used_budget) == ("complete", 3.0, 3.0)
    assert len(search.ranked) == 3
    assert ftae("list")[1].splitlines()[-1].split()[:4] == ["small", "complete", "3", "3/3"]
    assert search.reason == "search.budget has no room for another trial: 3 trials took 3 of 3 full trainings"


def test_extend_needs_something_to_extend_by(ftae: Ftae) -> None:
    assert ftae("extend", "small")[0] == 2
    assert ftae("extend", "small", "--budget", "0.5")[0] == 2
