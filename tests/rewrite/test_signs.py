"""Which grids are unsigned: of values that cannot be negative, whatever is set later, or that feed only ReLUs."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch_geometric.nn import GCN, GCNConv, SAGEConv, global_max_pool

import dqconvert
from dqconvert.quant import FakeQuantize

X = torch.linspace(-1, 1, 40).view(10, 4)


class Scaled(nn.Module):
    """Scales what a ReLU returns by a number, before a linear layer."""

    def __init__(self, how):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.alpha, self.how = 0.5, how

    def forward(self, x):
        h = self.first(x).relu()
        return self.last({"literal": lambda: h * 0.5, "attribute": lambda: h * self.alpha}[self.how]())


@pytest.mark.parametrize(("how", "signed"), [("literal", False), ("attribute", True)])
def test_a_factor_that_may_be_set_later_may_be_negative(how, signed):
    config = dqconvert.QConfig(activation=dqconvert.QSpec(), weight=dqconvert.QSpec())
    _, report = dqconvert.prepare(Scaled(how), config, X)
    assert {entry.path: entry.signed for entry in report.entries}["last.quant.input"] is signed


def test_a_followed_factor_that_turns_negative_is_rounded_and_not_cut_off():
    module, _ = dqconvert.prepare(Scaled("attribute"), dqconvert.QConfig(activation=dqconvert.QSpec()), X)
    module.alpha = -0.5
    module.train()(X)
    low = dict(module.quantizers())["last.quant.input"].min_val
    assert low < 0
    seen = []
    module.last.quant.input.register_forward_hook(lambda layer, args, out: seen.append(out))
    module.eval()(X)
    assert seen[0].min() < 0.9 * low


# -- signed="graph" ----------------------------------------------------------------------------------------------

GRAPH = dqconvert.QSpec(signed="graph", grad="clip")
EVERY = dqconvert.QConfig(weight=GRAPH, activation=GRAPH, message=GRAPH, aggregate=GRAPH)
VARIED = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
EDGES = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 2], [1, 0, 1, 2, 3, 3, 5, 6, 7, 8, 4, 2]])


class Between(nn.Module):
    """A layer, an operation, and a ReLU."""

    def __init__(self, between, relu=True):
        super().__init__()
        self.first, self.last, self.drop = nn.Linear(4, 4), nn.Linear(4, 4), nn.Dropout(0.25)
        self.between, self.relu = between, relu

    def forward(self, x):
        h = BETWEEN[self.between](self, self.first(x))
        return self.last(h.relu()) if self.relu else h


BETWEEN = {
    "nothing": lambda _, h: h,
    "dropout": lambda m, h: m.drop(h),
    "view": lambda _, h: h.view(5, 2, 4).flatten(0, 1),
    "gather": lambda _, h: h.index_select(0, torch.tensor([3, 3, 1])),
    "max": lambda _, h: h.amax(0, keepdim=True),
    "pool": lambda _, h: global_max_pool(h, torch.zeros(10, dtype=torch.long)),
    "joined": lambda _, h: torch.cat([h, -h]),
    "both": lambda _, h: torch.cat([h, h.view(10, 4)]),
    "sum": lambda _, h: h.sum(0, keepdim=True),
    "bias": lambda _, h: h + 1,
    "mean": lambda _, h: h + h.mean(0, keepdim=True),
    "elu": lambda _, h: nn.functional.elu(h),
}


def prepared(model, config=EVERY, inputs=X):
    torch.manual_seed(0)
    module, report = dqconvert.prepare(model, config, inputs)
    return module, {entry.path: entry for entry in report.entries}


@pytest.mark.sample(2)
@pytest.mark.parametrize("between", BETWEEN)
def test_a_value_that_feeds_only_relus_is_unsigned(between):
    cut = between in ("nothing", "dropout", "view", "gather", "max", "pool", "both")
    _, entries = prepared(Between(between))
    assert entries["first.quant.feature"].signed is not cut
    _, entries = prepared(Between(between, relu=False))
    assert entries["first.quant.feature"].signed


@pytest.mark.parametrize("spec", [None, True, False, "input"])
def test_other_settings_mean_what_they_meant(spec):
    _, entries = prepared(Between("nothing"), dqconvert.QConfig(activation=dqconvert.QSpec(signed=spec)))
    assert entries["first.quant.feature"].signed is (spec is not False)


@pytest.mark.sample(3)
@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("kind", ["minmax", "ema", "percentile", "mse"])
def test_the_grid_reaches_from_zero_and_rounds_what_the_relu_leaves(kind, symmetric, fuse):
    """The definition: the quantizer of the value's positive part, at the same place."""
    spec = dqconvert.QSpec(signed="graph", symmetric=symmetric, range=kind, grad="clip", bits=4)
    torch.manual_seed(1)
    module, _ = dqconvert.prepare(Between("nothing"), dqconvert.QConfig(activation=spec), X, fuse=fuse)
    plain = FakeQuantize(dqconvert.QSpec(range=kind, grad="clip", bits=4), name="q", signed=False)
    for factor in (1.0, 2.0):
        x = (factor * VARIED).requires_grad_()
        out = module.train()(x)
        module.eval()  # whose ranges stay what this step has made them
        value = module.first.quant.input(x).detach()
        pre = torch.nn.functional.linear(value, module.first.weight, module.first.bias)
        behind = plain(pre.relu())
        torch.testing.assert_close(module.first.quant.feature.scale, plain.scale)
        assert module.first.quant.feature.zero_point == plain.zero_point == 0
        rounded = module.last.quant.input(behind.relu())
        expected = module.last.quant.feature(nn.functional.linear(rounded, module.last.weight, module.last.bias))
        # The end of a symmetric range lies half way between two codes, where the last bit decides.
        different = ~torch.isclose(out, expected)
        assert different.sum() <= symmetric
        assert (out - expected).abs().max() <= 1.001 * module.last.quant.feature.scale
        out.sum().backward()
        dead = (pre <= 0).all(0)
        assert (module.first.weight.grad[dead] == 0).all()


