"""Which groups of nodes become one operator, and which must not."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch_geometric.nn import GCNConv, GINConv, SAGEConv

import dqconvert
import zoo
from dqconvert.fuse import fuse
from dqconvert.quant.fused import dropout, linear
from dqconvert.quant.fused_messages import message_passing
from dqconvert.quant.memo import EdgeOrders, Remembered


def fusions(module, op=None):
    """Those that have a part of that name: a chain may have a linear layer before it."""
    return [fusion for fusion in fuse(module.graph, module)[1] if op is None or op in fusion.op.split(", ")]


def targets(module):
    return [node.target for node in fuse(module.graph, module)[0].nodes]


def prepared_from(model, inputs=None, **kwargs):
    return dqconvert.prepare(model, "int8-dq", inputs or zoo.graph(), **kwargs).module


class Stack(nn.Module):
    """Linear layers, one after the other; `shared`: the first one again at the end."""

    def __init__(self, shared=False, wide=8, in_place=False):
        super().__init__()
        self.one, self.two = nn.Linear(8, wide), nn.Linear(wide, 8)
        self.shared, self.in_place = shared, in_place

    def forward(self, x):
        x = self.one(x)
        x = self.two(x.mul_(0.5) if self.in_place else x)
        return self.one(x) if self.shared else x


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_small_weights_are_quantized_together(shared, in_place):
    (found,) = fusions(prepared_from(Stack(shared, in_place=in_place), {"x": torch.randn(9, 8)}), "weights")
    assert found.quantizers == ("one.quant.weight", "two.quant.weight")


def test_large_weights_are_quantized_alone():
    module = prepared_from(Stack(wide=1 << 14), {"x": torch.randn(9, 8)})
    assert not fusions(module, "weights")


def test_weights_quantized_together_are_those_quantized_alone():
    """In training and evaluation, with one of them frozen, and with an observer that is off."""
    module = prepared_from(Stack(), {"x": torch.randn(9, 8)})
    alone = copy.deepcopy(module)
    alone.fuse = False
    alone.recompile()
    for step in range(6):
        x = torch.randn(9, 8)
        for one in (module, alone):
            one.one.quant.weight.observer_enabled = step != 2
            one.two.weight.requires_grad_(step != 3)
            one.train(step != 4)
            one.zero_grad()
            torch.manual_seed(step)
            one(x).sum().backward()
            with torch.no_grad():
                one.one.weight *= 1.1
        for name, value in module.state_dict().items():
            exact = {"rtol": 0, "atol": 0} if "quant.weight" in name else {}  # features are of another product
            torch.testing.assert_close(value, alone.state_dict()[name], **exact)
        for one, two in zip(module.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(one.grad, two.grad)


MESSAGES = {
    "GCNConv": 1,
    "GCNConv_weight": 1,
    "GCNConv_plain": 1,
    "GINConv": 1,
    "SAGEConv": 1,
    "GraphConv_weight": 1,
    "GATConv": 1,
    "ChebConv": 2,
    "SAGEConv_max": 1,
    "GINEConv": 0,
    "PNAConv": 0,
    "EdgeConv": 0,
    "NNConv": 0,
}
"""Sums, means and maxima of x_j and w x_j; not messages of another form."""


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", MESSAGES)
def test_messages_that_are_fused(prepared, name):
    module, _ = prepared(name)
    found = fusions(module, "message passing")
    assert len(found) == MESSAGES[name]
    for fusion in found:
        assert "message" in fusion.quantizers[0]
        assert all(other not in fusion.quantizers[1:] for other in ("quant.message", "quant.edge_weight"))
    found_targets = targets(module)
    assert found_targets.count(message_passing) == MESSAGES[name]


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", zoo.CASES)
def test_every_group_is_of_the_graph_and_no_node_is_in_two(prepared, name):
    module, _ = prepared(name)
    names = [node.name for node in module.graph.nodes]
    paths = {path for path, _ in module.quantizers()}
    grouped = [node for fusion in fusions(module) for node in fusion.nodes]
    assert set(grouped) <= set(names)
    taken = [path for fusion in fusions(module) for path in fusion.quantizers]
    assert set(taken) <= paths
    quantizing = [
        node for node in grouped if str(next(n for n in module.graph.nodes if n.name == node).target) in paths
    ]
    assert len(quantizing) == len(set(quantizing))


@pytest.mark.parametrize("name", ["GCN", "GIN", "GAT", "GraphSAGE", "Tied", "ChebConv"])
def test_nothing_is_computed_for_nothing(prepared, name):
    """What the fused graph has without users, the graph had without users before."""
    module, _ = prepared(name)
    unused = {node.name for node in module.graph.nodes if not node.users}
    fused, _ = fuse(module.graph, module)
    assert {node.name for node in fused.nodes if not node.users} <= unused


@pytest.mark.parametrize("name", ["GCN", "GIN", "NoisyInTraining"])
def test_the_graph_itself_stays_as_it_is(prepared, name):
    module, _ = prepared(name)
    before, keys = str(module.graph), list(module.state_dict())
    for _ in range(2):
        fused, _ = fuse(module.graph, module)
        fused.lint()
    assert str(module.graph) == before
    assert list(module.state_dict()) == keys


def test_fusing_again_adds_no_modules(prepared):
    module, _ = prepared("GCN")
    kinds = EdgeOrders, Remembered
    before = [path for path, child in module.named_modules() if isinstance(child, kinds)]
    module.recompile()
    fuse(module.graph, module)
    assert [path for path, child in module.named_modules() if isinstance(child, kinds)] == before


def test_without_fuse_nothing_is_replaced():
    module = prepared_from(zoo.CASES["GIN"].model(), fuse=False)
    assert module.fusions == ()
    assert not any(isinstance(child, EdgeOrders | Remembered) for child in module.modules())
    for name in ("message_passing", "fused_chain", "fused_linear"):
        assert name not in module.code


def test_fuse_may_be_switched_and_the_code_made_again(prepared):
    module, _ = prepared("GIN")
    twin = copy.deepcopy(module)
    module.fuse = False
    module.recompile()
    assert "message_passing" not in module.code
    module.fuse = True
    module.recompile()
    assert module.code == twin.code
    assert module.fusions == twin.fusions


def test_the_graph_and_the_printout_stay_those_of_the_prepared_graph():
    model = zoo.CASES["GIN"].model()
    fused, plain = prepared_from(model), prepared_from(model, fuse=False)
    assert str(fused).startswith(str(plain))
    assert [path for path, _ in fused.quantizers()] == [path for path, _ in plain.quantizers()]
    assert str(fused.graph) == str(plain.graph)


# -- chains --------------------------------------------------------------------------------------------------------


class Layers(nn.Module):
    """conv1 -> what a test puts between -> conv2."""

    def __init__(self, between, conv=GCNConv):
        super().__init__()
        self.conv1, self.conv2 = conv(zoo.WIDTH, 8), conv(8, 4)
        self.between = between

    def forward(self, x, edge_index):
        return self.conv2(self.between(self.conv1(x, edge_index)), edge_index)


class Twice(nn.Module):
    """Uses what comes out of a ReLU two times."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = GCNConv(zoo.WIDTH, 8), GCNConv(8, 8)

    def forward(self, x, edge_index):
        update = self.conv1(x, edge_index)
        h = update.relu()
        return self.conv2(h, edge_index) + h + update


