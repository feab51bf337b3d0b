"""A hub of one's own, which answers what huggingface_hub asks for a model."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread


class Hub:
    """One repository, ``owner/name``: the files of ``folder`` at a commit that can be moved on.

    ``asked``: the paths that were asked for.
    """

    def __init__(self, folder: Path, commit: str) -> None:
        self.folders = {commit: folder}
        self.newest = commit
        self.asked: list[str] = []
        self.url = ""

    def move(self, folder: Path, commit: str) -> None:
        """Publish a new commit."""
        self.folders[commit] = folder
        self.newest = commit


@contextmanager
def succeeded(hub: Hub) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            path = self.path.partition("?")[0].strip("/")
            hub.asked.append(path)
            if path.startswith("api/models/owner/name"):
                _, _, _, _, kind, commit = [*path.split("/"), hub.newest, hub.newest][:6]
                commit = commit if commit in hub.folders else hub.newest
                files = [f for f in sorted(hub.folders[commit].rglob("*")) if f.is_file()]
                names = [str(file.relative_to(hub.folders[commit])) for file in files]
                if kind == "tree":
                    sizes = zip(names, files, strict=True)
                    self._send(
                        [{"type": "file", "path": n, "size": f.stat().st_size, "oid": _sha(f)} for n, f in sizes]
                    )
                else:
                    self._send({"id": "owner/name", "sha": commit, "siblings": [{"rfilename": name} for name in names]})
            elif path.startswith("owner/name/resolve/"):
                commit, _, name = path.removeprefix("owner/name/resolve/").partition("/")
                self._file(hub.folders[commit] / name, commit)
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        def _send(self, content: object) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _file(self, file: Path, commit: str) -> None:
            body = file.read_bytes()
            self.send_response(200)
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{_sha(file)}"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing is printed."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield hub
        finally:
            server.shutdown()


def _sha(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
