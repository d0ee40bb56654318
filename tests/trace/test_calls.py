"""A call means the same however it is spelled: one normal form, which is all that later passes read."""

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Graph
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode
from torch_geometric.nn import GCNConv, SAGEConv
from torch_geometric.utils import scatter, softmax

import dqconvert
import zoo
from dqconvert.ops import op_name
from dqconvert.rewrite.signs import Signs
from dqconvert.trace import trace
from dqconvert.trace.calls import normal_call

A, B = torch.randn(3, 4), torch.randn(3, 4)
W, V, C = torch.randn(5, 4), torch.randn(4), torch.randn(5)
I = torch.tensor([2, 0, 1])  # noqa: E741
ADJ = torch.eye(3)
NAMES = {"a": A, "b": B, "w": W, "v": V, "c": C, "i": I, "adj": ADJ}
ATEN = torch.ops.aten


class Calls(TorchFunctionMode):
    """The normal forms of the calls that are made inside, in the words of a graph."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        graph = Graph()
        nodes = {id(value): graph.placeholder(name) for name, value in NAMES.items()}
        call = normal_call(func, args, kwargs or {})
        inside = map_aggregate((call.args, call.kwargs), lambda value: nodes.get(id(value), value))
        self.found.append(graph.create_node(call.op, call.target, *inside))
        return func(*args, **(kwargs or {}))


def normal(call):
    """What a call is, and what it is called with."""
    with Calls() as calls:
        call()
    node = calls.found[-1]
    silent = {name: value for name, value in sorted(node.kwargs.items()) if value not in (None, False, 2.0)}
    return op_name(node), str(node.args), str(silent)


SPELLINGS = {
    "cat": [
        lambda: torch.cat([A, B], dim=1),
        lambda: torch.cat([A, B], 1),
        lambda: torch.cat([A, B], axis=1),
        lambda: torch.cat(tensors=[A, B], dim=1),
        lambda: torch.cat(dim=1, tensors=[A, B]),
        lambda: torch.concat([A, B], 1),
        lambda: torch.concat(tensors=[A, B], axis=1),
        lambda: torch.concatenate([A, B], dim=1),
        lambda: torch.hstack([A, B]),
        lambda: torch.hstack(tensors=[A, B]),
        lambda: torch.column_stack([A, B]),
        lambda: ATEN.cat([A, B], 1),
        lambda: ATEN.cat.default([A, B], dim=1),
        lambda: ATEN.concat([A, B], 1),
    ],
    "cat of rows": [
        lambda: torch.cat([A, B], dim=0),
        lambda: torch.vstack([A, B]),
        lambda: torch.row_stack([A, B]),
        lambda: torch.concat([A, B], axis=0),
    ],
    "stack": [
        lambda: torch.stack([A, B], dim=1),
        lambda: torch.stack([A, B], 1),
        lambda: torch.stack(tensors=[A, B], axis=1),
        lambda: ATEN.stack([A, B], 1),
    ],
    "linear": [
        lambda: F.linear(A, W),
        lambda: F.linear(input=A, weight=W),
        lambda: F.linear(A, weight=W),
        lambda: ATEN.linear(A, W),
        lambda: ATEN.linear.default(input=A, weight=W),
    ],
    "linear with a bias": [
        lambda: F.linear(A, W, C),
        lambda: F.linear(A, W, bias=C),
        lambda: F.linear(bias=C, weight=W, input=A),
        lambda: ATEN.linear(A, W, C),
    ],
    "matmul": [
        lambda: A @ V,
        lambda: A.matmul(V),
        lambda: A.matmul(other=V),
        lambda: torch.matmul(A, V),
        lambda: torch.matmul(input=A, other=V),
        lambda: torch.linalg.matmul(A, V),
        lambda: torch.mv(A, V),
        lambda: A.mv(V),
        lambda: torch.mv(A, vec=V),
        lambda: ATEN.matmul(A, V),
        lambda: A.__matmul__(V),
        lambda: operator.matmul(A, V),
    ],
    "mm": [
        lambda: ADJ @ A,
        lambda: torch.mm(ADJ, A),
        lambda: torch.mm(input=ADJ, mat2=A),
        lambda: ADJ.mm(mat2=A),
        lambda: torch.linalg.matmul(ADJ, other=A),
        lambda: ATEN.mm(ADJ, A),
    ],
    "add": [
        lambda: A + B,
        lambda: A.add(B),
        lambda: A.add(other=B),
        lambda: torch.add(A, B),
        lambda: torch.add(input=A, other=B),
        lambda: torch.add(x1=A, x2=B),
        lambda: ATEN.add(A, B),
        lambda: ATEN.add.Tensor(A, B),
        lambda: A.__add__(B),
    ],
    "sub": [
        lambda: A - B,
        lambda: A.sub(B),
        lambda: A.subtract(B),
        lambda: torch.subtract(A, other=B),
        lambda: torch.sub(A, B),
    ],
    "mul": [
        lambda: A * B,
        lambda: A.mul(B),
        lambda: A.multiply(other=B),
        lambda: torch.multiply(A, B),
        lambda: torch.mul(A, B),
    ],
    "div": [
        lambda: A / B,
        lambda: A.div(B),
        lambda: A.divide(B),
        lambda: A.true_divide(B),
        lambda: torch.true_divide(A, B),
        lambda: torch.divide(input=A, other=B),
    ],
    "neg": [lambda: -A, lambda: A.neg(), lambda: A.negative(), lambda: torch.negative(A), lambda: torch.neg(input=A)],
    "abs": [lambda: A.abs(), lambda: abs(A), lambda: A.absolute(), lambda: torch.absolute(A), lambda: torch.abs(x=A)],
    "relu": [
        lambda: A.relu(),
        lambda: torch.relu(A),
        lambda: F.relu(input=A),
        lambda: torch.relu(x=A),
        lambda: ATEN.relu(A),
    ],
    "sigmoid": [
        lambda: A.sigmoid(),
        lambda: torch.special.expit(A),
        lambda: torch.sigmoid(input=A),
        lambda: F.sigmoid(A),
    ],
    "clamp": [
        lambda: A.clamp(min=0),
        lambda: A.clamp(0),
        lambda: A.clip(0),
        lambda: A.clip(min=0),
        lambda: torch.clip(A, min=0),
        lambda: torch.clamp(input=A, min=0),
    ],
    "leaky_relu": [
        lambda: F.leaky_relu(A, 0.2),
        lambda: F.leaky_relu(input=A, negative_slope=0.2),
        lambda: torch._C._nn.leaky_relu(A, 0.2),
        lambda: ATEN.leaky_relu(A, 0.2),
    ],
    "dropout": [
        lambda: F.dropout(A, p=0.4, training=False),
        lambda: F.dropout(A, 0.4, False),
        lambda: F.dropout(input=A, training=False, p=0.4),
        lambda: torch.dropout(A, 0.4, False),
        lambda: torch.dropout(input=A, p=0.4, train=False),
    ],
    "sum": [
        lambda: A.sum(1),
        lambda: A.sum(dim=1),
        lambda: A.sum(axis=1),
        lambda: A.sum((1,)),
        lambda: A.sum(dim=[1]),
        lambda: torch.sum(A, 1),
        lambda: torch.sum(input=A, dim=1),
        lambda: torch.sum(A, axis=(1,)),
        lambda: ATEN.sum.dim_IntList(A, [1]),
    ],
    "sum, dimensions kept": [
        lambda: A.sum(1, keepdim=True),
        lambda: A.sum(1, True),
        lambda: A.sum(axis=1, keepdims=True),
        lambda: torch.sum(A, dim=1, keepdim=True),
    ],
    "mean": [
        lambda: A.mean(0),
        lambda: A.mean(axis=0),
        lambda: torch.mean(A, dim=(0,)),
        lambda: torch.mean(input=A, dim=0),
    ],
    "max": [lambda: A.max(1), lambda: A.max(dim=1), lambda: torch.max(A, axis=1), lambda: torch.max(input=A, dim=1)],
    "softmax": [
        lambda: A.softmax(-1),
        lambda: A.softmax(dim=-1),
        lambda: torch.softmax(A, dim=-1),
        lambda: torch.special.softmax(A, -1),
    ],
    "transpose": [
        lambda: A.transpose(0, 1),
        lambda: A.transpose(dim0=0, dim1=1),
        lambda: A.swapaxes(0, 1),
        lambda: A.swapdims(0, dim1=1),
        lambda: torch.swapaxes(A, axis0=0, axis1=1),
        lambda: torch.transpose(A, 0, 1),
        lambda: torch.swapdims(A, 0, 1),
        lambda: ATEN.transpose.int(A, 0, 1),
    ],
    "movedim": [lambda: A.movedim(0, 1), lambda: torch.moveaxis(A, 0, 1), lambda: A.moveaxis(source=0, destination=1)],
    "permute": [
        lambda: A.permute(1, 0),
        lambda: A.permute((1, 0)),
        lambda: A.permute(dims=[1, 0]),
        lambda: torch.permute(A, (1, 0)),
        lambda: torch.permute(input=A, dims=(1, 0)),
    ],
    "view": [lambda: A.view(2, 6), lambda: A.view((2, 6)), lambda: A.view(size=(2, 6)), lambda: ATEN.view(A, [2, 6])],
    "reshape": [
        lambda: A.reshape(2, 6),
        lambda: A.reshape([2, 6]),
        lambda: torch.reshape(A, (2, 6)),
        lambda: torch.reshape(input=A, shape=(2, 6)),
        lambda: A.reshape(shape=(2, 6)),
    ],
    "expand": [lambda: V.expand(3, -1), lambda: V.expand((3, -1)), lambda: V.expand(size=(3, -1))],
    "repeat": [lambda: A.repeat(2, 1), lambda: A.repeat((2, 1)), lambda: A.repeat(repeats=[2, 1])],
    "flatten": [lambda: A.flatten(0), lambda: torch.flatten(A, start_dim=0), lambda: torch.flatten(A, 0)],
    "unsqueeze": [
        lambda: A.unsqueeze(1),
        lambda: A.unsqueeze(dim=1),
        lambda: torch.unsqueeze(A, 1),
        lambda: torch.unsqueeze(A, axis=1),
    ],
    "squeeze": [lambda: A.squeeze(1), lambda: torch.squeeze(A, dim=1), lambda: torch.squeeze(input=A, dim=1)],
    "chunk": [lambda: A.chunk(2, dim=1), lambda: A.chunk(2, 1), lambda: torch.chunk(A, chunks=2, axis=1)],
    "split": [
        lambda: A.split(2, dim=1),
        lambda: A.split(2, 1),
        lambda: torch.split(A, 2, 1),
        lambda: torch.split(A, split_size_or_sections=2, dim=1),
    ],
    "unbind": [
        lambda: A.unbind(dim=1),
        lambda: A.unbind(1),
        lambda: torch.unbind(A, 1),
        lambda: torch.unbind(input=A, dim=1),
    ],
    "index_select": [
        lambda: A.index_select(0, I),
        lambda: A.index_select(dim=0, index=I),
        lambda: torch.index_select(A, 0, I),
        lambda: torch.index_select(input=A, dim=0, index=I),
        lambda: ATEN.index_select(A, 0, I),
    ],
    "rows by an index": [lambda: A[I], lambda: A[I, :], lambda: A[I, ...], lambda: A[(I,)], lambda: A.__getitem__(I)],
    "one row": [
        lambda: A[0],
        lambda: A[0, :],
        lambda: A.select(0, 0),
        lambda: torch.select(A, 0, 0),
        lambda: A.select(dim=0, index=0),
    ],
    "narrow": [
        lambda: A.narrow(0, 1, 2),
        lambda: torch.narrow(A, dim=0, start=1, length=2),
        lambda: A.narrow(dim=0, start=1, length=2),
    ],
    "embedding": [
        lambda: F.embedding(I, W, padding_idx=None),
        lambda: torch.embedding(W, I),
        lambda: torch.embedding(weight=W, indices=I),
        lambda: ATEN.embedding(W, I),
    ],
    "comparison": [
        lambda: A > B,
        lambda: A.gt(B),
        lambda: A.greater(B),
        lambda: torch.greater(A, B),
        lambda: torch.gt(A, other=B),
    ],
    "scatter_add": [
        lambda: I.scatter_add(0, I, I),
        lambda: torch.scatter_add(I, 0, I, I),
        lambda: torch.scatter_add(input=I, dim=0, index=I, src=I),
    ],
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_the_same_call(name):
    plain, *others = SPELLINGS[name]
    assert not [k for k, other in enumerate(others) if normal(other) != normal(plain)], [*map(normal, SPELLINGS[name])]


class Spelled(nn.Module):
    """Operations that all passes know, as they are mostly written (``way`` 0), or otherwise."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.lin, self.head, self.dropout = nn.Linear(6, 8), nn.Linear(16, 8), nn.Dropout(0.5)
        self.conv, self.att, self.table = SAGEConv(8, 8), nn.Parameter(torch.randn(1, 8)), nn.Embedding(3, 8)

    def forward(self, x, edge_index):
        kind = (x[:, 0] > 0).long()
        return (self.plain, self.named, self.aliased)[self.way](x, edge_index, kind)

    def plain(self, x, edge_index, kind):
        h = self.dropout(self.lin(x)).relu()
        h = torch.cat([h, self.conv(h, edge_index) + self.table(kind)], dim=1)
        h = F.dropout(h, 0.5, self.training)
        h = F.linear(h, self.head.weight, self.head.bias)
        alpha = softmax((h * self.att).sum(-1)[edge_index[0]], edge_index[1], num_nodes=h.size(0))
        out = scatter(h[edge_index[0]] * alpha.unsqueeze(-1), edge_index[1], dim=0, dim_size=h.size(0), reduce="sum")
        return out.view(-1, 2, 4).mean(1).abs()

    def named(self, x, edge_index, kind):
        h = self.dropout(input=self.lin(input=x)).relu()
        h = torch.cat(tensors=[h, self.conv(x=h, edge_index=edge_index) + self.table(input=kind)], dim=1)
        h = F.dropout(input=h, p=0.5, training=self.training)
        h = F.linear(input=h, weight=self.head.weight, bias=self.head.bias)
        logits = torch.sum(input=torch.mul(input=h, other=self.att), dim=-1)
        alpha = softmax(src=logits[edge_index[0]], index=edge_index[1], num_nodes=h.size(dim=0))
        messages = h[edge_index[0]].mul(other=torch.unsqueeze(input=alpha, dim=-1))
        out = scatter(src=messages, index=edge_index[1], dim=0, dim_size=h.size(0), reduce="sum")
        return torch.abs(input=torch.mean(input=out.view(size=(-1, 2, 4)), dim=1))

    def aliased(self, x, edge_index, kind):
        h = torch.relu_(self.dropout(self.lin(x)))
        h = torch.concat([h, self.conv(h, edge_index).add_(self.table(kind))], axis=1)
        h = torch.dropout(h, 0.5, self.training)
        h = torch.ops.aten.linear(h, self.head.weight, self.head.bias)
        logits = torch.multiply(h, self.att).sum(axis=(-1,))
        alpha = softmax(logits[edge_index[0, :]], edge_index.select(0, 1), None, h.shape[0])
        messages = torch.multiply(h[edge_index[0], ...], torch.unsqueeze(alpha, axis=-1))
        out = scatter(messages, edge_index[1], 0, h.size(0), "sum")
        return torch.absolute(torch.mean(out.view([-1, 2, 4]), axis=(1,)))


