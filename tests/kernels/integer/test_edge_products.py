"""`edge_products`: by compiled loops, against the definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dqconvert.kernels.integer.edge_products import (
    MOST,
    edge_products,
    edge_products_operator,
    plain_edge_products,
)


def codes(*shape):
    return torch.randint(256, shape, dtype=torch.uint8)


def a_case(nodes, edges, heads, columns, zeros=(100, 7)):
    rows = [torch.randint(max(count, 1), (edges,)) for count in nodes]
    a, b = (codes(count, heads * columns) for count in nodes)
    return a, rows[0], zeros[0], b, rows[1], zeros[1], heads, 0.37


def checked(case):
    found = edge_products(*case)
    assert torch.equal(found, plain_edge_products(*case))
    return found


def test_the_definition_is_the_sum_of_products_of_values():
    a, i, _, b, j, *_ = case = a_case((9, 7), 40, 3, 5)
    left, right = ((t.double()[rows] - zero) * scale for t, rows, zero, scale in ((a, i, 100, 0.5), (b, j, 7, 0.74)))
    want = (left * right).view(40, 3, 5).sum(-1)
    assert torch.allclose(plain_edge_products(*case).double(), want, rtol=1e-6)


@settings(max_examples=40)
@given(
    nodes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    edges=st.integers(0, 30),
    heads=st.integers(1, 5),
    columns=st.integers(0, 70),
    seed=st.integers(0, 10_000),
)
def test_any_shape(nodes, edges, heads, columns, seed):
    torch.manual_seed(seed)
    checked(a_case(nodes, edges, heads, columns))


def test_many_edges_on_one_thread_and_many(threads):
    checked(a_case((500, 400), 20_000, 4, 24))


def test_sums_at_their_largest():
    a, b = (torch.full((1, MOST), code, dtype=torch.uint8) for code in (255, 0))
    edge = torch.zeros(1, dtype=torch.int64)
    assert checked((a, edge, 0, b, edge, 255, 1, 1.0)).item() == -(255**2) * MOST


def test_strides_do_not_matter():
    a, i, *rest = a_case((9, 7), 40, 3, 4)
    want = checked((a, i, *rest))
    assert torch.equal(checked((a.t().contiguous().t(), torch.stack([i, i], 1)[:, 0], *rest)), want)


def test_rows_that_are_not_there_are_refused():
    a, i, *rest = a_case((9, 7), 40, 3, 4)
    for wrong in (9, -1, 1 << 40):
        rows = i.clone()
        rows[17] = wrong
        with pytest.raises(IndexError, match="9 and 7 nodes"):
            edge_products(a, rows, *rest)


def test_what_does_not_fit_is_an_error():
    a, i, za, b, j, zb, heads, factor = a_case((9, 7), 40, 3, 4)
    for wrong in ((a[0], i, b, j, heads), (a, i, b[:, 1:], j, heads), (a, i[1:], b, j, heads), (a, i, b, j, 5)):
        one, i_, other, j_, count = wrong
        with pytest.raises(ValueError, match="rows of the same heads"):
            edge_products(one, i_, za, other, j_, zb, count, factor)
    for one, rows in ((a.int(), i), (a, i.int())):
        with pytest.raises(TypeError, match="uint8 codes and int64 rows"):
            edge_products(one, rows, za, b, j, zb, heads, factor)


def test_the_operator_keeps_its_contract():
    case = a_case((5, 6), 8, 2, 3)
    torch.library.opcheck(torch.ops.dqconvert.edge_products.default, case)
    assert torch.equal(edge_products_operator(*case), plain_edge_products(*case))
