"""What a raylet runs to start a worker: the template (``template.py``) is asked for a copy of itself.

A script of its own that imports little, since it is on the way to every worker. Without a template, and for a worker
with an environment of its own, it does what Ray would have done.
"""

import json
import os
import socket
import sys
from pathlib import Path

SOCKET = "FTAE_TEMPLATE"  # names the path that the template listens at
STREAMS = (0, 1, 2)  # standard input, output and error
OWN_ENVIRONMENT = "--serialized-runtime-env-context"


def main() -> None:
    command = sys.argv[1:]  # default_worker.py and its arguments
    if not any(argument.startswith(OWN_ENVIRONMENT) for argument in command) and asked_for(command):
        return
    worker = next(argument for argument in command if not argument.startswith("-"))
    os.execv(sys.executable, [sys.executable, str(Path(worker).with_name("setup_worker.py")), *command])


def asked_for(command: list[str]) -> bool:
    """Whether there is a copy of the template that runs ``command`` in the place of this process."""
    if SOCKET not in os.environ:
        return False
    place = {"environment": dict(os.environ), "folder": str(Path.cwd()), "group": os.getpgid(0)}
    try:
        with socket.socket(socket.AF_UNIX) as template:
            template.connect(os.environ[SOCKET])
            socket.send_fds(template, [b"+"], STREAMS)
            template.sendall(json.dumps(place | {"command": command}).encode())
            template.shutdown(socket.SHUT_WR)
            return template.recv(1) == b"+"
    except OSError:
        return False


if __name__ == "__main__":
    main()
