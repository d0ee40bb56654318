"""Quotients without dividing, against dividing: to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dqconvert.kernels._divide import quotient, reciprocal
from dqconvert.kernels._threads import loop

KINDS = [np.float32, np.float64]


@loop
def divide_all(x, by, out):
    inverse, rest = reciprocal(by)
    for c in range(x.size):
        out[c] = quotient(x[c], by, inverse, rest)


def divided(x, by):
    out = np.empty_like(x)
    divide_all(x, by, out)
    return out


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**31), st.floats(-100, 30), st.sampled_from(["any", "a power of two", "below one", "above one"]))
def test_quotients_are_rounded_as_divisions_are(kind, seed, exponent, which):
    rng = np.random.default_rng(seed)
    by = kind(2.0**exponent)
    if which != "any":
        by = kind(2.0 ** int(exponent))
        by = by if which == "a power of two" else np.nextafter(by, kind(0 if which == "below one" else np.inf))
    ties = ((rng.integers(-300, 300, 500) + 0.5) * by).astype(kind)  # of codes, and what lies beside them
    beside = [np.nextafter(ties, kind(end)) for end in (np.inf, -np.inf)]
    x = np.concatenate([rng.standard_normal(2000) * by * 300, ties, *beside]).astype(kind)
    np.testing.assert_array_equal(divided(x, by), x / by)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_infinite_missing_or_zero_stays_so(kind):
    x = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0], kind)
    for by in (kind(0.3), kind(0.5), kind(3e-38)):
        np.testing.assert_array_equal(divided(x, by), x / by)


@pytest.mark.parametrize("kind", KINDS)
def test_a_quotient_that_is_too_large_is_large(kind):
    """On a grid, the value itself means the same as the infinity: the last code."""
    top = np.finfo(kind).max
    found = divided(np.array([top, -top], kind), kind(1e-30))
    assert found[0] > 2.0**60
    assert found[1] < -(2.0**60)
