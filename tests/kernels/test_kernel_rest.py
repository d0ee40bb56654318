"""The smaller kernels and what all stand on: order of edges, linear, dropout, buffers, threads, dispatch."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import threading

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from dqconvert.kernels import Scheme, dropout, edge_order, linear, propagate, quantize_chain
from dqconvert.kernels import _threads as threads_module
from dqconvert.kernels._memory import SMALL, Buffers
from dqconvert.kernels._threads import GRAIN, parts, run, run_balanced
from dqconvert.kernels.edge_order import plain_edge_order
from dqconvert.quant import fused

OPS = torch.ops.dqconvert


# -- order of edges ------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(0, 80), st.integers(0, 1000), st.booleans())
def test_edges_are_grouped_stably(nodes, edges, seed, strided):
    generator = torch.Generator().manual_seed(seed)
    index, other = torch.randint(nodes, (2, edges), generator=generator)
    if strided:
        index, other = torch.stack([index, other], dim=1).unbind(1)
    order = edge_order(index, other, nodes)
    for got, want in zip(order, plain_edge_order(index, other, nodes), strict=True):
        assert got.dtype == torch.int64
        assert torch.equal(got, want)
    for node in range(nodes):
        mine = order.edges[order.ptr[node] : order.ptr[node + 1]]
        assert mine.tolist() == [e for e in range(edges) if index[e] == node]
    assert torch.equal(order.others, other[order.edges])


def test_no_nodes_have_no_edges():
    none = torch.empty(0, dtype=torch.int64)
    assert [t.tolist() for t in edge_order(none, none, 0)] == [[0], [], []]


@pytest.mark.parametrize("wrong", [-1, 3])
def test_a_node_that_is_not_there_is_an_error(wrong):
    with pytest.raises(IndexError, match="there are 3 nodes"):
        edge_order(torch.tensor([0, wrong]), torch.tensor([0, 0]), 3)


# -- linear --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (0, 5), (1, 5), (7, 5), (3, 4, 5), (9000, 5), (7, 0)], ids=str)
def test_linear_is_torchs(shape, bias, dtype):
    leaves = [torch.randn(shape), torch.randn(40, shape[-1]), *([torch.randn(40)] if bias else [])]
    mine, theirs = ([t.to(dtype).requires_grad_() for t in leaves] for _ in range(2))
    y, want = linear(*mine), F.linear(*theirs)
    torch.testing.assert_close(y, want)
    upstream = torch.randn_like(want)
    y.backward(upstream)
    want.backward(upstream)
    for one, two in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one.grad, two.grad)


def test_linear_of_strided_matrices():
    x, weight = torch.randn(5, 9).t(), torch.randn(5, 40).t()
    torch.testing.assert_close(linear(x, weight, torch.randn(80)[::2] * 0), F.linear(x, weight))


def test_linear_saves_only_what_its_gradients_need():
    x, weight = torch.randn(4, 3), torch.randn(2, 3, requires_grad=True)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        linear(x, weight)
    assert len(saved) == 1
    assert torch.equal(saved[0], x)


def test_linear_gradcheck():
    leaves = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((4, 3), (2, 3), (2,))]
    assert torch.autograd.gradcheck(linear, leaves)
    assert torch.autograd.gradgradcheck(linear, leaves)


# -- dropout -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (0, 4), (1, 1), (7, 5), (3000, 100), (2, 3, 4)], ids=str)
def test_dropout_is_torchs(shape, dtype, threads):
    x = torch.randn(shape).to(dtype)
    for p in (0.0, 0.3, 0.5, 0.9):
        mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        torch.manual_seed(3)
        y = dropout(mine, p)
        after = torch.get_rng_state()
        torch.manual_seed(3)
        want = F.dropout(theirs, p, training=True)
        if p > 0:
            assert torch.equal(torch.get_rng_state(), after), "and no more and no fewer of them"
        assert torch.equal(y, want)
        upstream = torch.randn_like(x)
        y.backward(upstream)
        want.backward(upstream)
        assert torch.equal(mine.grad, theirs.grad)


def test_dropout_of_a_strided_tensor():
    x = torch.randn(50, 20).t()
    torch.manual_seed(3)
    y = fused.dropout(x, 0.5)
    torch.manual_seed(3)
    assert torch.equal(y, F.dropout(x, 0.5, training=True))


def test_dropout_keeps_nan_where_it_keeps():
    y = dropout(torch.full((1000,), math.nan), 0.5)
    assert y.isnan().all(), "zero times NaN is NaN, as in torch"


def test_dropout_saves_a_byte_a_value():
    x = torch.randn(64, 8, requires_grad=True)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        dropout(x, 0.5)
    assert [t.dtype for t in saved] == [torch.uint8]


def test_dropout_second_derivatives():
    def same_numbers(x):
        torch.manual_seed(0)
        return dropout(x, 0.3) ** 2

    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(same_numbers, (x,))
    assert torch.autograd.gradgradcheck(same_numbers, (x,))


# -- operators -----------------------------------------------------------------------------------------------------

INDEX = torch.tensor([2, 0, 2, 1])


@pytest.mark.parametrize(
    ("operator", "args"),
    {
        "edge_order": (INDEX, INDEX, 3),
        "linear": (torch.randn(4, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True), torch.randn(2)),
        "matmul": (torch.randn(4, 3), torch.randn(3, 2)),
        "dropout": (torch.randn(4, 3, requires_grad=True), 0.5),
        "dropout_grad": (torch.randn(4, 3), torch.randint(2, (4, 3), dtype=torch.uint8), 0.5),
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_operators_keep_their_contract(operator, args):
    torch.library.opcheck(getattr(OPS, operator).default, args)


def test_every_operator_is_checked_somewhere():
    """A new one shall not come without a test."""
    known = {"quantize_chain", "quantize_chain_grad", "propagate", "propagate_grad", "edge_order", "linear", "matmul"}
    known |= {"dropout", "dropout_grad", "fake_quantize_ste", "fake_quantize_clip", "minmax_pair", "percentile_pair"}
    names = torch._C._dispatch_get_all_op_names()
    assert {name.split("::")[1].split(".")[0] for name in names if name.startswith("dqconvert::")} == known


class Seen(TorchDispatchMode):
    """What is called as an operator while somebody looks."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


