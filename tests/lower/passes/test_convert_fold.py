"""Integer modules compute one row for all nodes that a layer cannot tell apart: the same to the last bit."""

from __future__ import annotations

import copy
import functools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Interpreter
from torch_geometric.nn import (
    GAT,
    GCN,
    GIN,
    GraphConv,
    GraphSAGE,
    JumpingKnowledge,
    SAGEConv,
    global_add_pool,
    global_max_pool,
)

import dqconvert
from dqconvert.bench.case import Case, build
from dqconvert.errors import InputIndexError, InputShapeError, InputTypeError
from dqconvert.kernels.integer.folding.fold import fold_nodes
from dqconvert.kernels.integer.propagate import integer_propagate
from dqconvert.kernels.integer.receivers import receiver_order

WIDTH, GRAPHS = 4, 6
HAS_REDDIT = (Path(os.environ.get("DQCONVERT_DATA", "")) / "TUDataset" / "REDDIT-BINARY").is_dir()


class Pooled(nn.Module):
    """A network, the sum or the maximum over the nodes of each graph, a head."""

    def __init__(self, net, pool):
        super().__init__()
        self.net, self.pool, self.head = net, pool, nn.Linear(8, 3)

    def forward(self, x, edge_index, batch):
        return self.head(self.pool(self.net(x, edge_index).relu(), batch))


class Jumps(nn.Module):
    """The sum of what several layers return, the features beside it."""

    def __init__(self, how):
        super().__init__()
        self.lin = nn.Linear(WIDTH, 8)
        self.convs = nn.ModuleList([SAGEConv(8, 8) for _ in range(3)])
        self.jump, self.head = JumpingKnowledge(how), nn.Linear(24 if how == "cat" else 8, 3)

    def forward(self, x, edge_index):
        h, found = self.lin(x).relu(), []
        for conv in self.convs:
            h = (conv(h, edge_index) + h).relu()
            found.append(h)
        return self.head(self.jump(found))


class Pairs(nn.Module):
    """A score for each edge: reads a folded value at both ends."""

    def __init__(self):
        super().__init__()
        self.net = GIN(WIDTH, 8, 2, 8)

    def forward(self, x, edge_index):
        h = self.net(x, edge_index)
        return (h[edge_index[0]] * h[edge_index[1]]).sum(1), h, x


class Atoms(nn.Module):
    """Numbers of atoms and charges, embedded, as in models of molecules."""

    def __init__(self):
        super().__init__()
        self.atoms, self.charges = nn.Embedding(9, 8), nn.Embedding(3, 8)
        self.net, self.head = GIN(8, 8, 2, 8), nn.Linear(8, 3)

    def forward(self, x, edge_index, batch):
        h = self.atoms(x[:, 0]) + self.charges(x[:, 1])
        return self.head(global_add_pool(self.net(h, edge_index), batch))


class Kinds(nn.Module):
    """One column of kinds."""

    def __init__(self):
        super().__init__()
        self.kinds, self.net = nn.Embedding(9, 8), GraphSAGE(8, 8, 2, 3)

    def forward(self, x, edge_index):
        return self.net(self.kinds(x.squeeze(-1)), edge_index)


class Placed(nn.Module):
    """A second argument with a row for each node."""

    def __init__(self):
        super().__init__()
        self.conv, self.lin = SAGEConv(WIDTH, 8), nn.Linear(WIDTH, 8)

    def forward(self, x, edge_index, pos):
        return self.conv(x, edge_index) + self.lin(pos)


FOLDED = {
    "GIN": lambda: GIN(WIDTH, 8, 3, 3),
    "GCN": lambda: GCN(WIDTH, 8, 3, 3, norm="batch_norm"),
    "GCN, cat": lambda: GCN(WIDTH, 8, 3, 3, jk="cat"),
    "GraphSAGE": lambda: GraphSAGE(WIDTH, 8, 3, 3),
    "GraphSAGE, max": lambda: GraphSAGE(WIDTH, 8, 2, 3, aggr="max"),
    "pooled": lambda: Pooled(GIN(WIDTH, 8, 3, 8), global_add_pool),
    "pooled, max": lambda: Pooled(GCN(WIDTH, 8, 2, 8), global_max_pool),
    "jumps, max": lambda: Jumps("max"),
    "jumps, cat": lambda: Jumps("cat"),
    "GraphConv": lambda: GraphConv(WIDTH, 3),
    "pairs": Pairs,
    "placed": Placed,
    "atoms": Atoms,
    "kinds": Kinds,
}
KINDS = {"atoms": 2, "kinds": 1}
"""Models whose features are numbers of kinds; how many of them."""

WHOLE = {"GAT": lambda: GAT(WIDTH, 8, 2, 3, heads=2), "GCN, weights": lambda: GCN(WIDTH, 8, 2, 3)}


