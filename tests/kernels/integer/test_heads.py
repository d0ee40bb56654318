"""`add_heads`: by compiled loops, against the definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dqconvert.errors import InputShapeError
from dqconvert.kernels.integer.finish import Finish
from dqconvert.kernels.integer.heads import MOST, add_heads, add_heads_operator, plain_add_heads

GRID = torch.tensor([0.3, 119.0, 255.0, -128.0])


def codes(*shape):
    return torch.randint(256, shape, dtype=torch.uint8)


def a_finish(columns, end="none", rows=0):
    tables = {"by code": torch.randn(256), "by column": torch.randn(columns, 256), "with other": codes(256, 256)}
    return Finish(
        factor=torch.rand(columns if end == "by column" else 1) + 0.01,
        grid=torch.tensor([0.7, 6.0, 15.0, -8.0]) if end == "packed" else GRID,
        bias=torch.randn(columns) if end != "none" else None,
        table=tables.get(end),
        other=codes(rows, columns) if end == "with other" else None,
        packed=end == "packed",
    )


def checked(x, columns, finish):
    found = add_heads(x, GRID, columns, finish)
    assert torch.equal(found, plain_add_heads(x, GRID, columns, finish))
    return found


def test_the_definition_is_the_mean_of_values():
    x, bias = codes(50, 4 * 7), torch.randn(7)
    values = (x.double() - 119) * 0.3
    mean = values.view(50, 4, 7).mean(1) + bias
    finish = Finish(torch.tensor([0.3 / 4]), torch.tensor([0.05, 100.0, 255.0, -128.0]), bias)
    want = (mean / 0.05 + 100).round().clamp(0, 255)
    assert (plain_add_heads(x, GRID, 7, finish) - want).abs().max() <= 1e-3


@settings(max_examples=60)
@given(
    rows=st.integers(0, 20),
    heads=st.integers(0, 9),
    columns=st.integers(1, 40),
    end=st.sampled_from(["none", "by code", "by column", "with other", "packed"]),
    seed=st.integers(0, 10_000),
)
def test_any_shape_and_end(rows, heads, columns, end, seed):
    torch.manual_seed(seed)
    checked(codes(rows, heads * columns), columns, a_finish(columns, end, rows))


@pytest.mark.parametrize("rounded", [True, False])
def test_rows_of_groups_are_on_grids_of_their_own(rounded):
    grids = torch.stack([GRID, torch.tensor([0.5, 3.0, 15.0, 0.0]), torch.tensor([0.01, 0.0, 255.0, 0.0])])
    groups, x, factor = torch.randint(3, (70,), dtype=torch.uint8), codes(70, 3 * 9), grids[:, :1] / 3
    finish = Finish(factor, grids.flip(0) if rounded else None, torch.randn(9), groups=groups)
    found = add_heads(x, grids, 9, finish)
    assert torch.equal(found, plain_add_heads(x, grids, 9, finish))
    assert found.dtype == (torch.uint8 if rounded else torch.float32)
    for group in range(3):
        rows, grid = groups == group, finish.grid[group] if rounded else None
        alone = add_heads(x[rows], grids[group], 9, Finish(factor[group], grid, finish.bias))
        assert torch.equal(found[rows], alone)
    for wrong in (finish._replace(groups=None, factor=factor[0], grid=None), finish):
        with pytest.raises(InputShapeError, match="as many groups"):
            add_heads(x, grids[:2], 9, wrong)


def test_many_rows_on_one_thread_and_many(threads):
    checked(codes(20_000, 4 * 24), 24, a_finish(24))


def test_strides_do_not_matter():
    x, finish = codes(12, 30), a_finish(5)
    assert torch.equal(checked(x.t().contiguous().t(), 5, finish), checked(x, 5, finish))


def test_what_does_not_fit_is_an_error():
    finish = a_finish(5)
    for x in (codes(3, 12), codes(10), codes(1, 1).expand(1, 5 * (MOST + 1))):
        with pytest.raises(ValueError, match="heads of 5 columns"):
            add_heads(x, GRID, 5, finish)
    with pytest.raises(TypeError, match="uint8"):
        add_heads(torch.randn(3, 10), GRID, 5, finish)
    with pytest.raises(ValueError, match=r"finish\.bias"):
        add_heads(codes(3, 10), GRID, 5, finish._replace(bias=torch.zeros(4)))


def test_the_operator_keeps_its_contract():
    for end in ("none", "by code", "packed"):
        args = codes(6, 10), GRID, 5, a_finish(5, end)
        torch.library.opcheck(torch.ops.dqconvert.add_heads.default, (*args[:3], *args[3]))
        assert torch.equal(add_heads_operator(*args), add_heads_operator.definition(*args))
