"""Integer products and sums that no grid follows: they leave as float32, with the values of the prepared module."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch_geometric.nn import GCN, GIN, GraphSAGE

import dqconvert
from dqconvert import QConfig, QSpec
from dqconvert.kernels.integer.linear import integer_linear
from dqconvert.kernels.integer.propagate import integer_propagate
from dqconvert.lower.passes.epilogues import finish_of

MODELS = {"GCN": GCN, "GIN": GIN, "GraphSAGE": GraphSAGE}
VALUES = QSpec(bits=8, range="minmax")
EXACT = {"rtol": 1e-5, "atol": 1e-6}  # of floats that are summed in another order


def a_graph(nodes=60, edges=240):
    torch.manual_seed(0)
    return torch.randn(nodes, 9), torch.randint(nodes, (2, edges))


def converted(model, config, args):
    module, _ = dqconvert.prepare(model, config, args)
    dqconvert.calibrate(module, args)
    return module.eval(), dqconvert.convert(module)


def ends(integer, target):
    """The epilogues of the calls of an operation that end in float32, without a grid."""
    calls = [node for node in integer.graph.nodes if node.target is target]
    return [finish_of(node) for node in calls if finish_of(node).grid is None]


def products_in_float(integer):
    names = [getattr(node.target, "__name__", str(node.target)) for node in integer.graph.nodes]
    return [name for name in names if name in ("linear", "matmul", "addmm", "mm", "einsum")]


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    ("name", "preset"),
    [*((name, "int8-ptq+") for name in MODELS), ("GIN", "int4-dq+"), ("GraphSAGE", "int4-dq+")],
)
def test_no_product_of_the_plus_presets_is_in_float(name, preset, tmp_path):
    """Nor any sum of messages: of the whole model, only SAGE's sum of its two products is. Kept in files, too."""
    args = a_graph()
    torch.manual_seed(1)
    module, integer = converted(MODELS[name](9, 16, 2, 5), preset, args)
    assert not products_in_float(integer)
    assert [one.op for one in integer.report.floats] == ["operator.add"] * (name == "GraphSAGE")
    finishes = ends(integer, integer_linear)
    assert len(finishes) == {"GCN": 0, "GIN": 1, "GraphSAGE": 2}[name]  # a GCN's last sum is rounded: an aggregate
    assert all(finish.groups is not None for finish in finishes)
    got = integer(*args)
    with torch.no_grad():
        torch.testing.assert_close(got, module(*args), **EXACT)
    dqconvert.save(integer, tmp_path / "model.dq")
    assert torch.equal(dqconvert.load(tmp_path / "model.dq")(*args), got)


class Matmul(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(9, 5))

    def forward(self, x):
        return x @ self.weight


@pytest.mark.sample(4)
@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Linear(9, 5), (70, 9)),
        (nn.Linear(9, 40, bias=False), (3, 9)),
        (nn.Linear(9, 5), (7, 4, 9)),
        (Matmul(), (50, 9)),
    ],
    ids=["linear", "no bias", "three dimensions", "matmul"],
)
def test_a_last_product_is_that_of_the_prepared_module(model, shape, granularity, bits):
    weight = QSpec(bits=bits, granularity=granularity, symmetric=True)
    config = QConfig(weight=weight, activation=QSpec(bits=bits, range="minmax"), output=False)
    x = torch.randn(shape)
    module, integer = converted(nn.Sequential(model), config, (x,))
    (finish,) = ends(integer, integer_linear)
    factor = integer.get_buffer(str(finish.factor.target))
    assert factor.numel() == (1 if granularity == "tensor" else integer(x).size(-1))
    for given in (x, torch.randn(shape) * 3, x[:0]):
        with torch.no_grad():
            torch.testing.assert_close(integer(given), module(given), **EXACT)


def test_values_of_another_dtype_stay_a_product_in_float():
    """Their sums round as that dtype does, which float32 is not: and the report says so."""
    x = torch.randn(20, 9, dtype=torch.float64)
    module, integer = converted(
        nn.Sequential(nn.Linear(9, 5).double()), QConfig(weight=VALUES, activation=VALUES, output=False), (x,)
    )
    assert products_in_float(integer) == ["linear"]
    assert [one.op for one in integer.report.floats] == ["torch.nn.functional.linear"]
    with torch.no_grad():
        torch.testing.assert_close(integer(x), module(x), rtol=1e-12, atol=1e-12)


@pytest.mark.sample(2)
@pytest.mark.parametrize("granularity", ["tensor", "degree"])
@pytest.mark.parametrize("model", [GCN, GraphSAGE])
def test_sums_of_messages_leave_as_float_where_no_aggregate_is_rounded(model, granularity):
    message = QSpec(bits=8, granularity=granularity, range="minmax")
    config = QConfig(weight=VALUES, activation=VALUES, message=message, output=False)
    args = a_graph()
    torch.manual_seed(1)
    module, integer = converted(model(9, 16, 1, 5), config, args)
    (finish,) = ends(integer, integer_propagate)
    assert (finish.groups is None) == (granularity == "tensor" or model is GraphSAGE)  # of plain rows there is one grid
    with torch.no_grad():
        torch.testing.assert_close(integer(*args), module(*args), **EXACT)