INT4 = Scheme(-8, 7, False, 0.01, -1.0, True, True)


def chained(x, weight):
    ends = [torch.tensor(math.inf), torch.tensor(-math.inf)]
    return quantize_chain(x, (INT4, INT4, INT4), ends * 3, bias=weight[0, :6], relu=True)[0]


def sent(x, weight):
    never = torch.tensor(math.inf), torch.tensor(-math.inf)
    sender, receiver = torch.arange(20) % 9, torch.arange(20) % 7
    orders = edge_order(receiver, sender, 9), edge_order(sender, receiver, 9)
    return propagate(x, weight[:20, :2].contiguous(), sender, receiver, *orders, INT4, never)[0]


CALLS = {
    "quantize_chain": chained,
    "propagate": sent,
    "linear": lambda x, weight: linear(x, weight[:, :6]),
    "dropout": lambda x, weight: dropout(x, 0.5) * weight[0, 0],
}


@pytest.mark.parametrize("name", CALLS)
def test_whoever_looks_sees_the_operator_and_the_same_results(name):
    results = []
    for mode in (None, Seen()):
        torch.manual_seed(0)
        x, weight = torch.randn(9, 6, requires_grad=True), torch.randn(20, 8, requires_grad=True)
        with mode or contextlib.nullcontext():
            y = CALLS[name](x, weight)
            y.backward(torch.randn_like(y))
        results.append((y, x.grad, weight.grad))
        if mode:
            assert f"dqconvert.{name}.default" in mode.names
    torch.testing.assert_close(*results, rtol=0, atol=0)


# -- buffers -------------------------------------------------------------------------------------------------------


def held(buffers: Buffers) -> int:
    return sum(len(raw) for kept in buffers._free.values() for raw in kept)


