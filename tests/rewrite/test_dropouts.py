"""Placement before dropouts: what is rounded, what is dropped, and that evaluation stays what it was."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch_geometric.nn import GAT, GCN, GATConv, GINConv, GraphSAGE
from torch_geometric.utils import softmax

import dqconvert
from dqconvert import QConfig, QSpec, Rule
from dqconvert.kernels import dropout
from dqconvert.rewrite.dropouts import drop_messages

NODES = 12
torch.manual_seed(0)
X, EDGES = torch.randn(NODES, 8), torch.randint(NODES, (2, 40))
PAPER = dqconvert.presets["int8-dq"]
BEFORE = replace(PAPER, placement="before_dropout")
MODELS = {
    "gcn": lambda: GCN(8, 8, 2, 3, dropout=0.5),
    "gat": lambda: GAT(8, 8, 2, 3, dropout=0.5, heads=2),
    "sage": lambda: GraphSAGE(8, 8, 2, 3, dropout=0.5),
}


def plain(**fields):
    spec = QSpec(grad="clip", **fields)
    return QConfig(weight=spec, activation=spec, message=spec, aggregate=spec, placement="before_dropout")


def prepared(model, config=BEFORE, **options):
    return dqconvert.prepare(model, config, (X, EDGES), **options)


def targets(module):
    return [str(node.target) for node in module.graph.nodes]


@pytest.mark.parametrize("kind", MODELS)
def test_evaluation_stays_what_it_was(kind):
    """With the same ranges: names and roles are those of the paper's placement, too."""
    model = MODELS[kind]()
    module, report = prepared(model)
    paper, there = prepared(model, PAPER)
    assert [entry.path for entry in report.entries] == [entry.path for entry in there.entries]
    paper.train()(X, EDGES)
    module.load_state_dict(paper.state_dict())
    assert torch.equal(module.eval()(X, EDGES), paper.eval()(X, EDGES))


