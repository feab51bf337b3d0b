"""Bytes and seconds as people write them."""

import pytest

from ftae.wording import duration, size


@pytest.mark.parametrize(
    ("num_bytes", "written"),
    [(0, "0 B"), (999, "999 B"), (999.7, "1 KB"), (1234, "1.23 KB"), (312e6, "312 MB"), (141e9, "141 GB")],
)
def test_bytes(num_bytes: float, written: str) -> None:
    assert size(num_bytes) == written


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0.0123, "12.3 ms"),
        (0.9999, "1 s"),
        (3.44, "3.4 s"),
        (9.96, "10 s"),
        (59.6, "1 min 0 s"),
        (125, "2 min 5 s"),
        (3 * 3600 + 120, "3 h 2 min"),
    ],
)
def test_seconds(seconds: float, written: str) -> None:
    assert duration(seconds) == written
