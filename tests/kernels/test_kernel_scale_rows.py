"""`scale_rows`: torch's product and its gradient, bit for bit."""

from __future__ import annotations

import pytest
import torch

from dqconvert.kernels import scale_rows
from dqconvert.kernels.cpu.llvm.memory import FAR
from dqconvert.kernels.scale_rows import plain_scale_rows
from dqconvert.quant import fused
from dqconvert.rewrite import norms


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0, 4), (1, 1), (3, 0), (7,), (7, 5), (3000, 70), (50, 3, 40)], ids=str)
def test_rows_are_torchs(shape, dtype, threads):
    x, factor, upstream = torch.randn(shape).to(dtype), torch.randn(shape[:1]).to(dtype), torch.randn(shape).to(dtype)
    for given in (x, x.flip(0), x.t().contiguous().t() if x.dim() == 2 else x):
        mine, theirs = given.detach().clone().requires_grad_(), given.detach().clone().requires_grad_()
        y, want = scale_rows(mine, factor), plain_scale_rows(theirs, factor)
        y.backward(upstream)
        want.backward(upstream)
        assert torch.equal(y, want)
        assert torch.equal(mine.grad, theirs.grad)


def test_rows_that_are_written_past_the_cache(threads):
    x = torch.randn(FAR // 4 // 100 + 7, 100)
    factor = torch.rand(len(x))
    assert torch.equal(scale_rows(x, factor), x * factor[:, None])


def test_what_is_not_finite_stays_as_in_torch():
    x = torch.tensor([[torch.inf, torch.nan, -torch.inf]]).expand(2, 3)
    torch.testing.assert_close(scale_rows(x, torch.zeros(2)), x * 0, equal_nan=True)


@pytest.mark.parametrize("dim", [0, 1])
def test_fused_graphs_scale_rows_as_others_do(dim):
    for shape in ((4, 3, 2), (40, 30, 50), (40, 30, 50)[::-1]):
        x = torch.randn(shape, requires_grad=True)
        for factor in (
            torch.rand(shape[dim]),
            torch.rand(shape[dim]).double(),
            torch.rand(shape[dim]).requires_grad_(),
        ):
            y, want = fused.scale_rows(x, factor, dim), norms.scale_rows(x, factor, dim)
            assert torch.equal(y, want)
            for one, other in zip(*(torch.autograd.grad(f.square().sum(), [x]) for f in (y, want)), strict=True):
                assert torch.equal(one, other)


def test_a_gradient_has_a_gradient():
    x, factor = torch.randn(5, 3, dtype=torch.float64, requires_grad=True), torch.rand(5, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda x: scale_rows(x, factor) ** 2, (x,))
