"""Going on with a search on this machine, without a cluster to submit it to."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from builders import eval_report, search_dict
from commands import Ftae, commands_in

from ftae.results.replay import replay
from ftae.search.state import SearchState
from ftae.specs import SearchSpec
from ftae.specs.files import dump, load_search
from ftae.storage.backends import FolderStore

SEARCH = search_dict(
    **{
        "finetune.max_steps": 4,
        "finetune.num_evals": 1,
        "finetune.metrics": ["psnr"],
        "search.num_trials": 1,
        "search.max_concurrent": 1,
        "tracking.uri": "http://127.0.0.1:9",  # nobody listens: creating the embedded store takes long
    }
)


@pytest.fixture
def ftae(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ftae:
    """Runs a command in ``tmp_path``, which holds search.yaml."""
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(SEARCH))
    return commands_in(tmp_path, monkeypatch, capsys)


def make_search(folder: Path, search: dict[str, Any] = SEARCH) -> None:
    """A search that is closed after the baseline and one trial."""
    folder.mkdir(parents=True)
    state = SearchState(SearchSpec.model_validate(search), FolderStore(folder))
    for psnr in (7.0, 8.0):
        trial = state.next_trial()
        assert trial is not None
        state.report(trial.number, eval_report(4 * trial.number, psnr, checkpoint=None, images=None))
    state.close("complete")


@pytest.mark.usefixtures("ray_session")
def test_a_finished_search_goes_on_with_more_trials(ftae: Ftae, tmp_path: Path) -> None:
    make_search(tmp_path / "moved" / "small")
    here = ["small", "--storage", "moved"]
    for command in (["resume", *here], ["extend", *here, "--max-hours", "1"]):
        status, out, err = ftae(*command)
        assert (status, out) == (1, "")
        assert err == "error: small has finished all its 1 trials; to add trials: ftae extend small --trials N\n"
    status, out, _ = ftae("extend", *here, "--trials", "2", "--max-hours", "0.5")
    assert (status, out.startswith("small: best is trial ")) == (0, True)
    record = replay(tmp_path / "moved" / "small")
    assert [(t.number, t.status) for t in record.trials.values()] == [(number, "finished") for number in range(4)]
    assert (record.search["search"]["num_trials"], record.search["search"]["max_hours"]) == (3, 0.5)
    assert not (tmp_path / "searches").exists()
    assert ftae("list", "--storage", "moved")[1].splitlines()[-1].split()[:3] == ["small", "complete", "3/3"]
    assert ftae("status", "moved/small")[1].startswith("small: complete\ntrials       3 of 3 done\n")


@pytest.mark.usefixtures("ray_session")
def test_a_search_that_exists_is_not_started_again(ftae: Ftae, tmp_path: Path) -> None:
    longer = SEARCH | {"search": SEARCH["search"] | {"num_trials": 3}}
    Path("search.yaml").write_text(yaml.safe_dump(longer))
    make_search(tmp_path / "searches" / "small", longer)
    status, out, err = ftae("search", "search.yaml")
    assert (status, out) == (1, "")
    assert "holds a search already (1 of 3 trials done)" in err
    status, _, err = ftae("search", "search.yaml", "--resume", "--set", "search.seed=7")
    assert status == 1
    assert "comparable with those of the search to resume: search.seed differ" in err


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["extend", "small"], 2, "Invalid value: give --trials, --budget or --max-hours"),
        (["resume", "none"], 1, "error: there is no search 'none' in searches; it holds none\n"),
        (["status", "none"], 1, "error: there is no search 'none' in searches; it holds none\n"),
        (["resume", "small", "--follow"], 1, "error: --follow, --python and --max-attempts are for a cluster; name it"),
        (["list"], 0, "no searches in searches\n"),
    ],
)
def test_what_cannot_be_done_here(ftae: Ftae, arguments: list[str], status: int, message: str) -> None:
    result = ftae(*arguments)
    assert result[:2] == (status, "")
    assert message in result[2]


def test_a_search_is_read_from_stdin(ftae: Ftae, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = load_search(Path("search.yaml"))
    Path("sent.yaml").write_text(dump(spec))
    with Path("sent.yaml").open() as sent:
        monkeypatch.setattr(sys, "stdin", sent)
        assert load_search(Path("-")) == spec
    Path("sent.yaml").write_text("name: [")
    with Path("sent.yaml").open() as sent:
        monkeypatch.setattr(sys, "stdin", sent)
        status, _, err = ftae("search", "-")
    assert (status, err.startswith("error: <stdin>:1: not valid YAML: ")) == (1, True)
