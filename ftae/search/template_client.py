"""What a raylet runs to start a worker: the template (``template.py``) is asked for a copy of itself that runs it.

As a script it imports little, since it is on the way to every worker. Without a template it does what Ray would have
done.
"""

import json
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

PRELOAD = "RAY_preload_python_modules"  # by commas
SOCKET = "FTAE_TEMPLATE"  # names the path that the template listens at
STREAMS = (0, 1, 2)  # standard input, output and error
END = b"\n"  # of a request
FOR_SETUP_WORKER = ("--language=", "--serialized-runtime-env-context=")  # and not for the worker


def main() -> None:
    given = sys.argv[1:]  # options of Python, default_worker.py and its arguments
    worker = next(i for i, argument in enumerate(given) if not argument.startswith("-"))
    command = [argument for argument in given[worker:] if not argument.startswith(FOR_SETUP_WORKER)]
    modules = os.environ[PRELOAD].split(",") if PRELOAD in os.environ else []
    if not run_in_copy(command, modules):
        setup_worker = Path(given[worker]).with_name("setup_worker.py")
        os.execv(sys.executable, [sys.executable, str(setup_worker), *given])


def run_in_copy(command: Sequence[str], modules: Sequence[str] = (), streams: Sequence[int] = STREAMS) -> bool:
    """Have a copy of the template run a script, in the place of this process; False if there is no template.

    ``command``: the script's path, and its arguments. ``modules``: what the template itself imports before, with this
    process's environment. ``streams``: the standard ones of the copy. Returns once the copy has begun.
    """
    if SOCKET not in os.environ:
        return False
    place = {"environment": dict(os.environ), "folder": str(Path.cwd()), "group": os.getpgid(0)}
    try:
        with socket.socket(socket.AF_UNIX) as template:
            template.connect(os.environ[SOCKET])
            socket.send_fds(template, [b"+"], streams)
            template.sendall(json.dumps(place | {"command": command, "modules": modules}).encode() + END)
            template.shutdown(socket.SHUT_WR)
            return template.recv(1) == b"+"
    except OSError:
        return False


if __name__ == "__main__":
    main()