class Inner(nn.Module):
    """Two linear layers and what a test puts between, as an aggregation's MLP."""

    def __init__(self, between):
        super().__init__()
        self.lin1, self.lin2, self.between = nn.Linear(zoo.WIDTH, 8), nn.Linear(8, 4), between

    def forward(self, x):
        return self.lin2(self.between(self.lin1(x)))


def test_a_gcn_layer_ends_in_one_chain():
    """aggregate, + bias, update and ReLU."""
    found = fusions(prepared_from(Layers(nn.ReLU())), "chain")
    first = next(fusion for fusion in found if "conv1.quant.aggregate" in fusion.quantizers)
    assert first.quantizers[:2] == ("conv1.quant.aggregate", "conv1.quant.update")
    assert len(first.nodes) >= 4


@pytest.mark.parametrize(
    "between",
    [nn.ReLU(), nn.ReLU(inplace=True), F.relu, torch.relu, torch.Tensor.relu],
    ids=["module", "inplace", "functional", "torch", "method"],
)
def test_a_relu_by_any_name(between):
    module = prepared_from(GINConv(Inner(between)))
    assert ("nn.lin1.quant.feature", "nn.lin2.quant.input") in {
        fusion.quantizers for fusion in fusions(module, "chain")
    }


class MyReLU(nn.ReLU):
    def forward(self, x):
        return super().forward(x) + 1


