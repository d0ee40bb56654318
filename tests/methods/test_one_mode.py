"""Models that refuse a call in one of the two modes: trained on ``model(x)``, evaluated on ``model(x, edge_index)``."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import PMLP, GCNConv

import dqconvert
from dqconvert import LoweringError, TraceError
from dqconvert.errors import ModeError
from dqconvert.trace import trace

X, EDGES = torch.randn(40, 8), torch.randint(40, (2, 150))


class NeedsLabels(nn.Module):
    """One that computes its loss itself, and trains on nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = GCNConv(8, 4)

    def forward(self, x: Tensor, edge_index: Tensor, y: Tensor | None = None) -> Tensor:
        if self.training and y is None:
            raise RuntimeError("labels are needed in training")
        out = self.conv(x, edge_index)
        return out if y is None else nn.functional.cross_entropy(out, y)


class NeedsEdges(nn.Module):
    """A part that refuses to be evaluated without edges."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.lin = PMLP(8, 16, 8, 2, norm=False), nn.Linear(8, 4)

    def forward(self, x: Tensor, edge_index: Tensor | None = None) -> Tensor:
        return self.lin(self.inner(x, edge_index))


@pytest.fixture(scope="module", params=["given", "made up"])
def trained(request: Any) -> Any:
    torch.manual_seed(0)
    inputs = (X,) if request.param == "given" else None
    module, _ = dqconvert.prepare(PMLP(8, 16, 4, 2, norm=False), "int8-dq", inputs)
    for _ in range(2):
        module.train()(X).sum().backward()
    return module.eval()


def test_both_forms_have_graphs_that_share_quantizers(trained: Any) -> None:
    before = [name for name, _ in trained.quantizers()]
    assert trained(X, EDGES).shape == (40, 4)
    assert [name for name, _ in trained.quantizers()] == before
    assert {method.arguments for method in trained.report.methods} == {"x", "x, edge_index"}
    only_evaluated = [entry.what for entry in trained.report.left_float if "evaluation only" in entry.reason]
    assert only_evaluated == ["conv: message", "conv: aggregate"]


def test_a_call_in_the_other_mode_gets_the_models_own_error(trained: Any) -> None:
    for module in (trained, copy.deepcopy(trained), pickle.loads(pickle.dumps(trained))):
        with pytest.raises(ValueError, match="'edge_index' needs to be present during inference"):
            module.eval()(X)
        module.train()(X)
    trained.eval()


def test_the_integer_module_evaluates(trained: Any, tmp_path: Any) -> None:
    expected = trained(X, EDGES)
    integer = dqconvert.convert(trained)
    assert (integer(X, EDGES) - expected).abs().max() < 0.1
    dqconvert.save(integer, tmp_path / "integer.dq")
    assert torch.equal(dqconvert.load(tmp_path / "integer.dq")(X, EDGES), integer(X, EDGES))
    dqconvert.save(trained, tmp_path / "prepared.dq")
    loaded = dqconvert.load(tmp_path / "prepared.dq", model=PMLP(8, 16, 4, 2, norm=False)).eval()
    assert torch.equal(loaded(X, EDGES), expected)
    with pytest.raises(ValueError, match="needs to be present"):
        loaded(X)


def test_without_an_evaluation_there_is_nothing_to_convert() -> None:
    module, report = dqconvert.prepare(PMLP(8, 16, 4, 2, norm=False), "int8-dq", (X,))
    assert any("traced in training alone" in remark for remark in report.remarks)
    module.train()(X)
    with pytest.raises(LoweringError, match=r"forward\(x\) is what the model refuses in evaluation"):
        dqconvert.convert(module)


def test_one_that_refuses_training_is_traced_in_evaluation() -> None:
    torch.manual_seed(0)
    module, report = dqconvert.prepare(NeedsLabels(), "int8-dq", (X, EDGES))
    assert any("traced in evaluation alone" in remark for remark in report.remarks)
    with pytest.raises(RuntimeError, match="labels are needed in training"):
        module.train()(X, EDGES)
    module(X, EDGES, torch.randint(4, (40,))).backward()
    out = module.eval()(X, EDGES)
    assert torch.equal(dqconvert.convert(module)(X, EDGES).argmax(1), out.argmax(1))


def test_a_part_that_refuses() -> None:
    module, _ = dqconvert.prepare(NeedsEdges(), "int8-dq", (X,))
    module.train()(X).sum().backward()
    module.eval()(X, EDGES)
    with pytest.raises(ValueError, match="needs to be present"):
        module(X)
    module.train()(X)


def test_the_traced_graph_says_so_itself() -> None:
    graph = trace(PMLP(8, 16, 4, 2, norm=False), (X,)).module
    with pytest.raises(ModeError, match="refuses such a call in evaluation mode: ValueError"):
        graph.eval()(X)


def test_one_that_refuses_both_is_an_error() -> None:
    with pytest.raises(TraceError, match=r"PMLP\.forward rejects the example_inputs"):
        trace(PMLP(8, 16, 4, 2), (X[:, :3], EDGES))
