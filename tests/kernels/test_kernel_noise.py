"""`mix`: rounded values at some places; torch's own draws, and the gradients of both."""

from __future__ import annotations

import pytest
import torch

from dqconvert.kernels import mix
from dqconvert.kernels.noise import mix_grad, mix_operator, plain_mix, plain_mix_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0, 3), (1,), (7, 5), (3000, 16)])
def test_values_draws_and_gradients_are_as_defined(shape, dtype):
    x, rounded, grad = (torch.randn(shape).to(dtype) for _ in range(3))
    found = []
    for how, back in ((mix_operator, mix_grad), (plain_mix, plain_mix_grad)):
        torch.manual_seed(1)
        y, drawn = how(x, rounded, 0.3)
        found.append((y, drawn, *back(grad, drawn), torch.rand(1)))  # the generator is where it should be
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_each_place_has_the_probability():
    y = mix(torch.zeros(100_000), torch.ones(100_000), 0.3)
    assert abs(y.mean().item() - 0.3) < 0.01


def test_a_gradient_goes_where_the_value_came_from():
    x, rounded = torch.zeros(50, requires_grad=True), torch.ones(50, requires_grad=True)
    y = mix(x, rounded, 0.5)
    (y * torch.arange(50)).sum().backward()
    assert torch.equal(rounded.grad, y.detach() * torch.arange(50))
    assert torch.equal(x.grad, (1 - y.detach()) * torch.arange(50))


def test_operators_keep_their_contract():
    x, rounded, drawn = torch.randn(7, 5), torch.randn(7, 5), torch.rand(7, 5) < 0.5
    kinds = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(mix_operator.registered, (x, rounded, 0.3), test_utils=kinds)
    torch.library.opcheck(mix_grad.registered, (x, drawn.to(torch.uint8)))
