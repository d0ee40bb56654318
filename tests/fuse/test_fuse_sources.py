"""Which linear layers and message passings become part of the chain behind them, and that nobody can tell."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch_geometric.nn import GCN, GIN, GCNConv, GINConv, GraphConv, MessagePassing, SAGEConv, SimpleConv

import dqconvert
import products
import zoo
from dqconvert.fuse import fuse
from dqconvert.quant.fused import chain, linear
from dqconvert.quant.fused_messages import message_passing

WIDTH = zoo.WIDTH


class Model(nn.Module):
    """Two linear layers and a graph convolution; ``body(self, x, edge_index)`` is what it computes with them."""

    def __init__(self, body, **parts):
        super().__init__()
        self.one, self.two, self.conv = nn.Linear(WIDTH, 8), nn.Linear(8, 4), GCNConv(8, 8)
        for name, part in parts.items():
            setattr(self, name, part)
        self.body = body

    def forward(self, x, edge_index):
        return self.body(self, x, edge_index)


class Heads(MessagePassing):
    """Sums of features with three dimensions, and a bias for each of the last."""

    def __init__(self, channels=4):
        super().__init__(node_dim=0)
        self.bias = nn.Parameter(torch.randn(channels))

    def forward(self, x, edge_index):
        return self.propagate(edge_index, x=x) + self.bias


def prepared_from(model, preset="int8-dq"):
    return dqconvert.prepare(model, preset, zoo.graph()).module


def node_by_node(fused):
    """A copy that is not fused, whose products add up in the order of the fused ones."""
    plain = copy.deepcopy(fused)
    absorbed = {node for fusion in fused.fusions if "linear" in fusion.op for node in fusion.nodes}
    for node in plain.graph.nodes:
        if node.name in absorbed and node.target is products.torchs:
            node.target = products.in_our_order
    plain.fuse = False
    plain.recompile()
    return plain


def ops(module):
    """What the quantizers became part of, by their paths."""
    return {path: fusion.op for fusion in fuse(module.graph, module)[1] for path in fusion.quantizers}


def calls(module, target):
    """How many calls of an operator have a chain, and how many have none."""
    found = [node for node in fuse(module.graph, module)[0].nodes if node.target is target]
    chained = sum(any(type(arg).__name__ == "FusedChain" for arg in node.args) for node in found)
    return chained, len(found) - chained


def graph_of(step, nodes=11):
    """Another graph each time, whose features grow."""
    x, edge_index = zoo.graph((nodes, 30))
    return (1 + step) * x, edge_index


def assert_same_training(fused, monkeypatch, steps=4, inputs=graph_of, prepare=lambda module: module):
    """Outputs, all gradients and ranges, of steps whose ranges grow, and an evaluation."""
    plain = node_by_node(fused)
    with monkeypatch.context() as patch:
        products.always(patch)
        for module in (fused, plain):
            prepare(module.train())
        for step in range(steps):
            results = []
            for module in (fused, plain):
                x, edge_index = inputs(step)
                x = x.clone().requires_grad_()
                module.zero_grad(set_to_none=True)
                out = zoo.run(module, (x, edge_index), step)
                weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
                if out.requires_grad:
                    (out * weight).sum().backward()
                grads = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
                results.append((out.detach(), {**grads, "x": torch.zeros_like(x) if x.grad is None else x.grad}))
            (out, grads), (want, want_grads) = results
            torch.testing.assert_close(out, want, rtol=1e-6, atol=1e-6)
            assert grads.keys() == want_grads.keys()
            for name, grad in grads.items():
                largest = want_grads[name].abs().max().item() if grad.numel() else 0
                torch.testing.assert_close(grad, want_grads[name], rtol=0, atol=2e-5 * largest + 1e-7)
            for (path, one), (_, two) in zip(fused.quantizers(), plain.quantizers(), strict=True):
                for end in ("min_val", "max_val"):
                    got, wanted = getattr(one, end), getattr(two, end)
                    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6, msg=lambda m, p=path: p + m)
        if all(quantizer.is_observed() for _, quantizer in plain.quantizers()):
            x, edge_index = inputs(0)
            got, want = (zoo.evaluate(module, (x, edge_index)) for module in (fused, plain))
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


# -- absorbed or not -----------------------------------------------------------------------------------------------


def through_relu(model, x, edge_index):
    return model.two(model.one(x).relu())


def with_rows_added(model, x, edge_index):
    return model.two((model.one(x) + model.root(x)).relu())


def used_twice(model, x, edge_index):
    h = model.one(x)
    return model.two(h.relu()) + model.two(h.abs())


def product_used_twice(model, x, edge_index):
    return model.two(model.one(x).relu()) + model.one(x).mean(1, keepdim=True)


def shape_read(model, x, edge_index):
    h = model.one(x)
    return model.two(h.relu()) / h.size(0) * h.shape[-1]


def shape_read_at_the_end(model, x, edge_index):
    h = model.two(model.one(x).relu())
    return h / h.size(0)


def of_three_dimensions(model, x, edge_index):
    h = torch.stack([x, 2 * x, x - 1], 1)
    return model.two(model.one(h).relu()).mean(1)


def through_elu(model, x, edge_index):
    return model.two(F.elu(model.one(x)))


def through_a_convolution(model, x, edge_index):
    return model.two(model.conv(model.one(x), edge_index).relu())


def message_used_twice(model, x, edge_index):
    h = model.conv(model.one(x), edge_index)
    return model.two(h.relu()) + model.two(h)


LINEAR = {
    "ReLU": (through_relu, (2, 0)),
    "sum": (with_rows_added, (3, 0)),
    "used twice": (used_twice, (3, 0)),
    "called twice": (product_used_twice, (3, 0)),
    "shape read": (shape_read, (1, 1)),
    "last shape read": (shape_read_at_the_end, (2, 0)),
    "three dimensions": (of_three_dimensions, (2, 0)),
    "ELU": (through_elu, (2, 0)),
    "convolution": (through_a_convolution, (3, 0)),
    "convolution used twice": (message_used_twice, (4, 0)),
}
"""A body, and how many linear layers have a chain and how many have none: every one of theirs is quantized, so only
what reads the shape of the product itself is in the way."""


def of(body):
    torch.manual_seed(0)
    return Model(body, **({"root": nn.Linear(WIDTH, 8)} if body is with_rows_added else {}))


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", LINEAR)
def test_linear_layers_that_are_absorbed(name, monkeypatch):
    body, expected = LINEAR[name]
    module = prepared_from(of(body))
    assert calls(module, linear) == expected
    assert_same_training(module, monkeypatch)


@pytest.mark.sample(3)
@pytest.mark.parametrize("preset", ["int4-dq", "int8-qat"])
@pytest.mark.parametrize("name", ["ReLU", "sum", "three dimensions", "convolution"])
def test_with_other_presets(name, preset, monkeypatch):
    assert_same_training(prepared_from(of(LINEAR[name][0]), preset), monkeypatch)


def test_a_linear_layer_with_no_quantizer_behind_it_has_no_chain(monkeypatch):
    config = dqconvert.QConfig.from_dict(
        {**dqconvert.presets["int8-dq"].to_dict(), "rules": [{"role": "feature", "spec": None}]}
    )
    module = prepared_from(of(through_elu), config)
    assert calls(module, linear) == (0, 2)
    assert "linear, chain" not in ops(module).values()
    assert_same_training(module, monkeypatch)


def test_a_quantizer_alone_is_part_of_its_linear_layer(monkeypatch):
    module = prepared_from(of(through_elu))
    whole = "quantizer, linear, chain"
    expected = {"input": whole, "feature": whole, "weight": "weights"}
    assert ops(module) == {f"{layer}.quant.{role}": op for layer in ("one", "two") for role, op in expected.items()}
    assert calls(module, chain) == (0, 0)


MESSAGES = {
    "GCNConv": (lambda: GCNConv(WIDTH, 8), "message passing, chain"),
    "GINConv": (lambda: GINConv(zoo.mlp(WIDTH, 8), train_eps=True), "message passing, chain"),
    "SAGEConv": (lambda: SAGEConv(WIDTH, 8), "message passing, chain"),
    "GraphConv": (lambda: GraphConv(WIDTH, 8, aggr="mean"), "message passing, chain"),
    "SimpleConv": (lambda: SimpleConv("sum"), "message passing, chain"),
    "SAGEConv, max": (lambda: SAGEConv(WIDTH, 8, aggr="max"), "quantizer, linear, chain"),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_message_passings_that_are_absorbed(name, monkeypatch):
    make, expected = MESSAGES[name]
    torch.manual_seed(0)
    module = prepared_from(make())
    found = ops(module)
    assert found.get("quant.aggregate") == expected
    assert found["quant.message"] == ("message passing" if name == "SAGEConv, max" else expected)
    assert_same_training(module, monkeypatch)


class TwoConvolutions(nn.Module):
    """Its first one's aggregates are those of the whole model, or read by something else as well."""

    def __init__(self, look):
        super().__init__()
        self.conv, self.lin, self.look = SimpleConv("sum"), nn.Linear(WIDTH, 4), look

    def forward(self, x, edge_index):
        h = self.conv(x, edge_index)
        return self.lin(h.relu()) * self.look(h)


