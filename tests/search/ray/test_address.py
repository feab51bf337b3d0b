"""Which Ray a search runs on: ``RAY_ADDRESS``."""

import pytest

from ftae.errors import FtaeError
from ftae.search.ray.session import ADDRESS, cluster_address


@pytest.mark.parametrize("value", [None, "", "  ", "local", " local "])
def test_a_search_without_a_cluster_starts_a_local_ray(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ADDRESS, raising=False)
    if value is not None:
        monkeypatch.setenv(ADDRESS, value)
    assert cluster_address() is None


@pytest.mark.parametrize("value", ["auto", "head:6379", "10.0.0.1:6379", "[::1]:6379", "[fe80::1%eth0]:6379"])
def test_a_cluster_is_named_by_host_and_port(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ADDRESS, value)
    assert cluster_address() == value


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("http://127.0.0.1:8265", "the address of a dashboard"),
        ("https://head", "the address of a dashboard"),
        ("ray://head:10001", "the address of Ray's client server"),
        ("s3://bucket", "the address of s3"),
        ("head", "no HOST:PORT"),
        ("head:", "no HOST:PORT"),
        ("head:port", "no HOST:PORT"),
        (":6379", "no HOST:PORT"),
        ("two words:6379", "no HOST:PORT"),
    ],
)
def test_an_address_that_no_search_can_join_is_refused(
    value: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ADDRESS, value)
    with pytest.raises(FtaeError) as refused:
        cluster_address()
    message = str(refused.value)
    assert f"RAY_ADDRESS is {value!r}" in message
    assert reason in message
    assert "unset RAY_ADDRESS" in message
    assert "\n" not in message
