"""Arrays larger than the cache, which are written past it: the same values as everywhere else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from chain_cases import INT8
from hypothesis import given
from hypothesis import strategies as st

from dqconvert.kernels import (
    Chain,
    Ranged,
    Sent,
    dropout,
    edge_order,
    propagate,
    quantize_batch_norm,
    quantize_chain,
    quantize_linear,
)
from dqconvert.kernels.cpu.llvm.memory import FAR, stream

COLUMNS = 72
ROWS = FAR // (4 * COLUMNS) + 500
HALF = ROWS // 2  # so few are not far
SETTLED = INT8._replace(observe=False)
ENDS = [torch.tensor(-2.0), torch.tensor(2.5)]


@given(source=st.integers(0, 9), target=st.integers(0, 9), count=st.integers(0, 70), kind=st.sampled_from("fd"))
def test_every_value_lands_where_it_should(source, target, count, kind):
    values, found = np.arange(80, dtype=kind), np.full(80, -1, kind)
    stream(values, source, found, target, count)
    wanted = np.full(80, -1, kind)
    wanted[target : target + count] = values[source : source + count]
    np.testing.assert_array_equal(found, wanted)


@pytest.fixture(scope="module")
def x():
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))


def in_halves(step, *rows):
    """What a step makes of all rows, and of their halves, one after the other; gradients included."""
    leaves = [t.clone().requires_grad_() if t.is_floating_point() else t for t in rows]
    pieces = [[t[:HALF].detach().clone() for t in rows], [t[HALF:].detach().clone() for t in rows]]
    whole = backwards(step, leaves)
    parts = [backwards(step, [t.requires_grad_() if t.is_floating_point() else t for t in piece]) for piece in pieces]
    return whole, [torch.cat(both) for both in zip(*parts, strict=True)]


def backwards(step, leaves):
    y = step(*leaves)
    y.backward(y.detach().cos())
    return [y.detach(), *(t.grad for t in leaves if t.is_floating_point())]


def test_rows_through_a_chain(x, threads):
    bias, skip = torch.randn(COLUMNS), torch.rand(ROWS) < 0.1

    def step(x, other, skip):
        grids = (SETTLED, SETTLED._replace(clip=True), None)
        return quantize_chain(x, Chain.of(grids, ENDS * 2, bias=bias, other=other, protected=skip, relu=True))[0]

    for one, two in zip(*in_halves(step, x, x.flip(0), skip), strict=True):
        assert torch.equal(one, two)


@pytest.mark.sample(2)
@pytest.mark.parametrize("out", [COLUMNS, 70])
def test_rows_of_a_linear_layer(x, out, threads):
    weight, skip = torch.randn(out, COLUMNS), torch.rand(ROWS) < 0.1

    def step(x, other, skip):
        grids, alpha = (SETTLED, None, SETTLED), torch.tensor(0.5)
        return quantize_linear(
            x, weight, None, Chain.of(grids, ENDS * 2, other=other, alpha=alpha, protected=skip, relu=True)
        )[0]

    for one, two in zip(*in_halves(step, x, x[:, :out].flip(0).contiguous(), skip), strict=True):
        assert torch.equal(one, two)


def test_rows_that_are_normalized(x):
    weight, bias = torch.rand(COLUMNS), torch.randn(COLUMNS)
    whole = quantize_batch_norm(x, weight, bias, 1e-5, Chain.of((None, SETTLED, None), ENDS))[0].double()
    centred = (x.double() - x.double().mean(0)) / (x.double().var(0, unbiased=False) + 1e-5).sqrt()
    exact = centred * weight + bias
    assert ((whole - exact.clamp(-2, 2.5)).abs() < 4.5 / 255 * 0.51).float().mean() > 0.99


@pytest.mark.sample(5)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("mean", [False, True])
def test_messages(x, weighted, mean, threads):
    """Every node has one neighbour, so that sums are what is sent; the columns of half of them are not far."""
    sender, receiver = torch.randperm(ROWS), torch.arange(ROWS)
    weight = torch.full((ROWS, 1), 0.75) if weighted else None
    orders = edge_order(receiver, sender, ROWS), edge_order(sender, receiver, ROWS)
    skip = torch.rand(ROWS) < 0.1

    def step(x):
        sent = Sent.of(x, weight, sender, receiver, *orders, skip)
        chain = Chain.of((None, SETTLED, None), ENDS, protected=skip)
        return propagate(sent, Ranged.of(SETTLED, ENDS), chain, "mean" if mean else "sum")[0]

    whole = backwards(step, [x.clone().requires_grad_()])
    halves = [backwards(step, [x[:, c : c + 36].contiguous().requires_grad_()]) for c in (0, 36)]
    for one, two in zip(whole, (torch.cat(both, 1) for both in zip(*halves, strict=True)), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)


def test_dropout(x, threads):
    torch.manual_seed(1)
    mine = backwards(lambda x: dropout(x, 0.3), [x.clone().requires_grad_()])
    torch.manual_seed(1)
    theirs = backwards(lambda x: torch.nn.functional.dropout(x, 0.3), [x.clone().requires_grad_()])
    for one, two in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)
