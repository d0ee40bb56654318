"""`plane_of`: five numbers that stand for a table of pairs, where they give it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dqconvert.kernels.integer.plane import on_plane, plane_of

A, B = torch.arange(256, dtype=torch.uint8)[:, None], torch.arange(256, dtype=torch.uint8)

LEVELS, INSIDE = 8, 512
"""A table with fewer, or fewer entries that are not clamped, may be taken for none: it says little of the slopes."""


def table_of(one, two, offset, least=0.0, most=255.0):
    """As training makes it: in float32, one operation after the other."""
    return (A.float() * one + B.float() * two + offset).round().clamp(least, most).to(torch.uint8)


@settings(max_examples=15)
@given(
    st.floats(-2, 2).filter(lambda slope: abs(slope) > 0.02),
    st.floats(-1, 1).filter(lambda slope: abs(slope) > 0.02),
    st.floats(40, 200),
    st.integers(0, 60),
)
def test_sums_of_two_values_are_planes(one, two, offset, least):
    table = table_of(one, two, offset, least)
    plane = plane_of(table)
    if plane is not None:
        off = on_plane(A, B, plane).int() - table.int()
        assert off.abs().max() <= 1
        assert off.ne(0).sum() <= 16
    exact = A.double() * one + B.double() * two + offset
    half_way = (exact - exact.floor() - 0.5).abs() < 1e-4  # they go up, and down
    inside = (table > table.min()) & (table < table.max())
    if not half_way.any() and table.unique().numel() >= LEVELS and int(inside.sum()) >= INSIDE:
        assert plane is not None


def test_few_codes():
    """No entry may differ where there are few."""
    table = table_of(0.71, 0.043, 1.3, 0.0, 15.0)[:16]
    plane = plane_of(table)
    assert plane is not None
    assert torch.equal(on_plane(A[:16], B, plane), table)
    table[3, 5] += 1
    assert plane_of(table) is None


@pytest.mark.parametrize(
    "table",
    [
        (A.float() * B / 255).round().to(torch.uint8),
        torch.randint(256, (256, 256), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
        torch.full((256, 256), 7, dtype=torch.uint8),
        (A > B).to(torch.uint8) * 255,
        table_of(0.5, 0.3, 20).index_fill(1, torch.tensor([9]), 0),
        torch.maximum(A, B),
    ],
    ids=["product", "noise", "level", "step", "one column differs", "maximum"],
)
def test_other_tables_are_none(table):
    assert plane_of(table) is None