def test_a_buffer_is_lent_again_only_when_nothing_refers_to_it():
    buffers = Buffers()
    first = buffers.empty((SMALL,), torch.float32)
    place, view = first.data_ptr(), first[5:].view(-1)
    del first
    second = buffers.empty((SMALL,), torch.float32)
    assert second.data_ptr() != place, "a view is left"
    del view
    third = buffers.empty((SMALL // 4, 4), torch.float32)
    assert third.data_ptr() == place
    third.fill_(1)
    second.fill_(2)
    assert (third == 1).all()


def test_what_autograd_saves_is_not_lent_again():
    buffers = Buffers()
    x = torch.ones(SMALL, requires_grad=True)
    y = buffers.empty((SMALL,), torch.float32).fill_(3)
    z = x * y
    place = y.data_ptr()
    del y
    other = buffers.empty((SMALL,), torch.float32).fill_(7)
    assert other.data_ptr() != place
    z.sum().backward()
    assert (x.grad == 3).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
@pytest.mark.parametrize("shape", [(), (0,), (3, 4), (SMALL,), (3, SMALL), (SMALL + 7, 1, 2)], ids=str)
def test_buffers_have_the_shape_and_the_type_that_was_asked_for(shape, dtype):
    buffer = Buffers().empty(shape, dtype)
    assert (buffer.shape, buffer.dtype, buffer.is_contiguous()) == (torch.Size(shape), dtype, True)
    assert buffer.fill_(1).eq(1).all()


def test_small_results_are_torchs():
    buffers = Buffers()
    buffers.empty((10, 10), torch.float32)
    assert held(buffers) == 0
    buffers.empty((SMALL,), torch.float32)
    assert held(buffers) > 0


def test_never_more_is_held_than_was_ever_lent():
    """A thousand steps with batches of changing sizes."""
    generator, buffers = torch.Generator().manual_seed(0), Buffers()
    most = largest_held = 0
    for _ in range(1000):
        rows = torch.randint(1, 40, (3,), generator=generator).tolist()
        batch = [buffers.empty((count, SMALL // 8), torch.float32) for count in rows]
        lent = sum(t.numel() * 4 for t in batch if t.numel() * 4 >= SMALL)
        most = max(most, lent)
        while batch:
            batch.pop(int(torch.randint(len(batch), (), generator=generator)))
        largest_held = max(largest_held, held(buffers))
        assert held(buffers) == buffers._free_bytes
        assert buffers._lent_bytes == 0
    assert 0 < largest_held <= 1.13 * most, "sizes are rounded up by an eighth at most"
    assert not buffers._lent


def test_buffers_from_many_threads():
    buffers, wrong = Buffers(), []

    def work(mark):
        for step in range(200):
            t = buffers.empty((SMALL // 4 + step % 3 * SMALL,), torch.float32)
            t.fill_(mark)
            if not bool((t == mark).all()):
                wrong.append(mark)

    workers = [threading.Thread(target=work, args=(mark,)) for mark in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    gc.collect()
    assert wrong == []
    assert not buffers._lent


# -- threads -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 1000])
def test_parts_cover_every_row_once(rows, threads):
    for values in (rows, rows * GRAIN):
        cuts = parts(rows, values)
        assert [row for start, stop in cuts for row in range(start, stop)] == list(range(rows))
        assert 1 <= len(cuts) <= threads


def test_little_work_is_not_cut(threads):
    assert len(parts(1000, GRAIN - 1)) == 1
    assert len(parts(1000, 100 * GRAIN)) == threads


@pytest.mark.parametrize("counts", [[], [0], [5], [0, 0, 0], [1000, 0, 0, 1], [0, 0, 9], [1, 2, 3, 4, 5]], ids=str)
def test_balanced_parts_cover_every_row_once(counts, threads):
    ptr = torch.tensor([0, *counts]).cumsum(0).numpy()
    done = run_balanced(lambda part, start, stop: list(range(start, stop)), ptr)
    assert [row for rows in done for row in rows] == list(range(len(counts)))


def test_balanced_parts_have_about_equal_work():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    ptr = torch.tensor([0] + [100] * 10 + [1] * 990).cumsum(0).numpy()
    work = run_balanced(lambda part, start, stop: ptr[stop] - ptr[start], ptr)
    torch.set_num_threads(before)
    assert max(work) < 1100


def test_an_error_in_any_part_is_raised():
    def task(part, start, stop):
        if part == 1:
            raise RuntimeError("in part 1")

    with pytest.raises(RuntimeError, match="in part 1"):
        run(task, [(0, 1), (1, 2), (2, 3)])


def test_kernels_run_from_many_threads_at_once():
    x = torch.randn(6000, 30)
    ends = [torch.tensor(math.inf), torch.tensor(-math.inf)]
    want, _ = quantize_chain(x, (None, INT4, None), ends, relu=True)
    got = [None] * 4

    def work(i):
        for _ in range(5):
            got[i] = quantize_chain(x, (None, INT4, None), ends, relu=True)[0]

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(torch.equal(one, want) for one in got)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_kernels_run_after_a_fork():
    ends = [torch.tensor(math.inf), torch.tensor(-math.inf)]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    x = torch.randn(6000, 30)
    want, _ = quantize_chain(x, (None, INT4, None), ends)
    assert threads_module._pool is not None
    torch.set_num_threads(before)
    child = os.fork()
    if child == 0:
        try:
            cuts = [(0, 3), (3, 6)]
            same = run(lambda part, start, stop: stop, cuts) == [3, 6]
            os._exit(0 if same else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert torch.equal(quantize_chain(x, (None, INT4, None), ends)[0], want)