@pytest.mark.parametrize("between", [nn.ELU(), nn.LeakyReLU(), nn.Tanh(), nn.ReLU6(), MyReLU()], ids=str)
def test_what_is_not_a_relu_ends_the_chain(between):
    model = GINConv(Inner(between))
    module, plain = prepared_from(model), prepared_from(model, fuse=False)
    [own] = [fusion for fusion in fusions(module) if "nn.lin2.quant.input" in fusion.quantizers]
    assert own.op == "quantizer, linear, chain"
    assert own.quantizers[0] == "nn.lin2.quant.input", "it is not what comes before that is fused with it"
    torch.testing.assert_close(*(zoo.train_step(one, zoo.graph()) for one in (module, plain)), rtol=1e-5, atol=1e-5)


def test_a_value_that_is_used_elsewhere_ends_the_chain():
    model = Twice()
    module, plain = prepared_from(model), prepared_from(model, fuse=False)
    [own] = [fusion for fusion in fusions(module) if "conv2.lin.quant.input" in fusion.quantizers]
    assert own.quantizers[0] == "conv2.lin.quant.input", "it is not what comes before that is fused with it"
    for seed in range(2):
        got, want = (zoo.train_step(one, zoo.graph(), seed) for one in (module, plain))
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_hooked_modules_are_left_alone():
    module = prepared_from(Layers(nn.ReLU(), lambda a, b: GINConv(zoo.mlp(a, b))))
    before = {path for fusion in fusions(module) for path in fusion.quantizers}
    for path in before:
        handle = module.get_submodule(path).register_forward_hook(lambda *args: None)
        assert path not in {path for fusion in fusions(module) for path in fusion.quantizers}
        handle.remove()
    assert {path for fusion in fusions(module) for path in fusion.quantizers} == before


def test_quantizers_of_the_user_and_per_channel_ones_are_left_alone():
    class Mine(nn.Module):
        def forward(self, x, protected=None):
            return x

    config = dqconvert.presets["int8-dq"]
    rules = (dqconvert.Rule(role="message", spec=lambda *args, **kwargs: Mine()),)
    config = dqconvert.QConfig(
        weight=config.weight,
        activation=config.activation,
        message=config.message,
        aggregate=config.aggregate,
        protect=config.protect,
        rules=rules,
    )
    module = dqconvert.prepare(Layers(nn.ReLU()), config, zoo.graph()).module
    assert fusions(module, "message passing") == []


# -- one for one ---------------------------------------------------------------------------------------------------


def test_linear_and_dropout_have_counterparts():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.drop, self.conv2 = SAGEConv(zoo.WIDTH, 8), nn.Dropout(0.5), SAGEConv(8, 4)

        def forward(self, x, edge_index):
            h = self.drop(self.conv1(x, edge_index))
            return self.conv2(F.dropout(h, 0.3, self.training), edge_index)

    module = prepared_from(Both())
    found = targets(module)
    assert found.count(dropout) == 2
    assert found.count(linear) == 4
    assert F.dropout not in found
    x, edge_index = zoo.graph()
    zoo.train_step(module, (x, edge_index))
    once, again = (zoo.run(module.eval(), (x, edge_index), seed) for seed in (1, 2))
    assert torch.equal(once, again), "dropout follows eval()"
    module.train()
    module.drop.eval()
    module.drop.p = 0.9
    assert zoo.run(module, (x, edge_index)).shape == (len(x), 4)


def test_the_norm_of_a_graph_is_remembered_and_that_of_weights_is_not(prepared):
    def remembered(name):
        return [child for child in prepared(name)[0].modules() if isinstance(child, Remembered)]

    assert remembered("WeightedGCN_absent")
    assert remembered("WeightedGCN") == []


def test_the_dropout_probability_may_be_changed_later():
    model = Layers(nn.Dropout(0.5))
    fused, plain = prepared_from(model), prepared_from(model, fuse=False)
    for module in (fused, plain):
        module.between.p = 0.9
    steps = (zoo.train_step(module, zoo.graph()) for module in (fused, plain))
    zoo.assert_step_close(*steps, exact=False)
