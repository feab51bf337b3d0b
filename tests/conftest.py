"""What all tests share: an own image cache, and one Ray cluster for those that need it."""

import os
from collections.abc import Iterator

import pytest

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"


@pytest.fixture(scope="session", autouse=True)
def image_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Images decoded by tests go to a folder of their own, shared with the workers they start."""
    before = os.environ.get("FTAE_CACHE")
    os.environ["FTAE_CACHE"] = str(tmp_path_factory.mktemp("image-cache"))
    yield
    if before is None:
        del os.environ["FTAE_CACHE"]
    else:
        os.environ["FTAE_CACHE"] = before


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One local cluster of 2 CPUs for the whole session; ``run_search`` joins it."""
    import ray

    import ftae.search  # sets what Ray reads while it is imported

    assert ftae.search
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
