"""Grids that stand for tables of values, where they give them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dqconvert.kernels.integer.on_grid import codes_of, grid_of, values_of

CODES = np.arange(256, dtype=np.float32)


def on_grid(zero, scale):
    return (CODES - np.float32(zero)) * np.float32(scale)


@given(st.integers(0, 255), st.floats(1e-30, 1e30) | st.sampled_from([-0.5, 1.0, 2.0**-140]), st.integers(0, 255))
def test_values_on_a_grid(zero, scale, wrong):
    table = on_grid(zero, scale)
    grid = grid_of(table)
    assert np.array_equal(values_of(grid), table)
    table[wrong] = np.nextafter(table[wrong], np.float32(np.inf))
    assert grid_of(table) is None or np.array_equal(values_of(grid_of(table)), table)


@given(st.integers(0, 255), st.floats(1e-30, 1e30), st.integers(0, 255), st.integers(1, 255))
def test_values_of_pairs_on_a_grid(zero, scale, least, count):
    """Values of some codes: they get codes that differ as they do."""
    some = np.arange(least, min(least + count, 256))[:, None].repeat(3, 1)
    table = on_grid(zero, scale)[some]
    found = codes_of(table)
    if not np.isin([zero - 1, zero + 1], some).any():  # no value is one step from zero
        assert found is None or np.array_equal(values_of(found[1])[found[0]], table)
        return
    codes, grid = found
    assert codes.dtype == np.uint8
    assert np.array_equal(np.diff(codes.astype(int), axis=0), np.diff(some, axis=0))
    assert np.array_equal(values_of(grid)[codes], table)


@pytest.mark.parametrize(
    "values",
    [[0.0, 0.0], [1.0, 300.0], [-200.0, 1.0, 100.0], [1.0, 1.5], [1e-30, 1e30], [np.nan, 1.0], [np.inf, 1.0]],
    ids=str,
)
def test_values_on_no_grid(values):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert codes_of(np.array(values, np.float32)) is None


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_no_grid_warns_of_nothing(special):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for place in (0, 3, 255):
            table = on_grid(3, 0.5)
            table[place] = special
            assert grid_of(table) is None
