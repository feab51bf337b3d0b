"""What webhooks are told of a search, once each, and that one that is away disturbs nobody."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from reporting.journals import CONSTRAINED, Story, spec_of
from webhook_server import SECRET, WebhookServer, webhook_server

from ftae.errors import FtaeError
from ftae.reporting import notification, webhook
from ftae.reporting.notification import ARRIVED, Notifier
from ftae.storage.backends import FolderStore


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebhookServer]:
    with webhook_server() as server:
        monkeypatch.setenv("FTAE_WEBHOOK", server.url)
        yield server


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return Story(tmp_path / "s", spec_of(notify=["FTAE_WEBHOOK"]))


def tell(story: Story, *, is_over: bool = False) -> list[str]:
    """What a driver says that posts what is new."""
    said: list[str] = []
    Notifier(story.write(), said.append).update(is_over=is_over)
    return said


def test_the_first_gain_and_the_end_are_told_once_each(story: Story, server: WebhookServer) -> None:
    story.baseline()
    tell(story)
    story.trial(1, "pruned")
    tell(story)
    assert server.posted == []
    for number in (2, 3):
        story.trial(number)
        assert tell(story) == []
    [first] = server.texts
    assert first.startswith("made-up: a trial beats the baseline.\nTrial 2: val/psnr 18.0000 → ")
    assert f"Report: {story.folder}/report.html" in first
    story.close()
    tell(story, is_over=True)
    tell(story, is_over=True)
    _, last = server.texts
    assert "Next: " not in first
    assert last.startswith("made-up is complete.\nTrial ")
    assert "\nNext: ftae export made-up" in last


def test_a_gain_within_noise_or_out_of_bounds_is_none(tmp_path: Path, server: WebhookServer) -> None:
    for name, objective, psnr in (("noise", None, 18.01), ("bounds", CONSTRAINED, 40.0)):
        given = {} if objective is None else {"objective": objective}
        story = Story(tmp_path / name, spec_of(notify=["FTAE_WEBHOOK"], **given))
        story.baseline()
        story.add("suggest", trial=1, params={}, kind="file", noise=0.05)
        story.report(1, 90, psnr)
        story.end(1, "finished")
        tell(story)
    assert server.posted == []


def test_what_the_end_has_told_is_no_news_when_the_search_is_extended(story: Story, server: WebhookServer) -> None:
    story.baseline()
    story.trial(1)
    story.close()
    tell(story, is_over=True)
    story.add("open", search=story.spec.model_dump(mode="json"), digest=story.spec.digest(), facts={})
    tell(story)
    story.close()
    tell(story, is_over=True)  # a search that was complete when it was resumed
    assert len(server.texts) == 1
    story.trial(2)
    story.close()
    tell(story, is_over=True)
    assert len(server.texts) == 2


@pytest.mark.parametrize(
    ("status", "reason", "said"),
    [
        ("failed", "3 trials in a row failed: s3://me:hush@bucket is full", "made-up failed: 3 trials in a row failed"),
        ("interrupted", "max_hours is over", "made-up was interrupted: max_hours is over"),
        (None, None, "made-up has lost its driver"),
    ],
)
def test_every_other_end_is_told_with_its_reason(
    story: Story, server: WebhookServer, status: str | None, reason: str | None, said: str
) -> None:
    story.baseline()
    if status is not None:
        story.close(status, reason)
    tell(story, is_over=True)
    [text] = server.texts
    assert text.startswith(said)
    assert SECRET not in text
    assert "\nNext: ftae " in text


def test_a_webhook_that_refuses_is_told_of_once_and_asked_again_at_the_end(story: Story, server: WebhookServer) -> None:
    story.baseline()
    said: list[str] = []
    notifier = Notifier(FolderStore(story.folder), said.append)
    server.status = 500
    for number in (1, 2, 3):
        story.trial(number)
        story.write()
        notifier.update(is_over=False)
    assert len(server.posted) == 1
    story.close()
    story.write()
    notifier.update(is_over=True)
    assert len(server.posted) == 2
    assert said == [
        "warning: search.notify: the webhook of FTAE_WEBHOOK did not get a message: it answered with status 500; "
        "the search does not depend on it"
    ]
    server.status = 200
    tell(story, is_over=True)  # the next driver
    assert len(server.posted) == 3
    tell(story, is_over=True)
    assert len(server.posted) == 3


def test_one_that_never_answers_does_not_keep_another_waiting(
    tmp_path: Path, server: WebhookServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = Story(tmp_path / "s", spec_of(notify=["SLOW", "FTAE_WEBHOOK"]))
    story.baseline()
    story.close()
    monkeypatch.setattr(webhook, "TIMEOUT_SECONDS", 60.0)
    monkeypatch.setattr(notification, "POST_SECONDS", 1.0)
    with webhook_server() as slow:
        slow.status = None
        monkeypatch.setenv("SLOW", slow.url)
        [line] = tell(story, is_over=True)
        assert "the webhook of SLOW did not get a message: it did not answer within 1 s" in line
    assert len(server.texts) == 1
    assert json.loads((story.folder / ARRIVED).read_text()).keys() == {"FTAE_WEBHOOK"}


def test_a_variable_that_is_not_set_is_told(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FTAE_WEBHOOK", raising=False)
    story.baseline()
    [line] = tell(story)
    assert line.startswith("warning: search.notify: nothing is posted: the variable FTAE_WEBHOOK is not set where")
    monkeypatch.setenv("FTAE_WEBHOOK", f"http://example.org/{SECRET}")
    [line] = tell(story)
    assert "must hold a URL that begins with https://" in line
    assert SECRET not in line


def test_what_is_damaged_is_written_again(story: Story, server: WebhookServer) -> None:
    story.baseline()
    story.close()
    story.write().write(ARRIVED, b"[")
    assert tell(story, is_over=True) == []
    assert len(server.posted) == 1
    Notifier(FolderStore(story.folder / "nothing"), pytest.fail).update(is_over=True)


def test_mlflow_is_linked_where_it_answers(
    tmp_path: Path, server: WebhookServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(notify=["FTAE_WEBHOOK"])
    spec = spec.model_copy(update={"tracking": spec.tracking.model_copy(update={"uri": "http://mlflow:5000/"})})
    story = Story(tmp_path / "s", spec)
    story.baseline()
    story.trial(1)
    story.close()
    asked: list[object] = []

    def page_address(store: object, trial: int | None) -> str:
        asked.append(trial)
        if trial is not None:
            raise FtaeError("MLflow has no run of trial 1")
        return "http://mlflow:5000/#/experiments/1/runs/abc"

    monkeypatch.setattr(notification, "page_address", page_address)
    tell(story, is_over=True)
    assert asked == [1, None]
    assert server.texts[0].endswith("\nPictures: http://mlflow:5000/#/experiments/1/runs/abc")
