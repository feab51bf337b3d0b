"""Loading models without the words of the libraries that do it: what matters is in ftae's own message."""

import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

LIBRARIES = ("diffusers", "huggingface_hub", "transformers")
_ONE_AT_A_TIME = threading.RLock()  # else the first to leave would be undone by the second, for good


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Inside, they neither log nor warn nor draw progress bars; afterwards they are as they were."""
    import huggingface_hub  # noqa: F401  # it sets its own level as it is imported

    with _ONE_AT_A_TIME, warnings.catch_warnings(), ExitStack() as restored:
        warnings.simplefilter("ignore")
        for logger in map(logging.getLogger, LIBRARIES):
            restored.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL + 1)
        for disable, enable in _progress_bars():
            restored.callback(enable)
            disable()
        yield


def _progress_bars() -> Iterator[tuple[Callable[[], object], Callable[[], object]]]:
    """How to hide and show those that would be drawn."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if not are_progress_bars_disabled():
        yield disable_progress_bars, enable_progress_bars
    if "diffusers" in sys.modules:  # importing it only to silence it would take seconds
        from diffusers.utils import logging as its_logging

        if its_logging.is_progress_bar_enabled():
            yield its_logging.disable_progress_bar, its_logging.enable_progress_bar


def first_line(error: BaseException) -> str:
    """What matters of a library's exception: its type, and the first line of what it says, cut where it is long."""
    lines = str(error).strip().splitlines() or [""]
    text = lines[0] if len(lines[0]) <= 160 else f"{lines[0][:157]}..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
