"""`dropout`: torch's values, random numbers and gradients; and the draws themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dqconvert.kernels import dropout
from dqconvert.kernels.cpu import draw
from dqconvert.kernels.cpu.draw import MANY, bernoulli
from dqconvert.quant import fused


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (0, 4), (1, 1), (7, 5), (3000, 100), (2, 3, 4)], ids=str)
def test_dropout_is_torchs(shape, dtype, threads):
    x = torch.randn(shape).to(dtype)
    for p in (0.0, 0.3, 0.5, 0.9):
        mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        torch.manual_seed(3)
        y = dropout(mine, p)
        after = torch.get_rng_state()
        torch.manual_seed(3)
        want = F.dropout(theirs, p, training=True)
        if p > 0:
            assert torch.equal(torch.get_rng_state(), after), "and no more and no fewer of them"
        assert torch.equal(y, want)
        upstream = torch.randn_like(x)
        y.backward(upstream)
        want.backward(upstream)
        assert torch.equal(mine.grad, theirs.grad)


def test_dropout_of_a_strided_tensor():
    x = torch.randn(50, 20).t()
    torch.manual_seed(3)
    y = fused.dropout(x, 0.5)
    torch.manual_seed(3)
    assert torch.equal(y, F.dropout(x, 0.5, training=True))


def test_dropout_keeps_nan_where_it_keeps():
    y = dropout(torch.full((1000,), math.nan), 0.5)
    assert y.isnan().all(), "zero times NaN is NaN, as in torch"


def test_dropout_saves_a_byte_a_value():
    x = torch.randn(64, 8, requires_grad=True)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        dropout(x, 0.5)
    assert [t.dtype for t in saved] == [torch.uint8]


def test_dropout_second_derivatives():
    def same_numbers(x):
        torch.manual_seed(0)
        return dropout(x, 0.3) ** 2

    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(same_numbers, (x,))
    assert torch.autograd.gradgradcheck(same_numbers, (x,))


# -- draws ---------------------------------------------------------------------------------------------------------


def assert_torchs(count, p, generator_at):
    """The same draws from the same place, and the same place behind them."""
    generator_at()
    want = torch.empty(count).bernoulli_(p)
    behind = torch.get_rng_state()
    generator_at()
    got = bernoulli(count, p)
    assert got.dtype == np.uint8
    assert np.array_equal(got, want.numpy())
    assert torch.equal(torch.get_rng_state(), behind)


def at(seed, drawn=0, normal=False):
    """Puts the generator anywhere in a block of numbers, with half a pair of normal numbers left over or not."""

    def put():
        torch.manual_seed(seed)
        if drawn:
            torch.empty(drawn, dtype=torch.int32).random_()
        if normal:
            torch.randn(1, dtype=torch.float64)

    return put


@settings(max_examples=100)
@given(
    st.integers(MANY, MANY + 2000),
    st.floats(0, 1) | st.sampled_from([1e-300, 2.0**-53, 1e-9, 1 - 2.0**-53]),
    st.integers(0, 2**40),
    st.integers(0, 2000),
    st.booleans(),
)
@example(MANY, 0.0, 0, 0, False)
@example(MANY, 1.0, 0, 1, False)
@example(MANY, 0.5, 0, 623, True)
@example(MANY, 0.5, 0, 624, False)
@example(624 * 100, 0.5, 0, 0, False)  # up to the end of a block
@example(312 * 101, 0.5, 0, 1, False)  # an odd number before it
def test_draws_are_torchs_from_anywhere(count, p, seed, drawn, normal):
    assert_torchs(count, p, at(seed, drawn, normal))


@pytest.mark.parametrize("count", [0, 1, 2, MANY - 1, MANY, MANY + 1, 1_000_000, 16 * MANY, 624 * 1000 + 1])
def test_draws_are_torchs_however_many(count, threads):
    for p in (0.0, 1e-7, 0.3, 0.5, 1.0):
        assert_torchs(count, p, at(7, drawn=11))


def test_parts_of_all_threads_are_all_draws(threads):
    for drawn in (0, 1, 623, 624):
        assert_torchs(700_001, 0.4, at(3, drawn))


@pytest.mark.parametrize("drawn", [0, 1, 622, 623, 624, 625, 1247, 1248])
def test_draws_go_on_from_one_call_to_the_next(drawn):
    """A pair of numbers may lie in two blocks, wherever a call ended."""
    torch.manual_seed(5)
    torch.empty(drawn, dtype=torch.int32).random_()
    state = torch.get_rng_state()
    want = [torch.empty(count).bernoulli_(0.4).numpy() for count in (MANY, MANY + 311, MANY)]
    torch.set_rng_state(state)
    for one in want:
        assert np.array_equal(bernoulli(len(one), 0.4), one)


@pytest.fixture
def unknown(monkeypatch):
    """Clears what was found out about torch's draws, before and behind."""
    draw._is_known.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    draw._is_known.cache_clear()


def other_draws(state, count, p):
    return np.zeros(count, np.uint8)


def other_state(state, count, p, ours=draw._from_state):
    drawn = ours(state, count, p)
    state[draw._NEXT] += 1
    return drawn


@pytest.mark.parametrize("different", [other_draws, other_state])
def test_where_torch_draws_differently_it_draws_itself(unknown, different):
    unknown.setattr(draw, "_from_state", different)
    assert not draw._is_known()
    assert_torchs(2 * MANY, 0.3, at(1))


def test_where_the_state_is_another_torch_draws_itself(unknown):
    """A generator whose state is shorter than that of a Mersenne Twister."""
    unknown.setattr(draw, "_BLOCK", 10_000)
    assert not draw._is_known()
    assert_torchs(2 * MANY, 0.3, at(1))


def test_what_torch_does_is_tried_out_once_and_leaves_the_generator_alone(unknown):
    before = torch.get_rng_state()
    known = draw._is_known()
    assert torch.equal(torch.get_rng_state(), before)
    unknown.setattr(draw, "_from_state", other_draws)
    assert draw._is_known() == known
