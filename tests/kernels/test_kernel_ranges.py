"""`minmax_pair` and `percentile_pair` against sorted Python lists."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from dqconvert.kernels import minmax_pair, percentile_pair
from dqconvert.kernels.minmax import plain_minmax_pair
from dqconvert.kernels.percentile import plain_percentile_pair


def percentiles_by_hand(values: list[float], p: float) -> tuple[float, float]:
    values = sorted(value for value in values if math.isfinite(value))
    n = len(values)
    if n == 0:
        return math.inf, -math.inf
    return values[max(1, int(n * p)) - 1], values[min(n, max(1, int(n * (1 - p)))) - 1]


def minmax_by_hand(values: list[float]) -> tuple[float, float]:
    values = [value for value in values if math.isfinite(value)]
    return min(values, default=math.inf), max(values, default=-math.inf)


@st.composite
def observations(draw):
    """A tensor of one of many layouts, which of its rows to keep, and along which dimensions."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    shape = draw(st.sampled_from([(0,), (1,), (7,), (40, 3), (0, 3), (3, 0), (5, 4, 6)]))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
    # Few distinct values: ties matter to percentiles.
    values = (
        (torch.randn(shape, generator=generator) * 4).round()
        if draw(st.booleans())
        else torch.randn(shape, generator=generator)
    )
    values = values.to(dtype)
    if draw(st.booleans()) and values.numel() > 0:
        spoiled = torch.tensor([math.nan, math.inf, -math.inf], dtype=dtype)
        at = torch.randint(values.numel(), (3,), generator=generator)
        values.view(-1)[at] = spoiled
    if draw(st.booleans()) and values.dim() > 1:
        values = values.transpose(0, 1)
    row_dim = draw(st.integers(-values.dim(), values.dim() - 1))
    others = [dim for dim in range(values.dim()) if dim != row_dim % values.dim()]
    channel_dim = draw(st.sampled_from([None, *others]))
    share = draw(st.sampled_from([None, 0.0, 0.5, 1.0]))
    keep = None if share is None else torch.rand(values.size(row_dim), generator=generator) < share
    return values, keep, row_dim, channel_dim


def channels_of(values, keep, row_dim, channel_dim) -> list[list[float]]:
    if keep is not None:
        values = values.transpose(0, row_dim)[keep].transpose(0, row_dim)
    if channel_dim is None:
        return [values.flatten().tolist()]
    return [values.select(channel_dim, i).flatten().tolist() for i in range(values.size(channel_dim))]


def assert_pairs(got, want: list[tuple[float, float]], channel_dim: int | None):
    for end, by_hand in zip(got, zip(*want, strict=True) if want else ((), ()), strict=True):
        assert end.dtype == torch.float32
        assert end.shape == (() if channel_dim is None else (len(want),))
        assert torch.equal(end.reshape(-1), torch.tensor(by_hand, dtype=torch.float64).float())


@settings(max_examples=200)
@given(observations(), st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.3, 0.5]))
def test_percentiles_are_the_definition(observation, p):
    values, keep, row_dim, channel_dim = observation
    want = [percentiles_by_hand(channel, p) for channel in channels_of(*observation)]
    assert_pairs(percentile_pair(values, p, keep=keep, row_dim=row_dim, channel_dim=channel_dim), want, channel_dim)
    # What runs where a count of the kept rows would have to be waited for:
    assert_pairs(plain_percentile_pair(values, p, keep, row_dim, channel_dim, None), want, channel_dim)


@settings(max_examples=100)
@given(observations())
def test_minmax_is_the_definition(observation):
    values, keep, row_dim, channel_dim = observation
    want = [minmax_by_hand(channel) for channel in channels_of(*observation)]
    assert_pairs(minmax_pair(values, keep=keep, row_dim=row_dim, channel_dim=channel_dim), want, channel_dim)
    assert_pairs(plain_minmax_pair(values, keep, row_dim, channel_dim), want, channel_dim)


@pytest.mark.parametrize("n", [999, 1000, 1001, 3000])
@pytest.mark.parametrize("p", [0.001, 0.0033, 0.01])
def test_positions_are_truncated_as_python_truncates(n, p):
    values = torch.randperm(n).float()
    want = percentiles_by_hand(values.tolist(), p)
    assert percentile_pair(values, p) == want
    assert plain_percentile_pair(values, p, None, 0, None, None) == want


