"""Forwards with ``*args`` and ``**kwargs``, activations in place, and recomputed activations, as roots."""

import copy
import inspect

import pytest
import torch
from torch import nn
from torch_geometric.nn import GCN, DeepGCNLayer, EdgeCNN, GCN2Conv, GCNConv, GENConv, GroupAddRev, HeteroConv, SAGEConv

import dqconvert
from checks import assert_float_identity, assert_same, evaluation, normal, step
from dqconvert import QConfig, TraceError

EDGES = torch.randint(12, (2, 40), generator=torch.Generator().manual_seed(1))
KIND = ("a", "to", "a")


# -- *args, **kwargs -----------------------------------------------------------------------------------------------


def hetero():
    x, initial, edges = {"a": normal(12, 8)}, {"a": normal(12, 8, seed=2)}, {KIND: EDGES}
    return HeteroConv({KIND: GCN2Conv(8, 0.1)}), x, initial, edges


def test_keywords_that_a_forward_collects():
    model, x, initial, edges = hetero()
    wanted = model(x, initial, edges)["a"]
    given = {"x_dict": x, "x_0_dict": initial, "edge_index_dict": edges}
    module, _ = dqconvert.prepare(model, QConfig(), given)
    assert_same(module(**given)["a"], wanted)
    trained, _ = dqconvert.prepare(model, "int8-dq", given)
    trained.train()(**given)["a"].sum().backward()


@pytest.mark.parametrize("named", [False, True])
def test_some_by_position_some_by_name(named):
    """PyG's own way to call it; a dict may name what the starred parameters collect."""
    model = HeteroConv({KIND: GCNConv(8, 4)})
    x, edges, weight = {"a": normal(12, 8)}, {KIND: EDGES}, {KIND: torch.rand(EDGES.size(1))}
    wanted = model(x, edges, edge_weight_dict=weight)["a"]
    given = {"args_dict": (x, edges), "edge_weight_dict": weight}
    if named:
        given = {"args_dict": [x, edges], "kwargs_dict": {"edge_weight_dict": weight}}
    module, _ = dqconvert.prepare(model, QConfig(), given)
    assert_same(module(x, edges, edge_weight_dict=weight)["a"], wanted)
    bound = inspect.signature(model.forward).bind(x, edges, edge_weight_dict=weight)
    assert_same(dqconvert.prepare(model, QConfig(), bound).module(x, edges, edge_weight_dict=weight)["a"], wanted)


class Rest(nn.Module):
    """An argument of its own before the rest."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([SAGEConv(8, 8), SAGEConv(8, 4)])

    def forward(self, x, *layers, scale=1.0, **options):
        for conv, edge_index in zip(self.convs, layers, strict=True):
            x = conv(x, edge_index)
        return x * scale * options.get("factor", 1.0)


def test_an_argument_of_its_own_before_the_rest():
    model, x = Rest(), normal(12, 8)
    given = {"x": x, "layers": (EDGES, EDGES[:, :20]), "scale": 0.5, "factor": torch.tensor(3.0)}
    module, _ = dqconvert.prepare(model, QConfig(), given)
    wanted = model(x, EDGES, EDGES[:, :20], scale=0.5, factor=torch.tensor(3.0))
    assert_same(module(x, EDGES, EDGES[:, :20], scale=0.5, factor=torch.tensor(3.0)), wanted)


# -- in place ------------------------------------------------------------------------------------------------------


class InPlace(nn.Module):
    """Writes into what a maximum over messages keeps for its backward."""

    def __init__(self, act):
        super().__init__()
        self.conv, self.lin, self.act = SAGEConv(8, 8, aggr="max", root_weight=False), nn.Linear(8, 4), act
        self.conv.lin_l = nn.Identity()

    def forward(self, x, edge_index):
        return self.lin(self.act(self.conv(x, edge_index)))


IN_PLACE = {
    "a module": lambda: nn.ReLU(inplace=True),
    "a function": lambda: torch.relu_,
    "leaky": lambda: nn.LeakyReLU(inplace=True),
}


@pytest.mark.parametrize("act", IN_PLACE)
def test_an_activation_in_place(act):
    """The float model has no gradients there: the outputs are compared, and the quantized model has them."""
    model, inputs = InPlace(IN_PLACE[act]()), (normal(12, 8), EDGES)
    module, report = dqconvert.prepare(model, QConfig(), inputs)
    assert_same(evaluation(module, inputs), evaluation(model, inputs))
    try:
        wanted = step(copy.deepcopy(model), inputs)
    except RuntimeError:
        assert [remark for remark in report.remarks if "the float model's own backward fails" in remark]
    else:
        assert_same(step(copy.deepcopy(module), inputs), wanted)
    trained, _ = dqconvert.prepare(model, "int8-dq", inputs)
    _, gradients, _ = step(trained, inputs)
    assert gradients["lin.weight"].isfinite().all()


@pytest.mark.parametrize(
    "model", [lambda: EdgeCNN(8, 8, 2, 4, act=torch.relu_), lambda: GCN(8, 8, 2, 4, act=torch.relu_)]
)
def test_models_with_an_activation_in_place(model):
    model, inputs = model(), (normal(12, 8), EDGES)
    module, _ = dqconvert.prepare(model, QConfig(), inputs)
    assert_same(evaluation(module, inputs), evaluation(model, inputs))
    trained, _ = dqconvert.prepare(model, "int8-dq", inputs)
    step(trained, inputs)


class DroppedInPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.lin = GCNConv(8, 8), nn.Linear(8, 4)

    def forward(self, x, edge_index):
        h = self.conv(x, edge_index)
        return self.lin(nn.functional.dropout(h, 0.5, self.training, inplace=True))


def test_a_dropout_in_place_is_one_graph_for_both_modes_and_converts():
    model, inputs = DroppedInPlace(), (normal(12, 8), EDGES)
    module = assert_float_identity(model, inputs)
    assert module.eval_graph is None
    trained, _ = dqconvert.prepare(model, "int8-dq+", inputs)
    dqconvert.calibrate(trained, inputs)
    torch.testing.assert_close(
        dqconvert.convert(trained)(*inputs), evaluation(trained, inputs)[0], rtol=0.02, atol=0.02
    )


# -- computed again in the backward --------------------------------------------------------------------------------


@pytest.mark.parametrize("block", ["res+", "res", "dense", "plain"])
def test_a_recomputed_layer_as_the_root(block):
    model = DeepGCNLayer(GENConv(8, 8), nn.LayerNorm(8), nn.ReLU(), block=block, ckpt_grad=True)
    inputs = normal(12, 8), EDGES
    module, _ = dqconvert.prepare(model, QConfig(), inputs)
    assert_same(evaluation(module, inputs), evaluation(copy.deepcopy(model), inputs))
    trained, report = dqconvert.prepare(model, "int8-dq", inputs)
    step(trained, inputs)
    assert report.totals["role"]["message"]


def test_a_reversible_layer_as_the_root_is_refused_in_words():
    """Its backward frees and rebuilds its inputs, which a graph of its parts would not."""
    model = GroupAddRev(SAGEConv(4, 4), num_groups=2)
    with pytest.raises(TraceError, match=r"the root module .* InvertibleFunction"):
        dqconvert.prepare(model, QConfig(), (normal(12, 8), EDGES))
