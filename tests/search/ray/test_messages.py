"""Messages of a trial survive their way through Tune as text."""

from typing import get_args

import pytest

from ftae.search.ray.messages import (
    Adapted,
    Diverged,
    Failed,
    Message,
    Note,
    Report,
    Start,
    StorageFailed,
    from_json,
    to_json,
)

MESSAGES: list[Message] = [
    Start("node", 17, 8),
    Report(4, {"val/psnr": 20.123456789012345, "train/lr": 1e-300}, {"time/eval_seconds": 3}, None, "images/a.png"),
    Report(8, {"val/psnr": 1 / 3}, {}, "checkpoints/step-00000008", "images/b.png"),
    Adapted({"batch_size": 4, "optimizer.betas": [0.9, 0.99]}, "out of memory at step 6"),
    Note("two\nlines \u2028 and \N{SNOWMAN}"),
    Diverged("non-finite loss at step 3"),
    Failed("freeze leaves nothing to train"),
    StorageFailed("[Errno 28] No space left on device"),
]


def test_there_is_an_example_of_every_message() -> None:
    assert {type(message) for message in MESSAGES} == set(get_args(Message))


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_is_the_same_after_its_way_through_text(message: Message) -> None:
    found = from_json(to_json(message))
    assert found == message
    assert type(found) is type(message)
    assert repr(found) == repr(message)  # 3 is not 3.0


@pytest.mark.parametrize("text", ['{"type": "Tomorrow"}', "{}", '{"type": "Note"}', "no JSON", "[]"])
def test_other_text_is_not_a_message(text: str) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        from_json(text)
