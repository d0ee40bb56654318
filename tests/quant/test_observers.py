"""How ranges follow the values, for each kind of observer."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import get_args

import pytest
import torch

from dqconvert.errors import ConfigError
from dqconvert.kernels import minmax_pair, percentile_pair
from dqconvert.qconfig import QSpec
from dqconvert.qconfig.specs import Range
from dqconvert.quant.observers import OBSERVERS, observer_for
from dqconvert.quant.search import searched_range

SPECS = [
    QSpec(range="minmax"),
    QSpec(range="ema"),
    QSpec(range="ema", momentum=0.3),
    QSpec(range="percentile", percentile=0.1),
    QSpec(range="percentile", percentile=0.1, momentum=0.3),
    QSpec(range="mse"),
    QSpec(range="mse", bits=3, symmetric=True),
    QSpec(range="relative", bits=4),
]
PER_CHANNEL = [None, 1]


def empty_range(channel_dim):
    shape = () if channel_dim is None else (3,)
    return torch.full(shape, math.inf), torch.full(shape, -math.inf)


def batch_pair(spec, values, channel_dim):
    if spec.range == "percentile":
        return percentile_pair(values, spec.percentile_value, channel_dim=channel_dim)
    if spec.range in ("mse", "relative"):
        weights = None
        if spec.range == "relative":
            sizes = values.square().mean(1, keepdim=True)
            weights = (1 / (sizes + 0.1 * sizes.median())).expand_as(values)
        rows, of_rows = (
            part if part is None else part.reshape(1, -1) if channel_dim is None else part.T.contiguous()
            for part in (values, weights)
        )
        low, high = searched_range(rows, spec.bits, spec.symmetric, of_rows)
        return (low[0], high[0]) if channel_dim is None else (low, high)
    return minmax_pair(values, channel_dim=channel_dim)


@pytest.mark.parametrize("channel_dim", PER_CHANNEL)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_ranges_follow_the_definition(spec, channel_dim):
    torch.manual_seed(0)
    observer, got, want = observer_for(spec), empty_range(channel_dim), None
    for _ in range(5):
        values, keep = torch.randn(20, 3), torch.rand(20) < 0.7
        got = observer.update(got, values, keep, 0, channel_dim)

        lo, hi = batch_pair(spec, values[keep], channel_dim)
        if want is None:
            want = lo, hi
        elif spec.momentum_value is None:
            want = torch.minimum(want[0], lo), torch.maximum(want[1], hi)
        else:
            m = spec.momentum_value
            want = want[0] + m * (lo - want[0]), want[1] + m * (hi - want[1])
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("channel_dim", PER_CHANNEL)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_what_holds_no_value_changes_nothing(spec, channel_dim):
    observer = observer_for(spec)
    seen = observer.update(empty_range(channel_dim), torch.randn(20, 3), None, 0, channel_dim)
    nothing = [
        (torch.randn(4, 3), torch.zeros(4, dtype=torch.bool)),
        (torch.empty(0, 3), None),
        (torch.empty(0, 3), torch.empty(0, dtype=torch.bool)),
        (torch.full((2, 3), math.nan), None),
    ]
    for values, keep in nothing:
        for before in (empty_range(channel_dim), seen):
            after = observer.update(before, values, keep, 0, channel_dim)
            assert torch.equal(after[0], before[0])
            assert torch.equal(after[1], before[1])


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_nan_and_infinities_are_not_observed(spec):
    values = torch.randn(50, 3)
    spoiled = torch.cat([values.flatten(), torch.tensor([math.nan, math.inf, -math.inf])])
    observer = observer_for(spec)
    assert observer.update(empty_range(None), spoiled, None, 0, None) == observer.update(
        empty_range(None), values.flatten(), None, 0, None
    )


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_ranges_are_float32_whatever_the_values_are(spec, dtype):
    values = torch.randn(50).to(dtype)
    observer = observer_for(spec)
    got = observer.update(empty_range(None), values, None, 0, None)
    assert got == observer.update(empty_range(None), values.float(), None, 0, None)
    assert got[0].dtype == got[1].dtype == torch.float32


def test_a_sampled_percentile_stays_near_the_exact_one():
    torch.manual_seed(0)
    observer = observer_for(QSpec(range="percentile", percentile=0.01, sample=0.1, momentum=1.0))
    lo, hi = observer.update(empty_range(None), torch.rand(100_000), None, 0, None)
    assert 0 < abs(lo - 0.01) < 0.005
    assert 0 < abs(hi - 0.99) < 0.005


def test_every_kind_is_in_the_table_and_others_are_refused():
    assert set(OBSERVERS) == set(get_args(Range))
    with pytest.raises(ConfigError, match="range='magic': has no observer; allowed: 'minmax', 'ema', 'percent"):
        observer_for(SimpleNamespace(range="magic"))
