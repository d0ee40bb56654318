"""GCN's norm on the nodes: the same function in float, plain sums in integers, and a word where it stays."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch_geometric.nn import APPNP, GCN, GCNConv, SGConv, TAGConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm

import dqconvert
from dqconvert import QConfig, QSpec
from dqconvert.kernels.integer.propagate import integer_propagate
from dqconvert.rewrite.norms import node_norm, scale_rows

NODES = 14
torch.manual_seed(0)
X = torch.randn(NODES, 8)
EDGES = torch.cat([torch.randint(NODES - 2, (2, 50)), torch.tensor([[3, 3, 5], [3, 3, 12]])], 1)  # loops, one alone
PAPER = dqconvert.presets["int8-dq"]
NODE_NORM = replace(PAPER, norm="nodes")
FLOAT = QConfig(weight=QSpec(), message=QSpec(), norm="nodes")


class Layer(nn.Module):
    """One layer of PyG's in a model."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, edge_index, edge_weight=None):
        return self.layer(x, edge_index, edge_weight)


LAYERS = {
    "gcn": lambda: GCNConv(8, 4),
    "no loops": lambda: GCNConv(8, 4, add_self_loops=False),
    "back": lambda: GCNConv(8, 4, flow="target_to_source"),
    "sg": lambda: SGConv(8, 4, K=2),
    "tag": lambda: TAGConv(8, 4, K=2),
    "appnp": lambda: nn.Sequential(nn.Linear(8, 4), APPNP(2, 0.1))[1],
}


def prepared(model, config=NODE_NORM, inputs=(X, EDGES), **options):
    return dqconvert.prepare(model, config, inputs, **options)


def folded(module):
    return len(module.graph.find_nodes(op="call_function", target=scale_rows)) // 2


@pytest.mark.parametrize("flow", ["source_to_target", "target_to_source"])
def test_the_factors_are_those_of_the_norm(flow):
    edges, weight = gcn_norm(EDGES, None, NODES, False, False, flow, torch.float64)
    factor = node_norm(edges, NODES, flow, torch.float64)
    torch.testing.assert_close(factor[edges[0]] * factor[edges[1]], weight)


@pytest.mark.sample(5)
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_in_float_it_is_the_layer_but_for_rounding(kind, dtype):
    model, x = Layer(LAYERS[kind]()).to(dtype), X.to(dtype)
    module, report = prepared(model, FLOAT, (x, EDGES))
    assert folded(module) == {"sg": 2, "tag": 2, "appnp": 2}.get(kind, 1)
    assert not report.remarks
    module.apply(dqconvert.disable_fake_quant)
    expected = model.eval()(x, EDGES)
    torch.testing.assert_close(
        module.eval()(x, EDGES), expected, rtol=2e-6 if dtype is torch.float32 else 1e-14, atol=1e-6
    )
    other = torch.randint(20, (2, 30))
    torch.testing.assert_close(
        module(torch.ones(20, 8, dtype=dtype), other), model(torch.ones(20, 8, dtype=dtype), other)
    )


def test_messages_are_scaled_rows_and_sums_are_scaled():
    """The definition, written out, with the quantizers where they stand."""
    module, _ = prepared(GCN(8, 4, 1), replace(NODE_NORM, protect=None))
    out = module.train()(X, EDGES)
    layer = module.eval().convs[0]
    q, lin = layer.quant, layer.lin
    edges, _ = gcn_norm(EDGES, None, NODES)
    factor = node_norm(edges, NODES, "source_to_target", torch.float32).unsqueeze(1)
    rows = nn.functional.linear(lin.quant.input(X), lin.quant.weight(lin.weight)) * factor
    message = q.message(lin.quant.feature(rows)[edges[0]])
    total = torch.zeros(NODES, 4).index_add(0, edges[1], message) * factor
    torch.testing.assert_close(out, q.update(q.aggregate(total) + layer.bias))
    assert not hasattr(q, "edge_weight")


@pytest.mark.sample(3)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", ["gcn", "no loops", "back", "sg", "model"])
def test_integers_agree(kind, bits, tmp_path):
    spec = QSpec(bits=bits, signed=None)
    model = GCN(8, 8, 2, 3) if kind == "model" else Layer(LAYERS[kind]())
    config = QConfig(weight=spec, activation=spec, message=spec, aggregate=spec, norm="nodes")
    module, _ = prepared(model, config)
    for scale in (1.0, 0.7):
        module.train()(scale * X, EDGES)
    integer = dqconvert.convert(module)
    calls = integer.graph.find_nodes(op="call_function", target=integer_propagate)
    assert len(calls) == {"sg": 2, "model": 2}.get(kind, 1)
    assert all(call.kwargs.get("weight") is None and call.args[5].shares is not None for call in calls)
    if kind != "sg":  # whose first rows are no sums
        assert not integer.graph.find_nodes(op="call_function", target=scale_rows)
    dqconvert.save(integer, tmp_path / "i.dq")
    again = dqconvert.load(tmp_path / "i.dq")
    for x, edges in ((X, EDGES), (torch.randn(30, 8), torch.randint(30, (2, 90))), (X[:5], EDGES[:, :0])):
        expected, found = module.eval()(x, edges), integer(x, edges)
        steps = ((found - expected) / expected.abs().max().clamp(min=1e-3)).abs()
        assert (steps > 1e-5).double().mean() <= 0.01
        assert torch.equal(again(x, edges), found)


