"""What a call of the Python API leaves as it was."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from ftae.user_code import code_allowed

Notify = Callable[[str], None]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@contextmanager
def unchanged_process(allow_code: bool) -> Iterator[None]:
    """Inside, code is allowed if asked for; afterwards the settings of the process are restored."""
    if find_spec("torch") is None:  # a plan does without
        with code_allowed(allow_code):
            yield
        return
    from ftae.engine.training.loop import process_state_kept

    with code_allowed(allow_code), _keep_hooks(), process_state_kept():
        yield


@contextmanager
def _keep_hooks() -> Iterator[None]:
    """Restores what Ray and Tune replace: signal handlers, the exception hook, the debugger of ``breakpoint()``."""
    hook, debugger = sys.excepthook, os.environ.get("PYTHONBREAKPOINT")
    only_main = threading.current_thread() is threading.main_thread()  # may set handlers
    handlers = {number: signal.getsignal(number) for number in SIGNALS} if only_main else {}
    try:
        yield
    finally:
        sys.excepthook = hook
        if debugger is None:
            os.environ.pop("PYTHONBREAKPOINT", None)
        for number, handler in handlers.items():
            if handler is not None:  # one that was not set from Python
                signal.signal(number, handler)