@pytest.mark.parametrize("look", [lambda h: 1 / h.size(0), lambda h: h.mean(1, keepdim=True)], ids=["shape", "value"])
def test_a_message_passing_whose_result_something_else_reads(look, monkeypatch):
    module = prepared_from(TwoConvolutions(look))
    assert "lin.quant.input" not in {path for path, op in ops(module).items() if op == "message passing, chain"}
    assert_same_training(module, monkeypatch)


def test_a_bias_on_features_with_heads(monkeypatch):
    """The operator knows no bias of such: the chain runs on its own then."""
    torch.manual_seed(0)

    def body(model, x, edge_index):
        h = model.one(x).view(-1, 2, 4)
        return model.two(model.heads(h, edge_index).relu().flatten(1))

    module = prepared_from(Model(body, heads=Heads()))
    assert calls(module, message_passing)[0] <= 1
    assert_same_training(module, monkeypatch)


# -- hooks ---------------------------------------------------------------------------------------------------------


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "path", ["one.quant.feature", "two.quant.input", "two.quant.feature", "conv.quant.aggregate", "conv.quant.message"]
)
def test_a_hooked_quantizer_is_called_as_it_is(path, monkeypatch):
    torch.manual_seed(0)
    module, seen = prepared_from(of(through_a_convolution)), []
    module.get_submodule(path).register_forward_hook(lambda *args: seen.append(1))
    module.recompile()
    assert path not in ops(module)
    zoo.train_step(module, zoo.graph())
    assert seen == [1]
    assert_same_training(module, monkeypatch)


