"""A process that has imported what trials need, of which the workers of an own cluster are copies.

Otherwise each worker imports it all by itself: seconds of a processor before the first trial, and again wherever a
worker was lost. Nothing of Ray is imported before a worker is wanted.
"""

import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from ftae.importing import importing
from ftae.search.template_client import END, SOCKET, STREAMS
from ftae.specs.models import DiffusersModel
from ftae.specs.search import SearchSpec

# Of what ``preload`` imports all that takes long and can do without Ray, which is told of its raylet as it is imported.
WITHOUT_RAY = ("pandas", "pyarrow", "ftae.engine.loop")
OF_DIFFUSERS = "ftae.engine.diffusers_models"


@contextmanager
def template(spec: SearchSpec) -> Iterator[None]:
    """Inside, a cluster that this process starts makes its workers from one that imports in the background.

    Not for GPUs: CUDA is of no use in a copy of a process that has looked for one.
    """
    if sys.platform != "linux" or "RAY_ADDRESS" in os.environ or spec.search.resources.gpus:
        yield
        return
    modules = [*WITHOUT_RAY, *([OF_DIFFUSERS] if isinstance(spec.finetune.model, DiffusersModel) else [])]
    # Not where TMPDIR says: the path of a socket is short, and Ray's are below /tmp, too.
    with TemporaryDirectory(prefix="ftae-", dir="/tmp") as folder, socket.socket(socket.AF_UNIX) as listening:
        os.environ[SOCKET] = str(Path(folder) / "template")  # inherited by the raylet, and by what it runs
        listening.bind(os.environ[SOCKET])
        listening.listen()
        command = [sys.executable, "-m", "ftae.search.template", str(listening.fileno()), *modules]
        null = subprocess.DEVNULL
        with subprocess.Popen(
            command, pass_fds=[listening.fileno()], stdin=subprocess.PIPE, stdout=null, stderr=null
        ) as process:
            listening.close()  # so that nobody waits for a template that has died
            try:
                yield
            finally:
                os.environ.pop(SOCKET, None)
                process.kill()


def main(listening: socket.socket, modules: Sequence[str]) -> None:
    """Import, then make a copy for each request, until the driver is gone, who holds the other end of stdin."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C is for the driver, as with the raylet's own
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with importing():
        for name in modules:
            import_module(name)
    while True:
        ready, _, _ = select.select([listening, sys.stdin], [], [])
        if sys.stdin in ready:
            return
        asking, _ = listening.accept()
        with asking:
            _make_copy(listening, asking)


def _make_copy(listening: socket.socket, asking: socket.socket) -> None:
    _, streams, _, _ = socket.recv_fds(asking, 1, len(STREAMS))
    with asking.makefile("rb") as file:
        text = file.read()
    if text.endswith(END):  # else who asked has died over it
        request: dict[str, Any] = json.loads(text)
        _import_rest(request.pop("modules"), request["environment"])
        if os.fork() == 0:
            listening.close()
            os.setpgid(0, request["group"])  # by which a raylet ends what its workers have started
            asking.sendall(b"+")
            asking.close()
            _run(streams, **request)
    for stream in streams:
        os.close(stream)


def _import_rest(modules: Sequence[str], environment: dict[str, str]) -> None:
    """What needs Ray, in the environment of the raylet: it cannot be told of it later."""
    if missing := [name for name in modules if name not in sys.modules]:
        os.environ.update(environment)
        with importing():
            for name in missing:
                import_module(name)
        gc.freeze()  # what is not looked at stays shared with the copies


def _run(
    streams: Sequence[int], command: Sequence[str], environment: dict[str, str], folder: str, group: int
) -> NoReturn:
    """Be the process that asked, and run the script that it would have run."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for stream, inherited in zip(STREAMS, streams, strict=True):
        os.dup2(inherited, stream)
        os.close(inherited)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = list(command)
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.exit()


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
