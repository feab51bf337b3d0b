"""Things a search depends on, and can lose: a disk, an MLflow server, the nodes of a cluster, images."""

import errno
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import closing
from pathlib import Path

from faults.running import Drivers, wait_until
from PIL import Image
from sklearn.datasets import load_digits


def write_images(folder: Path, count: int = 300) -> None:
    """Digits as PNG files."""
    folder.mkdir()
    for number, image in enumerate(load_digits().images[:count]):
        Image.fromarray((15 * image).astype("uint8")).save(folder / f"{number:04d}.png")


def spoil_images(folder: Path, chance: random.Random) -> None:
    """Add a truncated JPEG, and replace one of the images by garbage."""
    whole = folder / f".whole-{chance.random()}"
    Image.new("L", (64, 64), chance.randrange(256)).save(whole, "JPEG")
    (folder / f"new-{chance.randrange(10**9)}.jpg").write_bytes(whole.read_bytes()[: chance.randrange(10, 200)])
    whole.unlink()
    chance.choice(sorted(folder.glob("*.png"))).write_bytes(chance.randbytes(chance.randrange(500)))


class Disk:
    """A disk small enough to be filled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m,nr_inodes=4000", "none", str(folder)], check=True)

    def refuse(self, seconds: float, what: str = "bytes") -> None:
        """Keep the disk full of bytes, or of files, for ``seconds``, even if something is deleted meanwhile."""
        filler = self.folder / "filler"
        filler.mkdir()
        deadline = time.monotonic() + seconds
        with (filler / "bytes").open("wb", buffering=0) as file:
            number = 0
            while time.monotonic() < deadline:
                try:
                    if what == "bytes":
                        file.write(bytes(4096))
                    else:
                        (filler / str(number := number + 1)).touch()
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    time.sleep(0.01)
        subprocess.run(["rm", "-rf", str(filler)], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


class MlflowServer:
    """A server on SQLite that can be stopped and started."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self._port: int = free.getsockname()[1]
        self.uri, self.database = f"http://127.0.0.1:{self._port}", f"sqlite:///{folder / 'server.db'}"
        self._folder, self._environment = folder, environment | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server, or continue a suspended one; returns when it answers."""
        if self._process is None:
            self._launch()
        else:
            os.killpg(self._process.pid, signal.SIGCONT)
        wait_until(self._answers)

    def stop(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the server and its workers, which kills or suspends them."""
        if self._process is not None:
            os.killpg(self._process.pid, number)
            if number == signal.SIGKILL:
                self._process.wait()
                self._process = None

    def _launch(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--workers", "1", "--backend-store-uri", self.database]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return True
        except OSError:
            return False


class Nodes:
    """A cluster with a token, in another process: a head without CPUs, and nodes with one CPU each."""

    def __init__(self, drivers: Drivers, count: int = 3) -> None:
        self.environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        script = Path(__file__).with_name("cluster_process.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script)],
            env=drivers.environment() | self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.environment["RAY_ADDRESS"] = self._answer()["address"]
        for _ in range(count):
            self.add()

    def add(self) -> None:
        self._ask("add")

    def kill(self, node: str, what: str = "all") -> float:
        """Kill ``all`` processes of a node, or only its ``raylet``; returns the time."""
        return float(self._ask("kill", node, what)["time"])

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.communicate("end\n", timeout=60)

    def _ask(self, *words: str) -> dict[str, str]:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(words) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, str]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the cluster's process ended with {self._process.wait()}"
        answer: dict[str, str] = json.loads(line)
        return answer