def built(way, fuse=True):
    torch.manual_seed(0)
    module = dqconvert.prepare(Spelled(way), "int8-dq", zoo.graph(), fuse=fuse).module
    for step in range(2):
        zoo.train_step(module, zoo.graph(seed=step), step)
    return module.eval()


@pytest.fixture(scope="module")
def plain():
    return built(0)


@pytest.mark.parametrize("way", [1, 2])
def test_every_later_form_is_that_of_the_plain_spelling(way, plain):
    """The prepared module, fused and not, its quantizers, its state and the integer module."""
    inputs, module = zoo.graph(zoo.OTHER), built(way)
    zoo.assert_same(dict(module.state_dict()), dict(plain.state_dict()))
    assert [(entry.path, entry.role) for entry in module.report.entries] == [
        (entry.path, entry.role) for entry in plain.report.entries
    ]
    assert [fusion.op for fusion in module.fusions] == [fusion.op for fusion in plain.fusions]
    zoo.assert_same(module(*inputs), plain(*inputs))
    one, other = dqconvert.convert(module), dqconvert.convert(plain)
    assert one.report.ops == other.report.ops
    zoo.assert_same(one(*inputs), other(*inputs))
    if way == 2:
        torch.testing.assert_close(built(way, fuse=False)(*inputs), module(*inputs), rtol=1e-4, atol=1e-5)


def test_joined_along_what_the_alias_says():
    """Along dimension 0 the integer module would return twice as many rows."""

    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin, self.conv = nn.Linear(6, 4), GCNConv(6, 4)

        def forward(self, x, edge_index):
            return torch.cat([self.lin(x), self.conv(x, edge_index)], axis=1)

    module = dqconvert.prepare(Joined(), "int8-dq", zoo.graph()).module
    zoo.train_step(module, zoo.graph(), 0)
    inputs = zoo.graph(zoo.OTHER)
    integer = dqconvert.convert(module.eval())(*inputs)
    assert integer.shape == (zoo.OTHER[0], 8)
    torch.testing.assert_close(integer, module(*inputs), rtol=0, atol=0.1)


def test_a_number_that_is_subtracted_makes_values_negative():
    """``alpha`` is an argument of the sum: what is quantized behind is no unsigned value."""

    class Difference(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.head = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(torch.add(self.one(x).relu(), self.two(x).relu(), alpha=-1))

    graph = trace(Difference(), {"x": torch.randn(9, 6)}).module
    total = next(node for node in graph.graph.nodes if op_name(node) == "add")
    assert not Signs(graph).is_nonnegative(total)
