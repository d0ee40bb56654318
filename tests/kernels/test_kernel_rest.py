"""What all kernels stand on: the order of edges, operators, buffers."""

from __future__ import annotations

import gc
import importlib
import mmap
import re
import threading
from pathlib import Path

import pytest
import torch
from chain_cases import INT4, NEVER, as_ranges
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from dqconvert.kernels import (
    Chain,
    Ranged,
    Sent,
    _buffers,
    dropout,
    edge_order,
    propagate,
    quantize_chain,
    quantize_linear,
)
from dqconvert.kernels._buffers import SMALL, Buffers
from dqconvert.kernels._operator import Operator
from dqconvert.kernels.edge_order import plain_edge_order

OPS = torch.ops.dqconvert


# -- order of edges ------------------------------------------------------------------------------------------------


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


# -- operators -----------------------------------------------------------------------------------------------------

INDEX = torch.tensor([2, 0, 2, 1])


@pytest.mark.parametrize(
    ("operator", "args"),
    {
        "edge_order": (INDEX, INDEX, 3),
        "dropout": (torch.randn(4, 3, requires_grad=True), 0.5),
        "scale_rows": (torch.randn(4, 3, requires_grad=True), torch.randn(4)),
        "dropout_grad": (torch.randn(4, 3), torch.randint(2, (4, 3), dtype=torch.uint8), 0.5),
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_operators_keep_their_contract(operator, args):
    torch.library.opcheck(getattr(OPS, operator).default, args)


def test_every_operator_is_checked_somewhere():
    """A new one shall not come without a test."""
    known = {"edge_order", "fake_quantize_ste", "fake_quantize_clip", "minmax_pair", "percentile_pair", "own_size"} | {
        "observe_messages"
    }
    trained = {"quantize_chain", "quantize_linear", "quantize_parts", "propagate", "dropout"}
    known |= trained | {f"{name}_grad" for name in trained} | {"quantize_batch_norm", "batch_norm_grad"}
    known |= {f"learned_{name}" for name in ("fake_quantize", "chain", "propagate", "linear")}
    known |= {f"learned_{name}_grad" for name in ("chain", "propagate", "linear")} | {"mix", "mix_grad"}
    known |= {"quantize_codes", "quantize_sum", "dequantize_codes", "look_up_codes", "look_up_pairs"}
    known |= {"quantize_groups", "scale_rows"}
    known |= {"integer_linear", "integer_propagate", "attention_codes", "softmax_codes", "add_heads", "edge_products"}
    known |= {"attention_sums"}
    known |= {"receiver_order", "gcn_codes", "row_colors", "have_colors", "refine_colors"}
    modules = ("codes", "sums", "linear", "propagate", "attention", "heads", "edge_products", "receivers")
    modules += ("folding.colors", "folding.refine", "groups")
    for module in modules:
        importlib.import_module(f"dqconvert.kernels.integer.{module}")
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


NEVER_SEEN = as_ranges(NEVER)


def chained(x, weight):
    return quantize_chain(x, Chain.of((INT4, INT4, INT4), NEVER_SEEN * 3, bias=weight[0, :6], relu=True))[0]


def multiplied(x, weight):
    more = {"other": x[:, :5] * 2, "alpha": weight[0, 7], "protected": torch.arange(9) % 3 == 0}
    return quantize_linear(x, weight[:5, :6], weight[:5, 6], Chain.of((INT4, INT4, None), NEVER_SEEN * 2, **more))[0]


def sent(x, weight):
    sender, receiver = torch.arange(20) % 9, torch.arange(20) % 7
    orders = edge_order(receiver, sender, 9), edge_order(sender, receiver, 9)
    chain = {"schemes": (INT4, None, INT4), "ranges": NEVER_SEEN * 2, "relu": True, "other": x, "alpha": weight[0, 7]}
    edges = weight[:20, :2].contiguous()
    sent = Sent.of(x, edges, sender, receiver, *orders)
    return propagate(sent, Ranged.of(INT4, NEVER_SEEN), Chain.of(**chain))[0]


CALLS = {
    "quantize_chain": chained,
    "quantize_linear": multiplied,
    "propagate": sent,
    "dropout": lambda x, weight: dropout(x, 0.5) * weight[0, 0],
}


def results_of(name):
    torch.manual_seed(0)
    x, weight = torch.randn(9, 6, requires_grad=True), torch.randn(20, 8, requires_grad=True)
    y = CALLS[name](x, weight)
    y.backward(torch.randn_like(y))
    return y, x.grad, weight.grad


@pytest.mark.parametrize("name", CALLS)
def test_whoever_looks_sees_the_operator_and_the_same_results(name):
    want = results_of(name)
    with Seen() as mode:
        torch.testing.assert_close(results_of(name), want, rtol=0, atol=0)
    assert {f"dqconvert.{name}.default", f"dqconvert.{name}_grad.default"} <= mode.names


@pytest.mark.parametrize("name", CALLS)
def test_profilers_see_the_operator(name):
    with torch.profiler.profile() as profile:
        results_of(name)
    assert {f"dqconvert::{name}", f"dqconvert::{name}_grad"} <= {event.key for event in profile.key_averages()}


class Own(torch.Tensor):
    """A tensor that wants to know of operators."""

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise LookupError(func)


def test_tensors_of_other_kinds_see_the_operator():
    with pytest.raises(LookupError, match=r"dqconvert\.dropout\.default"):
        dropout(torch.ones(3).as_subclass(Own), 0.5)


def test_where_nobody_looks_the_implementation_is_called_directly(monkeypatch):
    def looked_at(*_):
        raise AssertionError

    want = [results_of(name) for name in CALLS]
    monkeypatch.setattr(Operator, "registered", property(looked_at, lambda *_: None), raising=False)
    for name, expected in zip(CALLS, want, strict=True):
        torch.testing.assert_close(results_of(name), expected, rtol=0, atol=0)


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


def in_large_pages(place: int) -> bool:
    """Whether the page at an address is one of the large ones, as Linux tells."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(match[1], 16) <= place < int(match[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            return not line.endswith(" 0 kB")
    raise AssertionError(f"nothing is mapped at {place:x}")


def test_large_buffers_lie_in_large_pages_whatever_was_freed_before():
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists() or "[never]" in setting.read_text():
        pytest.skip("this system has no large pages")
    for _ in range(3):  # what the allocator has from now on was used, in small pages
        used = [torch.ones(4 * SMALL) for _ in range(4)]
        del used
    pages = [Buffers().empty((16, SMALL), torch.uint8).fill_(1) for _ in range(4)]
    assert all(page.data_ptr() % (1 << 21) == 0 for page in pages)
    assert any(in_large_pages(page.data_ptr()) for page in pages)


@pytest.mark.parametrize("lack", ["of the advice", "of the pages"])
def test_where_there_are_no_large_pages_there_is_memory(monkeypatch, lack):
    class Refusing(mmap.mmap):
        def madvise(self, *args):
            raise OSError(22, "Invalid argument")

    if lack == "of the advice":
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    else:
        monkeypatch.setattr(mmap, "mmap", Refusing)
    buffer = Buffers().empty((16, SMALL), torch.uint8)
    assert buffer.fill_(3).eq(3).all()
    assert buffer.data_ptr() % 64 == 0


def test_small_results_are_torchs():
    buffers = Buffers()
    buffers.empty((10, 10), torch.float32)
    assert held(buffers) == 0
    buffers.empty((SMALL,), torch.float32)
    assert held(buffers) > 0


def test_hardly_more_is_held_than_was_ever_lent():
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
    assert 0 < largest_held <= 1.25 * 1.13 * most, "a quarter to spare, and sizes are rounded up by an eighth at most"
    assert not buffers._lent


def test_steps_that_ask_for_other_sizes_in_turn_make_no_buffer_twice(monkeypatch):
    """As forward and backward pass do: one needs what the other does not."""
    buffers, made = Buffers(), []
    aligned = _buffers._aligned
    monkeypatch.setattr(_buffers, "_aligned", lambda size: made.append(size) or aligned(size))
    for step in range(5):
        if step == 1:
            assert made
            made.clear()
        forward = [buffers.empty((9, SMALL), torch.float32) for _ in range(2)]
        del forward
        backward = [buffers.empty((2, SMALL), torch.float32)]
        del backward
    assert made == []


def test_what_was_used_in_training_makes_room_for_what_is_used_now(monkeypatch):
    """Else all that a converted model asks for would be made anew in every forward."""
    buffers, made = Buffers(), []
    aligned = _buffers._aligned
    monkeypatch.setattr(_buffers, "_aligned", lambda size: made.append(size) or aligned(size))
    training = [buffers.empty((9, SMALL), torch.float32) for _ in range(4)]
    most = 4 * len(buffers._lent) * 9 * SMALL
    del training
    for forward in range(6):
        if forward == 3:
            assert made
            made.clear()
        codes = [buffers.empty((5, SMALL), torch.float32) for _ in range(3)]
        out = buffers.empty((3, SMALL), torch.float32)
        del codes, out
        assert held(buffers) == buffers._free_bytes <= 1.25 * 1.13 * most
    assert made == []


def test_memory_that_is_free_is_given_back():
    buffers = Buffers()
    kept = buffers.empty((2, SMALL), torch.float32)
    del kept
    lent = buffers.empty((3, SMALL), torch.float32)
    buffers.release()
    assert held(buffers) == 0
    del lent
    assert held(buffers) > 0


def test_gradients_in_buffers_are_added_up_in_place():
    """torch does so only where nobody else can see: not even the tensor that this one is a view of."""
    places = []

    class InBuffer(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            to_x = lent((SMALL, 2), torch.float32).copy_(grad)
            places.append(to_x.data_ptr())
            return to_x

    lent = Buffers().empty
    x = torch.ones((SMALL, 2), requires_grad=True)
    middle = x * 2
    middle.register_hook(lambda grad: places.append(grad.data_ptr()))
    (InBuffer.apply(middle) + InBuffer.apply(middle)).sum().backward()
    assert places[2] == places[0]
    assert x.grad.unique().tolist() == [4.0]


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


def test_what_functorch_left_behind_is_an_ordinary_tensor():
    left = []
    x, weight = torch.randn(5, 4), torch.randn(3, 4, requires_grad=True)
    torch.func.grad(lambda v: (left.append(v + x), v.sum())[1])(torch.zeros(5, 4))
    chain = Chain.of((None, INT4, None), (torch.tensor(torch.inf), torch.tensor(-torch.inf)))
    expected = quantize_linear(x, weight, None, chain)[0]
    assert torch.equal(quantize_linear(left[0], weight, None, chain)[0], expected)
    with pytest.raises(RuntimeError, match="setup_context"):
        torch.func.grad(lambda v: quantize_linear(v, weight, None, chain)[0].sum())(x)