# -- what makes the operator step aside ----------------------------------------------------------------------------


def observers_off(module):
    module.apply(dqconvert.disable_observer)


def one_observer_off(module):
    dqconvert.disable_observer(module.get_submodule("two.quant.input"))


def one_rounding_off(module):
    dqconvert.disable_fake_quant(module.get_submodule("one.quant.feature"))


def part_in_evaluation(module):
    module.two.eval()


def whole_in_evaluation(module):
    module.eval()


def frozen_weight(module):
    module.one.weight.requires_grad_(False)


def frozen_layer(module):
    module.one.requires_grad_(False)


def all_frozen_but_the_last(module):
    module.requires_grad_(False)
    module.two.requires_grad_(True)


STATES = (
    observers_off,
    one_observer_off,
    one_rounding_off,
    part_in_evaluation,
    whole_in_evaluation,
    frozen_weight,
    frozen_layer,
    all_frozen_but_the_last,
)


@pytest.mark.sample(3)
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
@pytest.mark.parametrize("body", [through_relu, through_a_convolution], ids=lambda body: body.__name__)
def test_modules_in_every_state(body, state, monkeypatch):
    module = prepared_from(of(body))
    zoo.train_step(module, zoo.graph())
    assert_same_training(module, monkeypatch, prepare=state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("body", [through_relu, of_three_dimensions, through_a_convolution], ids=lambda b: b.__name__)
def test_other_types(body, dtype, monkeypatch):
    def inputs(step):
        x, edge_index = graph_of(step)
        return x.to(dtype), edge_index

    module = prepared_from(of(body)).to(dtype)
    assert_same_training(module, monkeypatch, inputs=inputs)


@pytest.mark.parametrize("body", [through_relu, of_three_dimensions, through_a_convolution], ids=lambda b: b.__name__)
def test_autocast(body, monkeypatch):
    fused = prepared_from(of(body))
    plain = node_by_node(fused)
    for step in range(3):
        results = []
        for module in (fused, plain):
            module.train().zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                out = zoo.run(module, graph_of(step), step)
            out.float().square().sum().backward()
            results.append(
                (out.detach(), {name: p.grad for name, p in module.named_parameters() if p.grad is not None})
            )
        (out, grads), (want, want_grads) = results
        assert out.dtype == want.dtype
        assert torch.equal(out, want)
        for name, grad in grads.items():
            torch.testing.assert_close(grad, want_grads[name], rtol=0, atol=0.01 * want_grads[name].abs().max().item())


# -- graphs of every size ------------------------------------------------------------------------------------------


def isolated(step):
    """Eleven nodes, the edges between the first three."""
    x, edge_index = graph_of(step)
    return x, edge_index % 3


def one_node(step):
    return (1 + step) * torch.linspace(-1, 1, WIDTH).view(1, WIDTH), torch.zeros(2, step, dtype=torch.int64)


def no_edges(step):
    return graph_of(step)[0], torch.empty(2, 0, dtype=torch.int64)


def no_nodes(step):
    nodes = 0 if step % 2 else 11
    x, edge_index = graph_of(step)
    return x[:nodes], edge_index[:, : 30 if nodes else 0]


GRAPHS = {"isolated nodes": isolated, "one node": one_node, "no edges": no_edges, "no nodes": no_nodes}


@pytest.mark.sample(5)
@pytest.mark.parametrize("graphs", GRAPHS)
@pytest.mark.parametrize("body", [through_relu, of_three_dimensions, through_a_convolution], ids=lambda b: b.__name__)
def test_graphs_of_every_size(body, graphs, monkeypatch):
    assert_same_training(prepared_from(of(body)), monkeypatch, inputs=GRAPHS[graphs])


@pytest.mark.sample(5)
@pytest.mark.parametrize("graphs", GRAPHS)
@pytest.mark.parametrize("name", ["GINConv", "SAGEConv", "SAGEConv, max"])
def test_layers_on_graphs_of_every_size(name, graphs, monkeypatch):
    torch.manual_seed(0)
    assert_same_training(prepared_from(MESSAGES[name][0]()), monkeypatch, inputs=GRAPHS[graphs])


# -- in place ------------------------------------------------------------------------------------------------------


def messages_written_into(model, x, edge_index):
    z = x * 2
    h = model.simple(z, edge_index)
    z.add_(1)
    return model.two(model.one(h.relu())) + z.sum(1, keepdim=True)


def messages_written_into_later(model, x, edge_index):
    z = x * 2
    h = model.two(model.one(model.simple(z, edge_index).relu()))
    z.add_(1)
    return h + z.sum(1, keepdim=True)


def added_written_into(model, x, edge_index):
    z = torch.cat([x, x], 1)[:, :8] * 2
    h = model.one(x) + z
    z.add_(1)
    return model.two(h) + z.sum(1, keepdim=True)


def bias_written_into(model, x, edge_index):
    step = model.step + 0
    h = model.one(x) + step
    step.add_(1)
    return model.two(h)


WRITES = (messages_written_into, messages_written_into_later, added_written_into, bias_written_into)


@pytest.mark.parametrize("body", WRITES, ids=lambda body: body.__name__)
def test_what_is_changed_in_place_in_between(body, monkeypatch):
    torch.manual_seed(0)
    model = Model(body, simple=SimpleConv("sum"))
    model.register_buffer("step", torch.zeros(8))
    assert_same_training(prepared_from(model), monkeypatch)


# -- nobody can tell -----------------------------------------------------------------------------------------------


def test_the_report_and_the_tree_name_them():
    module, report = dqconvert.prepare(GIN(WIDTH, 8, 2, 4), "int8-dq", zoo.graph())
    named = [fusion.op for fusion in report.fusions]
    assert {"linear, chain", "message passing, chain"} <= set(named)
    assert report.fusions == module.fusions
    text = str(report)
    assert "runs as one operator each" in text
    assert "linear, chain" in text
    assert "message passing, chain" in text
    assert [fusion["op"] for fusion in report.to_dict()["fusions"]] == named
    assert f"{len(named)} groups fused into one operator each" in str(module)


def test_names_of_the_nodes_are_those_of_the_prepared_graph():
    module = prepared_from(GCN(WIDTH, 8, 2, 4))
    nodes = {node.name: node for node in module.graph.nodes}
    for fusion in module.fusions:
        if fusion.op == "linear, chain":
            assert nodes[fusion.nodes[0]].target is F.linear
        if fusion.op == "message passing, chain":
            kinds = [str(nodes[name].target) for name in fusion.nodes]
            assert any("aggr_module" in kind for kind in kinds)
            assert any(kind.endswith("quant.aggregate") for kind in kinds)
        assert all(name in nodes for name in fusion.nodes)
        assert len(set(fusion.nodes)) == len(fusion.nodes)


def reloaded(module, tmp_path):
    dqconvert.save(module, tmp_path / "module.dq")
    return dqconvert.load(tmp_path / "module.dq", of(through_a_convolution))


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "file"])
def test_copies_keep_the_graph_and_are_fused_alike(way, tmp_path):
    module = prepared_from(of(through_a_convolution))
    before, keys = str(module.graph), list(module.state_dict())
    for step in range(2):
        zoo.train_step(module, graph_of(step), step)
    if way == "deepcopy":
        twin = copy.deepcopy(module)
    elif way == "pickle":
        twin = pickle.loads(pickle.dumps(module))
    else:
        twin = reloaded(module, tmp_path)
    assert str(module.graph) == str(twin.graph) == before
    assert list(module.state_dict()) == list(twin.state_dict()) == keys
    assert twin.fusions == module.fusions
    assert twin.code == module.code
    for step in range(2, 4):
        one, two = (zoo.train_step(each, graph_of(step), step) for each in (module, twin))
        zoo.assert_step_close(one, two)
    zoo.assert_same(*(dict(each.state_dict()) for each in (module, twin)))
