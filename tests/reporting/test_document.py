"""A report is one file: all sections, nothing loaded, texts of others harmless, secrets out, sizes in bounds."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from made_up_search import MadeUpRun
from reporting.journals import CONSTRAINED, ONE, TWO, Story, search_of, spec_of
from reporting.page import Page

from ftae.errors import FtaeError
from ftae.reporting.document import report_of
from ftae.storage.backends import FolderStore
from ftae.storage.journal import FILE_NAME

SECTIONS = ["verdict", "look", "curves", "params", "trade-offs", "leaderboard", "time", "facts"]
PLOTLY = 4_900_000  # bytes of plotly's script, about
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&\u2028"


def page_of(story: Story, **options: Any) -> Page:
    return Page(report_of(story.write(), **options))


def test_a_report_has_every_section_in_order_and_loads_nothing(tmp_path: Path) -> None:
    page = page_of(search_of(tmp_path / "s", 30))
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS
    assert [address for address in page.addresses if not address.startswith("#")] == []
    assert page.handlers == []
    assert not {"link", "iframe", "img", "base"} & set(page.tags)
    assert page.tags.count("script") == 5


def test_a_browser_may_run_the_two_scripts_alone_and_use_no_network(tmp_path: Path) -> None:
    html = report_of(search_of(tmp_path / "s", 3).write()).decode()
    policy = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', html)
    assert len(policy) == 1
    assert "default-src &#39;none&#39;" in policy[0]
    assert policy[0].count("sha256-") == 2
    assert "unsafe-inline" not in policy[0].partition("style-src")[0]


@pytest.mark.parametrize("num_trials", [0, 1, 3])
def test_few_trials_make_a_whole_report(tmp_path: Path, num_trials: int) -> None:
    page = page_of(search_of(tmp_path / "s", num_trials))
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS
    assert len(page.content("data")["rows"]) == num_trials + 1


def test_the_verdict_compares_and_says_what_to_do_next(tmp_path: Path) -> None:
    page = page_of(search_of(tmp_path / "s", 30))
    assert "is the best: val/psnr 18.0000 →" in page.words
    assert "The file's own configuration" in page.words
    assert "ftae export made-up" in page.words
    assert "CPU time" in page.words
    assert "30/4000" in page.words


@pytest.mark.parametrize(("settings", "more"), [({}, "--trials 10"), ({"budget": 9.0}, "--budget 10")])
def test_no_gain_is_followed_by_more_of_what_limits_the_search(
    tmp_path: Path, settings: dict[str, float], more: str
) -> None:
    story = Story(tmp_path / "s", spec_of(**settings))
    story.add("suggest", trial=0, params={}, kind="baseline")
    story.report(0, 0, 99.0)
    story.end(0, "finished")
    story.trial(1, "finished")
    assert f"ftae extend made-up --storage {tmp_path} {more}" in Page(report_of(story.write())).words


@pytest.mark.parametrize("status", ["running", "pruned", "diverged", "failed"])
def test_a_search_without_a_finished_trial(tmp_path: Path, status: str) -> None:
    story = Story(tmp_path / "s")
    story.baseline()
    for number in (1, 2):
        story.trial(number, status)
    page = page_of(story)
    assert "No trial has finished" in page.words
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS


def test_a_search_that_has_only_begun(tmp_path: Path) -> None:
    page = page_of(Story(tmp_path / "s"))
    assert page.content("data")["rows"] == []
    assert "No trial has finished" in page.words


@pytest.mark.parametrize(("status", "shown"), [("interrupted", "ftae resume"), ("failed", "ftae resume")])
def test_a_search_that_was_left(tmp_path: Path, status: str, shown: str) -> None:
    story = Story(tmp_path / "s")
    story.baseline()
    story.trial(1)
    story.close(status, "the disk is full")
    page = page_of(story)
    assert shown in page.words
    assert f"The search ended as {status}: the disk is full" in page.words
    assert not page.content("data")["live"]


def test_a_live_report_says_so(tmp_path: Path) -> None:
    story = Story(tmp_path / "s")
    story.baseline()
    story.trial(1, "running")
    page = page_of(story, is_live=True)
    assert page.content("data")["live"]
    assert "ftae status made-up" in page.words


def test_several_goals_have_a_front(tmp_path: Path) -> None:
    page = page_of(search_of(tmp_path / "s", 20, spec_of(objective=TWO)))
    names = [trace["name"] for trace in page.content("figures")["trade-off-0"]["data"]]
    assert any(name.startswith("Pareto front") for name in names)
    assert "importance-1" in page.content("figures")


def test_constraints_are_drawn_and_counted(tmp_path: Path) -> None:
    page = page_of(search_of(tmp_path / "s", 20, spec_of(objective=CONSTRAINED)))
    names = [trace["name"] for trace in page.content("figures")["trade-off-0"]["data"]]
    assert any("constraints missed" in name for name in names)
    assert re.search(r"Of 6 trials that ran to their full budget, \d keep all constraints", page.words)


def test_texts_of_others_stay_texts(tmp_path: Path) -> None:
    story = Story(tmp_path / "s", versions={EVIL: EVIL}, git_commit=EVIL)
    (story.folder / "search.yaml").write_text(EVIL)
    story.baseline()
    story.trial(1, "diverged", EVIL)
    story.add("note", trial=1, text=EVIL)
    story.trial(2)
    story.close("interrupted", EVIL)
    store = story.write()
    journal = (store.folder / FILE_NAME).read_text()
    (store.folder / FILE_NAME).write_text(journal.replace('"name": "made-up"', f'"name": {json.dumps(EVIL)}'))
    html = report_of(store)
    page = Page(html)
    assert page.tags.count("script") == 5
    assert "img" not in page.tags
    assert b"<script>alert" not in html
    assert EVIL.strip("\u2028") in page.words
    assert page.content("data")["name"] == EVIL


def test_labels_of_plots_hold_no_markup(tmp_path: Path) -> None:
    spec = spec_of()
    story = Story(tmp_path / "s", spec)
    story.baseline()
    story.trial(1)
    hostile = {"optimizer.lr": 1e-3, '<a href="javascript:x">': "<b>"}
    story.trial(2, **hostile)
    store = story.write()
    journal = (store.folder / FILE_NAME).read_text()
    space = '"search_space": {"<i>evil": {"choices": ["<b>", "c"]}, '
    (store.folder / FILE_NAME).write_text(journal.replace('"search_space": {', space))
    figures = Page(report_of(store)).scripts["figures"]
    labels = [text for text in re.findall(r'"(?:label|text)":"(.*?)"', figures) if "evil" in text]
    assert labels
    assert all("\\u003c" not in text and "&lt;i" in text.replace("\\u0026", "&") for text in labels)


def test_secrets_of_addresses_stay_out(tmp_path: Path) -> None:
    story = Story(tmp_path / "s")
    story.baseline()
    story.trial(1, "failed", "cannot reach https://me:hunter22@tracker.example/api")
    story.close("failed", "postgresql://u:hunter22@db/x is away")
    (story.folder / "search.yaml").write_text("tracking: {uri: 'https://me:hunter22@tracker.example'}\n")
    store = story.write()
    journal = (store.folder / FILE_NAME).read_text()
    uri = '"uri": "https://me:hunter22@tracker.example"'
    (store.folder / FILE_NAME).write_text(journal.replace('"uri": null', uri))
    html = report_of(store)
    assert b"hunter22" not in html
    assert b"tracker.example" in html


def test_three_thousand_trials_make_a_file_of_sane_size(tmp_path: Path) -> None:
    story = search_of(tmp_path / "s", 3000)
    html = report_of(story.write())
    page = Page(html)
    assert len(html) < PLOTLY + 5_000_000
    assert len(page.content("data")["rows"]) == 3001
    figures = page.content("figures")
    drawn = {number for trace in figures["curves"]["data"] for number in trace.get("customdata", ()) if number}
    assert 100 < len(drawn) <= 401
    assert all(trace["type"] == "scattergl" for trace in figures["curves"]["data"] if trace["name"] == "finished")
    assert "Drawn are 400 trials of 3000" in page.words


def test_a_search_of_version_1(tmp_path: Path) -> None:
    old = Path(__file__).parents[1] / "files/version_1/searches/old"
    shutil.copytree(old, tmp_path / "old")
    page = Page(report_of(FolderStore(tmp_path / "old")))
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS


def test_a_production_run_has_what_makes_sense(tmp_path: Path) -> None:
    run = MadeUpRun(tmp_path, "small", tmp_path / "run")
    search = run.spec.model_dump(mode="json") | {"search_space": {}, "search": {"num_trials": 1}, "objective": ONE}
    run.add("open", kind="production", search=search, digest="", facts={})
    run.add("suggest", trial=1, params={}, kind="file")
    for step, psnr in ((0, 10.0), (6, 15.0), (12, 20.0)):
        run.report(1, step, psnr, image=True)
    run.add("end", trial=1, status="finished", reason=None)
    run.close("complete")
    page = Page(report_of(FolderStore(run.folder)))
    assert [name for name in page.ids if name in SECTIONS] == ["verdict", "look", "curves", "time", "facts"]
    assert "10.0000 → 20.0000" in page.words


def test_a_folder_without_a_search_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FtaeError, match="holds no search"):
        report_of(FolderStore(tmp_path))
