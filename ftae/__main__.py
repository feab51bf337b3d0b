"""``ftae``, the script, and ``python -m ftae``."""

import atexit
import os
import sys

from ftae.cli import main


def run() -> None:
    """Run a command, and end the process at once: to take apart all that a search imports, Python needs seconds."""
    try:
        main()
    except SystemExit as end:
        if not (isinstance(end.code, int) and "torch" in sys.modules):
            raise
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code)


if __name__ == "__main__":
    run()
