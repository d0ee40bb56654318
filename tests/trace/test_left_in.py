"""Tensors that a module which stays whole puts into its attributes, and that the forward reads afterwards."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GCNConv, SuperGATConv

import dqconvert
from dqconvert.trace import trace
from dqconvert.trace.runtime import left_in
from dqconvert.trace.verify import seed

X, EDGES = torch.randn(40, 8), torch.randint(40, (2, 150))


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * 2


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        self.logits = self.lin(x)
        return self.logits


class Whole(nn.Module):
    """No graph can look inside: of it, nor of its part."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x: Tensor) -> Tensor:
        h = Twice.apply(self.inner(x))
        self.penalty = h.pow(2).mean()
        return h  # type: ignore[no-any-return]

    def loss(self) -> Tensor:
        return self.penalty


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part, self.conv = Whole(), GCNConv(8, 4)

    def forward(self, x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        h = self.part(x)
        first = self.part.loss()
        h = self.part(h)  # which puts another one there
        return self.conv(h, edge_index), first + self.part.loss() + self.part.inner.logits.abs().mean()


class Attention(nn.Module):
    """SuperGAT's loss, which the layer computes of what its forward kept."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = SuperGATConv(8, 4, heads=2, attention_type="MX", edge_sample_ratio=0.8, is_undirected=True)

    def forward(self, x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        out = self.conv(x, edge_index)
        return out, self.conv.get_attention_loss()


@pytest.mark.parametrize(("model", "reads"), [(Net, 3), (Attention, 0)])
def test_it_is_read_after_the_call_and_trained_through(model: type[nn.Module], reads: int) -> None:
    torch.manual_seed(0)
    net = model()
    graph = trace(net, (X, EDGES)).module
    assert sum(node.target is left_in for node in graph.graph.nodes) == reads
    for module in (net, graph):  # the check of the trace has compared gradients already, on other inputs
        seed()  # negative samples are drawn by other generators than torch's
        module.train()(X[:30], EDGES % 30)[1].backward()
    for (name, wanted), (_, found) in zip(net.named_parameters(), graph.named_parameters(), strict=True):
        if wanted.grad is not None:
            torch.testing.assert_close(found.grad, wanted.grad, msg=name)


def test_prepared_and_converted_it_follows_the_call() -> None:
    torch.manual_seed(0)
    module, _ = dqconvert.prepare(Net(), "int8-dq", (X, EDGES))
    module.train()(X, EDGES)[1].backward()
    assert module.part.inner.lin.weight.grad.abs().sum() > 0
    module.eval()
    integer = dqconvert.convert(copy.deepcopy(module))
    for scale in (1.0, 0.5):
        torch.testing.assert_close(integer(scale * X, EDGES)[1], module(scale * X, EDGES)[1], rtol=0.02, atol=0.02)
