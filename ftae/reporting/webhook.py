"""Posts a text to a webhook: one request, a few seconds at most, and no trace of the URL in what is said about it."""

import json
from http.client import HTTPException, HTTPMessage
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from ftae import __version__
from ftae.specs.search.webhooks import LOOPBACK

TIMEOUT_SECONDS = 5.0
LONGEST = 1900  # characters; Discord takes 2,000

# Brackets make links and calls to everybody in Slack, an at sign does in the others.
_HARMLESS = {"<=": "≤", ">=": "≥", "->": "→", "<": "\u2039", ">": "\u203a", "@": "@\u200b"}


def post(url: str, text: str) -> str | None:
    """Post a text; returns None if it has arrived, else why not, without a word of the URL.

    ``url`` is one that ``webhook_fault`` has nothing against. Redirections are not followed.
    """
    host = urlsplit(url).hostname or ""
    # Discord's host refuses the agent that Python names by default.
    headers = {"Content-Type": "application/json", "User-Agent": f"ftae/{__version__}"}
    request = Request(url, json.dumps(body_for(host, text)).encode(), headers)
    handlers: list[Any] = [_NoRedirection, *([ProxyHandler({})] if host in LOOPBACK else [])]
    try:
        with build_opener(*handlers).open(request, timeout=TIMEOUT_SECONDS):
            return None
    # The texts of these errors may hold the URL.
    except HTTPError as error:
        error.close()
        return f"it answered with status {error.code}"
    except URLError as error:
        return _kind(error.reason) if isinstance(error.reason, Exception) else "it cannot be reached"
    except (OSError, HTTPException, ValueError) as error:
        return _kind(error)


def _kind(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"it did not answer within {TIMEOUT_SECONDS:g} s"
    return f"it cannot be reached ({type(error).__name__})"


def body_for(host: str, text: str) -> dict[str, Any]:
    """The JSON that the service behind a host takes.

    ``text`` alone is what Slack, Mattermost, Rocket.Chat, Google Chat and the older connectors of Teams take; some of
    them refuse any other key. Discord and the workflows of Teams have their own.
    """
    for mark, harmless in _HARMLESS.items():
        text = text.replace(mark, harmless)
    text = text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
    if _is_below(host, "discord.com", "discordapp.com"):
        return {"content": text}
    if _is_below(host, "logic.azure.com", "powerplatform.com", "powerautomate.com", "flow.microsoft.com"):
        card = {"type": "AdaptiveCard", "version": "1.4", "body": [{"type": "TextBlock", "text": text, "wrap": True}]}
        content = {"contentType": "application/vnd.microsoft.card.adaptive", "content": card}
        return {"type": "message", "attachments": [content]}
    return {"text": text}


def _is_below(host: str, *domains: str) -> bool:
    return any(host == domain or host.endswith(f".{domain}") for domain in domains)


class _NoRedirection(HTTPRedirectHandler):
    """A redirection is an answer like any other: another host must not learn what is posted."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        return None
