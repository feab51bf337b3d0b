"""An object store whose server refuses without a reason, loses its answers, or cannot be reached."""

import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ftae.errors import FtaeError
from ftae.storage.backends import ObjectStore
from ftae.storage.store import open_store, searches_in


class Proxy:
    """In front of an S3 server: hides why the server refused, and can lose the answers to what the server did."""

    def __init__(self, app: Any) -> None:
        self._app, self.losing = app, False
        self.stop: Callable[[], object] = lambda: None

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] != "PUT":
            return self._app(environ, start_response)  # type: ignore[no-any-return]
        status: list[str] = []
        body = b"".join(self._app(environ, lambda code, headers: status.append(code)))
        start_response("500 Internal Server Error" if self.losing else status[0], [])
        return [b"" if self.losing else body.replace(b"<Condition>If-None-Match</Condition>", b"")]


@pytest.fixture
def proxy(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from s3fs import S3FileSystem
    from werkzeug.serving import make_server

    proxy = Proxy(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, proxy, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    proxy.stop = lambda: (server.shutdown(), server.server_close())
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(S3FileSystem, "retries", 1)
    yield proxy
    proxy.stop()


@pytest.fixture
def store(proxy: Proxy, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    monkeypatch.setenv("FTAE_CACHE", str(tmp_path))
    store = open_store(bucket, "small", "driver")
    assert isinstance(store, ObjectStore)
    return store


def test_a_refusal_without_a_reason_means_that_the_object_exists(proxy: Proxy, store: ObjectStore) -> None:
    assert store.create("a", b"1")
    assert not store.create("a", b"2")
    proxy.losing = True
    store.replicate(0, b"one\n")
    store.replicate(0, b"one\n")
    with pytest.raises(FtaeError, match="taken over"):
        store.replicate(0, b"other\n")


def test_an_unreachable_server_is_an_oserror(proxy: Proxy, store: ObjectStore) -> None:
    store.write("a", b"1")
    (store.folder / "a").write_bytes(b"2")
    proxy.stop()
    calls: list[Callable[[], Any]] = [
        lambda: store.read("a"),
        lambda: store.write("a", b""),
        lambda: store.create("a", b""),
        lambda: store.names("a"),
        lambda: store.fetch("a"),
        lambda: store.push("a"),
        lambda: store.remove("a"),
        lambda: searches_in(store.url),
        store.refresh,
    ]
    for call in calls:
        with pytest.raises(OSError, match="Could not connect to the endpoint URL"):
            call()
