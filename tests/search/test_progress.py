"""What a user sees: plain lines in a file, a live table on a terminal."""

import io
import os
import pty
import re
import subprocess
import sys
from contextlib import suppress
from typing import Any

import pytest
from rich.console import Console
from simulated import CONSTRAINED, TWO, sampler_spec

from ftae.results.search_record import SearchRecord
from ftae.search import progress as module
from ftae.search.progress import Progress, short_params
from ftae.specs import SearchSpec
from ftae.wording import duration

LR = {"optimizer.lr": {"low": 1e-4, "high": 1.0, "log": True}}
SPEC = sampler_spec(LR, num_trials=8)
CONSTRAINED_SPEC = sampler_spec(LR, CONSTRAINED, num_trials=8)


class Search:
    """A record that grows, and its progress on a console that writes into a string."""

    def __init__(
        self, terminal: bool, spec: SearchSpec = SPEC, record: SearchRecord | None = None, expected: float = 400.0
    ) -> None:
        self.record = record or SearchRecord(search=spec.model_dump(mode="json"))
        self.progress = Progress(spec)
        self.output = io.StringIO()
        self.progress._console = Console(file=self.output, force_terminal=terminal, width=120, color_system=None)
        self.progress.follow(self.record, expected)

    def trial(
        self,
        number: int,
        steps: int = 0,
        psnr: float = 20.0,
        end: str | None = None,
        reason: str = "",
        **more: float,
    ) -> None:
        kind = {0: "baseline", 1: "file"}.get(number, "sampled")
        params = {"optimizer.lr": 1e-3 * number} if number else {}
        self._apply(number, event="suggest", params=params, kind=kind)
        if steps or not number:
            metrics = {"val/psnr": psnr} | {f"val/{name}": value for name, value in more.items()}
            self._apply(number, event="report", step=steps, value=psnr, metrics=metrics, checkpoint=None)
        if end is not None:
            self._apply(number, event="end", status=end, reason=reason or None)

    def _apply(self, number: int, **event: Any) -> None:
        self.record.apply({"trial": number, "time": 0.0} | event)
        self.progress.update(number)

    @property
    def lines(self) -> list[str]:
        return self.output.getvalue().splitlines()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test sets."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_file_gets_one_line_per_trial_that_ends(clock: list[float]) -> None:
    search = Search(terminal=False)
    with search.progress:
        search.trial(0, 0, 18.0, "finished")
        search.trial(1, 4)
        assert len(search.lines) == 1, "only the baseline has ended"
        clock[0] += 30.0
        search.trial(2, 12, 21.5, "finished")
        search.trial(3, 4, 17.0, "pruned")
        search.trial(4, 4, 17.0, "diverged", "non-finite loss at step 5")
        search.trial(5, 12, 19.0, "failed", "RuntimeError: boom [/x]")
    assert search.lines == [
        "baseline finished val/psnr 18.0000 at step 0 | 0/8 trials done, 0 running | "
        "no full trial yet, baseline 18.0000 | about 6 min 40 s left",
        "trial 2 finished val/psnr 21.5000 at step 12 | 1/8 trials done, 1 running | "
        "best 21.5000, baseline 18.0000, +3.5000 | about 3 min 12 s left",
        "trial 3 pruned val/psnr 17.0000 at step 4 | 2/8 trials done, 1 running, 1 pruned | "
        "best 21.5000, baseline 18.0000, +3.5000 | about 1 min 44 s left",
        "trial 4 diverged val/psnr 17.0000 at step 4 (non-finite loss at step 5) | "
        "3/8 trials done, 1 running, 1 pruned, 1 diverged | "
        "best 21.5000, baseline 18.0000, +3.5000 | about 1 min 2 s left",
        "trial 5 failed val/psnr 19.0000 at step 12 (RuntimeError: boom [/x]) | "
        "4/8 trials done, 1 running, 1 pruned, 1 diverged, 1 failed | "
        "best 21.5000, baseline 18.0000, +3.5000 | about 39 s left",
    ]


def test_messages_are_printed_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    message = "2 images cannot be read: [a].png: " + "x" * 200
    Progress(SPEC).notify(message)
    out, err = capsys.readouterr()
    assert (out, err) == ("", message + "\n")