@pytest.mark.parametrize("channel_dim", [None, 1])
def test_a_sample_estimates_the_percentiles(channel_dim):
    torch.manual_seed(0)
    values = torch.rand(50_000, 2)
    lo, hi = percentile_pair(values, 0.01, sample=0.1, channel_dim=channel_dim)
    # Of 5,000 draws or more; the standard error of this percentile is 0.0014 or less.
    assert (lo - 0.01).abs().max() < 0.006
    assert (hi - 0.99).abs().max() < 0.006
    for end in (lo, hi):
        assert torch.isin(end, values).all()


def test_a_sample_follows_the_seed_and_differs_between_calls():
    values = torch.rand(50_000)
    torch.manual_seed(0)
    first, second = percentile_pair(values, 0.01, sample=0.05), percentile_pair(values, 0.01, sample=0.05)
    torch.manual_seed(0)
    assert percentile_pair(values, 0.01, sample=0.05) == first
    assert first != second


@pytest.mark.parametrize("sample", [0.01, 1.0])
def test_fewer_than_a_thousand_values_are_all_used(sample):
    values, keep = torch.rand(1500), torch.arange(1500) < 999
    state = torch.get_rng_state()
    assert percentile_pair(values, 0.01, keep=keep, sample=sample) == percentile_pair(values[:999], 0.01)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_sample_is_smaller_than_a_thousand():
    torch.manual_seed(0)
    values = torch.arange(2000.0)
    # Of 20 draws the smallest would be the percentile, around 100; of 1,000 the tenth smallest, around 20.
    lows = [percentile_pair(values, 0.01, sample=0.01)[0].item() for _ in range(20)]
    assert 10 < sum(lows) / len(lows) < 30


def test_values_beyond_float32_are_not_finite():
    values = torch.tensor([1e300, 2.0, -1.0], dtype=torch.float64)
    assert minmax_pair(values) == (-1.0, 2.0)
    assert percentile_pair(values, 0.01) == (-1.0, -1.0)


@pytest.mark.parametrize("channel_dim", [None, 1])
def test_the_definitions_read_nothing_back_from_the_device(channel_dim):
    """Fake tensors hold no values: whatever looked at one would raise here."""
    with FakeTensorMode():
        values, keep = torch.randn(2000, 3), torch.rand(2000) < 0.5
        for sample in (None, 0.1):
            lo, hi = plain_percentile_pair(values, 0.01, keep, 0, channel_dim, sample)
            assert lo.shape == hi.shape == (() if channel_dim is None else (3,))
        plain_minmax_pair(values, keep, 0, channel_dim)


def test_errors_name_what_does_not_fit():
    values = torch.rand(4, 3)
    with pytest.raises(ValueError, match=r"p=0\.6: must be between 0 and 0\.5"):
        percentile_pair(values, 0.6)
    with pytest.raises(ValueError, match=r"sample=0: must be above 0"):
        percentile_pair(values, 0.1, sample=0)
    for pair in (minmax_pair, lambda *args, **kwargs: percentile_pair(*args, 0.1, **kwargs)):
        with pytest.raises(TypeError, match=r"floating-point tensor, got torch\.int64"):
            pair(torch.arange(3))
        with pytest.raises(TypeError, match="keep must be a bool tensor"):
            pair(values, keep=torch.ones(4))
        with pytest.raises(ValueError, match=r"keep must have one entry per row \(dimension 1\)"):
            pair(values, keep=torch.ones(4, dtype=torch.bool), row_dim=1)
        with pytest.raises(ValueError, match="are the same dimension"):
            pair(values, keep=torch.ones(4, dtype=torch.bool), row_dim=0, channel_dim=-2)


@pytest.mark.parametrize("channel_dim", [None, 1])
@pytest.mark.parametrize("keep", [None, torch.tensor([True, False, True, True, False])])
def test_operators_keep_their_contract(channel_dim, keep):
    values = torch.randn(2, 5).T
    ops = torch.ops.dqconvert
    torch.library.opcheck(ops.minmax_pair.default, (values, keep, 0, channel_dim))
    torch.library.opcheck(ops.percentile_pair.default, (values, 0.01, keep, 0, channel_dim, None))
