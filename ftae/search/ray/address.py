"""Whose Ray a search runs on: one of this machine's own, or a cluster. This module alone decides."""

import os
import re

from ftae.errors import FtaeError

VARIABLE = "RAY_ADDRESS"


def is_own() -> bool:
    """Whether a search starts a Ray of its own: ``RAY_ADDRESS`` is not set, empty, or ``local``."""
    return _given() in ("", "local")


def cluster_address() -> str | None:
    """The cluster that ``RAY_ADDRESS`` names: ``HOST:PORT`` of its GCS, or ``auto``. None for a Ray of our own.

    Raises:
        FtaeError: it names something that a search cannot join.
    """
    if is_own():
        return None
    address = _given()
    if "://" in address:
        scheme = address.partition("://")[0]
        kind = {"http": "a dashboard", "https": "a dashboard", "ray": "Ray's client server"}.get(scheme, scheme)
        raise FtaeError(f"{_named(address)}, the address of {kind}. {_choices()}")
    if address != "auto" and not re.fullmatch(r"[^\s:]+:\d{1,5}|\[[0-9a-fA-F:.%\w]+\]:\d{1,5}", address):
        raise FtaeError(f"{_named(address)}, which is no HOST:PORT. {_choices()}")
    return address


def unreachable(address: str, reason: str) -> FtaeError:
    """The error for a cluster that does not answer."""
    return FtaeError(f"{_named(address)}, and no search can join that cluster: {reason}. {_choices()}")


def _given() -> str:
    return os.environ.get(VARIABLE, "").strip()


def _named(address: str) -> str:
    return f"the environment variable {VARIABLE} is {address!r}"


def _choices() -> str:
    return (
        "A search joins a cluster at HOST:PORT of its GCS (port 6379, unless it was started with another), or at "
        f"'auto' on one of its nodes; `unset {VARIABLE}` runs the search on this machine alone, and `ftae submit` "
        "takes the address of a dashboard"
    )
