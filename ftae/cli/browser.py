"""Opens a page in the browser as soon as its server listens: ``python -m ftae.cli.browser HOST PORT PAGE``."""

import socket
import sys
import time
import webbrowser

LONGEST_SECONDS = 60.0  # that a server takes to start


def open_when_served(host: str, port: int, page: str) -> bool:
    """Open ``page`` once something listens; returns whether anything did, and a browser was found."""
    deadline = time.monotonic() + LONGEST_SECONDS
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, port), timeout=1.0).close()
        except OSError:
            time.sleep(0.2)
        else:
            return webbrowser.open(page)
    return False


if __name__ == "__main__":
    open_when_served(sys.argv[1], int(sys.argv[2]), sys.argv[3])
