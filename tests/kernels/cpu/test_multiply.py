"""`multiply`: products of matrices by strips of registers, against numpy, over everything that can be left over."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dqconvert.kernels.cpu.llvm.multiply import multiply, pack, vectors_of
from dqconvert.kernels.cpu.llvm.vectors import VECTOR

RANDOM = np.random.default_rng(0)


def whole(shape, dtype):
    """Small whole numbers: every order of sums has the same result, to the last bit."""
    return RANDOM.integers(-9, 10, shape).astype(dtype)


def check(rows, depth, columns, dtype, *, packed=True, fresh=True, transposed=False, pad=0):
    """`c = a @ b` or `c += a @ b`; what lies beside `c` and behind its last row stays as it was."""
    a, b = whole((rows, depth), dtype), whole((depth, columns), dtype)
    lanes, groups = VECTOR // a.itemsize, int(vectors_of(columns, a.itemsize))
    wide, begin = groups * lanes, 3
    room = wide + pad
    before = whole(begin + (rows + 1) * room, dtype)
    c = before.copy()
    if packed:
        second, b_row = pack(b), 0
    else:  # may be read up to whole vectors: of what is there, nothing may reach the columns that count
        b_row = columns + 1
        second = np.full(depth * b_row + lanes, np.nan, dtype)
        for k in range(depth):
            second[k * b_row : k * b_row + columns] = b[k]
    # `a` begins somewhere and goes on in steps, by rows or by columns.
    first = np.concatenate([whole(5, dtype), (a.T if transposed else a).reshape(-1), whole(9, dtype)])
    a_row, a_step = (1, rows) if transposed else (depth, 1)
    multiply(first, 5, a_row, a_step, rows, depth, second, b_row, groups, c, begin, room, fresh)

    after = c[begin : begin + rows * room].reshape(rows, room)
    had = before[begin : begin + rows * room].reshape(rows, room)
    assert np.array_equal(after[:, :columns], a @ b + (0 if fresh else had[:, :columns]))
    assert np.array_equal(after[:, wide:], had[:, wide:])
    assert np.array_equal(c[:begin], before[:begin])
    assert np.array_equal(c[begin + rows * room :], before[begin + rows * room :])
    if packed:
        assert np.array_equal(after[:, columns:wide], np.where(fresh, 0, had[:, columns:wide])), "filled with zeros"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rows", range(1, 14))
def test_every_remainder_of_rows_and_columns(rows, dtype):
    for columns in range(1, 71):
        for packed in (True, False):
            for fresh in (True, False):
                check(rows, 5, columns, dtype, packed=packed, fresh=fresh)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("depth", [0, 1, 2, 3, 33])
def test_every_depth(depth, transposed):
    for rows, columns in ((1, 1), (6, 16), (7, 24), (13, 70)):
        for packed, fresh in ((True, True), (True, False), (False, True), (False, False)):
            for dtype in (np.float32, np.float64):
                check(rows, depth, columns, dtype, packed=packed, fresh=fresh, transposed=transposed, pad=2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("lacks", ["rows", "columns"])
def test_nothing_is_written_where_there_is_nothing(lacks, dtype):
    check(0 if lacks == "rows" else 4, 3, 0 if lacks == "columns" else 4, dtype)


@settings(max_examples=60)
@given(
    st.integers(0, 50),
    st.integers(0, 200),
    st.integers(1, 200),
    st.sampled_from([np.float32, np.float64]),
    st.fixed_dictionaries({name: st.booleans() for name in ("packed", "fresh", "transposed")}),
    st.integers(0, 9),
)
def test_any_shape(rows, depth, columns, dtype, options, pad):
    check(rows, depth, columns, dtype, pad=pad, **options)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2.0**-23), (np.float64, 2.0**-52)])
def test_sums_are_as_near_as_their_depth_allows(dtype, tolerance):
    for depth in (1, 100, 3000):
        a, b = RANDOM.standard_normal((12, depth)).astype(dtype), RANDOM.standard_normal((depth, 16)).astype(dtype)
        c = np.empty((12, 16), dtype)
        multiply(
            a.reshape(-1),
            0,
            depth,
            1,
            12,
            depth,
            pack(b),
            0,
            int(vectors_of(16, a.itemsize)),
            c.reshape(-1),
            0,
            16,
            True,
        )
        wide = a.astype(np.longdouble) @ b.astype(np.longdouble)
        bound = np.abs(a).astype(np.longdouble) @ np.abs(b).astype(np.longdouble) * depth * tolerance
        assert (np.abs(c - wide) <= bound).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_row_and_column(value):
    a, b = np.ones((7, 4), np.float32), np.ones((4, 20), np.float32)
    a[2, 1], b[3, 5] = value, value
    groups = int(vectors_of(20, 4))
    wide = groups * VECTOR // 4  # whole vectors are written, of however many values this processor's are
    c = np.empty((7, wide), np.float32)
    multiply(a.reshape(-1), 0, 4, 1, 7, 4, pack(b), 0, groups, c.reshape(-1), 0, wide, True)
    odd = ~np.isfinite(c[:, :20])
    assert odd[2].all()
    assert odd[:, 5].all()
    assert odd.sum() == 20 + 7 - 1


@pytest.mark.parametrize("columns", [1, 8, 9, 24, 25, 70])
def test_what_is_packed_may_be_strided(columns):
    b = whole((columns, 6), np.float32)
    assert np.array_equal(pack(b.T), pack(np.ascontiguousarray(b.T)))
    assert np.array_equal(pack(b[:, ::2].T), pack(np.ascontiguousarray(b[:, ::2].T)))
