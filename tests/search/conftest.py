"""A model of the curves that takes no time."""

from collections.abc import Iterator

import pytest

from ftae.search.curves import curve_sampler, gaussian_process


@pytest.fixture(scope="module")
def quick_models() -> Iterator[None]:
    """Fits and proposals of less work; they are as reproducible as others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gaussian_process, "MAX_ITERATIONS", 5)
        for name, number in {"RANDOM_CANDIDATES": 30, "NEAR_BEST": 5, "NEAR_CANDIDATE": 5}.items():
            patch.setattr(curve_sampler, name, number)
        yield
