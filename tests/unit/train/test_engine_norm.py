"""The norm of a gradient is right for any number of elements."""

import pytest
import torch

from toolkit.train.engine import total_norm


@pytest.mark.parametrize("size", [1, 1 << 16, (1 << 16) + 1, 10_000_000])
def test_the_norm_is_that_of_a_sum_in_fp64(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(size, generator=generator), torch.randn(3, 5, generator=generator).T]
    squares = [part.double().square().sum() for one in gradients for part in one.reshape(-1).split(1 << 20)]
    assert total_norm(gradients) == pytest.approx(float(torch.stack(squares).sum().sqrt()), rel=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(bad: float) -> None:
    gradient = torch.zeros(100_000)
    gradient[70_000] = bad
    assert not torch.isfinite(torch.tensor(total_norm([torch.ones(3), gradient])))