def test_a_terminal_gets_a_table(clock: list[float]) -> None:
    search = Search(terminal=True)
    with search.progress:
        search.trial(0, 0, 18.0, "finished")
        search.trial(1, 4, 19.25)
        search.trial(2, 12, 21.5, "finished")
        search.trial(3, 4, 17.0, "pruned")
        search.trial(4, 8, 17.0, "diverged", "non-finite loss at step 9")
        search.progress._live.refresh()  # type: ignore[union-attr]
    shown = search.output.getvalue()
    assert re.search(r"trial +status +step +val/psnr +params", shown)
    assert re.search(r"0 +finished +0 +18\.0000 +baseline, untuned", shown)
    assert re.search(r"1 +running +4 +19\.2500 +lr=0\.001", shown)
    assert re.search(r"4 +diverged +8", shown)
    assert "small: 3/8 trials done, 1 running, 1 pruned, 1 diverged" in shown
    assert "best 21.5000, baseline 18.0000, +3.5000" in shown
    assert "trial 3 pruned" not in shown, "no lines beside the table"


def test_the_table_shows_which_trials_keep_the_constraints(clock: list[float]) -> None:
    search = Search(terminal=False, spec=CONSTRAINED_SPEC)
    with search.progress:
        search.trial(0, 0, 18.0, "finished", mse=0.1)
        search.trial(2, 12, 21.5, "finished", mse=0.9)
        search.trial(3, 12, 20.0, "finished", mse=0.5)
    assert search.lines[1].startswith(
        "trial 2 finished val/psnr 21.5000 val/mse 0.9000 at step 12 (misses constraints) | "
        "1/8 trials done, 0 running | no trial keeps the constraints, nearest 21.5000, baseline 18.0000"
    )
    assert "trial 3 finished val/psnr 20.0000 val/mse 0.5000 at step 12 | " in search.lines[2]
    assert "| best 20.0000, baseline 18.0000, +2.0000 |" in search.lines[2]
    search.trial(4)
    with search.progress._console.capture() as capture:
        search.progress._console.print(search.progress._render())
    header, *rows = [line.split() for line in capture.get().splitlines()]
    assert header == ["trial", "status", "step", "val/psnr", "val/mse", "feasible", "params"]
    assert [row[:6] for row in rows[1:4]] == [
        ["3", "finished", "12", "20.0000", "0.5000", "yes"],
        ["2", "finished", "12", "21.5000", "0.9000", "no"],
        ["0", "finished", "0", "18.0000", "0.1000", "yes"],
    ]


def test_the_table_shows_running_trials_and_the_newest() -> None:
    search = Search(terminal=False)
    search.trial(1, 4, 19.0)
    for number in range(2, 40):
        search.trial(number, 12, 20.0, "finished")
    with search.progress._console.capture() as capture:
        search.progress._console.print(search.progress._render())
    numbers = [line.split()[0] for line in capture.get().splitlines()[1:-1]]
    assert numbers == ["1", *(str(number) for number in range(39, 28, -1))]


def lowered(num_trials: int) -> SearchSpec:
    return SPEC.model_copy(update={"search": SPEC.search.model_copy(update={"num_trials": num_trials})})


def left(search: Search) -> str:
    return search.lines[-1].rpartition(" | ")[2]


def test_the_time_left_of_a_resumed_search_ignores_earlier_trials(clock: list[float]) -> None:
    earlier = Search(terminal=False)
    for number in range(5):
        earlier.trial(number, 12, 20.0, "finished")
    search = Search(terminal=False, record=earlier.record, expected=8 * 60.0)
    clock[0] += 60.0
    search.trial(5, 12, 20.0, "finished")
    # 60 s for one of eight trials, as expected; three are left.
    assert search.lines[0].endswith(
        "5/8 trials done, 0 running | best 20.0000, baseline 20.0000, +0.0000 | about 3 min 0 s left"
    )