def trees(nodes, seed):
    """A few trees in which most nodes hang on a few others; which tree each node belongs to."""
    torch.manual_seed(seed)
    child = torch.arange(GRAPHS, nodes)
    parents = child % GRAPHS + GRAPHS * (torch.rand(child.numel()) ** 3 * (child // GRAPHS).clamp(max=9)).long()
    return torch.stack([torch.cat([child, parents]), torch.cat([parents, child])]), torch.arange(nodes) % GRAPHS


def inputs(name, nodes=300, seed=0, x=None):
    edge_index, batch = trees(nodes, seed)
    if name in KINDS:
        x = torch.zeros(nodes, WIDTH) if x is None else x
        x = (x[:, : KINDS[name]] * 100).long().abs() % (3 if name == "atoms" else 9)
    given = {"x": torch.ones(nodes, WIDTH) if x is None else x, "edge_index": edge_index}
    if name.startswith("pooled") or name == "atoms":
        given["batch"] = batch
    if name == "placed":
        given["pos"] = torch.randn(nodes, WIDTH)
    if name == "GCN, weights":
        given["edge_weight"] = torch.rand(edge_index.size(1))
    return given


@functools.cache
def converted(name, config="int8-dq"):
    """The integer module, and the same unfolded."""
    torch.manual_seed(0)
    model = {**FOLDED, **WHOLE}[name]()
    module = dqconvert.prepare(model, config, inputs(name, x=torch.randn(300, WIDTH))).module.train()
    for seed in range(3):
        x = torch.randn(300, WIDTH) if seed else None
        module(**inputs(name, 300, seed, x))
    unfolded = dqconvert.convert(module, fold=False)
    assert not folds(unfolded)
    return dqconvert.convert(module), unfolded


def folds(module):
    return [node for node in module.graph.nodes if node.target is fold_nodes]


def rows_of_messages(module, given):
    """How many rows each layer computes."""
    rows = []

    class Counted(Interpreter):
        def run_node(self, n):
            value = super().run_node(n)
            if n.target is integer_propagate:
                rows.append(value.size(0))
            return value

    with torch.no_grad():
        Counted(module).run(*given.values(), enable_io_processing=False)
    return rows


def same(found, wanted):
    pairs = zip(found, wanted, strict=True) if isinstance(found, tuple) else [(found, wanted)]
    return all(torch.equal(one, two) for one, two in pairs)


@pytest.mark.sample(5)
@pytest.mark.parametrize("config", ["int8-dq", "int4-dq"])
@pytest.mark.parametrize("name", FOLDED)
def test_no_bit_changes(name, config):
    folded, unfolded = converted(name, config)
    assert len(folds(folded)) == 1
    kinds = torch.randn(3, WIDTH)
    for x in (None, kinds[torch.randint(3, (500,))], torch.randn(500, WIDTH), torch.zeros(500, WIDTH)):
        given = inputs(name, 500, 7, x)
        for _ in range(2):
            assert same(folded(**given), unfolded(**given))
    for nodes in (GRAPHS, GRAPHS + 1):
        given = inputs(name, nodes, 3)
        assert same(folded(**given), unfolded(**given))
    given = inputs(name, 40, 3) | {"edge_index": torch.empty(2, 0, dtype=torch.int64)}
    assert same(folded(**given), unfolded(**given))


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", FOLDED)
def test_layers_compute_fewer_rows(name):
    folded, unfolded = converted(name)
    given = inputs(name, 500, 7)
    few, many = rows_of_messages(folded, given), rows_of_messages(unfolded, given)
    assert len(few) == len(many)
    assert few[0] < 100 < many[0] == 500
    if name not in KINDS:
        distinct = inputs(name, 500, 7, torch.randn(500, WIDTH))
        assert rows_of_messages(folded, distinct) == many


def test_each_layer_computes_a_row_for_each_color():
    """A star of stars: by their degrees there are three kinds of nodes, and never more."""
    folded, unfolded = converted("GIN")
    hubs, leaves = 10, 20
    hub, leaf = torch.arange(1, hubs + 1), torch.arange(hubs + 1, hubs + 1 + hubs * leaves)
    up = torch.stack([torch.cat([hub, leaf]), torch.cat([hub * 0, (leaf - 1) % hubs + 1])])
    given = {"x": torch.ones(int(leaf[-1]) + 1, WIDTH), "edge_index": torch.cat([up, up.flip(0)], dim=1)}
    assert rows_of_messages(folded, given) == [3, 3, 3]
    assert same(folded(**given), unfolded(**given))


@pytest.mark.skipif(not HAS_REDDIT, reason="DQCONVERT_DATA does not name a folder with TUDataset/REDDIT-BINARY")
def test_what_is_left_of_a_real_batch():
    subject = build(Case(workload="V5", root=os.environ["DQCONVERT_DATA"]))
    x, edge_index = (subject.inputs.arguments[name] for name in ("x", "edge_index"))
    ptr, senders, _ = receiver_order(edge_index[0], edge_index[1], x.size(0), x.size(0))
    left = [int(level.place.max()) + 1 for level in fold_nodes(x, ptr, senders, 5)]
    assert (x.size(0), left) == (63_371, [1, 161, 9_003, 22_821, 26_703, 27_191])


@pytest.mark.parametrize("name", WHOLE)
def test_messages_that_differ_from_edge_to_edge_are_not_folded(name):
    folded, unfolded = converted(name)
    assert not folds(folded)
    given = inputs(name, 200, 5)
    assert same(folded(**given), unfolded(**given))


def test_features_that_are_written_over_between_calls():
    """The memory is the same, and so is the graph: only the values say that other nodes are alike now."""
    folded, unfolded = converted("pooled")
    given = inputs("pooled", 400, 2)
    for rows in (slice(0, 50), slice(100, 300), slice(0, 400)):
        assert same(folded(**given), unfolded(**given))
        given["x"][rows] = torch.randn(WIDTH)
    assert same(folded(**given), unfolded(**given))


def test_codes_that_stand_for_values_on_two_grids():
    """What a linear layer and the update behind it round to: codes agree, and the second grid's ReLU is pooled."""
    assert converted("pooled")[0].report.floats == ()


def test_nan_is_found_in_what_is_left():
    folded, _ = converted("GIN")
    given = inputs("GIN", 100)
    given["x"][17, 2] = float("nan")
    with pytest.raises(ValueError, match="x holds NaN"):
        folded(**given)


def test_errors_speak_of_what_was_given():
    """Not of how many rows are left of it."""
    folded, _ = converted("atoms")
    given = inputs("atoms", 100)
    with pytest.raises(InputTypeError, match=r"batch must hold integers .* got torch.float32"):
        folded(**given | {"batch": given["batch"].float()})
    with pytest.raises(InputIndexError, match=r"100 rows take 100 groups to which they belong, got \(7,\)"):
        folded(**given | {"batch": given["batch"][:7]})
    wide = torch.ones(100, WIDTH + 1)
    with pytest.raises(InputShapeError, match="x has 5 columns, the model takes 4"):
        converted("GIN")[0](**inputs("GIN", 100, x=wide))
    with pytest.raises(InputShapeError, match=r"x has 5 columns, convs.0.lin takes 4"):
        converted("GCN")[0](**inputs("GCN", 100, x=wide))


@pytest.mark.parametrize("fold", [True, False])
def test_a_file_holds_whether_it_is_folded(fold, tmp_path):
    folded, unfolded = converted("pooled")
    module = folded if fold else unfolded
    dqconvert.save(module, tmp_path / "model.dq")
    loaded = dqconvert.load(tmp_path / "model.dq")
    assert len(folds(loaded)) == len(folds(copy.deepcopy(module))) == int(fold)
    given = inputs("pooled", 500, 7)
    assert same(loaded(**given), unfolded(**given))
    assert rows_of_messages(loaded, given) == rows_of_messages(module, given)


def test_comparing_looks_at_every_row():
    """Layer by layer the figures are those of a module that is not folded."""
    torch.manual_seed(0)
    model = GIN(WIDTH, 8, 2, 3).eval()
    module = dqconvert.prepare(model, "int8-ptq", inputs("GIN")).module
    dqconvert.calibrate(module, [inputs("GIN", 300, seed) for seed in range(3)])
    integer = dqconvert.convert(module)
    assert folds(integer)
    found = dqconvert.compare(model, integer, [inputs("GIN", 500, 7)]).to_dict()
    unfolded = dqconvert.convert(module, fold=False)
    wanted = dqconvert.compare(model, unfolded, [inputs("GIN", 500, 7)]).to_dict()
    assert found["layers"] == wanted["layers"]
    assert all(layer["values"] % 500 == 0 for layer in found["layers"])


def test_threads_with_graphs_of_their_own():
    folded, unfolded = converted("GCN")
    cases = [inputs("GCN", 200 + 40 * seed, seed) for seed in range(4)] * 8
    expected = [unfolded(**given) for given in cases]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda given: folded(**given), cases))
    assert all(same(one, two) for one, two in zip(found, expected, strict=True))


def test_compiled_code_computes_all_rows():
    folded, unfolded = converted("GIN")
    given = inputs("GIN", 300, 4)
    exported = torch.export.export(copy.deepcopy(folded), (), given, strict=False)
    assert same(exported.module()(**given), unfolded(**given))


def test_shapes_without_values():
    """Nor are such tensors remembered, and met again where there are values."""
    folded, unfolded = converted("GIN")
    given = inputs("GIN", 300, 4)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        found = folded(**{name: mode.from_tensor(value) for name, value in given.items()})
    assert found.shape == unfolded(**given).shape
    assert same(folded(**given), unfolded(**given))
