"""Where the outputs of frozen stages are kept: their bytes, their room, and what is wrong with them."""

import errno
import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ftae.engine.frozen_cache import store as feature_store
from ftae.engine.frozen_cache.store import Layout


@pytest.fixture(autouse=True)
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of all stores, empty."""
    monkeypatch.setenv("FTAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "frozen_features"


def names(stores: Path) -> set[str]:
    return {path.name for path in stores.iterdir() if path.is_dir()}


# ---------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(4, 3, 5, 2), (4, 1, 2, 2), (4, 6, 1, 1), (1, 3, 2, 2)])
def test_a_batch_comes_back_as_it_was(
    shape: tuple[int, ...], memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    batch = torch.randn(shape).to(dtype).contiguous(memory_format=memory_format)
    layout = Layout.of(batch)
    assert layout is not None
    store = feature_store.create("key", 10, [layout], 10_000)
    numbers = torch.tensor([7, 2, 9, 0])[: len(batch)]
    store.write(numbers, [layout.rows(batch)])
    found = feature_store.find("key")
    assert found is not None
    assert found.layouts == (layout,)
    assert found.filled(torch.arange(10)).nonzero().flatten().tolist() == sorted(numbers.tolist())
    again = layout.tensor(found.read(numbers)[0])
    assert torch.equal(again, batch)
    assert again.stride()[1:] == batch.stride()[1:]
    assert again.dtype == dtype
    assert torch.equal(layout.tensor(found.read(numbers.flip(0))[0]), batch.flip(0))


def test_what_is_filled_is_told_and_asked_one_after_the_other(stores: Path) -> None:
    """So that a process which sees the mark sees the rows, on any processor."""
    rows = torch.arange(6, dtype=torch.uint8).view(2, 3)
    store = feature_store.create("key", 2, [Layout((3,), (1,), "uint8")], 100)
    asked: list[torch.Tensor] = []
    calls: list[Callable[[], object]] = [
        lambda: store.write(torch.tensor([0, 1]), [rows]),
        lambda: asked.append(store.filled(torch.tensor([0]))),
    ]
    with (stores / "key" / "about.json").open() as other:
        for call in calls:
            fcntl.flock(other, fcntl.LOCK_EX)
            thread = threading.Thread(target=call)
            thread.start()
            thread.join(0.2)
            assert thread.is_alive(), "it waits for the turn of another"
            fcntl.flock(other, fcntl.LOCK_UN)
            thread.join()
    assert (stores / "key" / "filled").read_bytes() == b"\1\1"
    assert asked == [torch.tensor([True])]


def test_what_has_gaps_or_is_shared_has_no_layout() -> None:
    assert Layout.of(torch.zeros(4, 6)[:, :3]) is None
    assert Layout.of(torch.zeros(3, 4).T) is None
    assert Layout.of(torch.zeros(4, 1).expand(4, 3)) is None


# ---------------------------------------------------------------------------------------------- room


def make(key: str, num_bytes: int, budget: int) -> feature_store.FeatureStore:
    """A store of 10 images; each takes ``num_bytes`` and one that tells whether it is there."""
    return feature_store.create(key, 10, [Layout((num_bytes,), (1,), "uint8")], 10 * budget)


def test_the_least_recently_used_that_is_not_open_makes_room(stores: Path) -> None:
    for i, key in enumerate(("a", "b", "c")):
        make(key, 99, 400)
        os.utime(stores / key / "about.json", (i, i + 1))
    assert feature_store.find("a") is not None  # used again
    make("d", 99, 400)
    assert names(stores) == {"a", "b", "c", "d"}
    in_use = [make("e", 99, 400)]
    assert names(stores) == {"a", "c", "d", "e"}
    in_use.append(make("f", 299, 400))
    assert names(stores) == {"e", "f"}
    with pytest.raises(OSError, match=r"other runs .* use up"):
        make("g", 99, 400)
    assert names(stores) == {"e", "f"}
    in_use.clear()
    make("g", 99, 400)
    assert names(stores) == {"f", "g"}


def test_what_a_killed_process_left_behind_is_removed(stores: Path) -> None:
    (stores / "x.partial").mkdir(parents=True)
    (stores / "y").mkdir()
    make("a", 9, 100)
    assert names(stores) == {"a"}


def test_a_full_disk_leaves_nothing_behind(stores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        make("a", 9, 100)
    assert names(stores) == set()


def test_all_space_is_reserved_at_once(stores: Path) -> None:
    make("a", 4096 * 10, 100_000)
    taken = sum(file.stat().st_blocks * 512 for file in (stores / "a").iterdir())
    assert taken >= 4096 * 100


@pytest.mark.parametrize("damage", ["no rows", "cut", "no about", "not json", "a list"])
def test_a_damaged_store_is_made_anew(damage: str, stores: Path) -> None:
    make("a", 99, 400).write(torch.tensor([3]), [torch.ones(1, 99, dtype=torch.uint8)])
    if damage == "no rows":
        (stores / "a" / "rows.0").unlink()
    elif damage == "cut":
        os.truncate(stores / "a" / "rows.0", 100)
    elif damage == "no about":
        (stores / "a" / "about.json").unlink()
    else:
        (stores / "a" / "about.json").write_text("{" if damage == "not json" else "[]")
    assert feature_store.find("a") is None
    assert not make("a", 99, 400).filled(torch.arange(10)).any()
