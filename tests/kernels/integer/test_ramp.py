"""Lines that stand for tables: exactly, or not at all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dqconvert.kernels.integer.ramp import as_table, fit, on_ramp, ramp_of

CODES = torch.arange(256)


def requantized(slope, offset, least=0.0):
    """What codes become behind a scale, an offset and a ReLU: computed in float32, as a table is."""
    return (CODES * slope + offset).clamp(least, 255).round().to(torch.uint8)


@settings(max_examples=200)
@given(st.floats(-300, 300), st.floats(-300, 500), st.sampled_from([0.0, 17.0]))
def test_a_line_gives_what_is_in_the_table(slope, offset, least):
    table = requantized(slope, offset, least)
    ramp = ramp_of(table, 256, columns=1)
    assert ramp is None or torch.equal(as_table(ramp)[0], table)


@pytest.mark.parametrize("seed", range(5))
def test_most_such_tables_are_lines(seed):
    torch.manual_seed(seed)
    slopes, offsets = torch.rand(100, 1) * 4 - 2, torch.rand(100, 1) * 300 - 20
    tables = requantized(slopes, offsets)
    found = [ramp_of(table, 256, columns=1) is not None for table in tables]
    assert sum(found) > 95


def test_every_column_has_its_own():
    tables = requantized(torch.tensor([[0.5], [-2.0], [0.0]]), torch.tensor([[3.2], [400.1], [7.0]]))
    ramp = ramp_of(tables, 256, columns=3)
    assert ramp.shape == (4, 3)
    assert ramp.dtype == np.float32
    assert torch.equal(as_table(ramp), tables)


def test_one_table_serves_all_columns():
    table = requantized(0.7, 11.3)
    assert torch.equal(as_table(ramp_of(table, 256, columns=5)), table.expand(5, 256))


@pytest.mark.parametrize(
    "table",
    [
        torch.tensor([0, 1, 0, 1] * 64),
        (CODES.float().sub(128).div(30).sigmoid() * 255).round(),
        (CODES - 128).abs(),
        CODES.where(CODES != 100, CODES + 1),
    ],
    ids=["up and down", "a curve", "a corner", "a line but for one entry"],
)
def test_what_is_no_line_has_none(table):
    assert ramp_of(table.to(torch.uint8), 256, columns=1) is None


def test_one_column_without_a_line_is_enough():
    tables = torch.stack([requantized(1.0, 0.0), (CODES - 128).abs().to(torch.uint8)])
    assert ramp_of(tables, 256, columns=2) is None


def test_entries_that_no_code_has_do_not_count():
    table = requantized(0.9, 2.0)
    table[16:] = torch.randint(256, (240,), dtype=torch.uint8)
    assert ramp_of(table, 256, columns=1) is None
    ramp = ramp_of(table, 16, columns=1)
    assert np.array_equal(on_ramp(np.arange(16, dtype=np.float32), ramp)[0], table[:16].numpy())


@pytest.mark.parametrize("table", [torch.zeros(1, 1), torch.full((2, 256), 9.0)], ids=["one code", "level"])
def test_level_tables(table):
    ramp = fit(table.to(torch.uint8).numpy())
    assert np.array_equal(on_ramp(np.arange(table.size(1), dtype=np.float32), ramp), table.numpy())


def test_a_table_that_was_changed_is_looked_at_again():
    table = requantized(1.0, 0.0)
    first = ramp_of(table, 256, columns=1)
    assert np.array_equal(ramp_of(table, 256, columns=1), first)
    table.copy_(requantized(0.5, 7.0))
    assert torch.equal(as_table(ramp_of(table, 256, columns=1))[0], table)
    table.copy_((CODES - 128).abs())
    assert ramp_of(table, 256, columns=1) is None


def test_tables_made_in_inference_mode_are_looked_up():
    with torch.inference_mode():
        assert ramp_of(requantized(1.0, 0.0), 256, columns=1) is None
