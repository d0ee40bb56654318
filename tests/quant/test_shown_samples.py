"""A quantizer that may sample: exact where that costs less."""

from __future__ import annotations

import torch

from dqconvert.qconfig import QSpec
from dqconvert.quant import FakeQuantize


def quantizer(**options):
    spec = QSpec(range="percentile", percentile=0.01, **options)
    return FakeQuantize(spec, name="here", signed=True, channels=8, channel_dim=1)


def ranges(made, x):
    made(x)
    return made.min_val, made.max_val


def test_on_the_cpu_all_values_are_used_and_nothing_is_drawn():
    x = torch.randn(5000, 8)
    state = torch.get_rng_state()
    sampled = ranges(quantizer(sample=0.01), x)
    assert torch.equal(torch.get_rng_state(), state)
    for one, two in zip(sampled, ranges(quantizer(), x), strict=True):
        assert torch.equal(one, two)


def test_per_channel_the_sample_is_drawn():
    x = torch.randn(5000, 8)
    state = torch.get_rng_state()
    lo, hi = ranges(quantizer(sample=0.3, granularity="channel"), x)
    assert not torch.equal(torch.get_rng_state(), state)
    exact = ranges(quantizer(granularity="channel"), x)
    assert float((lo - exact[0]).abs().max()) < 0.6
    assert float((hi - exact[1]).abs().max()) < 0.6
    assert not torch.equal(lo, exact[0])
