"""What a forward sets among attributes is set by the graph, too; state is followed, kept whole, or refused."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch_geometric.nn import GCNConv

import dqconvert
from dqconvert.errors import LoweringError, TraceError

X = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
EDGES = torch.randint(40, (2, 160), generator=torch.Generator().manual_seed(0))
FLOAT = {"weight": None, "activation": None, "message": None, "aggregate": None, "protect": None}


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = GCNConv(8, 8)


class Loss(Base):
    """Leaves a loss and some values to be looked at."""

    penalty = 0.0

    def forward(self, x, edge_index):
        h = self.conv(x, edge_index)
        self.penalty = h.pow(2).mean()
        self.last = {"h": h, "rows": x.size(0)}
        self.pair = (h, None)
        return h


class Count(Base):
    def __init__(self):
        super().__init__()
        self.steps = 0
        self.decay = 1.0

    def forward(self, x, edge_index):
        self.steps += 1
        self.decay = self.decay * 0.5
        return self.conv(x, edge_index) * self.decay + self.steps


class Average(Base):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))
        self.plain = torch.zeros(8)

    def forward(self, x, edge_index):
        h = self.conv(x, edge_index)
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)
            self.plain = self.plain * 0.5 + h.detach().mean(0)
        return h - self.mean + self.plain


class Cache(Base):
    """Computes something once."""

    def __init__(self):
        super().__init__()
        self.degree = None

    def forward(self, x, edge_index):
        if self.degree is None:
            self.degree = torch.zeros(x.size(0)).index_add_(0, edge_index[1], torch.ones(edge_index.size(1)))
        return self.conv(x, edge_index) + self.degree[:, None]


class Hidden(Base):
    def __init__(self):
        super().__init__()
        self.h = None

    def forward(self, x, edge_index):
        h = self.conv(x, edge_index)
        self.h = h if self.h is None else self.h.detach() + h
        return self.h


class Once(Base):
    def __init__(self):
        super().__init__()
        self.started = False

    def forward(self, x, edge_index):
        if not self.started:
            x = x * 2
            self.started = True
        return self.conv(x, edge_index)


class EveryOther(Base):
    def __init__(self):
        super().__init__()
        self.steps = 0

    def forward(self, x, edge_index):
        self.steps += 1
        return self.conv(x, edge_index) * (2 if self.steps % 2 else 1)


class History(Base):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, edge_index):
        self.seen.append(x.mean())
        return self.conv(x, edge_index) + sum(self.seen)


class Log(Base):
    def __init__(self):
        super().__init__()
        self.log = []

    def forward(self, x, edge_index):
        self.log.append(x.size(0))
        return self.conv(x, edge_index)


class Aside(Base):
    """Puts items into containers and reads them again; reads other items of the same."""

    def __init__(self):
        super().__init__()
        self.kept, self.notes = {"scale": 2.0, "deep": {}}, SimpleNamespace(shift=1.0)

    def forward(self, x, edge_index):
        self.kept["h"] = self.conv(x, edge_index)
        self.kept["deep"].update(twice=2 * self.kept["h"], rows=x.size(0))
        self.notes.mean = x.mean()
        found = self.kept["deep"]["twice"] if "h" in self.kept else x
        return found * self.kept["scale"] + self.notes.mean + self.notes.shift + self.kept["deep"]["rows"]


class Before(Base):
    """Reads an item before it sets it."""

    def __init__(self):
        super().__init__()
        self.kept = {"mean": 0.0}

    def forward(self, x, edge_index):
        out = self.conv(x, edge_index) + self.kept["mean"]
        self.kept["mean"] = x.mean()
        return out


class Counts(Base):
    """Reads how many items there are, once it has set one."""

    def __init__(self):
        super().__init__()
        self.kept = {}

    def forward(self, x, edge_index):
        self.kept[str(x.dtype)] = 1
        return self.conv(x, edge_index) * len(self.kept)


class Around(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.lin = nn.Linear(8, 4)

    def forward(self, x, edge_index):
        return self.lin(self.inner(x, edge_index))


@pytest.mark.parametrize("kind", [Loss, Count, Average])
@pytest.mark.parametrize("inside", [False, True])
def test_the_graph_sets_what_the_forward_sets(kind, inside):
    torch.manual_seed(0)
    model = Around(kind()) if inside else kind()
    twin = dqconvert.prepare(model, FLOAT, (X, EDGES)).module
    for training in (True, True, False, True):
        outs = []
        for either in (model, twin):
            either.train(training)
            outs.append(either(X, EDGES))
        assert torch.equal(*outs)
    one, two = (either.inner if inside else either for either in (model, twin))
    for name in ("penalty", "steps", "decay", "mean", "plain"):
        if hasattr(one, name):
            assert torch.as_tensor(getattr(one, name)).equal(torch.as_tensor(getattr(two, name)))
    if kind is Loss:
        assert torch.equal(one.last["h"], two.last["h"])
        assert two.last["rows"] == 40
        two.penalty.backward()
        assert twin.get_parameter("inner.conv.lin.weight" if inside else "conv.lin.weight").grad is not None


@pytest.mark.parametrize("kind", [Loss, Count, Average])
def test_quantized_modules_set_it_too(kind, tmp_path):
    module = dqconvert.prepare(kind(), "int8-dq", (X, EDGES)).module
    module.train()
    module(X, EDGES).sum().backward()
    module.eval()
    dqconvert.save(module, tmp_path / "model.dq")
    again = dqconvert.load(tmp_path / "model.dq", model=kind())
    assert torch.equal(again.eval()(X, EDGES), copy.deepcopy(module)(X, EDGES))
    if kind is Count:
        with pytest.raises(LoweringError, match=r"the forward reads '\w+' of the model and sets it anew"):
            dqconvert.convert(module)
    if kind is Loss:
        with pytest.warns(UserWarning, match="is not set by the integer module"):
            integer = dqconvert.convert(module)
        assert any("is not set" in remark for remark in integer.report.remarks)


def test_what_is_computed_once_is_computed_in_each_forward():
    model = Cache()
    module, report = dqconvert.prepare(model, FLOAT, (X, EDGES))
    assert any("'degree' of the model" in remark for remark in report.remarks)
    for _ in range(2):
        assert torch.equal(module(X, EDGES), model(X, EDGES))
    assert torch.equal(
        module(X[:7], EDGES % 7),
        copy.deepcopy(Around(model)).inner.conv(X[:7], EDGES % 7) + torch.bincount(EDGES[1] % 7, minlength=7)[:, None],
    )


def test_an_item_that_was_put_is_read_in_the_same_forward():
    torch.manual_seed(0)
    model = Aside()
    module, report = dqconvert.prepare(model, FLOAT, (X, EDGES))
    assert any("'kept' of the model stays as it is" in remark for remark in report.remarks)
    for x, edges in ((X, EDGES), (X[:7], EDGES % 7), (X, EDGES)):
        assert torch.equal(module(x, edges), model(x, edges))
    for either in (model, module):
        either.kept["scale"], either.notes.shift = 3.0, 0.5
    assert torch.equal(module(X, EDGES), model(X, EDGES))


class Handed(nn.Module):
    """Training puts something into a container, evaluation reads it."""

    def __init__(self, kind):
        super().__init__()
        self.lin, self.kind = nn.Linear(8, 8), kind
        self.kept, self.log = {"shift": 1.0}, []

    def forward(self, x, edge_index):
        x = self.lin(x)
        if self.training and self.kind == "list":
            self.log.append(x.detach().mean(0))
        elif self.training:
            self.kept["shift"] = 2.0
        elif self.kind == "list":
            x = x + len(self.log)
        elif self.kind == "keys":
            x = x * len(self.kept)
        else:
            x = x - self.kept["shift"]
        return x


@pytest.mark.parametrize("kind", ["item", "keys", "list"])
def test_what_training_puts_into_a_container_and_evaluation_reads_is_no_graphs(kind):
    with pytest.raises(TraceError, match="keeps state from one call to the next in"):
        dqconvert.prepare(Handed(kind), FLOAT, (X, EDGES))
    model = Around(Handed(kind))
    module, report = dqconvert.prepare(model, FLOAT, (X, EDGES))
    assert any(left.what == "inner" for left in report.left_float)
    for training in (True, False, True, False):
        assert torch.equal(module.train(training)(X, EDGES), model.train(training)(X, EDGES))


@pytest.mark.sample(2)
@pytest.mark.parametrize("kind", [Hidden, Once, EveryOther, History, Before, Counts])
def test_state_that_a_graph_cannot_hold(kind):
    with pytest.raises(TraceError, match=r"keeps state from one call to the next in|branches on"):
        dqconvert.prepare(kind(), FLOAT, (X, EDGES))
    model = Around(kind())
    module, report = dqconvert.prepare(model, FLOAT, (X, EDGES))
    assert any(left.what == "inner" for left in report.left_float)
    for _ in range(3):
        assert torch.equal(module(X, EDGES), model(X, EDGES))


def test_a_list_that_a_forward_adds_to_is_remarked():
    report = dqconvert.prepare(Log(), "int8-dq", (X, EDGES)).report
    assert any("'log' of the model stays as it is" in remark for remark in report.remarks)