def test_the_time_left_moves_from_the_expected_to_the_measured_speed(clock: list[float]) -> None:
    search = Search(terminal=False, expected=400.0)
    search.trial(0, 0, 18.0, "finished")
    assert left(search) == "about 6 min 40 s left"
    clock[0] += 10.0
    search.trial(1, 0, 18.0, "failed")  # an eighth is done, which makes 80 s in all
    whole = (0.05 * 400.0 + 10.0) / (0.05 + 0.125)
    assert left(search) == f"about {duration(whole * 7 / 8)} left"
    for number in range(2, 8):
        clock[0] += 10.0
        search.trial(number, 12, 20.0, "finished")
    assert left(search) == f"about {duration((0.05 * 400.0 + 70.0) / 0.925 / 8)} left"


def test_between_reports_the_time_left_counts_down_to_zero(clock: list[float]) -> None:
    search = Search(terminal=False, expected=80.0)
    with search.progress:
        search.trial(0, 0, 18.0, "finished")
        shown = []
        for _ in range(5):
            shown.append(search.progress._time_left())
            clock[0] += 20.0
    assert shown == [
        "about 1 min 20 s left",
        "about 1 min 0 s left",
        "about 40 s left",
        "about 20 s left",
        "later than expected",
    ]
    for number in range(1, 9):
        search.trial(number, 12, 20.0, "finished")
    assert left(search) == "about to end"


def test_fewer_trials_than_have_begun_are_noted(clock: list[float]) -> None:
    earlier = Search(terminal=False)
    for number in range(3):
        earlier.trial(number, 12, 20.0, "finished")
    earlier.trial(3, 4)
    search = Search(terminal=False, spec=lowered(1), record=earlier.record, expected=30.0)
    assert search.lines == ["3 trials have begun and search.num_trials is 1: they are finished, and none is added"]
    clock[0] += 4.0
    search.record.apply({"event": "end", "trial": 3, "time": 0.0, "status": "finished", "reason": None})
    search.progress.update(3)
    assert "3 (1 asked for since) trials done, 0 running" in search.lines[1]
    assert left(search) == "about to end"


def test_a_table_is_drawn_while_the_record_grows() -> None:
    search = Search(terminal=False, spec=sampler_spec(LR, TWO, num_trials=8))
    search.trial(1, 12, 20.0, "finished", mse=0.1)
    shown = search.progress._render()
    # The other thread may draw between an event and ``update``, while the record is inconsistent.
    search.record.trials = None  # type: ignore[assignment]
    with search.progress._console.capture() as capture:
        search.progress._console.print(shown)
        search.progress._console.print(search.progress._render())
    assert capture.get().count("1/8 trials done") == 2


def test_days_are_shown_in_hours(clock: list[float]) -> None:
    search = Search(terminal=False, expected=80 * 3600.0)
    clock[0] += 36_000.0
    search.trial(1, 12, 20.0, "finished")
    assert search.lines[0].endswith("about 70 h 0 min left")


def test_params_fit_on_a_line() -> None:
    params = {"optimizer.lr": 0.000123456, "max_grad_norm": None, "freeze_depth": 3, "optimizer.betas": [0.9, 0.999]}
    assert short_params(params) == "lr=0.0001235 max_grad_norm=None freeze_depth=3 betas=[0.9, 0.999]"


def test_on_a_real_terminal_the_table_goes_to_stderr() -> None:
    code = (
        "import sys; from ftae.results.search_record import SearchRecord; from ftae.specs import SearchSpec\n"
        "from ftae.search.progress import Progress\n"
        "spec = SearchSpec.model_validate_json(sys.argv[1])\n"
        "record = SearchRecord(search=spec.model_dump(mode='json'))\n"
        "with Progress(spec) as progress: progress.follow(record, 400.0); progress.notify('hello')\n"
    )
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", code, SPEC.model_dump_json()]
    result = subprocess.run(
        command, stderr=theirs, stdout=subprocess.PIPE, env=os.environ | {"TERM": "xterm"}, check=True
    )
    os.close(theirs)
    shown = ""
    with suppress(OSError):  # the end of the output
        while part := os.read(ours, 100_000).decode():
            shown += part
    os.close(ours)
    assert result.stdout == b""
    assert "hello" in shown
    assert "small: 0/8 trials done" in shown
