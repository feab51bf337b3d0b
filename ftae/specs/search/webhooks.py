"""Webhooks: a file names variables of the environment, and they hold the URLs, which are secrets."""

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from ftae.specs.reading.problems import Problem, refusal

MOST_WEBHOOKS = 5
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_variables(names: Any) -> Any:
    """Refuse what is no list of names of variables. No message repeats a value: it may be a URL.

    Raises:
        pydantic.ValidationError: with every fault.
    """
    what = "environment variables that hold the URLs of webhooks, such as [FTAE_WEBHOOK]"
    if not isinstance(names, list | tuple):
        raise refusal([((), f"must be a list of names of {what}")])
    wrong: list[Problem] = [
        ((i,), f"must be the name of a variable, not a URL, which is a secret: name {what}")
        for i, name in enumerate(names)
        if not (isinstance(name, str) and _VARIABLE.fullmatch(name))
    ]
    wrong += [((i,), "names a variable twice") for i, name in enumerate(names) if not wrong and name in names[:i]]
    if not wrong and len(names) > MOST_WEBHOOKS:
        wrong = [((), f"must name at most {MOST_WEBHOOKS} variables, got {len(names)}")]
    if wrong:
        raise refusal(wrong)
    return tuple(names)


def webhook_fault(variable: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """Why nothing can be posted to the webhook of a variable; None if it can. The reason does not hold its value."""
    url = environment.get(variable)
    if not url:
        return f"the variable {variable} is not set"
    try:
        parts = urlsplit(url)
        host, scheme = parts.hostname, parts.scheme
        _ = parts.port
    except ValueError:
        return f"the variable {variable} does not hold a URL"
    if host and (scheme == "https" or (scheme == "http" and host in LOOPBACK)):
        return None
    return f"the variable {variable} must hold a URL that begins with https:// (http:// only for this machine)"
