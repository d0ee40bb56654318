"""Operators whose rows have the grid of their group: the loops do what the definitions say."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from chain_cases import NEVER, addends, by_place, chain_of, scheme
from test_kernel_chain import assert_equal
from test_kernel_propagate import GRAPHS, assert_as_defined

from dqconvert.errors import InputShapeError, InputTypeError
from dqconvert.kernels import Chain, Ranged, quantize_chain, quantize_linear
from dqconvert.kernels._grid import Grid, GridTable
from dqconvert.kernels.batch_norm import plain_quantize_batch_norm, quantize_batch_norm_operator
from dqconvert.kernels.chain import plain_quantize_chain, quantize_chain_operator
from dqconvert.kernels.linear import plain_quantize_linear, quantize_linear_operator
from dqconvert.kernels.linear_grad import quantize_linear_grad

GRIDS = {
    "int8": scheme(observe=False),
    "int4": scheme(bits=4, observe=False),
    "symmetric": scheme(bits=4, symmetric=True, observe=False, clip=False),
    "from zero": scheme(bits=4, signed=False, observe=False)._replace(from_zero=True),
}
ROWS = [0, 1, 50, 700]


def ranges_of(grids, groups=5):
    """Ends of as many ranges, of groups that all have others."""
    ends = torch.rand(2 * grids, groups) * 3 + 0.2
    ends[::2] *= -1
    return ends


def groups_of(rows, groups=5):
    return torch.randint(groups, (rows,)).to(torch.uint8)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("rows", ROWS)
def test_a_chain_rounds_each_row_to_the_grid_of_its_group(rows, grid, threads):
    for places, added in (((1,), "nothing"), ((0, 1, 2), "bias"), ((0, 2), "scaled")):
        x, given, mask = torch.randn(rows, 9), addends(added, rows, 9), torch.rand(rows) < 0.2
        given |= {"protected": mask, "groups": groups_of(rows), "relu": len(places) > 1}
        chain = chain_of(dict.fromkeys(places, GRIDS[grid]), ranges_of(len(places)), **given)
        assert_equal(quantize_chain_operator(x, chain), plain_quantize_chain(x, chain))


def test_a_chain_of_one_group_is_a_chain_without():
    x, ends = torch.randn(30, 4), [torch.tensor(-1.0), torch.tensor(2.0)]
    want, _ = quantize_chain(x, Chain.of(by_place({1: GRIDS["int4"]}), ends))
    many = [end.expand(3).contiguous() for end in ends]
    got, new = quantize_chain(x, Chain.of(by_place({1: GRIDS["int4"]}), many, groups=groups_of(30, 3)))
    assert torch.equal(got, want)
    assert torch.equal(new, torch.stack(many))


@pytest.mark.parametrize("entry", [None, "int4", "from zero"])
@pytest.mark.parametrize("rows", [1, 50, 700])
def test_linear_layers(rows, entry, threads):
    x, weight, offset = torch.randn(rows, 20), torch.randn(12, 20), torch.randn(12)
    ranges, own = ranges_of(2) * 3, {"bias": torch.randn(12), "protected": torch.rand(rows) < 0.2}
    own["groups"] = groups_of(rows)
    chain = chain_of({0: GRIDS["int8"], 1: GRIDS["int4"]}, ranges, relu=True, **own)
    entered = None if entry is None else Ranged.of(GRIDS[entry], (ranges_of(1) * 3).unbind())
    args = (x, weight, offset, entered, chain)
    got, want = quantize_linear_operator(*args), plain_quantize_linear(*args)
    torch.testing.assert_close(got[0], want[0], rtol=1e-4, atol=1e-4)
    assert torch.equal(got[1], ranges)
    assert entered is None or torch.equal(got[3], entered.range_)
    which = (None, None) if entered is None else (own["protected"], own["groups"])
    back = (torch.randn(rows, 12), want[2], x, weight, None, None, entered, *which, True, [True] * 4 + [False] * 2)
    for one, two in zip(quantize_linear_grad(*back), quantize_linear_grad.definition(*back), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)


def test_a_large_layer_is_torchs_and_its_rows_are_rounded_all_the_same():
    x, weight = torch.randn(40, 1500), torch.randn(1200, 1500, requires_grad=True)
    ends, groups = list(ranges_of(1).unbind()), groups_of(40)
    rounded, _ = quantize_chain(x, Chain.of(by_place({1: GRIDS["int8"]}), ends, groups=groups))
    y, *_ = quantize_linear(x, weight, None, Chain.of(groups=groups), Ranged.of(GRIDS["int8"], ends))
    torch.testing.assert_close(y, rounded @ weight.t(), rtol=1e-4, atol=1e-3)
    (got,) = torch.autograd.grad(y.sum(), weight)
    torch.testing.assert_close(got, rounded.sum(0).expand_as(weight), rtol=1e-4, atol=1e-3)


def test_batch_norms():
    own = {"protected": torch.rand(90) < 0.3, "groups": groups_of(90)}
    args = (torch.randn(90, 7), None, None, 1e-5, chain_of({1: GRIDS["int4"]}, ranges_of(1), relu=True, **own))
    for one, two in zip(quantize_batch_norm_operator(*args), plain_quantize_batch_norm(*args), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("heads", [0, 1, 2])
@pytest.mark.parametrize("name", GRAPHS)
def test_message_passing(name, heads, threads):
    """Weighted messages have the grid of their receiver's group, plain ones one of their own; sums theirs."""
    graph = GRAPHS[name]
    edges, senders, receivers = graph
    x, weight = torch.randn(senders, 8), torch.rand(edges.size(1), heads) if heads else None
    for grouped in (False, True) if heads else (False,):
        range_ = ranges_of(1) if grouped else ranges_of(1)[:, 0]
        options = {"schemes": {0: GRIDS["int4"], 2: GRIDS["int8"]}, "relu": True, "bias": torch.randn(8)}
        options |= {"groups": groups_of(receivers), "chain_ranges": ranges_of(2)}
        protected, reduce = torch.rand(senders) < 0.3, "mean" if heads == 1 else "sum"
        assert_as_defined(graph, x, weight, GRIDS["int4"], protected, reduce, range_, **options)