@pytest.mark.parametrize("fuse", [True, False])
def test_training_is_fused_and_the_same(fuse):
    torch.manual_seed(0)
    model = GCN(8, 8, 2, 3, dropout=0.5)
    module, report = prepared(model, fuse=fuse)
    assert sum("message passing" in fusion.op for fusion in report.fusions) == (2 if fuse else 0)
    other, _ = prepared(model, fuse=not fuse)
    for seed in range(2):
        results = []
        for one in (module, other):
            torch.manual_seed(seed)
            one.zero_grad()
            out = one.train()(X, EDGES)
            out.square().sum().backward()
            results.append((out, [p.grad for p in one.parameters()], one.state_dict()))
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


# -- where it does not apply ---------------------------------------------------------------------------------------


class Twice(GCNConv):
    def message(self, x_j, edge_weight):
        return edge_weight.view(-1, 1) * x_j + 1


class Largest(GCNConv):
    def __init__(self):
        super().__init__(8, 4, aggr="max")


@pytest.mark.parametrize(
    ("model", "inputs", "why"),
    [
        (Layer(GCNConv(8, 4)), (X, EDGES, torch.rand(EDGES.size(1))), "the edges have weights"),
        (Layer(GCNConv(8, 4, improved=True)), (X, EDGES), "its self-loops count twice"),
        (Layer(Twice(8, 4)), (X, EDGES), "the messages are changed further"),
        (Layer(Largest()), (X, EDGES), "the messages are not summed up"),
        (Layer(APPNP(2, 0.1, dropout=0.5)), (X, EDGES), "it does more than multiply messages"),
    ],
    ids=["weights", "improved", "changed", "max", "dropout"],
)
def test_where_it_stays_on_the_edges_the_report_says_so(model, inputs, why):
    module, report = prepared(model, NODE_NORM, inputs)
    assert folded(module) == 0
    assert any("norm='nodes': the norm of layer" in remark and why in remark for remark in report.remarks), (
        report.remarks
    )
    paper, _ = prepared(model, PAPER, inputs)
    module.load_state_dict(paper.state_dict())
    torch.manual_seed(0)
    one = module.train()(*inputs)
    torch.manual_seed(0)
    assert torch.equal(one, paper.train()(*inputs))


def test_a_norm_that_training_drops_stays_in_evaluation_too():
    """Messages have one range for both: of the products that training sends."""
    model = Layer(APPNP(2, 0.1, dropout=0.5))
    modules = [prepared(model, config).module for config in (NODE_NORM, PAPER)]
    for module in modules:
        torch.manual_seed(0)
        module.train()(X, EDGES)
    assert not modules[0].eval_graph.find_nodes(op="call_function", target=scale_rows)
    assert torch.equal(*(module.eval()(X, EDGES) for module in modules))
    assert "the norm of layer stays on its edges: it does more" in str(modules[0].report)
    plus = prepared(model, "int4-dq+").module
    dqconvert.calibrate(plus, (X, EDGES))
    assert plus.eval()(X, EDGES).isfinite().all()


def test_a_sparse_adjacency_stays():
    adj = torch.sparse_coo_tensor(EDGES.flip(0), torch.ones(EDGES.size(1)), (NODES, NODES)).coalesce().to_sparse_csr()
    module, _ = prepared(Layer(GCNConv(8, 4)), NODE_NORM, (X, adj))
    assert folded(module) == 0


def test_files_and_configs(tmp_path):
    model = GCN(8, 8, 2, 3)
    module, _ = prepared(model)
    module.train()(X, EDGES)
    dqconvert.save(module, tmp_path / "m.dq")
    again = dqconvert.load(tmp_path / "m.dq", model=model)
    assert torch.equal(again.eval()(X, EDGES), module.eval()(X, EDGES))
    path = tmp_path / "c.toml"
    path.write_text(NODE_NORM.to_toml())
    assert dqconvert.qconfig.as_qconfig(path) == NODE_NORM
    with pytest.raises(dqconvert.ConfigError, match="'edges' or 'nodes'"):
        QConfig(norm="node")
