"""`finish_row`: codes of sums by compiled loops, against the definition, to the last bit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.integer.finish import finish_row, pointed
from dqconvert.kernels.cpu.llvm.memory import pointer
from dqconvert.kernels.cpu.tile import group_of
from dqconvert.kernels.integer.codes import quantize
from dqconvert.kernels.integer.finish import Finish, check, finish_arrays, pack, plain_finish, room, unpack

INT8, INT4 = torch.tensor([0.05, 119.0, 255.0, -128.0]), torch.tensor([0.7, 6.0, 15.0, -8.0])
VALUES = ("no grid", "values", "values on a grid", "values of pairs", "values of pairs on a grid", "values by column")
TABLES = ("plane", "none", "by code", "by column", "with other", "a line", "lines by column", *VALUES)


@loop
def finish_rows(sums, columns, shares, finish, out):  # type: ignore[no-untyped-def]
    codes, ends = np.empty(columns, np.uint8), pointed(finish, columns)
    for row in range(shares.size):
        to = pointer(out, row * out.shape[1])
        own = group_of(finish.group, row, finish.number)
        finish_row(pointer(sums, row * columns), row, own, shares[row], ends, pointer(codes, 0), to)


def finished(sums, finish, shares=None):
    """What the loops make of sums."""
    rows, columns = sums.shape
    out = room(rows, columns, finish)
    ones = torch.ones(rows) if shares is None else shares
    finish_rows(sums.reshape(-1).numpy(), columns, ones.numpy(), finish_arrays(finish, columns), out.numpy())
    return out


def a_finish(rows, columns, *, grid=INT8, by_column=False, bias=False, table="none", packed=False):
    """Some factor, bias and table; of a table that is packed again the codes are below 16."""
    kind = {"by code": (256,), "by column": (columns, 256), "with other": (256, 256), "values": (256,)}
    high = 16 if packed else 256
    pairs = table in ("with other", "plane") or "pairs" in table
    codes = torch.randint(high, kind[table], dtype=torch.uint8) if table in kind else None
    if "line" in table:  # what a scale and a ReLU make of codes: no table is needed for them
        slopes = torch.rand(columns if "column" in table else 1, 1) * 2 - 0.5
        codes = (torch.arange(256) * slopes + 3).clamp(0, high - 1).round().to(torch.uint8)
        codes = codes if "column" in table else codes[0]
    values = {
        "values": torch.randn(256),
        "values on a grid": (torch.arange(256) - torch.randint(256, ())) * torch.rand(()),
        "values of pairs": torch.randn(256, 256),
        "values by column": torch.randn(columns, 256),
    }
    if table in values:
        codes = values[table]
    if "plane" in table or "pairs on a grid" in table:
        codes = torch.tensor([torch.rand(()) * 2 - 0.5, torch.rand(()) - 0.5, 7.3, 2, high - 1.0])
    return Finish(
        factor=torch.rand(columns if by_column else 1) * 1e-3,
        grid=None if table == "no grid" else grid,
        bias=torch.randn(columns) if bias else None,
        table=torch.cat([codes, torch.tensor([113, 0.07])]) if "pairs on a grid" in table else codes,
        other=torch.randint(256, (rows, columns), dtype=torch.uint8) if pairs else None,
        packed=packed,
    )


@settings(max_examples=40)
@given(
    rows=st.integers(0, 5),
    columns=st.integers(1, 70) | st.sampled_from([128, 200]),
    seed=st.integers(0, 1000),
    wide=st.booleans(),
    shared=st.booleans(),
    packed=st.booleans(),
    by_column=st.booleans(),
    bias=st.booleans(),
    table=st.sampled_from(TABLES),
    scaled=st.booleans(),
)
def test_rows_end_as_defined(rows, columns, seed, wide, shared, packed, by_column, bias, table, scaled):
    torch.manual_seed(seed)
    packed = packed and table not in VALUES
    grid = INT4 if packed else INT8
    finish = a_finish(rows, columns, grid=grid, by_column=by_column, bias=bias, table=table, packed=packed)
    finish = finish._replace(shares=torch.rand(rows) if scaled else None)
    check(finish, rows, columns)
    sums = torch.randint(-40_000, 40_000, (rows, columns), dtype=torch.int64 if wide else torch.int32)
    shares = torch.rand(rows) if shared else None
    got, want = finished(sums, finish, shares), plain_finish(sums, finish, shares)
    assert got.dtype == want.dtype
    assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_sums_at_the_ends_of_their_type(dtype):
    ends = torch.iinfo(dtype)
    sums = torch.tensor([[ends.min, ends.min + 1, -1, 0, 1, 2**24 + 1, 2**31 - 129, ends.max - 1, ends.max]]).to(dtype)
    for size, grid in itertools.product((1.0, 1e-8, 1e-17), (INT8, None)):
        finish = Finish(torch.tensor([size]), grid)
        assert torch.equal(finished(sums, finish), plain_finish(sums, finish))


def test_halves_round_to_even_everywhere():
    sums = torch.arange(-20, 300, dtype=torch.int32).reshape(2, -1)
    for low in (0, -1, -128):  # what is even depends on it
        finish = Finish(torch.tensor([0.5]), torch.tensor([1.0, 3.0, 255.0, low]))
        want = [min(max(round(value / 2 + 3 + low) - low, 0), 255) for value in range(-20, 300)]  # Python's: to even
        assert finished(sums, finish).flatten().tolist() == want


def test_codes_of_sums_are_those_of_their_values():
    """Also where the quotient of two scales is half a step but for the last bit."""
    sums = torch.arange(-300, 300, dtype=torch.int32).reshape(2, -1)
    for factor, scale in itertools.product((0.1, 0.3, 0.7, 1.1), repeat=2):
        step = torch.tensor([factor])
        for nearly in (torch.nextafter(step, step * 0), step, torch.nextafter(step, step + 1)):
            grid = torch.tensor([scale * 2, 119.0, 255.0, -128.0])
            assert torch.equal(finished(sums, Finish(nearly, grid)), quantize(sums.float() * nearly, grid))


def test_sums_are_divided_by_the_scale_not_multiplied_by_its_reciprocal():
    sums = torch.arange(0, 1 << 16, dtype=torch.int32).reshape(16, -1)
    for scale in (0.1, 0.3, 0.7, 1.1, 3.3):
        finish = Finish(torch.tensor([0.05]), torch.tensor([scale, 0.0, 255.0, 0.0]))
        assert torch.equal(finished(sums, finish), plain_finish(sums, finish))


def test_infinite_values_are_clamped():
    sums = torch.tensor([[1, -1, 0]], dtype=torch.int32)
    finish = Finish(torch.tensor([3e38]), torch.tensor([1e-5, 7.0, 15.0, 0.0]))
    assert finished(sums, finish).tolist() == [[15, 0, 7]]


@given(st.integers(0, 4), st.integers(0, 9))
def test_what_is_packed_is_unpacked(rows, columns):
    codes = torch.randint(16, (rows, columns), dtype=torch.uint8)
    packed = pack(codes)
    assert packed.shape == (rows, (columns + 1) // 2)
    assert torch.equal(unpack(packed, columns), codes)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("factor", torch.ones(2)),
        ("factor", torch.ones(3, dtype=torch.float64)),
        ("grid", torch.ones(3)),
        ("bias", torch.ones(1)),
        ("table", torch.ones(255)),
        ("table", torch.ones(2, 256)),
        ("table", torch.ones(256, dtype=torch.float16)),
        ("other", torch.zeros(3, 3, dtype=torch.uint8)),
    ],
)
def test_what_does_not_fit_is_an_error(name, wrong):
    finish = Finish(torch.ones(1), INT8)._replace(**{name: wrong})
    with pytest.raises(ValueError, match=f"{name} does not fit"):
        check(finish, 4, 3)


@pytest.mark.parametrize("table", [torch.zeros(256, dtype=torch.uint8), torch.rand(256)])
def test_without_a_grid_there_is_no_code_to_look_up(table):
    with pytest.raises(ValueError, match="table does not fit"):
        check(Finish(torch.ones(1), None, table=table), 4, 3)


def test_values_are_not_packed():
    with pytest.raises(ValueError, match="packed does not fit"):
        check(Finish(torch.ones(1), None, packed=True), 4, 3)
    with pytest.raises(ValueError, match="packed does not fit"):
        check(Finish(torch.ones(1), INT8, table=torch.rand(256), packed=True), 4, 3)


def test_one_table_of_pairs_is_no_table_by_column():
    """256 columns with a table each, and a table of pairs, are of one shape."""
    sums = torch.randint(-4000, 4000, (2, 256), dtype=torch.int32)
    for table in ("by column", "with other"):
        finish = a_finish(2, 256, table=table)
        assert torch.equal(finished(sums, finish), plain_finish(sums, finish))


def test_parts_of_larger_tensors():
    """Factors, biases and tables that lie apart, and want a gradient."""
    sums = torch.randint(-4000, 4000, (4, 9), dtype=torch.int32)
    factor, bias = (torch.rand(9, 2) * 1e-2).requires_grad_()[:, 0], torch.randn(18)[::2]
    table = torch.randint(256, (256, 9), dtype=torch.uint8).T
    for finish in (
        Finish(factor, INT8),
        Finish(factor, INT8, bias, table),
        Finish(torch.ones(1), INT8.flip(0).flip(0)),
    ):
        assert torch.equal(finished(sums, finish), plain_finish(sums, finish))