@pytest.mark.sample(5)
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("range_", ["minmax", "percentile", "mse", "learned"])
def test_fused_or_not(kind, range_):
    """The same draws, ranges, results and gradients; what is averaged of messages may differ in the last bit."""
    model, found = MODELS[kind](), []
    for fuse in (True, False):
        module, report = prepared(model, replace(plain(range=range_), protect=PAPER.protect), fuse=fuse)
        assert any("message passing" in fusion.op for fusion in report.fusions) is fuse
        for seed in range(2):
            torch.manual_seed(seed)
            module.zero_grad()
            out = module.train()(X, EDGES)
            out.square().sum().backward()
        found.append((out, module.eval()(X, EDGES), module.state_dict(), [p.grad for p in module.parameters()]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_an_input_is_rounded_and_then_dropped():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.last = nn.Dropout(0.5), nn.Linear(8, 3)

        def forward(self, x):
            return self.last(self.drop(x).view(-1, 8))

    module, _ = dqconvert.prepare(Net(), plain(bits=4), X)
    torch.manual_seed(3)
    out = module.train()(X)
    torch.manual_seed(3)
    quantizer = module.last.quant.input
    assert (quantizer.min_val, quantizer.max_val) == (X.min(), X.max())  # not twice that, as behind the dropout
    weight = module.last.quant.weight.eval()(module.last.weight)
    rows = nn.functional.linear(dropout(quantizer.eval()(X), 0.5), weight, module.last.bias)
    torch.testing.assert_close(out, module.last.quant.feature.eval()(rows))


@pytest.mark.parametrize("p", [0.6, 1.0])
def test_a_message_is_rounded_before_its_coefficient_is_dropped(p):
    module, _ = prepared(GATConv(8, 4, heads=2, dropout=p, bias=False, add_self_loops=False), plain(bits=4))
    torch.manual_seed(5)
    out = module.train()(X, EDGES)
    torch.manual_seed(5)
    q, (sender, receiver) = module.eval().quant, EDGES
    x = module.lin.quant.feature(
        nn.functional.linear(module.lin.quant.input(X), module.lin.quant.weight(module.lin.weight))
    )
    x = x.view(-1, 2, 4)
    ends = [
        feature((x * weight(att)).sum(-1))
        for feature, weight, att in ((q.feature, q.weight, module.att_src), (q.feature_1, q.weight_1, module.att_dst))
    ]
    logits = nn.functional.leaky_relu(q.feature_2(ends[0][sender] + ends[1][receiver]), 0.2)
    alpha = softmax(logits, receiver, num_nodes=NODES)
    message = q.message(q.edge_weight(alpha).unsqueeze(-1) * x[sender])
    kept = nn.functional.dropout(torch.ones_like(alpha), p).unsqueeze(-1)
    total = torch.zeros(NODES, 2, 4).index_add(0, receiver, message * kept)
    expected = q.aggregate(total).flatten(1)
    step = q.aggregate.scale
    assert (out - expected).abs().max() <= 1.001 * step
    assert ((out - expected).abs() > 0.5 * step).sum() <= 1  # where it lay beside the middle of two codes
    assert q.edge_weight.max_val == alpha.max()


class Dropped(nn.Module):
    """Sends what it dropped, and adds it to the sum."""

    def __init__(self, drop):
        super().__init__()
        self.drop, self.conv = drop, GINConv(nn.Linear(8, 3))

    def forward(self, x, edge_index):
        return self.conv(self.drop(x), edge_index)


class Called(Dropped):
    """The same by a function."""

    def forward(self, x, edge_index):
        return self.conv(nn.functional.dropout(x, 0.5, self.training), edge_index)


class Attribute(Called):
    """The same, with a probability of its own."""

    p = 0.5

    def forward(self, x, edge_index):
        return self.conv(nn.functional.dropout(x, self.p, training=self.training), edge_index)


@pytest.mark.sample(5)
@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("kind", [Dropped, Called, Attribute])
@pytest.mark.parametrize("spec", [{}, {"grad": "clip"}, {"granularity": "channel"}, {"range": "learned"}], ids=str)
def test_a_message_that_is_a_dropped_row_is_rounded_as_if_before(kind, spec, fuse):
    """Behind a dropout of a half values and grid are twice as wide; what is observed is not."""
    model = kind(nn.Dropout(0.5))
    config = QConfig(message=QSpec(bits=4, **spec), placement="before_dropout")
    module, _ = prepared(model, config, fuse=fuse)
    torch.manual_seed(3)
    out = module.train()(X, EDGES)
    torch.manual_seed(3)
    rows, quantizer = dropout(X, 0.5), module.conv.quant.message
    assert (quantizer.min_val >= 1.1 * X.min()).all()
    assert (quantizer.max_val <= 1.1 * X.max()).all()
    module.eval()
    sent = quantizer(X)[EDGES[0]] * 2 * (rows[EDGES[0]] != 0)
    total = torch.zeros(NODES, 8).index_add(0, EDGES[1], sent)
    torch.testing.assert_close(out, module.conv.nn(total + rows), rtol=1e-4, atol=1e-4)
    held = quantizer.max_val.clone()
    module.train()(0.01 * X, EDGES)
    torch.testing.assert_close(quantizer.max_val, held)  # as it was, the values being smaller


def test_the_probability_is_the_one_of_now(tmp_path):
    module, _ = prepared(Dropped(nn.Dropout(0.5)), plain(bits=4))
    module(X, EDGES)
    dqconvert.save(module, tmp_path / "m.dq")
    loaded = dqconvert.load(tmp_path / "m.dq", model=Dropped(nn.Dropout(0.5)))
    for one in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded):
        one.train().drop.p = 0.8
        assert one.conv.quant.message.stretch == pytest.approx(5)
        one.drop.eval()
        assert one.conv.quant.message.stretch == 1
    module.drop = nn.Dropout(0.1)
    assert module.conv.quant.message.stretch == pytest.approx(1 / 0.9)
    one, _ = prepared(Dropped(nn.Dropout(0.5)), PAPER)
    assert one.conv.quant.message.train().stretch == 1  # where the paper's code has it


@pytest.mark.parametrize("kind", [Called, Attribute])
def test_so_is_that_of_a_function(tmp_path, kind):
    module, _ = prepared(kind(nn.Identity()), plain(bits=4))
    module(X, EDGES)
    dqconvert.save(module, tmp_path / "m.dq")
    loaded = dqconvert.load(tmp_path / "m.dq", model=kind(nn.Identity()))
    for one in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded):
        assert one.train().conv.quant.message.stretch == 2
        one.p = 0.8
        assert one.conv.quant.message.stretch == pytest.approx(5 if kind is Attribute else 2)


