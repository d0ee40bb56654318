"""A user's own quantizers: what their factories are told, and grids that become integers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch_geometric.nn import GCN

import dqconvert
from dqconvert import QuantizerSite, Rule
from dqconvert.kernels.integer.propagate import integer_propagate

torch.manual_seed(0)
X, EDGES = torch.randn(30, 8), torch.randint(30, (2, 120))
PAPER = dqconvert.presets["int8-dq"]


class Largest(nn.Module):
    """A symmetric grid up to the largest value that was seen in training; protected rows pass."""

    def __init__(self, bits=8):
        super().__init__()
        self.register_buffer("most", torch.tensor(0.0))
        self.low, self.high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1

    def grid(self):
        return self.most / self.high, 0, self.low, self.high

    def forward(self, x, protected=None):
        if self.training:
            self.most.copy_(torch.maximum(self.most, x.detach().abs().max()))
        scale = self.most / self.high
        rounded = (x / scale).round().clamp(self.low, self.high) * scale
        if not self.training:
            return rounded
        rounded = x + (rounded - x).detach()
        return rounded if protected is None else torch.where(protected.unsqueeze(1), x, rounded)


class Misled(Largest):
    def grid(self):
        return self.most / self.high, 0, self.low, self.high - 1


class Silent(Largest):
    grid = None


def prepared(factory, role="message", **fields):
    rules = (Rule(role=role, spec=factory),)
    return dqconvert.prepare(GCN(8, 8, 2, 3), replace(PAPER, rules=rules, **fields), (X, EDGES))[0]


def test_a_factory_is_told_where_its_quantizer_stands():
    told = []

    def factory(site):
        told.append(site)
        return Largest()

    prepared(factory, role="aggregate")
    assert told[0] == QuantizerSite(
        path="convs.0.quant.aggregate",
        module="convs.0",
        role="aggregate",
        kind="aggregate",
        op=told[0].op,
        level="node",
        row_dim=0,
        signed=True,
        protected=True,
        degrees=True,
        channels=(8, 1),
    )
    assert [site.path for site in told] == ["convs.0.quant.aggregate", "convs.1.quant.aggregate"]
    told.clear()
    prepared(factory, role="weight", protect=None)
    assert (told[0].level, told[0].degrees, told[0].protected, told[0].channels) == ("parameter", False, False, (8, 0))
    told.clear()
    prepared(factory, role="update")
    assert [site.signed for site in told] == [False, True]  # only a ReLU reads the first
    with pytest.raises(AttributeError):
        told[0].role = "input"


@pytest.mark.parametrize(
    "factory", [Largest, lambda: Largest(4), lambda site, bits=4: Largest(bits), lambda bits=4: Largest(bits)]
)
def test_factories_of_both_forms(factory):
    module = prepared(factory)
    assert isinstance(module.convs[0].quant.message, Largest)
    assert torch.isfinite(module.train()(X, EDGES)).all()


def test_a_factory_of_two_arguments_is_refused():
    with pytest.raises(dqconvert.ConfigError, match="requires 2 arguments"):
        Rule(role="input", spec=lambda site, bits: Largest(bits))


@pytest.mark.sample(3)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("role", ["message", "input", "weight", "aggregate", "feature", "update"])
def test_a_grid_becomes_integers(role, bits, tmp_path):
    module = prepared(lambda: Largest(bits), role)
    for seed in range(3):
        torch.manual_seed(seed)
        module.train()(X, EDGES)
    integer = dqconvert.convert(module)
    assert len(integer.graph.find_nodes(op="call_function", target=integer_propagate)) == 2
    assert not any("quant" in str(node.target).split(".") for node in integer.graph.nodes)
    expected, found = module.eval()(X, EDGES), integer(X, EDGES)
    last = module.convs[1].quant.update
    step = last.grid()[0] if isinstance(last, Largest) else last.scale
    assert (found - expected).abs().max() <= 1.01 * step  # one code of a hub reaches many
    assert ((found - expected).abs() > 1e-5).double().mean() <= 0.2
    dqconvert.save(integer, tmp_path / "i.dq")
    assert torch.equal(dqconvert.load(tmp_path / "i.dq")(X, EDGES), found)


def test_without_a_grid_values_stay_in_float():
    module = prepared(Silent)
    module.train()(X, EDGES)
    integer = dqconvert.convert(module)
    assert not integer.graph.find_nodes(op="call_function", target=integer_propagate)
    torch.testing.assert_close(integer(X, EDGES), module.eval()(X, EDGES), rtol=1e-3, atol=0.1)


def test_a_grid_that_is_not_what_it_rounds_to_is_an_error():
    module = prepared(Misled)
    module.train()(X, EDGES)
    with pytest.raises(
        dqconvert.LoweringError, match=r"convs\.0\.quant\.message: Misled says .* rounds to other values"
    ):
        dqconvert.convert(module)


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "grid", [(0.5, 0, -8), (0.0, 0, -8, 7), (0.5, 0.5, -8, 7), (0.5, 9, -8, 7), (0.5, 0, 0, 300), "none", 3]
)
def test_what_no_grid_is(grid):
    class Wrong(Largest):
        pass

    Wrong.grid = grid
    module = prepared(Wrong)
    module.train()(X, EDGES)
    with pytest.raises(dqconvert.LoweringError, match=r"grid of Wrong must be \(scale, zero_point, low, high\)"):
        dqconvert.convert(module)


def test_a_prepared_file_needs_the_code_of_a_quantizer(tmp_path):
    module = prepared(Largest)
    with pytest.raises(dqconvert.CheckpointError, match="a quantizer of your own"):
        dqconvert.save(module, tmp_path / "m.dq")