def test_messages_that_observe_pass_sums_on_to_groups():
    graph, x = GRAPHS["random"], torch.randn(30, 8)
    options = {"schemes": {1: GRIDS["int8"]}, "groups": groups_of(30), "chain_ranges": ranges_of(1)}
    range_, _ = assert_as_defined(graph, x, None, scheme(), None, "sum", NEVER, **options)
    assert range_ == [x[graph[0][0]].min(), x[graph[0][0]].max()]


def test_a_group_that_is_not_there_reads_no_other_memory():
    """Loops take the last one; the definition, which torch checks, refuses."""
    x, ends = torch.randn(3, 4), list(ranges_of(1, 2).unbind())
    far, last = (torch.full((3,), group, dtype=torch.uint8) for group in (200, 1))
    one, two = (
        quantize_chain(x, Chain.of(by_place({1: GRIDS["int8"]}), ends, groups=group))[0] for group in (far, last)
    )
    assert torch.equal(one, two)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("grid", GRIDS)
def test_a_table_holds_the_grid_of_each_group(grid, dtype):
    some = [math.nan, 0.0, -1e-42, 1e-42, -12.8, 12.75, -1e30, 1e30, *torch.randn(20).tolist()]
    lows, highs = zip(*itertools.product([math.inf, *some], [-math.inf, *some]), strict=True)
    want = np.stack([Grid(GRIDS[grid], *ends).parameters(dtype) for ends in zip(lows, highs, strict=True)])
    found = GridTable(GRIDS[grid], lows, highs).table(dtype)
    assert found.dtype == dtype
    assert np.array_equal(found, want, equal_nan=True)


def test_what_does_not_fit_is_refused():
    ends = list(ranges_of(1).unbind())
    with pytest.raises(InputShapeError, match="groups"):
        quantize_chain(torch.randn(3, 4), Chain.of(by_place({1: GRIDS["int8"]}), ends, groups=groups_of(2)))
    with pytest.raises(InputTypeError, match="groups"):
        quantize_chain(torch.randn(3, 4), Chain.of(by_place({1: GRIDS["int8"]}), ends, groups=torch.zeros(3)))
    with pytest.raises(ValueError, match="observes nothing"):
        GridTable(scheme(), [0.0], [1.0])
