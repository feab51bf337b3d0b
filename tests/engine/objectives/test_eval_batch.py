"""Running sums are as good as keeping every row."""

import pytest
import torch

from ftae.engine.objectives.eval_batch import FirstRows, RunningVariance


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_the_variance_is_over_all_rows(batch_size: int) -> None:
    rows = 1e3 + torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(0))
    running = RunningVariance()
    for part in rows.split(batch_size):
        running.update(part)
    assert torch.allclose(running.variance(), rows.double().var(0, correction=0), rtol=1e-9)


def test_constant_rows_have_a_variance_of_exactly_0() -> None:
    running = RunningVariance()
    for _ in range(5):
        running.update(torch.full((3, 2), 0.1))
    assert running.variance().tolist() == [0.0, 0.0]


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_the_first_rows_are_kept(batch_size: int) -> None:
    rows, kept = torch.arange(10), FirstRows(4)
    for part in rows.split(batch_size):
        kept.update(part)
    assert kept.rows().tolist() == [0, 1, 2, 3]
