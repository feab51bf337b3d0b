"""What metrics keep is as good as all that they were shown."""

import pytest
import torch

from ftae.engine.objectives.eval_batch import FirstRows, Spread


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_the_variance_is_that_of_all_rows(batch_size: int) -> None:
    rows = 1e3 + torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(0))
    spread = Spread()
    for part in rows.split(batch_size):
        spread.update(part)
    assert torch.allclose(spread.variance(), rows.double().var(0, correction=0), rtol=1e-9)


def test_what_does_not_vary_has_a_variance_of_exactly_nothing() -> None:
    spread = Spread()
    for _ in range(5):
        spread.update(torch.full((3, 2), 0.1))
    assert spread.variance().tolist() == [0.0, 0.0]


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_the_first_rows_are_kept(batch_size: int) -> None:
    rows, kept = torch.arange(10), FirstRows(4)
    for part in rows.split(batch_size):
        kept.update(part)
    assert kept.rows().tolist() == [0, 1, 2, 3]
