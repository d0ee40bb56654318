"""`integer_propagate`: sums over neighbours by strips of registers, against messages written out, to the last bit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dqconvert.kernels.cpu.integer.lines import lines
from dqconvert.kernels.cpu.integer.propagate import messages_of_codes, plan_strips
from dqconvert.kernels.cpu.llvm.vectors import AVX2
from dqconvert.kernels.integer import message_weights
from dqconvert.kernels.integer import propagate as module
from dqconvert.kernels.integer.finish import Finish, pack, plain_finish, unpack
from dqconvert.kernels.integer.message_weights import REDUCTIONS
from dqconvert.kernels.integer.propagate import (
    MessageWeight,
    integer_propagate,
    integer_propagate_operator,
    plain_integer_propagate,
)
from dqconvert.kernels.order import check_order

INT8, INT4 = torch.tensor([0.02, 113.0, 255.0, -128.0]), torch.tensor([0.3, 7.0, 15.0, -8.0])


def order_of(edge_index, nodes):
    """Edges by their receivers: ptr and senders."""
    sender, receiver = edge_index
    ptr = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(receiver, minlength=nodes).cumsum(0)])
    return ptr, sender[receiver.argsort(stable=True)]


def a_graph(senders, nodes, edges):
    """Some nodes have many edges; some none."""
    edge_index = torch.stack([torch.randint(senders, (edges,)), (torch.rand(edges) ** 3 * nodes).long()])
    return order_of(edge_index, nodes)


GRAPHS = {
    "no edges": (*order_of(torch.empty(2, 0, dtype=torch.int64), 4), 4),
    "no nodes": (torch.zeros(1, dtype=torch.int64), torch.empty(0, dtype=torch.int64), 4),
    "none sends": (*order_of(torch.empty(2, 0, dtype=torch.int64), 4), 0),
    "one edge": (*order_of(torch.tensor([[1], [0]]), 2), 3),
    "self-loops": (*order_of(torch.arange(8).repeat(2, 1), 8), 8),
    "duplicate edges": (*order_of(torch.tensor([[0, 0, 0, 1], [1, 1, 1, 0]]), 2), 2),
    "isolated nodes": (*order_of(torch.tensor([[0, 1], [3, 3]]), 9), 2),
    "hub": (*order_of(torch.stack([torch.arange(900), torch.zeros(900, dtype=torch.int64)]), 3), 900),
}


def a_weight(edges, heads, bits=8, steep=1.5):
    grid = INT8 if bits == 8 else INT4
    return MessageWeight(torch.randint(256, (edges, heads), dtype=torch.uint8), torch.randn(256) * steep, grid)


def a_finish(rows, columns, *, end="codes", bias=False, by_column=False):
    high = 16 if end == "packed" else 256
    table = {
        "table": torch.randint(256, (256,), dtype=torch.uint8),
        "values": torch.randn(256),
        "other": torch.randint(256, (256, 256), dtype=torch.uint8),
    }.get(end)
    return Finish(
        factor=torch.rand(columns if by_column else 1) * 0.1,
        grid=torch.tensor([1.3, high // 2, high - 1.0, -high // 2]),
        bias=torch.randn(columns) * 10 if bias else None,
        table=table,
        other=torch.randint(256, (rows, columns), dtype=torch.uint8) if end == "other" else None,
        packed=end == "packed",
    )


def codes(rows, columns, packed=False):
    x = torch.randint(16 if packed else 256, (rows, columns), dtype=torch.uint8)
    return pack(x) if packed else x


def check(x, order, columns, finish, *, weight=None, reduce="sum", packed_input=False):
    ptr, senders = order
    grid = INT4 if packed_input else INT8
    got = integer_propagate(
        x, grid, ptr, senders, columns, finish, weight=weight, reduce=reduce, packed_input=packed_input
    )
    want = plain_integer_propagate(x, grid, ptr, senders, columns, packed_input, reduce, weight, finish)
    assert got.dtype == want.dtype
    assert torch.equal(got, want)
    if weight is not None and not packed_input and message_weights.lines is lines:
        with pytest.MonkeyPatch.context() as patch:  # the same by products
            patch.setattr(message_weights, "lines", lambda *_: None)
            check(x, order, columns, finish, weight=weight, reduce=reduce)
    return got


# -- the definition ------------------------------------------------------------------------------------------------


@pytest.mark.sample(2)
@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("heads", [0, 2])
def test_the_definition_is_what_the_formula_says(reduce, heads):
    """One edge after the other, one column after the other, in Python's numbers."""
    columns, (ptr, senders) = 4, a_graph(5, 6, 20)
    x, weight = codes(5, columns), a_weight(20, heads) if heads else None
    step = Finish(torch.ones(1), torch.tensor([1.0, 128.0, 255.0, 0.0]), table=torch.arange(256.0))
    finish = step._replace(factor=torch.tensor([0.05]))
    want = torch.zeros(6, columns, dtype=torch.int64)
    for node in range(6):
        for c in range(columns):
            messages = []
            for e in range(int(ptr[node]), int(ptr[node + 1])):
                message = int(x[senders[e], c]) - 113
                if weight is not None:
                    factor = float(weight.multipliers[int(weight.codes[e, c // 2])])
                    message = min(max(round(message * factor - 15), -128), 127) + 15
                messages.append(message)
            whole = {"sum": sum, "mean": sum, "max": max, "min": min}[reduce]
            want[node, c] = whole(messages) if messages else 0
    shares = 1 / ptr.diff().clamp(min=1).float() if reduce == "mean" else None
    got = integer_propagate(x, INT8, ptr, senders, columns, finish, weight=weight, reduce=reduce)
    assert torch.equal(got, plain_finish(want, finish, shares))


# -- everything that can be left over ------------------------------------------------------------------------------


@pytest.mark.sample(2)
@pytest.mark.parametrize("packed", [False, True], ids=["int8", "int4"])
def test_every_number_of_columns(packed):
    order, some = a_graph(20, 15, 400), a_weight(400, 1, 4 if packed else 8)
    for columns in (*range(1, 131), 200):
        x, finish = codes(20, columns, packed), a_finish(15, columns)
        for reduce in ("sum", "max", "min"):
            for weight in (None, some):
                check(x, order, columns, finish, weight=weight, reduce=reduce, packed_input=packed)


@pytest.mark.sample(2)
@pytest.mark.parametrize("packed", [False, True], ids=["int8", "int4"])
@pytest.mark.parametrize("heads", [1, 2, 4, 8])
def test_every_width_of_heads(heads, packed):
    order, weight = a_graph(12, 9, 100), a_weight(100, heads)
    for width in range(1, 34):
        x, finish = codes(12, heads * width, packed), a_finish(9, heads * width)
        for reduce in ("sum", "max"):
            check(x, order, heads * width, finish, weight=weight, reduce=reduce, packed_input=packed)


@pytest.mark.parametrize("graph", GRAPHS)
def test_graphs(graph):
    ptr, senders, count = GRAPHS[graph]
    weights = [None, *(a_weight(senders.numel(), heads) for heads in (1, 2))]
    for columns, packed, dtype in itertools.product((6, 40), (False, True), (torch.int32, torch.int64)):
        x, finish = codes(count, columns, packed), a_finish(ptr.numel() - 1, columns)
        for reduce, weight in itertools.product(REDUCTIONS, weights):
            order = ptr, senders.to(dtype)
            check(x, order, columns, finish, weight=weight, reduce=reduce, packed_input=packed)


@pytest.mark.parametrize("end", ["codes", "table", "values", "other", "packed"])
@pytest.mark.parametrize("heads", [0, 3], ids="{} heads".format)
def test_ends(end, heads):
    order = a_graph(30, 20, 200)
    weight = a_weight(200, heads) if heads else None
    for columns, bias, by_column in itertools.product((3, 33, 48), (False, True), (False, True)):
        finish = a_finish(20, columns, end=end, bias=bias, by_column=by_column)
        check(codes(30, columns), order, columns, finish, weight=weight, reduce="mean")


@settings(max_examples=100)
@given(
    nodes=st.tuples(st.integers(1, 12), st.integers(0, 12)),
    edges=st.integers(0, 60),
    columns=st.integers(0, 70),
    heads=st.sampled_from([0, 1, 2, 5]),
    reduce=st.sampled_from(list(REDUCTIONS)),
    packed=st.booleans(),
    end=st.sampled_from(["codes", "table", "values", "other", "packed"]),
    steep=st.sampled_from([0.0, 1e-3, 1.0, 300.0]),
    seed=st.integers(0, 10_000),
)
def test_any_graph(nodes, edges, columns, heads, reduce, packed, end, steep, seed):
    torch.manual_seed(seed)
    edges = edges if nodes[1] else 0
    columns *= max(heads, 1)
    order = a_graph(nodes[0], nodes[1], edges)
    weight = a_weight(edges, heads, steep=steep) if heads else None
    finish = a_finish(nodes[1], columns, end=end)
    check(codes(nodes[0], columns, packed), order, columns, finish, weight=weight, reduce=reduce, packed_input=packed)


@pytest.mark.parametrize("packed", [False, True], ids=["int8", "int4"])
def test_many_edges_on_one_thread_and_many(threads, packed):
    order, columns = a_graph(1000, 900, 8000), 96
    x, finish = codes(1000, columns, packed), a_finish(900, columns)
    for weight in (None, a_weight(8000, 1), a_weight(8000, 4)):
        for reduce in ("mean", "max"):
            check(x, order, columns, finish, weight=weight, reduce=reduce, packed_input=packed)


@given(st.integers(1, 300), st.sampled_from([1, 2, 3, 8]), st.integers(0, 7), st.booleans(), st.sampled_from([64, 128]))
def test_strips_cover_every_byte_once_and_stay_in_the_row(width, heads, more, summed, widest):
    size = width * heads
    row_size = max(size, 8) + more
    seen = []
    for head, begin, length, skip, take in plan_strips(size, row_size, heads, summed, widest):
        assert length in ((8, 16, 24, 32, 40, 48, 64, 72, 80, 96, 128) if summed else (8, 16, 32, 64, 128))
        assert length <= widest
        assert begin >= 0
        assert begin + length <= row_size
        assert skip + take <= length
        assert head * width <= begin + skip
        assert begin + skip + take <= (head + 1) * width
        seen += range(begin + skip, begin + skip + take)
    assert seen == [*range(size)]


# -- numbers -------------------------------------------------------------------------------------------------------


def all_products(multiplier, grid=INT8):
    """The messages of all codes with one weight, one edge each."""
    x, order = torch.arange(256, dtype=torch.uint8).unsqueeze(1), (torch.arange(257), torch.arange(256))
    weight = MessageWeight(torch.zeros(256, 1, dtype=torch.uint8), torch.full((256,), multiplier), grid)
    values = Finish(torch.ones(1), torch.tensor([1.0, 0.0, 255.0, 0.0]), torch.full((1,), float(grid[1])))
    return check(x, order, 1, values, weight=weight)


@pytest.mark.parametrize("multiplier", [0.5, -0.5, 1.5, 0.25, 1 / 3, 1e-3, 0.0, 1.0, -1.0])
def test_products_round_to_even(multiplier):
    exact = np.float64(np.float32(multiplier))
    for low in (0, -1, -128):  # what is even depends on it
        shift = 113 + low
        want = [min(max(round(np.float32((code - 113) * exact + shift)) - low, 0), 255) for code in range(256)]
        grid = torch.tensor([0.02, 113.0, 255.0, low])
        assert all_products(multiplier, grid).flatten().tolist() == want


@pytest.mark.parametrize("multiplier", [3e38, -3e38, 1e4, 10001.0, 1e-38, 1e-45, np.nextafter(np.float32(0.5), 1)])
def test_products_of_any_size(multiplier):
    found = all_products(float(multiplier)).flatten()
    assert found[113] == 113
    if abs(multiplier) > 255:
        ends = (0, 255) if multiplier > 0 else (255, 0)
        assert found[:113].eq(ends[0]).all()
        assert found[114:].eq(ends[1]).all()


def test_products_beside_a_half():
    """By less than float32 can tell."""
    multipliers = torch.tensor([half / code for code in range(1, 143) for half in (0.5, 1.5, 2.5, 100.5)])
    for part in multipliers.split(256):
        weight = a_weight(256, 1)._replace(multipliers=torch.nn.functional.pad(part, (0, 256 - part.numel())))
        weight = weight._replace(codes=torch.arange(256, dtype=torch.uint8).unsqueeze(1))
        order = torch.arange(257), torch.zeros(256, dtype=torch.int64)
        x = torch.arange(256, dtype=torch.uint8).unsqueeze(0)
        check(x, order, 256, Finish(torch.ones(1), torch.tensor([1.0, 113.0, 255.0, 0.0])), weight=weight)


@given(
    st.floats(2**-10, 15.0, width=32),
    st.booleans(),
    st.integers(0, 255),
    st.integers(-300, 300),
    st.integers(0, 255),
)
def test_lines_are_products(slope, falls, zero, middle, top):
    """But a few that touch more than one value half way between two messages, which are rounded to the even one."""
    low = -128
    multipliers = np.array([-slope if falls else slope, 0.0], np.float32)
    product = (np.arange(256) - zero) * np.float64(multipliers[0]) + middle
    want = np.rint(product.astype(np.float32)).clip(low, low + top) - low
    found = lines(multipliers, zero, middle, low, top)
    if found is None and AVX2:
        inside = (product > low - 1) & (product < low + top + 1)
        beside = np.abs(product - np.floor(product) - 0.5) < 2e-4
        assert (inside & beside).any()
    if found is None:
        return
    more, less, reach, step, edge = found[0].view(np.uint8).astype(int).reshape(5, 16)
    high, lower = np.arange(256) >> 4, np.arange(256) & 15
    message = step[lower] + (reach[high] > edge[lower])
    message = (message - less[high]).clip(0) + more[high]
    assert np.array_equal(message.clip(max=255) - (255 - top), want)


@pytest.mark.skipif(not AVX2, reason="bytes are looked up by vectors with AVX2 alone")
def test_which_multipliers_are_no_lines():
    assert lines(np.array([0.31831, 1.0, -2.71828, 0.0], np.float32), 113, -15, -128, 255).shape == (4, 80)
    assert lines(np.array([0.31831, 0.25], np.float32), 113, -15, -128, 255) is None  # halves go up, and down
    assert (
        lines(np.array([0.31831, 500.0], np.float32), 113, -15, -128, 255) is None
    )  # a step would not fit into a byte


def test_messages_of_codes_below_sixteen():
    multipliers = (torch.randn(256) * 2).numpy()
    found = messages_of_codes(multipliers, 7, -2, -8, 7)
    product = np.rint((np.arange(16) - 7) * multipliers.astype(np.float64)[:, None] - 2).clip(-8, 7)
    assert np.array_equal(found, product + 8)


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("most", [1, 7, 300])
def test_sums_that_do_not_fit_into_int32(monkeypatch, most, reduce):
    monkeypatch.setattr(module, "EXACT", most)
    order = a_graph(12, 5, 1200)
    for packed in (False, True):
        for weight in (None, a_weight(1200, 2)):
            x = codes(12, 36, packed)
            check(x, order, 36, a_finish(5, 36), weight=weight, reduce=reduce, packed_input=packed)


@pytest.mark.parametrize("packed", [False, True], ids=["int8", "int4"])
@pytest.mark.parametrize("heads", [0, 1], ids="{} heads".format)
def test_a_million_edges_to_one_node(heads, packed):
    """Of the largest codes."""
    edges = 10**6
    ptr, senders = torch.tensor([0, 0, edges, edges]), torch.zeros(edges, dtype=torch.int32)
    x = torch.full((1, 4 if packed else 8), 255, dtype=torch.uint8)
    weight = a_weight(edges, 1) if heads else None
    grid = INT4 if packed else INT8
    top = (15 - 7 if packed else 255 - 113) * edges
    finish = Finish(torch.tensor([1.0]), torch.tensor([top / 200.0, 10.0, 255.0, 0.0]))
    got = check(x, (ptr, senders), x.size(1) * (1 + packed), finish, weight=weight, packed_input=packed)
    if not heads:
        assert got[1].eq(210).all()
    assert got[0].eq(10).all()
    assert grid[1] > 0


# -- memory --------------------------------------------------------------------------------------------------------


def test_strides_do_not_matter():
    order, finish = a_graph(30, 20, 200), a_finish(20, 24)
    weight = a_weight(200, 2)
    strided = weight._replace(codes=weight.codes.t().contiguous().t())
    for x in (codes(24, 30).t(), codes(60, 24)[::2], codes(30, 48)[:, 24:], codes(1, 24).expand(30, -1)):
        check(x, order, 24, finish)
        check(x, order, 24, finish, weight=strided)
    ptr, senders = order
    apart = torch.stack([ptr, ptr], 1)[:, 0], torch.stack([senders, senders], 1)[:, 0]
    check(codes(30, 24), apart, 24, finish, weight=weight)


def test_what_lies_behind_a_tensor_is_not_seen():
    """The same, whatever surrounds the rows."""
    order, finish = a_graph(9, 7, 100), a_finish(7, 5)
    inside = codes(9, 5)
    found = []
    for around in (0, 255):
        storage = torch.full((9 * 5 + 200,), around, dtype=torch.uint8)
        x = storage[100:145].view(9, 5)
        x.copy_(inside)
        found.append(check(x, order, 5, finish))
    assert torch.equal(*found)


# -- the rest ------------------------------------------------------------------------------------------------------


def test_processors_that_do_not_look_up_bytes_find_the_same(monkeypatch):
    monkeypatch.setattr(module, "AVX2", False)
    order = a_graph(20, 15, 300)
    for columns in (5, 64):
        for weight in (None, a_weight(300, 1)):
            check(codes(20, columns, True), order, columns, a_finish(15, columns), weight=weight, packed_input=True)


def test_packed_codes_mean_what_they_mean_unpacked():
    ptr, senders = a_graph(20, 15, 300)
    x, weight, finish = codes(20, 37, True), a_weight(300, 1), a_finish(15, 37)
    packed = integer_propagate(x, INT4, ptr, senders, 37, finish, weight=weight, packed_input=True)
    assert torch.equal(packed, integer_propagate(unpack(x, 37), INT4, ptr, senders, 37, finish, weight=weight))


@pytest.mark.parametrize(
    ("ptr", "senders", "message"),
    [
        ([0, 2], [0, 5], "begins at node 5: there are 5 nodes"),
        ([0, 2], [-1, 0], "begins at node -1"),
        ([0, 3], [0, 1], "ptr must rise from 0 to the number of edges, 2"),
        ([1, 2], [0, 1], "ptr must rise"),
        ([0, 2, 1, 2], [0, 1], "ptr must rise"),
        ([], [], "ptr must rise"),
    ],
)
def test_an_order_that_is_none_is_an_error(ptr, senders, message):
    with pytest.raises(IndexError, match=message):
        check_order(torch.tensor(ptr, dtype=torch.int64), torch.tensor(senders, dtype=torch.int32), 5)


def test_orders_that_are_ones():
    for graph in GRAPHS.values():
        check_order(*graph)


def test_what_does_not_fit_is_an_error():
    (ptr, senders), x = a_graph(6, 5, 10), codes(6, 8)
    finish, weight = a_finish(5, 8), a_weight(10, 2)

    def call(error, message, x=x, ptr=ptr, senders=senders, columns=8, finish=finish, **more):
        with pytest.raises(error, match=message):
            integer_propagate(x, INT8, ptr, senders, columns, finish, **more)

    call(ValueError, "reduce must be one of sum, mean, max, min, got 'mul'", reduce="mul")
    call(ValueError, r"8 columns take x of shape \('num_senders', 4\)", packed_input=True)
    call(ValueError, r"7 columns take x of shape", columns=7)
    call(TypeError, "x must be uint8 codes, got torch.float32", x=x.float())
    call(TypeError, "int64 ptr and int32 or int64 senders", ptr=ptr.int())
    call(TypeError, "int64 ptr and int32 or int64 senders", senders=senders.short())
    call(ValueError, "finish.factor does not fit", finish=finish._replace(factor=torch.ones(3)))
    for heads in (0, 3):
        call(ValueError, "the heads divide the columns", weight=a_weight(10, heads))
    call(ValueError, "the heads divide the columns", weight=a_weight(9, 2))
    call(TypeError, "uint8 codes and float32 multipliers", weight=weight._replace(codes=weight.codes.int()))
    call(TypeError, "uint8 codes and float32", weight=weight._replace(multipliers=weight.multipliers.double()))
    call(ValueError, "expected multipliers", weight=weight._replace(multipliers=torch.ones(16)))
    call(ValueError, "expected multipliers", weight=weight._replace(grid=torch.ones(2)))


@pytest.mark.sample(2)
@pytest.mark.parametrize("packed", [False, True], ids=["int8", "int4"])
@pytest.mark.parametrize("heads", [0, 2], ids="{} heads".format)
def test_operators_keep_their_contract(heads, packed):
    order = a_graph(6, 5, 10)
    parts = a_weight(10, heads) if heads else (None, None, None, None)
    for end in ("values", "other") if packed else ("codes", "packed"):
        finish = a_finish(5, 6, end=end, bias=True)
        args = codes(6, 6, packed), INT4 if packed else INT8, *order, 6, packed, "mean"
        torch.library.opcheck(torch.ops.dqconvert.integer_propagate.default, (*args, *parts, *finish))
        args = *args, a_weight(10, heads) if heads else None, finish
        assert torch.equal(integer_propagate_operator(*args), integer_propagate_operator.definition(*args))