@pytest.mark.sample(2)
@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("kind", [Dropped, Called, Attribute])
def test_a_part_that_is_frozen_drops_nothing(kind, fuse):
    """Its own mode decides, not that of the quantizer, which may sit in another part."""

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = kind(nn.Dropout(0.5))

        def forward(self, x, edge_index):
            return self.part(x, edge_index)

    module, _ = prepared(Outer(), plain(bits=4), fuse=fuse)
    quantizer = module.part.conv.quant.message
    module.train()
    assert quantizer.stretch == 2
    module.part.training = module.part.drop.training = False
    assert quantizer.stretch == 1
    module(X, EDGES)
    assert (quantizer.min_val, quantizer.max_val) == (X.min(), X.max())


def test_an_explicit_seed_drops_whole_heads():
    torch.manual_seed(0)
    found = drop_messages(torch.ones(50, 2, 3), torch.empty(50, 2), 0.5)
    assert set(found.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(found, found[:, :, :1].expand_as(found))
    assert drop_messages(X, X, 0.5, False) is X


@pytest.mark.parametrize("kind", MODELS)
def test_integers_and_files(kind, tmp_path):
    model = MODELS[kind]()
    module, _ = prepared(model)
    for seed in range(3):
        torch.manual_seed(seed)
        module.train()(X, EDGES)
    out = module.eval()(X, EDGES)
    integer = dqconvert.convert(module)
    assert not any("drop" in str(node.target) for node in integer.graph.nodes)
    assert torch.equal(integer(X, EDGES), out)
    dqconvert.save(module, tmp_path / "m.dq")
    again = dqconvert.load(tmp_path / "m.dq", model=model)
    assert again.qconfig.placement == "before_dropout"
    torch.manual_seed(9)
    ours = module.train()(X, EDGES)
    torch.manual_seed(9)
    assert torch.equal(again.train()(X, EDGES), ours)


# -- where it does not apply ---------------------------------------------------------------------------------------


def test_what_something_else_reads_stays_behind():
    module, report = prepared(MODELS["sage"]())
    assert any(remark.startswith("convs.1.lin_r: its input is rounded behind the dropout") for remark in report.remarks)
    (call,) = module.graph.find_nodes(op="call_module", target="convs.1.lin_r.quant.input")
    assert call.args[0].target == "dropout"


def test_coefficients_that_are_returned_stay_dropped():
    class Shown(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = GATConv(8, 4, dropout=0.5)

        def forward(self, x, edge_index):
            return self.conv(x, edge_index, return_attention_weights=True)

    module, report = prepared(Shown())
    assert any("coefficients are dropped before they are rounded" in remark for remark in report.remarks)
    assert not module.graph.find_nodes(op="call_function", target=drop_messages)


def test_what_is_dropped_in_evaluation_too_stays():
    class Always(GATConv):
        def edge_update(self, alpha_j, alpha_i, edge_attr, index, ptr, dim_size):
            alpha = softmax((alpha_j + alpha_i).relu(), index, ptr, dim_size)
            return nn.functional.dropout(alpha, 0.5, training=True)

    module, _ = prepared(Always(8, 4))
    assert not module.graph.find_nodes(op="call_function", target=drop_messages)


def test_two_readers_of_a_dropout_have_one_quantizer():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x):
            x = nn.functional.dropout(x, 0.5, self.training)
            return self.one(x) + self.two(x)

    module, report = dqconvert.prepare(Two(), BEFORE, X)
    assert sum(entry.role == "input" for entry in report.entries) == 1
    assert torch.isfinite(module.train()(X)).all()
    rules = (Rule(module="two", role="input", spec=None),)
    with pytest.raises(dqconvert.ConfigError, match="'one' and 'two' are one value behind one dropout"):
        dqconvert.prepare(Two(), replace(BEFORE, rules=rules), X)
    assert dqconvert.prepare(Two(), replace(PAPER, rules=rules), X)


def test_it_is_a_field_of_configs(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(BEFORE.to_toml())
    assert dqconvert.qconfig.as_qconfig(path) == BEFORE
    assert QConfig.from_dict({"placement": "before_dropout"}) == BEFORE
    assert PAPER.placement == "paper"
    with pytest.raises(dqconvert.ConfigError, match="placement='before'"):
        QConfig(placement="before")
