"""What driver and workers tell each other about a trial, and what a driver offers to the workers' side.

A worker sends ``Message`` objects through Tune, whose results carry text: ``to_json`` and ``from_json`` translate.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any, Protocol, get_args

from ftae.engine.training.checkpoint import EvalReport


@dataclass(frozen=True)
class Assignment:
    """A trial to run, from its newest checkpoint if there is one.

    ``kind``: baseline, file, sampled or confirmation. ``params``: values of searched leaves, by path. ``changes``:
    other leaves, such as a batch that an earlier worker had to halve, and the seed of a confirmation.
    """

    number: int
    kind: str
    params: dict[str, Any]
    changes: dict[str, Any]


@dataclass(frozen=True)
class Start:
    """A worker, process ``pid`` on the node with Ray's id ``node``, begins or continues the trial at ``step``."""

    node: str
    pid: int
    step: int


@dataclass(frozen=True)
class Report(EvalReport):
    """The trial was evaluated. Every file that the report names is in the storage."""


@dataclass(frozen=True)
class Adapted:
    """The trial continues with other settings; ``changes`` are leaves of finetune, by path."""

    changes: dict[str, Any]
    reason: str


@dataclass(frozen=True)
class Note:
    """The trial recovered from a fault."""

    text: str


@dataclass(frozen=True)
class Diverged:
    """The params cannot be trained; the trial is over."""

    reason: str


@dataclass(frozen=True)
class Failed:
    """The user has to fix something; the trial is over."""

    reason: str


@dataclass(frozen=True)
class StorageFailed:
    """The trial's files or images cannot be used. The next trial would fail, too, so the search has to stop."""

    reason: str


Message = Start | Report | Adapted | Note | Diverged | Failed | StorageFailed
_TYPES: dict[str, type[Message]] = {kind.__name__: kind for kind in get_args(Message)}


def to_json(message: Message) -> str:
    return json.dumps({"type": type(message).__name__, **asdict(message)})


def from_json(text: str) -> Message:
    """The message that ``to_json`` wrote.

    Raises:
        KeyError, TypeError, ValueError: ``text`` is not a message of this version of ftae.
    """
    fields = json.loads(text)
    return _TYPES[fields.pop("type")](**fields)


class Coordinator(Protocol):
    """The driver of a search: hands out trials, and decides after each message. No method raises."""

    def assign(self) -> Assignment | None:
        """The next trial to run; None if there is none now."""

    def may_assign_more(self) -> bool:
        """Whether ``assign`` may return another trial later, because a running one may have to be started again."""

    def receive(self, number: int, message: Message) -> bool:
        """Take a message of trial ``number``; returns whether the trial continues."""

    def note(self, number: int, text: str) -> None:
        """Record that trial ``number`` met a fault and continues."""

    def take_back(self, number: int) -> None:
        """Record that trial ``number`` was assigned and not started: it is assigned again."""

    def give_up(self, number: int, reason: str) -> None:
        """Record that trial ``number`` failed for the last time."""

    def fail(self, error: Exception) -> None:
        """End the search because of ``error``."""

    def must_stop(self) -> bool:
        """Whether the search has to end now, although trials run."""