def test_evaluation_is_the_function_that_a_signed_grid_of_the_same_step_computes():
    """Where a grid reaches below zero with the same step, the outputs are the same: a ReLU cuts it there."""
    module, entries = prepared(GCN(4, 8, 2, 3, dropout=0.5), inputs=(X, EDGES))
    assert not entries["convs.0.quant.update"].signed
    assert entries["convs.1.quant.update"].signed
    module.train()(X, EDGES)
    out = module.eval()(X, EDGES)
    quantizer = module.convs[0].quant.update
    quantizer.from_zero, scale = False, float(quantizer.scale)
    quantizer.min_val.fill_(-255 * scale), quantizer.max_val.fill_(255 * scale)
    quantizer.quant_min, quantizer.quant_max = -255, 255
    quantizer._fused = quantizer.observer.scheme(-255, 255)
    torch.testing.assert_close(module(X, EDGES), out)


@pytest.mark.parametrize("layer", [GCNConv, SAGEConv])
def test_integers_agree(layer, tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = layer(4, 8), layer(8, 3)

        def forward(self, x, edge_index):
            return self.two(nn.functional.dropout(self.one(x, edge_index), training=self.training).relu(), edge_index)

    module, entries = prepared(Two(), inputs=(X, EDGES))
    assert "u" in {
        entries[path].codes[0] for path in entries if path in ("one.quant.update", "one.lin_r.quant.feature")
    }
    for _ in range(3):
        module.train()(X, EDGES)
    integer, out = dqconvert.convert(module), module.eval()(X, EDGES)
    assert (integer(X, EDGES) - out).abs().max() <= 1.001 * module.two.quant.update.scale
    dqconvert.save(module, tmp_path / "two.dq")
    again = dqconvert.load(tmp_path / "two.dq", model=Two())
    assert torch.equal(again.eval()(X, EDGES), out)


def test_a_hooked_relu_is_none():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model[1].register_forward_pre_hook(lambda layer, args: None)
    _, entries = prepared(model)
    assert entries["0.quant.feature"].signed


def test_a_part_that_is_called_by_itself_is_spoken_of():
    module, _ = prepared(GCN(4, 8, 2, 3), inputs=(X, EDGES))
    module.train()(X, EDGES)
    with pytest.warns(UserWarning, match=r"convs\.0\.quant\.update cuts what is below zero"):
        assert (module.eval().convs[0](X, EDGES) >= 0).all()
    assert any("convs.0.quant.update cuts" in remark for remark in module.report.remarks)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.convs[1](torch.randn(10, 8), EDGES)


def test_what_else_reads_it_in_evaluation_is_an_error():
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            h = self.first(x)
            return self.last(h.relu() if self.training else h.tanh())

    with pytest.raises(dqconvert.ConfigError, match=r"first\.quant\.feature cuts .* in training"):
        prepared(Cut())


def test_it_is_written_to_files(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(EVERY.to_toml())
    assert dqconvert.qconfig.as_qconfig(path) == EVERY
    assert dqconvert.QConfig.from_dict({"activation": {"signed": "graph"}}).activation.signed == "graph"
    with pytest.raises(dqconvert.ConfigError, match="'input' or 'graph'"):
        dqconvert.QSpec(signed="relu")
