"""`integer_linear`: products of integers by strips of registers, against the definition, to the last bit."""

from __future__ import annotations

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.integer import linear as module
from dqconvert.kernels.cpu.llvm import multiply as strips
from dqconvert.kernels.cpu.llvm.memory import pointer
from dqconvert.kernels.cpu.llvm.multiply import GROUP, HEIGHT, integer_strip, multiply_pairs
from dqconvert.kernels.integer.codes import quantize
from dqconvert.kernels.integer.finish import Finish, finish_arrays, pack, plain_finish
from dqconvert.kernels.integer.linear import (
    integer_linear,
    integer_linear_operator,
    pack_weight,
    plain_integer_linear,
    unpack_weight,
)

X_GRID = torch.tensor([0.02, 113.0, 255.0, -128.0])
FINE = torch.arange(256.0)


def codes(rows, columns, top=255):
    return torch.randint(top + 1, (rows, columns), dtype=torch.uint8)


def centred(columns, depth):
    return torch.randint(-255, 256, (columns, depth), dtype=torch.int16)


def a_finish(rows, columns, depth, *, by_column=False, bias=False, table=False, other=False, packed=False):
    top = 15.0 if packed else 255.0
    table_of = torch.randint(16 if packed else 256, (256, 256) if other else (256,), dtype=torch.uint8)
    size = 0.02 / (depth + 1) ** 0.5
    return Finish(
        factor=(torch.rand(columns) + 0.5 if by_column else torch.ones(1)) * size * top / 255,
        grid=torch.tensor([1.3, top // 2, top, -(top // 2)]),
        bias=torch.randn(columns) * 10 if bias else None,
        table=table_of if table or other else None,
        other=codes(rows, columns) if other else None,
        packed=packed,
    )


def check(x, weight, finish, *, x_grid=X_GRID, packed_input=False):
    columns, packed = weight.size(0), pack_weight(weight)
    got = integer_linear(x, x_grid, packed, columns, finish, packed_input=packed_input)
    want = plain_integer_linear(x, x_grid, packed, columns, packed_input, finish)
    assert got.dtype == want.dtype
    assert torch.equal(got, want)
    return got


# -- strips --------------------------------------------------------------------------------------------------------


@loop
def product(a, a_at, a_row, rows, b, b_at, b_group, c, columns, pairs, fresh):  # type: ignore[no-untyped-def]
    multiply_pairs(a, a_at, a_row, rows, b, b_at, b_group, c, columns, pairs, fresh)


@settings(max_examples=100)
@given(st.integers(0, 20), st.integers(0, 40), st.integers(1, 70), st.booleans(), st.integers(0, 7))
def test_strips_sum_exactly(rows, depth, columns, fresh, pad):
    weight, factors = centred(columns, depth), torch.randint(-255, 256, (rows, depth), dtype=torch.int16)
    pairs, wide, high = (depth + 1) // 2, -(-columns // GROUP) * GROUP, -(-rows // HEIGHT) * HEIGHT
    a = torch.zeros(high, 2 * pairs + pad, dtype=torch.int16)
    a[:rows, :depth] = factors
    first = torch.cat([torch.full((pad,), 99, dtype=torch.int16), a.flatten()])
    # What lies behind the last row's last group is nobody's.
    c = torch.randint(-1000, 1000, (high * wide + 5,), dtype=torch.int32)
    before = c.clone()
    packed = torch.cat([torch.full((3,), 77, dtype=torch.int16), pack_weight(weight).flatten()])
    args = first.numpy(), pad, 2 * pairs + pad, rows, packed.numpy(), 3, pairs * 2 * GROUP
    product(*args, c.numpy(), columns, pairs, fresh)
    after, had = (t[: high * wide].view(high, wide)[:rows, :columns].long() for t in (c, before))
    assert torch.equal(after, factors.long() @ weight.long().T + (0 if fresh else had))
    assert torch.equal(c[high * wide :], before[high * wide :])


def test_factors_at_the_ends_of_their_range():
    """The sum of two products of the largest factors, in either sign."""
    for a, b in ((255, 255), (-255, 255), (255, -255), (-255, -255)):
        x, w = torch.full((6, 4), a, dtype=torch.int16), torch.full((16, 4), b, dtype=torch.int16)
        c = torch.empty(6, 16, dtype=torch.int32)
        product(x.flatten().numpy(), 0, 4, 6, pack_weight(w).flatten().numpy(), 0, 64, c.view(-1).numpy(), 16, 2, True)
        assert (c == 4 * a * b).all()


def test_strips_of_other_processors_sum_the_same(monkeypatch):
    """Without the instruction that adds two products up."""
    monkeypatch.setattr(strips, "AVX2", False)

    @numba.njit
    def product_of(a, b, c):
        integer_strip(True, pointer(a, 0), a.shape[1], pointer(b, 0), pointer(c, 0), c.shape[1], a.shape[1] // 2, True)

    a, weight = torch.randint(-255, 256, (HEIGHT, 34), dtype=torch.int16), centred(GROUP, 34)
    c = torch.empty(HEIGHT, GROUP, dtype=torch.int32)
    product_of(a.numpy(), pack_weight(weight).numpy(), c.numpy())
    assert torch.equal(c.long(), a.long() @ weight.long().T)


@given(st.integers(0, 40), st.integers(0, 9))
def test_a_weight_is_unpacked_as_it_was(columns, depth):
    weight = centred(columns, depth)
    packed = pack_weight(weight)
    assert packed.shape == (-(-columns // 16), (depth + 1) // 2, 16, 2)
    assert torch.equal(unpack_weight(packed, columns, depth), weight)
    assert packed.abs().sum() == weight.abs().sum(), "filled up with zeros"


# -- the layer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [*range(14), 47, 48, 49])
def test_every_remainder_of_rows_and_columns(rows):
    for columns in (*range(1, 35), 70):
        depth = 5 + (rows + columns) % 2
        check(codes(rows, depth), centred(columns, depth), a_finish(rows, columns, depth, bias=True))


@settings(max_examples=100)
@given(
    st.integers(0, 60),
    st.integers(0, 300),
    st.integers(1, 70),
    st.sampled_from(["codes", "packed", "strided", "values", "float64", "float16"]),
    st.fixed_dictionaries({name: st.booleans() for name in ("by_column", "bias", "table", "other", "packed")}),
    st.integers(0, 1000),
)
def test_any_shape_and_finish(rows, depth, columns, kind, options, seed):
    torch.manual_seed(seed)
    weight, finish = centred(columns, depth), a_finish(rows, columns, depth, **options)
    if kind == "packed":
        x_grid = torch.tensor([0.3, 7.0, 15.0, -8.0])
        check(pack(codes(rows, depth, 15)), weight, finish, packed_input=True, x_grid=x_grid)
    elif kind == "codes":
        check(codes(rows, depth), weight, finish)
    elif kind == "strided":
        check(codes(depth, rows).T, weight, finish)
    else:
        dtype = {"values": torch.float32}.get(kind) or getattr(torch, kind)
        check((torch.randn(rows, depth) * 3).to(dtype), weight, finish)


@pytest.mark.parametrize("packed_input", [False, True])
@pytest.mark.parametrize("depth", [1, 255, 256, 257, 513, 1433, 2048, 2049])
def test_depths_around_whole_blocks(depth, packed_input):
    weight, finish = centred(20, depth), a_finish(50, 20, depth, by_column=True)
    x = codes(50, depth, 15)
    check(pack(x) if packed_input else x, weight, finish, packed_input=packed_input)


@pytest.mark.parametrize("depth", [32767, 32768, 32769, 40000, 65537, 70001])
@pytest.mark.parametrize("sign", [1, -1])
def test_sums_beyond_int32_are_exact(depth, sign):
    """All factors at the end of their range: 255^2 for every step of the depth."""
    x = torch.full((7, depth), 255, dtype=torch.uint8)
    x[3] = codes(1, depth)
    weight = torch.full((3, depth), 255 * sign, dtype=torch.int16)
    weight[1, depth // 2 :] *= -1
    x_grid = torch.tensor([1.0, 0.0, 255.0, 0.0])
    sums = x.long() @ weight.long().T
    assert sums.abs().max() > 2**31 - 2**27
    # Steps so fine that a sum which is off by a millionth has another code.
    for middle in (sums[0, 0], sums[0, 1]):
        grid = torch.tensor([2.0**9, 128.0, 255.0, 0.0])
        finish = Finish(torch.ones(1), grid, bias=torch.full((3,), -float(middle)))
        got = integer_linear(x, x_grid, pack_weight(weight), 3, finish)
        assert torch.equal(got, plain_finish(sums, finish))
        assert (got == 128).any()


def test_sums_are_exact_to_the_unit():
    """With the other sums far away, one code is one unit."""
    weight = centred(9, 301)
    x = codes(13, 301)
    sums = (x.long() - 113) @ weight.long().T
    for row in range(13):
        for column in range(9):
            bias = torch.full((9,), -float(sums[row, column]))
            finish = Finish(torch.ones(1), torch.tensor([1.0, 100.0, 255.0, 0.0]), bias=bias)
            got = integer_linear(x, X_GRID, pack_weight(weight), 9, finish)
            assert got[row, column] == 100


@pytest.mark.study
def test_blocks_of_the_depth_are_added_up(monkeypatch):
    """The limit of int32, where it costs less to get there."""
    fresh = {"BLOCK": 2, "SPAN": 4, "EXACT": 8, "ROWS": 12}
    for name, value in fresh.items():
        monkeypatch.setattr(module, name, value)
    again = numba.njit(error_model="numpy")(module.linear_rows.py_func)  # not kept on disk
    x, weight = codes(30, 45), centred(20, 45)
    sums = ((x.long() - 113) @ weight.long().T).numpy()
    out, finish = np.empty((30, 20), np.uint8), a_finish(30, 20, 45)
    packed = pack_weight(weight)
    args = x.numpy(), False, tuple(np.float32(part) for part in X_GRID), None, packed.numpy()
    again(*args, packed.size(1), 20, finish_arrays(finish, 20), out, 0, 30)
    assert torch.equal(torch.from_numpy(out), plain_finish(torch.from_numpy(sums), finish))


def test_on_threads(threads):
    for rows, depth, columns in ((3000, 60, 40), (500, 200, 130)):
        finish = a_finish(rows, columns, depth, by_column=True, bias=True)
        check(codes(rows, depth), centred(columns, depth), finish)
        check(torch.randn(rows, depth), centred(columns, depth), finish)


def test_values_are_quantized_as_by_themselves():
    x, weight, finish = torch.randn(50, 33) * 3, centred(20, 33), a_finish(50, 20, 33)
    x[0, 0], x[1, 1], x[2, 2] = torch.nan, torch.inf, -torch.inf
    for x_grid in (X_GRID, torch.tensor([0.02, 113.0, 255.0, 0.0])):
        got = check(x, weight, finish, x_grid=x_grid)
        assert torch.equal(got, integer_linear(quantize(x, x_grid), x_grid, pack_weight(weight), 20, finish))


def test_a_part_of_a_larger_tensor():
    """Rows that lie apart, and begin somewhere."""
    large, weight, finish = codes(40, 50), centred(20, 17), a_finish(13, 20, 17)
    part = large[3:29:2, 5:22]
    assert torch.equal(check(part, weight, finish), check(part.clone(), weight, finish))


def test_float_values_come_out_of_a_table():
    x, weight = codes(13, 20), centred(18, 20)
    finish = a_finish(13, 18, 20)
    values = check(x, weight, finish._replace(table=FINE))
    assert values.dtype == torch.float32
    assert torch.equal(values, check(x, weight, finish).float())


@pytest.mark.sample(5)
@pytest.mark.parametrize("rows", [0, 13, 100])
@pytest.mark.parametrize("columns", [7, 40])
def test_values_are_sums_times_a_factor_where_there_is_no_grid(rows, columns):
    """Of codes, codes of 4 bits, two to a byte, and values; also where rows of a few columns are joined."""
    weight = centred(columns, 20)
    finish = a_finish(rows, columns, 20, by_column=True, bias=True)._replace(grid=None)
    for x, packed in ((codes(rows, 20), False), (pack(codes(rows, 20, 15)), True), (torch.randn(rows, 20), False)):
        assert check(x, weight, finish, packed_input=packed).dtype == torch.float32


def test_what_does_not_fit_is_an_error():
    x, weight, finish = codes(5, 6), pack_weight(centred(20, 6)), a_finish(5, 20, 6)
    for wrong in (codes(5, 7), codes(5, 4), x[0]):
        with pytest.raises(ValueError, match="take a weight of shape"):
            integer_linear(wrong, X_GRID, weight, 20, finish)
    with pytest.raises(ValueError, match="take a weight of shape"):
        integer_linear(x, X_GRID, weight, 33, finish)
    with pytest.raises(ValueError, match="take a weight of shape"):
        integer_linear(x, X_GRID, weight, 20, finish, packed_input=True)
    with pytest.raises(ValueError, match="bias does not fit"):
        integer_linear(x, X_GRID, weight, 20, finish._replace(bias=torch.ones(19)))
    with pytest.raises(TypeError, match="uint8"):
        integer_linear(x.int(), X_GRID, weight, 20, finish)


@pytest.mark.parametrize("kind", ["codes", "packed", "values"])
def test_the_operator_is_registered_right(kind):
    weight = pack_weight(centred(19, 8))
    x = {"codes": codes(5, 8), "packed": codes(5, 4), "values": torch.randn(5, 8)}[kind]
    ends = [a_finish(5, 19, 8, **of) for of in ({"bias": True, "packed": True}, {"other": True, "by_column": True})]
    for finish in (*ends, Finish(torch.ones(1), None)):
        args = (x, X_GRID, weight, 19, kind == "packed")
        torch.library.opcheck(torch.ops.dqconvert.integer_linear.default, (*args, *finish))
        assert torch.equal(
            integer_linear_operator(*args, finish, None), integer_linear_operator.registered(*args, *finish)
        )


@pytest.mark.parametrize("shape", [(1, 1), (50, 7), (3000, 2100)])
def test_nan_is_an_error_where_values_have_a_name(shape):
    x, weight = torch.randn(shape), pack_weight(torch.ones(3, shape[1], dtype=torch.int16))
    finish = Finish(torch.tensor([0.01]), torch.tensor([0.1, 128.0, 255.0, 0.0]))
    expected = integer_linear(x, X_GRID, weight, 3, finish)
    assert torch.equal(integer_linear(x, X_GRID, weight, 3, finish, name="x"), expected)
    for place in (0, x.numel() // 2, -1):
        wrong = x.clone()
        wrong.view(-1)[place] = torch.nan
        integer_linear(wrong, X_GRID, weight, 3, finish)
        for dtype in (torch.float32, torch.float64):
            with pytest.raises(ValueError, match="x holds NaN"):
                integer_linear(wrong.to(dtype), X_GRID, weight, 3, finish, name="x")
        with pytest.raises(ValueError, match="x holds NaN"):
            plain_integer_linear(wrong, X_GRID, weight, 3, False, finish, "x")


def mostly_zero(rows, depth, share):
    x = torch.randn(rows, depth) * (torch.rand(rows, depth) < share)
    return torch.where(torch.rand(rows, depth) < 0.01, -0.0 * x.abs(), x)


@pytest.mark.sample(5)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.03, 0.06, 0.07, 0.5])
@pytest.mark.parametrize(("rows", "depth", "columns"), [(1, 1, 1), (50, 33, 17), (200, 1433, 16), (97, 5001, 40)])
def test_rows_that_are_mostly_zero(rows, depth, columns, share, threads):
    """Below and above the share at which zeros are passed by; the depth is read in one piece and in several."""
    weight = pack_weight(torch.randint(-255, 256, (columns, depth), dtype=torch.int16))
    finish = Finish(torch.tensor([0.001]), torch.tensor([0.1, 128.0, 255.0, -128.0]), bias=torch.randn(columns))
    grids = [[0.02, 0.0, 255.0, 0.0], [0.3, 7.0, 15.0, -8.0], [0.3, -5.0, 15.0, 0.0], [0.3, 20.0, 15.0, 0.0]]
    for grid in (X_GRID, *map(torch.tensor, grids)):
        x = mostly_zero(rows, depth, share)
        got = integer_linear(x, grid, weight, columns, finish)
        assert torch.equal(got, plain_integer_linear(x, grid, weight, columns, False, finish))


def test_rows_of_both_kinds():
    """A dense row among sparse ones, before and behind them."""
    weight = pack_weight(torch.randint(-255, 256, (9, 700), dtype=torch.int16))
    finish = Finish(torch.tensor([0.001]), torch.tensor([0.1, 128.0, 255.0, 0.0]))
    for dense in (0, 1, 47, 48, 100, 149):
        x = mostly_zero(150, 700, 0.02)
        x[dense] = torch.randn(700)
        got = integer_linear(x, X_GRID, weight, 9, finish)
        assert torch.equal(got, plain_integer_linear(x, X_GRID, weight, 9, False, finish))


@pytest.mark.parametrize("place", [0, 31, 32, 1431, 1432])
def test_nan_among_zeros(place):
    x, weight = torch.zeros(60, 1433), pack_weight(torch.ones(3, 1433, dtype=torch.int16))
    finish = Finish(torch.tensor([0.01]), torch.tensor([0.1, 128.0, 255.0, 0.0]))
    x[55, place] = torch.nan
    assert torch.equal(integer_linear(x, X_GRID, weight, 3, finish), integer_linear(x * 0, X_GRID, weight, 3, finish))
    with pytest.raises(ValueError, match="x holds NaN"):
        integer_linear(x, X_GRID, weight, 3, finish, name="x")


@pytest.mark.sample(4)
@pytest.mark.parametrize("columns", [1, 2, 7, 8, 31, 32, 33])
@pytest.mark.parametrize("rows", [47, 48, 101])
def test_rows_of_a_few_columns_are_joined(rows, columns):
    """With every kind of end; and rows of values, which are read together where they are whole."""
    ramp = torch.arange(256).mul(0.6).add(3).round().to(torch.uint8)
    values = torch.rand(256)
    for depth in (1, 2, 5):
        x, weight, other = codes(rows, depth), centred(columns, depth), codes(rows, columns)
        finish = a_finish(rows, columns, depth, by_column=True, bias=True)
        pairs = a_finish(rows, columns, depth, by_column=True, bias=True, other=True)
        check(x, weight, finish)
        check(x, weight, pairs)
        check(x, weight, finish._replace(table=values))
        check(x, weight, finish._replace(grid=None))
        check(x, weight, finish._replace(table=ramp))
        check(x, weight, finish._replace(table=ramp[torch.randperm(256)]))
        check(x, weight, finish._replace(table=ramp.repeat(columns, 1)))
        plane = torch.tensor([0.4, 0.5, 1.0, 0.0, 255.0])
        check(x, weight, finish._replace(table=plane, other=other))
        check(torch.randn(rows, depth) * (torch.rand(rows, depth) < 0.5), weight, finish)
        if rows > 47:
            holes = torch.randn(rows, depth)
            holes[-1, -1] = float("nan")
            with pytest.raises(ValueError, match="x holds NaN"):
                integer_linear(holes, X_GRID, pack_weight(weight), columns, finish, name="x")
