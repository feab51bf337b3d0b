"""Tells webhooks how a search goes: the first trial that beats the baseline, and how the search ended.

What is told follows from the journal. What has arrived is remembered beside it, so that nothing arrives twice, however
often the search is resumed.
"""

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from ftae.errors import FtaeError
from ftae.reporting.safe import without_secrets
from ftae.reporting.webhook import post
from ftae.results.conclusion import commands, headline, storage_of, winner_of
from ftae.results.outcome import REPORT
from ftae.results.replay import replay
from ftae.results.search_record import Close, SearchRecord, TrialRecord
from ftae.results.summary import progress
from ftae.results.verdict import beats_baseline, is_within_noise
from ftae.search.tracking_sync import page_address
from ftae.specs.search.webhooks import webhook_fault
from ftae.storage.store import Store

ARRIVED = "notified.json"  # by variable, the keys of the messages that have arrived
FIRST_GAIN = "first gain"
POST_SECONDS = 10.0  # for all webhooks together
LINK_SECONDS = 15.0  # to find a page of MLflow, which is imported for it


@dataclass(frozen=True)
class Message:
    """What is to be told of a search. ``key`` tells messages apart; ``told`` are the keys of all that it tells."""

    key: str
    told: tuple[str, ...]
    text: str


def message(record: SearchRecord, winner: TrialRecord | None, *, is_over: bool) -> Message | None:
    """What there is to tell of a search now; None if there is nothing. ``is_over``: its driver has left."""
    is_gain = winner is not None and beats_baseline(record, winner) and not is_within_noise(record, winner)
    gain, found = (FIRST_GAIN,) if is_gain else (), headline(record, winner)
    if is_over:
        end = _end(record.close)
        # A driver that finds the search as the one before it left it, and leaves it so, has nothing to tell.
        key = hashlib.blake2b(f"{progress(record)['newest_event']} {end}".encode(), digest_size=8).hexdigest()
        return Message(key, (key, *gain), f"{record.name} {end}.\n{found}")
    return Message(FIRST_GAIN, gain, f"{record.name}: a trial beats the baseline.\n{found}") if gain else None


def _end(close: Close | None) -> str:
    if close is None:
        return "has lost its driver, which was killed or could not write the journal"
    state = {"complete": "is complete", "interrupted": "was interrupted"}.get(close.status, "failed")
    return f"{state}: {close.reason}" if close.reason else state


class Notifier:
    """Posts what there is to tell. ``say`` receives one line for each webhook that did not get it.

    No call raises, and none takes longer than ``POST_SECONDS`` and ``LINK_SECONDS``. A webhook that did not take a
    message is asked again at the end of the search, and not before.
    """

    def __init__(self, store: Store, say: Callable[[str], None]) -> None:
        self._store, self._say = store, say
        self._away: set[str] = set()  # variables
        self._waits = False  # for the end: there is nothing more to tell before it

    def update(self, *, is_over: bool) -> None:
        """Post what is new in the journal. ``is_over``: the driver has left."""
        try:
            if is_over or not self._waits:
                self._update(is_over)
        except (FtaeError, OSError):
            return  # the search never began, or its storage fails, as others say
        except Exception as error:  # noqa: BLE001  # no notification may end what keeps the report
            self._say(f"search.notify: nothing is posted: {type(error).__name__}")

    def _update(self, is_over: bool) -> None:
        record = replay(self._store.folder)
        variables = [name for name in record.search["search"].get("notify", ()) if self._can_be_told(name, is_over)]
        winner = winner_of(record)
        found = message(record, winner, is_over=is_over) if variables else None
        self._waits = found is not None or not variables
        arrived = self._arrived()
        due = [name for name in variables if found is not None and found.key not in arrived.get(name, ())]
        if found is None or not due:
            return
        for name, fault in _post(due, self._text(record, winner, found)).items():
            if fault is None:
                arrived[name] = list(dict.fromkeys([*arrived.get(name, ()), *found.told]))
            else:
                self._missed(name, f"the webhook of {name} did not get a message: {fault}")
        self._store.write(ARRIVED, json.dumps(arrived).encode())

    def _can_be_told(self, variable: str, is_over: bool) -> bool:
        if fault := webhook_fault(variable):
            self._missed(variable, f"nothing is posted: {fault} where the search is driven")
        return fault is None and (is_over or variable not in self._away)

    def _missed(self, variable: str, what: str) -> None:
        if variable not in self._away:
            self._say(f"warning: search.notify: {what}; the search does not depend on it")
        self._away.add(variable)

    def _arrived(self) -> dict[str, list[str]]:
        with suppress(ValueError):  # a damaged file: what it said may arrive again
            found = json.loads(self._store.read(ARRIVED) or b"{}")
            if isinstance(found, dict):
                return found
        return {}

    def _text(self, record: SearchRecord, winner: TrialRecord | None, found: Message) -> str:
        storage = storage_of(self._store)
        uri = (record.search.get("tracking") or {}).get("uri") or ""
        lines = [found.text]
        if found.key != FIRST_GAIN:
            lines += [f"Next: {one.line} ({one.purpose})" for one in commands(record, winner, storage)[:1]]
        lines.append(f"Report: {self._store}/{REPORT}")
        text = "\n".join(without_secrets(lines, [uri, storage]))
        link = _link(self._store, winner) if uri.startswith(("http:", "https:")) else None
        return text if link is None else f"{text}\nPictures: {link}"


def _post(variables: Sequence[str], text: str) -> dict[str, str | None]:
    """Post to all webhooks at once; returns by variable None, or why the text has not arrived."""
    results: dict[str, str | None] = dict.fromkeys(variables, f"it did not answer within {POST_SECONDS:g} s")

    def send(variable: str) -> None:
        results[variable] = post(os.environ[variable], text)

    _for_at_most(POST_SECONDS, [partial(send, name) for name in variables])
    return dict(results)


def _link(store: Store, winner: TrialRecord | None) -> str | None:
    """The page of the winner in MLflow, or of the search; None where it cannot be found in time."""
    found: list[str] = []

    def find() -> None:
        for trial in (None if winner is None else winner.number, None):
            with suppress(FtaeError):
                found.append(page_address(store, trial))
                return

    _for_at_most(LINK_SECONDS, [find])
    return found[0] if found else None


def _for_at_most(seconds: float, actions: Sequence[Callable[[], None]]) -> None:
    """Do something in threads, and wait so long for all of it. No other way ends the wait for a name server."""
    deadline = time.monotonic() + seconds
    threads = [threading.Thread(target=action, daemon=True) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
