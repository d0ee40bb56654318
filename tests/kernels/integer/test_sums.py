"""`quantize_sum`: compiled loops against the definition, to the last bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dqconvert.kernels.integer.sums import plain_quantize_sum, quantize_sum

GRID = torch.tensor([0.05, 119.0, 255.0, -128.0])
GRIDS = torch.stack([GRID, torch.tensor([0.02, 3.0, 15.0, 0.0]), torch.tensor([0.3, 90.0, 255.0, -90.0])])
KINDS = ("codes", "grid", "by column", "values", "row", "strided", "codes by group", "grid by group", "by both")


def a_term(kind, rows, columns):
    if kind in ("codes by group", "by both"):
        table = torch.randn(3, columns if kind == "by both" else 1, 256) * 3
        return torch.randint(256, (rows, columns), dtype=torch.uint8), table
    if kind == "grid by group":
        zero, scale = torch.randint(256, (3, 1, 1)), torch.rand(3, 1, 1) + 0.01
        return torch.randint(256, (rows, columns), dtype=torch.uint8), (torch.arange(256) - zero) * scale
    if kind in ("codes", "by column"):
        table = torch.randn((columns, 256) if kind == "by column" else 256) * 3
        return torch.randint(256, (rows, columns), dtype=torch.uint8), table
    if kind == "grid":
        zero, scale = torch.randint(256, ()), torch.rand(()) + 0.01
        return torch.randint(256, (rows, columns), dtype=torch.uint8), (torch.arange(256) - zero) * scale
    given = {"row": (columns,), "strided": (columns, rows)}.get(kind, (rows, columns))
    values = torch.randn(given) * 3
    return (values.T if kind == "strided" else values), torch.randn(1)


@settings(max_examples=60)
@given(
    st.integers(0, 40),
    st.integers(1, 40) | st.sampled_from([200, 5000]),
    st.lists(st.sampled_from(KINDS), min_size=0, max_size=2),
    st.sampled_from(KINDS[:4]),
    st.integers(0, 1000),
)
def test_sums_are_as_defined(rows, columns, kinds, last, seed):
    torch.manual_seed(seed)
    terms, weights = map(list, zip(*(a_term(kind, rows, columns) for kind in (*kinds, last)), strict=True))
    by_group = any(weight.dim() == 3 for weight in weights) or seed % 2
    ends = (GRIDS, torch.randint(3, (rows,), dtype=torch.uint8)) if by_group else (GRID,)
    assert torch.equal(quantize_sum(terms, weights, *ends), plain_quantize_sum(terms, weights, *ends))


def test_on_threads(threads):
    for kinds, ends in ((KINDS[:6], (GRID,)), (KINDS, (GRIDS, torch.randint(3, (1500,), dtype=torch.uint8)))):
        terms, weights = map(list, zip(*(a_term(kind, 1500, 77) for kind in kinds), strict=True))
        assert torch.equal(quantize_sum(terms, weights, *ends), plain_quantize_sum(terms, weights, *ends))


def test_what_is_no_number_has_the_code_of_zero():
    found = quantize_sum([torch.tensor([[torch.nan, torch.inf]])], [torch.ones(1)], GRID)
    assert found.tolist() == [[119, 255]]


def test_what_does_not_fit_is_an_error():
    codes, values, table, one = torch.zeros(3, 4, dtype=torch.uint8), torch.ones(3, 4), torch.ones(256), torch.ones(1)
    for terms, weights, grid in (
        ([], [], GRID),
        ([values], [], GRID),
        ([values[0]], [one], GRID),
        ([values], [one], GRID[:3]),
        ([values], [table], GRID),
        ([codes], [one], GRID),
        ([codes], [torch.ones(3, 256)], GRID),
        ([values, codes[:2]], [one, table], GRID),
        ([values, values[:, 0]], [one, one], GRID),
        ([codes], [torch.ones(3, 1, 256)], GRID),
        ([values], [one], GRIDS),
    ):
        with pytest.raises(ValueError, match=r"expected a weight for each term|does not fit a sum"):
            quantize_sum(terms, weights, grid)
    with pytest.raises(TypeError, match="uint8 or float32"):
        quantize_sum([values.double()], [one], GRID)


def test_the_operator_is_registered_right():
    terms, weights = map(list, zip(*(a_term(kind, 3, 4) for kind in KINDS[:6]), strict=True))
    torch.library.opcheck(torch.ops.dqconvert.quantize_sum.default, (terms, weights, GRID))
    ends = GRIDS, torch.tensor([2, 0, 1], dtype=torch.uint8)
    torch.library.opcheck(torch.ops.dqconvert.quantize_sum.default, (terms, weights, *ends))


def test_it_compiles_as_one_graph():
    torch._dynamo.reset()
    terms = [torch.randint(256, (4, 6), dtype=torch.uint8), torch.randn(4, 6)]
    weights = [torch.arange(256) * 0.5, torch.tensor([2.0])]
    run = torch.compile(quantize_sum, fullgraph=True, backend="eager")
    assert torch.equal(run(terms, weights, GRID), quantize_sum(terms, weights, GRID))
