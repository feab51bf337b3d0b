"""Posting to a webhook: what each service gets, and what is said where nothing arrives."""

import socket
from collections.abc import Iterator

import pytest
from webhook_server import SECRET, WebhookServer, webhook_server

from ftae.reporting import webhook
from ftae.reporting.webhook import body_for, post


@pytest.fixture
def server() -> Iterator[WebhookServer]:
    with webhook_server() as server:
        yield server


def test_a_text_arrives_as_json(server: WebhookServer) -> None:
    assert post(server.url, "one\ntwo") is None
    assert server.posted == [{"text": "one\ntwo"}]
    assert server.agents[0].startswith("ftae/")


@pytest.mark.parametrize("status", [404, 429, 500])
def test_a_refusal_is_told_by_its_status(server: WebhookServer, status: int) -> None:
    server.status = status
    assert post(server.url, "text") == f"it answered with status {status}"


def test_a_redirection_is_not_followed(server: WebhookServer) -> None:
    with webhook_server() as other:
        server.status, server.elsewhere = 307, other.url
        assert post(server.url, "text") == "it answered with status 307"
        server.status = 302
        assert post(server.url, "text") == "it answered with status 302"
        assert other.posted == []


def test_what_never_answers_is_not_waited_for(server: WebhookServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "TIMEOUT_SECONDS", 0.2)
    server.status = None
    assert post(server.url, "text") == "it did not answer within 0.2 s"


@pytest.mark.parametrize("place", ["http://127.0.0.1:{port}/{secret}", "http://127.0.0.1:{port}/a b\n{secret}"])
def test_no_reason_holds_the_url(place: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # nobody listens
        reason = post(place.format(port=free.getsockname()[1], secret=SECRET), "text")
    assert reason is not None
    assert reason.startswith("it cannot be reached")
    assert SECRET not in reason
    assert "127" not in reason


def test_each_service_gets_what_it_takes() -> None:
    assert body_for("hooks.slack.com", "x") == {"text": "x"}
    assert body_for("discord.com", "x") == {"content": "x"}
    assert body_for("not-discord.com", "x") == {"text": "x"}
    card = body_for("prod-1.westeurope.logic.azure.com", "x")["attachments"][0]
    assert card["contentType"] == "application/vnd.microsoft.card.adaptive"
    assert card["content"]["body"][0]["text"] == "x"


def test_a_text_calls_nobody_and_is_not_too_long() -> None:
    text = body_for("hooks.slack.com", "<!channel> 20 -> 21, val/kl <= 25 @everyone " + 3000 * "x")["text"]
    assert text.startswith("\u2039!channel\u203a 20 → 21, val/kl ≤ 25 @\u200beveryone x")
    assert len(text) == webhook.LONGEST
