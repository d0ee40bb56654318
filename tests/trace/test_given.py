"""Inputs are given in one way everywhere: each form to prepare, calibrate and compare; each mistake in one sentence."""

from __future__ import annotations

import collections

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader as PlainLoader
from torch.utils.data import Dataset, TensorDataset
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.loader import DataLoader
from torch_geometric.nn import MLP, GCNConv, SAGEConv, global_mean_pool

import dqconvert
from dqconvert import ConfigError, DQConvertError, TraceError


class Nodes(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = GCNConv(6, 4)

    def forward(self, x, edge_index, edge_weight=None):
        return self.conv(x, edge_index, edge_weight)


class Graphs(Nodes):
    def forward(self, x, edge_index, batch):
        return global_mean_pool(self.conv(x, edge_index), batch)


class Object(Nodes):
    def forward(self, data):
        return global_mean_pool(self.conv(data.x, data.edge_index), data.batch)


class Hetero(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = SAGEConv((6, 6), 4)

    def forward(self, x_dict, edge_index_dict):
        return self.conv((x_dict["a"], x_dict["b"]), edge_index_dict["a", "to", "b"])


class Pairs(Dataset):
    """Neither iterable nor of PyG."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return graph(), index


def graph():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 6, generator=generator)
    return Data(x=x, edge_index=torch.randint(9, (2, 30), generator=generator), y=torch.zeros(9).long())


def both():
    return graph().x, graph().edge_index


Call = collections.namedtuple("Call", ["x", "edge_index"])

FORMS = {
    "tuple": both,
    "list of arguments": lambda: list(both()),
    "dict": lambda: dict(zip(("edge_index", "x"), both()[::-1], strict=True)),
    "OrderedDict": lambda: collections.OrderedDict(x=both()[0], edge_index=both()[1]),
    "UserDict": lambda: collections.UserDict(x=both()[0], edge_index=both()[1]),
    "namedtuple": lambda: Call(*both()),
    "Data": graph,
    "list of tuples": lambda: [both(), both()],
    "list of Data": lambda: [graph(), graph()],
    "tuple of Data": lambda: (graph(), graph()),
    "generator": lambda: (graph() for _ in range(2)),
    "map": lambda: map(tuple, [both(), both()]),
    "dict's values": lambda: {0: graph()}.values(),
    "deque": lambda: collections.deque([both()]),
    "data and target": lambda: (graph(), graph().y),
    "loader of data and target": lambda: [(graph(), graph().y)],
    "loader of tuple and target": lambda: [(both(), graph().y)],
    "data set of pairs": Pairs,
}


@pytest.fixture(scope="module")
def nodes():
    model = Nodes()
    module = dqconvert.prepare(model, "int8-ptq", both()).module
    return model, module


@pytest.mark.sample(3)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_goes_into_every_function(form, nodes):
    model, module = nodes
    if form != "loader of tuple and target":  # of a float model it is not known that `x` is no pair of tensors
        prepared = dqconvert.prepare(model, None, FORMS[form]()).module
        assert prepared.train()(*both()).shape == (9, 4)
    for _, quantizer in module.quantizers():
        quantizer.reset()
    dqconvert.calibrate(module, FORMS[form]())
    assert dqconvert.compare(model, module, FORMS[form]()).output.values in (36, 72)


@pytest.mark.parametrize("kind", [Graphs, Object])
def test_batches_and_single_graphs(kind):
    batch = Batch.from_data_list([graph(), graph()])
    module = dqconvert.prepare(kind(), "int8-ptq", batch).module
    loader = DataLoader([graph()] * 3, batch_size=2)
    for data in (batch, graph(), [graph()], loader, iter(loader), (graph() for _ in range(2)), [(batch, 1)]):
        dqconvert.calibrate(module, data)
    assert dqconvert.compare(kind(), module, loader).predictions == 3
    assert dqconvert.prepare(kind(), None, loader).report.entries
    assert dqconvert.prepare(kind(), None, [graph()]).report.entries


def test_a_heterogeneous_graph():
    data = HeteroData()
    data["a"].x, data["b"].x = torch.randn(5, 6), torch.randn(4, 6)
    data["a", "to", "b"].edge_index = torch.tensor([[0, 1, 2, 4], [0, 1, 3, 2]])
    module = dqconvert.prepare(Hetero(), "int8-ptq", data).module
    dqconvert.calibrate(module, [data, data])
    dqconvert.calibrate(module, {"x_dict": data.x_dict, "edge_index_dict": data.edge_index_dict})
    assert dqconvert.compare(Hetero(), module, data).batches == 1
    with pytest.raises(ConfigError, match="its argument 'x_dict' is not in the Data, which has edge_index, x, y"):
        dqconvert.calibrate(module, graph())


def test_plain_tensors():
    x = torch.randn(8, 6)
    module = dqconvert.prepare(MLP([6, 8, 4], norm=None), "int8-ptq", x).module
    one = dqconvert.prepare(nn.Sequential(nn.Linear(6, 4)), "int8-ptq", x).module
    for prepared in (module, one):
        for data in (x, [x], [x, x], (x for _ in range(2)), PlainLoader(x, batch_size=4)):
            dqconvert.calibrate(prepared, data)
    dqconvert.calibrate(one, PlainLoader(TensorDataset(x, torch.zeros(8)), batch_size=4))
    with pytest.raises(TraceError, match="a list of tensors may be the arguments of one call, or one call each"):
        dqconvert.prepare(MLP([6, 8, 4]), None, [x, x])


def test_an_iterator_is_gone_through_once_and_no_further_than_asked_for(nodes):
    model, module = nodes
    source = (graph() for _ in range(4))
    dqconvert.prepare(model, None, source)
    assert len(list(source)) == 3
    source = (graph() for _ in range(4))
    dqconvert.calibrate(module, source, batches=2)
    assert len(list(source)) == 2


def test_iterators_within_an_argument():
    class Relations(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = GCNConv(6, 4)

        def forward(self, x, edges):
            return sum(self.conv(x, edge_index) for edge_index in edges)

    x, edge_index = both()
    module = dqconvert.prepare(Relations(), "int8-ptq", (x, (e for e in [edge_index] * 2))).module
    for edges in ([edge_index] * 2, iter([edge_index] * 2), {0: edge_index, 1: edge_index}.values()):
        dqconvert.calibrate(module, (x, edges))
    dqconvert.calibrate(module, [(x, iter([edge_index] * 2))])


def test_optional_fields_are_taken_and_named_in_the_report():
    data = graph()
    data.edge_weight = torch.rand(30)
    module, report = dqconvert.prepare(Nodes(), "int8-dq", data)
    assert any("taken as x, edge_index, edge_weight: later calls pass edge_weight, too" in r for r in report.remarks)
    dqconvert.calibrate(module, data)
    with pytest.raises(ConfigError, match="its argument 'edge_weight' is not in the Data"):
        dqconvert.calibrate(module, graph())


def test_an_adjacency_in_place_of_an_edge_index():
    x, edge_index = both()
    adj_t = torch.sparse_coo_tensor(edge_index.flip(0), torch.ones(30), (9, 9)).coalesce().to_sparse_csr()
    assert dqconvert.prepare(Nodes(), None, Data(x=x, adj_t=adj_t)).report.entries


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"x": 0, "edge_idx": 1}, "it has no argument 'edge_idx'; did you mean 'edge_index'"),
        ({"x": 0, "edge_index": 1, "weights": 2}, "it has no argument 'weights'"),
        ({"x": 0}, "missing a required argument: 'edge_index'"),
        ((0, 1, 2, 3, 4, 5), "too many positional arguments"),
        (torch.ones(2, 6), "missing a required argument: 'edge_index'"),
        (Data(x=torch.ones(2, 6)), "its argument 'edge_index' is not in the Data, which has x"),
        (Data(x=torch.ones(2, 6), edge_idx=torch.ones(2, 1)), "did you mean 'edge_idx'"),
        ("graph.pt", "got a str"),
        (None, "got None"),
        (nn.Linear(2, 2), "got a Linear"),
        (Data, "got the class Data"),
        (["graph.pt"], "missing a required argument"),
        (3, "missing a required argument"),
    ],
)
def test_mistakes(given, words, nodes):
    model, module = nodes
    if isinstance(given, dict):
        given = {key: torch.ones(2, 2) for key in given}
    if given is not None:
        with pytest.raises(TraceError, match=rf"example_inputs do not fit Nodes\.forward\(x, edge_index.*{words}"):
            dqconvert.prepare(model, None, given)
    with pytest.raises(ConfigError, match=rf"the data does not fit Nodes\.forward\(x, edge_index.*{words}"):
        dqconvert.calibrate(module, given)
    with pytest.raises(ConfigError, match=words):
        dqconvert.compare(model, module, given)


@pytest.mark.parametrize("nothing", [[], (), iter([]), DataLoader([]), {}])
def test_nothing(nothing, nodes):
    model, module = nodes
    for call in (
        lambda: dqconvert.prepare(model, None, nothing),
        lambda: dqconvert.calibrate(module, nothing),
        lambda: dqconvert.compare(model, module, nothing),
    ):
        with pytest.raises(DQConvertError, match=r"nothing|no data|missing a required argument"):
            call()


@pytest.mark.parametrize("given", [torch.ones(2, 6), {"x": torch.ones(2, 6)}, both(), 3])
def test_what_is_no_data_object_where_one_is_due(given):
    module = dqconvert.prepare(Object(), "int8-ptq", Batch.from_data_list([graph()])).module
    with pytest.raises(ConfigError, match=r"'data' is a data object, got|too many positional"):
        dqconvert.calibrate(module, given)
    with pytest.raises(ConfigError, match="'edge_index', which it reads, is not in the Data, which has x"):
        dqconvert.calibrate(module, Data(x=torch.ones(2, 6)))
