"""Options of configs together: fused training, integers and files agree, on graphs without nodes, too."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch_geometric.nn import GAT, GCN, GIN, GraphSAGE, HeteroConv, SAGEConv

import dqconvert
import zoo
from dqconvert import Protect, QConfig, QSpec, presets


def config(weight=None, **fields):
    """One spec for all values, another for weights; what is no field of a spec is one of the config."""
    own = {key: fields.pop(key) for key in list(fields) if key in QSpec.__dataclass_fields__}
    value = QSpec(**own)
    return QConfig(weight=QSpec(**(weight or {"bits": 4})), activation=value, message=value, aggregate=value, **fields)


ROLES = Protect(p_min=0.2, p_max=0.6, roles=("message", "aggregate"))
CONFIGS = {
    "groups that learn": config(granularity="degree", range="learned", signed="graph", protect=ROLES),
    "groups at random": config(granularity="degree", groups=2, rounding="stochastic", noise=0.5, bits=4),
    "groups, norms on nodes": config(
        granularity="degree", range="mse", signed="graph", norm="nodes", placement="before_dropout", output=False
    ),
    "channels that learn": config(
        {"granularity": "channel", "range": "learned", "symmetric": True},
        granularity="channel",
        range="learned",
        signed="graph",
        placement="before_dropout",
    ),
    "channels at random": config(granularity="channel", rounding="stochastic", noise=0.5, protect=Protect(p_max=0.5)),
    "learned at random": config(
        {"range": "learned", "rounding": "stochastic"}, range="learned", rounding="stochastic", norm="nodes"
    ),
    "from zero, averaged": config(range="ema", signed="graph", symmetric=True, grad="clip", protect=ROLES, noise=0.7),
    "int3-dq+": replace(presets["int3-dq+"], protect=ROLES),
}


class Relations(nn.Module):
    """Edges from items to users and back, over one index, whose nodes are given as one matrix."""

    def __init__(self):
        super().__init__()
        kinds = ("user", "rates", "item"), ("item", "rated", "user")
        self.conv = HeteroConv({kind: SAGEConv(zoo.WIDTH, 4) for kind in kinds})

    def forward(self, x, edge_index):
        kinds = {("user", "rates", "item"): edge_index, ("item", "rated", "user"): edge_index.flip(0)}
        found = self.conv({"user": x, "item": x.relu()}, kinds)
        return found["user"].relu() + found["item"]


MODELS = {
    "GCN": lambda: GCN(zoo.WIDTH, 8, 2, 4, dropout=0.3, norm="batch_norm", jk="cat"),
    "GAT": lambda: GAT(zoo.WIDTH, 8, 2, 4, heads=2, dropout=0.3),
    "GIN": lambda: GIN(zoo.WIDTH, 8, 2, 4, dropout=0.3),
    "SAGE": lambda: GraphSAGE(zoo.WIDTH, 8, 2, 4, aggr="max", project=True),
    "Relations": Relations,
}
# Each config on several models, each model with several configs.
CASES = [
    (model, name) for k, model in enumerate(MODELS) for j, name in enumerate(CONFIGS) if (j + 3 * k) % len(MODELS) < 2
]


def doubles(size):
    x, edge_index = zoo.graph(size)
    return x.double(), edge_index


def trained(module, steps=3):
    """Results, gradients and buffers of some steps, and the ranges that they learned."""
    optimizer, found = torch.optim.SGD(module.parameters(), lr=0.01), []
    for step in range(steps):
        found.append(zoo.train_step(module, doubles(zoo.TRACED), seed=step))
        optimizer.step()
    return found, {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.sample(8)
@pytest.mark.parametrize(("model", "name"), CASES, ids=[f"{model}-{name}" for model, name in CASES])
def test_options_together(model, name, tmp_path):
    torch.manual_seed(0)
    float_model = MODELS[model]().double()
    module, _ = dqconvert.prepare(float_model, CONFIGS[name], doubles(zoo.TRACED))
    plain, _ = dqconvert.prepare(float_model, CONFIGS[name], doubles(zoo.TRACED), fuse=False)
    for found, wanted in zip(trained(module), trained(plain), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)
    dqconvert.save(module, tmp_path / "prepared.dq")
    loaded = dqconvert.load(tmp_path / "prepared.dq", model=float_model)
    integer = dqconvert.convert(module)
    dqconvert.save(integer, tmp_path / "integer.dq")
    read = dqconvert.load(tmp_path / "integer.dq")
    for size in (zoo.TRACED, zoo.OTHER):
        args = doubles(size)
        wanted = zoo.evaluate(module, args)
        zoo.assert_same(zoo.evaluate(loaded, args), wanted)
        zoo.assert_same(zoo.evaluate(copy.deepcopy(module), args), wanted)
        zoo.assert_same(read(*args), integer(*args))
        off = (integer(*args) - wanted).abs() > 0.02 * wanted.abs().max()
        assert off.double().mean() <= 0.05
    for nodes in (0, 1):  # and no edges
        x, edge_index = doubles(zoo.TRACED)
        args = x[:nodes], edge_index[:, :0]
        torch.testing.assert_close(integer(*args), zoo.evaluate(module, args), rtol=0, atol=0.02)
    zoo.assert_same(trained(loaded, 1), trained(module, 1))
