"""How the files beside this one were made, by an ftae that wrote version 1.

A search that was interrupted while its trial 2 ran, an export of its trial 1, and a production run. Left out to keep
the files small: pictures, the weights of the export (those of the checkpoint of trial 1), checkpoints of step 400 that
trial 2 and the run wrote on their way out, and the last report of the run. ``SEARCHES`` stands for the storage.
"""

import signal
import subprocess
import sys
import time
from pathlib import Path


def ftae(*arguments: str, until: str | None = None) -> None:
    """Run a command; press Ctrl-C as soon as there is a file that matches ``until``."""
    process = subprocess.Popen([sys.executable, "-m", "ftae", *arguments])
    while process.poll() is None:
        if until is not None and list(Path().glob(until)):
            until = None
            process.send_signal(signal.SIGINT)
        time.sleep(0.05)


ftae("search", "search.yaml", until="searches/old/trials/0002/checkpoints/step-00000200")
ftae("export", "old")
ftae("train", "exports/old", "--out", "runs/old", "--set", "model.outer_stages=0")
