"""An empty cache of images for tests that look into it, or decode images anew."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ftae.engine.data.dataset import load_dataset


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the cache, which does not exist yet; no dataset is loaded."""
    folder = tmp_path_factory.mktemp("images") / "cache"
    monkeypatch.setenv("FTAE_CACHE", str(folder))
    load_dataset.cache_clear()
    yield folder
    load_dataset.cache_clear()
