"""Several kinds of nodes and edges: dicts, HeteroData, relations, bipartite layers."""

import copy
import itertools
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch_geometric.data import HeteroData
from torch_geometric.nn import (
    FastRGCNConv,
    GATConv,
    GATv2Conv,
    GCNConv,
    GINConv,
    GraphConv,
    HANConv,
    HEATConv,
    HeteroConv,
    HGTConv,
    RGATConv,
    RGCNConv,
    SAGEConv,
    TransformerConv,
    to_hetero,
)
from torch_geometric.utils import trim_to_layer

import dqconvert
from checks import assert_float_identity, assert_same, assert_trains, evaluation, mask_of, normal, step
from dqconvert import ConfigError, Protect, QConfig
from dqconvert.errors import CheckpointError, InputIndexError
from test_prepare_protection import (
    SPEC,
    Watch,
    assert_frequencies,
    draws_only,
    expected_probability,
    protecting,
    some,
    watched,
)
from zoo import assert_step_close

WIDTH = 8
CITES, WRITES, REV = ("paper", "cites", "paper"), ("author", "writes", "paper"), ("paper", "rev", "author")
METADATA = (["paper", "author"], [CITES, WRITES, REV])


@dataclass(frozen=True)
class Size:
    """Numbers of nodes and edges of each type."""

    paper: int
    author: int
    cites: int
    writes: int
    rev: int


SIZES = {
    "all different": Size(14, 9, 40, 33, 21),
    "N == E": Size(16, 16, 16, 16, 16),
    "nodes of one kind == edges of another": Size(21, 12, 33, 21, 12),
}
OTHER = Size(23, 17, 71, 52, 37)


def edges(sources, targets, number, seed):
    """Random edges to all targets but the last, with a hub."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.stack(
        [
            torch.randint(sources, (number,), generator=generator),
            torch.randint(targets - 1, (number,), generator=generator),
        ]
    )
    index[1, : number // 4] = 0
    return index


def x_dict(size):
    return {"paper": normal(size.paper, WIDTH), "author": normal(size.author, WIDTH, seed=1)}


def edge_index_dict(size):
    return {
        CITES: edges(size.paper, size.paper, size.cites, 1),
        WRITES: edges(size.author, size.paper, size.writes, 2),
        REV: edges(size.paper, size.author, size.rev, 3),
    }


def dicts(size):
    return x_dict(size), edge_index_dict(size)


def hetero_data(size):
    data = HeteroData()
    for node_type, x in x_dict(size).items():
        data[node_type].x = x
    for edge_type, index in edge_index_dict(size).items():
        data[edge_type].edge_index = index
    return data


def as_data(size):
    return (hetero_data(size),)


def probabilities(size):
    """0 and 1, so that nothing is left to chance, and different for the two types."""
    return {"paper": some(size.paper), "author": 1 - some(size.author + 1)[1:]}


# -- models --------------------------------------------------------------------------------------------------------


def per_type(layer):
    """A HeteroConv with one layer per edge type."""
    return HeteroConv({edge_type: layer() for edge_type in METADATA[1]})


class Stacked(nn.Module):
    """Two HeteroConv layers and a head for papers."""

    def __init__(self):
        super().__init__()
        self.conv1 = per_type(lambda: SAGEConv((WIDTH, WIDTH), WIDTH))
        self.conv2 = per_type(lambda: GATv2Conv((WIDTH, WIDTH), WIDTH, add_self_loops=False))
        self.lin = nn.Linear(WIDTH, 3)

    def forward(self, x_dict, edge_index_dict):
        x_dict = {key: x.relu() for key, x in self.conv1(x_dict, edge_index_dict).items()}
        x_dict = self.conv2(x_dict, edge_index_dict)
        return self.lin(x_dict["paper"])


class OnData(Stacked):
    """The same on a HeteroData."""

    def forward(self, data):
        return super().forward(data.x_dict, data.edge_index_dict)


class HGT(nn.Module):
    """As in PyG's example for DBLP."""

    def __init__(self):
        super().__init__()
        self.lin_dict = nn.ModuleDict({node_type: nn.Linear(WIDTH, 16) for node_type in METADATA[0]})
        self.convs = nn.ModuleList([HGTConv(16, 16, METADATA, heads=2) for _ in range(2)])
        self.lin = nn.Linear(16, 3)

    def forward(self, x_dict, edge_index_dict):
        x_dict = {node_type: self.lin_dict[node_type](x).relu_() for node_type, x in x_dict.items()}
        for conv in self.convs:
            x_dict = conv(x_dict, edge_index_dict)
        return self.lin(x_dict["author"])


class HAN(nn.Module):
    """As in PyG's example for IMDB."""

    def __init__(self):
        super().__init__()
        self.han_conv = HANConv(WIDTH, 16, METADATA, heads=2, dropout=0.2)
        self.lin = nn.Linear(16, 3)

    def forward(self, x_dict, edge_index_dict):
        return self.lin(self.han_conv(x_dict, edge_index_dict)["paper"])


class Homogeneous(nn.Module):
    """A homogeneous model to be made heterogeneous."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = SAGEConv((-1, -1), 16), SAGEConv((-1, -1), 3)

    def forward(self, x, edge_index):
        return self.conv2(self.conv1(x, edge_index).relu(), edge_index)


def made_heterogeneous():
    model = to_hetero(Homogeneous(), METADATA, aggr="sum")
    with torch.no_grad():
        model(*dicts(OTHER))
    return model


class Links(nn.Module):
    """Scores author-paper pairs."""

    def __init__(self):
        super().__init__()
        self.conv = per_type(lambda: SAGEConv((WIDTH, WIDTH), WIDTH))
        self.lin1, self.lin2 = nn.Linear(2 * WIDTH, 16), nn.Linear(16, 1)

    def forward(self, x_dict, edge_index_dict, edge_label_index):
        z = self.conv(x_dict, edge_index_dict)
        row, col = edge_label_index
        return self.lin2(self.lin1(torch.cat([z["author"][row], z["paper"][col]], dim=-1)).relu()).view(-1)


MODELS = {
    "HeteroConv": (lambda: per_type(lambda: SAGEConv((WIDTH, WIDTH), WIDTH)), dicts),
    "HeteroConv, three kinds of layers": (
        lambda: HeteroConv(
            {
                CITES: GCNConv(WIDTH, WIDTH),
                WRITES: TransformerConv((WIDTH, WIDTH), WIDTH),
                REV: GATConv((WIDTH, WIDTH), WIDTH, add_self_loops=False),
            },
            aggr="mean",
        ),
        dicts,
    ),
    "HeteroConv stack": (Stacked, dicts),
    "HeteroData": (OnData, as_data),
    "HGTConv": (HGT, dicts),
    "HANConv": (HAN, dicts),
    "to_hetero": (made_heterogeneous, dicts),
    "links": (Links, lambda size: (*dicts(size), edges(size.author, size.paper, size.rev - 2, 4))),
}


def build(name):
    torch.manual_seed(0)
    factory, inputs = MODELS[name]
    return factory(), inputs


@pytest.mark.sample(3)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", MODELS)
def test_float_identity(name, size):
    model, inputs = build(name)
    assert_float_identity(model, inputs(SIZES[size]), inputs(OTHER))


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", MODELS)
def test_it_trains(name):
    model, inputs = build(name)
    _, report = assert_trains(model, inputs(SIZES["all different"]), inputs(OTHER))
    assert {"weight", "message", "aggregate"} <= set(report.totals["role"])
    assert report.left_float == ()


# -- who is protected ----------------------------------------------------------------------------------------------


def entry(report, module, role):
    return next(e for e in report.entries if e.module == module and e.role == role)


@pytest.mark.sample(2)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("on_data", [False, True], ids=["dicts", "HeteroData"])
def test_each_type_has_its_own_mask(size, on_data):
    """Message: the sender's type. Aggregate and update: the receiver's."""
    model = OnData() if on_data else Stacked()
    inputs = as_data if on_data else dicts
    module, report = dqconvert.prepare(model, protecting(0.0, 0.1), inputs(SIZES[size]))
    assert len(report.protection) == 2
    watch = Watch(module, report)
    for run_size in (SIZES[size], OTHER):
        given = probabilities(run_size)
        if on_data:
            data = hetero_data(run_size)
            for node_type, probability in given.items():
                data[node_type].protect_prob = probability
            module.train()(data)
        else:
            module.train()(*dicts(run_size), protect_prob=given)
        for edge_type, index in edge_index_dict(run_size).items():
            source, _, target = edge_type
            sender, receiver = given[source].bool(), given[target].bool()
            for conv in ("conv1", "conv2"):
                path = f"{conv}.convs.<{'___'.join(edge_type)}>"
                assert torch.equal(mask_of(watch, entry(report, path, "message").path), sender[index[0]]), path
                assert torch.equal(mask_of(watch, entry(report, path, "aggregate").path), receiver), path
        papers = given["paper"].bool()
        assert torch.equal(mask_of(watch, entry(report, "lin", "feature").path), papers)


@pytest.mark.parametrize("size", SIZES)
def test_to_hetero_protects_by_type(size):
    model = made_heterogeneous()
    module, watch = watched(model, protecting(0.0, 0.1), dicts(SIZES[size]))
    report = module.report
    for run_size in (SIZES[size], OTHER):
        given = probabilities(run_size)
        module(*dicts(run_size), protect_prob=given)
        for edge_type, index in edge_index_dict(run_size).items():
            sender = given[edge_type[0]].bool()[index[0]]
            for conv in ("conv1", "conv2"):
                path = f"{conv}.{'__'.join(edge_type)}"
                assert torch.equal(mask_of(watch, entry(report, path, "message").path), sender), path


@pytest.mark.parametrize("size", SIZES)
def test_hgt_messages_are_protected_by_their_sender(size):
    """HGTConv joins all edge types into one propagation, one after the other in the order of its metadata."""
    module, watch = watched(HGTConv(WIDTH, WIDTH, METADATA), protecting(0.0, 0.1), dicts(SIZES[size]))
    report = module.report
    assert {e.level for e in report.entries if e.role == "message"} == {"edge"}
    for run_size in (SIZES[size], OTHER):
        given = probabilities(run_size)
        module(*dicts(run_size), protect_prob=given)
        index = edge_index_dict(run_size)
        sender = torch.cat([given[edge_type[0]].bool()[index[edge_type][0]] for edge_type in METADATA[1]])
        assert torch.equal(mask_of(watch, entry(report, "", "message").path), sender)
        receiver = torch.cat([given["paper"].bool(), given["author"].bool()])
        assert torch.equal(mask_of(watch, entry(report, "", "aggregate").path), receiver)


@pytest.mark.parametrize("size", SIZES)
def test_han_messages_are_protected_by_their_sender(size):
    module, watch = watched(HANConv(WIDTH, WIDTH, METADATA), protecting(0.0, 0.1), dicts(SIZES[size]))
    messages = [e for e in module.report.entries if e.role == "message"]
    assert len(messages) == 3
    for run_size in (SIZES[size], OTHER):
        given = probabilities(run_size)
        module(*dicts(run_size), protect_prob=given)
        for message, (edge_type, index) in zip(messages, edge_index_dict(run_size).items(), strict=True):
            assert torch.equal(mask_of(watch, message.path), given[edge_type[0]].bool()[index[0]]), edge_type


@pytest.mark.parametrize("size", SIZES)
def test_link_scores_are_protected_by_no_edge_of_another_kind(size):
    """What belongs to pairs of nodes is told what one of the two nodes is told, or nothing; never another row's."""
    model, inputs = build("links")
    module, watch = watched(model, protecting(0.0, 0.1), inputs(SIZES[size]))
    for run_size in (SIZES[size], OTHER):
        given = probabilities(run_size)
        arguments = inputs(run_size)
        module(*arguments, protect_prob=given)
        row, col = arguments[2]
        for role in ("input", "feature"):
            found = mask_of(watch, entry(module.report, "lin1", role).path)
            options = [given["author"].bool()[row], given["paper"].bool()[col], torch.zeros(len(row), dtype=torch.bool)]
            assert any(torch.equal(found, option) for option in options), role


class Trimmed(nn.Module):
    """HeteroConv layers on sampled neighbourhoods, which each layer needs less of."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([per_type(lambda: SAGEConv((WIDTH, WIDTH), WIDTH)) for _ in range(2)])

    def forward(self, x_dict, edge_index_dict, nodes, number):
        for i, conv in enumerate(self.convs):
            x_dict, edge_index_dict, _ = trim_to_layer(i, nodes, number, x_dict, edge_index_dict)
            x_dict = conv(x_dict, edge_index_dict)
        return x_dict["paper"]


def sampled(seeds, found, seed):
    """What two hops from some papers reach, as NeighborLoader orders it: nodes and edges hop by hop."""
    generator = torch.Generator().manual_seed(seed)

    def between(sources, first, last, number):
        return torch.stack(
            [
                torch.randint(sources, (number,), generator=generator),
                torch.randint(first, last, (number,), generator=generator),
            ]
        )

    nodes = {"paper": [seeds, found, found + 1], "author": [0, seeds, found]}
    x_dict = {"paper": normal(sum(nodes["paper"]), WIDTH), "author": normal(sum(nodes["author"]), WIDTH, seed=1)}
    number = {CITES: [2 * seeds, 3 * found], WRITES: [seeds + 1, 2 * found + 1], REV: [0, 3 * seeds]}
    reached = seeds + found
    edge_index_dict = {
        CITES: [between(reached, 0, seeds, 2 * seeds), between(len(x_dict["paper"]), seeds, reached, 3 * found)],
        WRITES: [between(seeds, 0, seeds, seeds + 1), between(reached, seeds, reached, 2 * found + 1)],
        REV: [between(len(x_dict["paper"]), 0, seeds, 3 * seeds)],
    }
    return x_dict, {key: torch.cat(parts, dim=1) for key, parts in edge_index_dict.items()}, nodes, number


SAMPLES = {"all different": (4, 6), "as many authors as edges to them": (5, 10)}


@pytest.mark.parametrize("size", SAMPLES)
def test_trimmed_float_identity(size):
    model = Trimmed()
    module, report = dqconvert.prepare(model, QConfig(), sampled(*SAMPLES[size], 0))
    assert report.remarks == ()
    for inputs in (sampled(*SAMPLES[size], 0), sampled(7, 9, 1)):
        assert_same(step(copy.deepcopy(module), inputs), step(copy.deepcopy(model), inputs))
        assert_same(evaluation(module, inputs), evaluation(model, inputs))


@pytest.mark.parametrize("size", SAMPLES)
def test_trimmed_types_keep_their_protection(size):
    module, watch = watched(Trimmed(), protecting(0.0, 0.1), sampled(*SAMPLES[size], 0))
    assert len(module.report.protection) == 2
    for inputs in (sampled(*SAMPLES[size], 0), sampled(7, 9, 1)):
        x_dict, edge_index_dict, _, number = inputs
        given = {"paper": some(len(x_dict["paper"])), "author": 1 - some(len(x_dict["author"]) + 1)[1:]}
        module(*inputs, protect_prob=given)
        for edge_type, index in edge_index_dict.items():
            kept = index[:, : number[edge_type][0]]
            path = f"convs.{{}}.convs.<{'___'.join(edge_type)}>.quant.message"
            assert torch.equal(mask_of(watch, path.format(0)), given[edge_type[0]].bool()[index[0]]), edge_type
            told = watch.told[path.format(1)][-1]
            assert torch.equal(told, given[edge_type[0]].bool()[kept[0]]), edge_type


# -- how often -----------------------------------------------------------------------------------------------------


def draws_by_path(module):
    """The draws of each Protection, as a dict that fills up."""
    draws = {path: [] for path in module.report.protection}
    for path, found in draws.items():
        module.get_submodule(path).register_forward_hook(lambda m, a, drawn, found=found: found.append(drawn))
    return draws


def test_in_degrees_are_summed_over_edge_types():
    module, _ = dqconvert.prepare(per_type(lambda: SAGEConv((WIDTH, WIDTH), WIDTH)), draws_only(0.0, 1.0), dicts(OTHER))
    draws = draws_by_path(module)
    size = SIZES["all different"]
    with torch.no_grad():
        for _ in range(400):
            module.train()(*dicts(size))
    index = edge_index_dict(size)
    expected = {
        size.paper: expected_probability(torch.cat([index[CITES][1], index[WRITES][1]]), size.paper, 0.0, 1.0),
        size.author: expected_probability(index[REV][1], size.author, 0.0, 1.0),
    }
    assert sorted(len(found[0]) for found in draws.values()) == sorted(expected)
    for found in draws.values():
        assert_frequencies(found, expected[len(found[0])])


def test_nodes_without_in_edges_have_the_lowest_probability():
    conv = HeteroConv({WRITES: SAGEConv((WIDTH, WIDTH), WIDTH)})
    size = SIZES["all different"]

    def inputs(size):
        return x_dict(size), {WRITES: edge_index_dict(size)[WRITES]}

    module, _ = dqconvert.prepare(conv, draws_only(0.0, 1.0), inputs(OTHER))
    draws = draws_by_path(module)
    with torch.no_grad():
        for _ in range(50):
            module.train()(*inputs(size))
    authors = [torch.stack(found) for found in draws.values() if len(found[0]) == size.author]
    assert len(authors) == 1
    assert not authors[0].any()


def test_the_transform_serves_hetero_data():
    data = dqconvert.DegreeProtection(0.0, 0.5)(hetero_data(OTHER))
    module, _ = dqconvert.prepare(OnData(), protecting(0.0, 0.5), as_data(SIZES["N == E"]))
    draws = draws_by_path(module)
    for inputs in (hetero_data(OTHER), data):
        torch.manual_seed(3)
        module.train()(inputs)
    for found in draws.values():
        assert torch.equal(found[0], found[1])
    assert any(found[0].any() for found in draws.values())


def test_one_tensor_for_several_types_is_refused():
    module, _ = dqconvert.prepare(Stacked(), None, dicts(OTHER))
    with pytest.raises(ConfigError, match="dict of node type"):
        module.train()(*dicts(OTHER), protect_prob=torch.ones(OTHER.paper))


def test_a_type_that_is_not_given_draws_its_own():
    module, _ = dqconvert.prepare(Stacked(), protecting(1.0, 1.0), dicts(SIZES["all different"]))
    draws = draws_by_path(module)
    module.train()(*dicts(OTHER), protect_prob={"paper": torch.zeros(OTHER.paper)})
    for (drawn,) in draws.values():
        assert drawn.all() == (len(drawn) == OTHER.author)


# -- all and nothing -----------------------------------------------------------------------------------------------


@pytest.mark.sample(3)
@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "not fused"])
@pytest.mark.parametrize("name", ["HeteroConv", "HeteroConv stack", "HGTConv", "to_hetero"])
def test_all_protected_is_float(name, fuse):
    """But for weights. (HANConv's attention over edge types belongs to no node, and is never protected.)"""
    model, inputs = build(name)
    for module in model.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    config = QConfig(activation=SPEC, message=SPEC, aggregate=SPEC, protect=Protect())
    module, _ = dqconvert.prepare(model, config, inputs(SIZES["N == E"]), fuse=fuse)
    for size in (SIZES["N == E"], OTHER):
        given = {"paper": torch.ones(size.paper), "author": torch.ones(size.author)}
        found = step(copy.deepcopy(module), inputs(size), protect_prob=given)
        wanted = step(copy.deepcopy(model), inputs(size))
        assert_step_close(found, wanted, exact=not fuse)


# -- relations -----------------------------------------------------------------------------------------------------

RELATIONS = 3


def relational(nodes, number):
    types = torch.arange(number) % RELATIONS
    return normal(nodes, WIDTH), edges(nodes, nodes, number, 5), types


RELATIONAL = {
    "RGCNConv": lambda: RGCNConv(WIDTH, 4, RELATIONS),
    "RGCNConv, bases": lambda: RGCNConv(WIDTH, 4, RELATIONS, num_bases=2),
    "RGCNConv, blocks": lambda: RGCNConv(WIDTH, 4, RELATIONS, num_blocks=2),
    "FastRGCNConv": lambda: FastRGCNConv(WIDTH, 4, RELATIONS),
    "RGATConv": lambda: RGATConv(WIDTH, 4, RELATIONS, heads=2, dim=1),
}


@pytest.mark.sample(3)
@pytest.mark.parametrize("size", [(14, 40), (18, 18)], ids=["N != E", "N == E"])
@pytest.mark.parametrize("name", RELATIONAL)
def test_relations(name, size):
    torch.manual_seed(0)
    model = RELATIONAL[name]()
    assert_float_identity(model, relational(*size), relational(23, 71))
    assert_trains(model, relational(*size), relational(23, 71))


@pytest.mark.parametrize("size", [(14, 40), (18, 18)], ids=["N != E", "N == E"])
@pytest.mark.parametrize("name", ["RGCNConv", "RGCNConv, bases", "RGCNConv, blocks"])
def test_each_relation_is_protected_by_its_senders(name, size):
    """RGCNConv propagates once per relation, over the edges of that relation."""
    torch.manual_seed(0)
    module, watch = watched(RELATIONAL[name](), protecting(0.0, 0.1), relational(*size))
    messages = [e for e in module.report.entries if e.role == "message"]
    aggregates = [e for e in module.report.entries if e.role == "aggregate"]
    assert len(messages) == len(aggregates) == RELATIONS
    for run_size in (size, (23, 71)):
        x, edge_index, edge_type = relational(*run_size)
        given = some(run_size[0])
        module(x, edge_index, edge_type, protect_prob=given)
        for relation in range(RELATIONS):
            index = edge_index[:, edge_type == relation]
            assert torch.equal(mask_of(watch, messages[relation].path), given.bool()[index[0]])
            assert torch.equal(mask_of(watch, aggregates[relation].path), given.bool())


@pytest.mark.parametrize("size", [(14, 40), (18, 18)], ids=["N != E", "N == E"])
@pytest.mark.parametrize("name", ["FastRGCNConv", "RGATConv"])
def test_relations_in_one_propagation_are_protected_by_the_sender(name, size):
    torch.manual_seed(0)
    module, watch = watched(RELATIONAL[name](), protecting(0.0, 0.1), relational(*size))
    for run_size in (size, (23, 71)):
        x, edge_index, edge_type = relational(*run_size)
        given = some(run_size[0])
        module(x, edge_index, edge_type, protect_prob=given)
        assert torch.equal(mask_of(watch, "quant.message"), given.bool()[edge_index[0]])


def test_node_types_as_a_tensor():
    def inputs(nodes, number):
        x, edge_index, edge_type = relational(nodes, number)
        return x, edge_index, torch.arange(nodes) % 2, edge_type, normal(number, 5, seed=6)

    model = HEATConv(WIDTH, 4, 2, RELATIONS, 4, 5, 4, heads=2)
    assert_float_identity(model, inputs(14, 40), inputs(23, 71))
    assert_float_identity(model, inputs(18, 18), inputs(23, 71))


# -- bipartite -----------------------------------------------------------------------------------------------------


def pair(size):
    sources, targets, number = size
    return (normal(sources, WIDTH), normal(targets, 6, seed=1)), edges(sources, targets, number, 2)


def pair_alike(size):
    sources, targets, number = size
    return (normal(sources, WIDTH), normal(targets, WIDTH, seed=1)), edges(sources, targets, number, 2)


def mlp():
    return nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, 4))


BIPARTITE = {
    "SAGEConv": (lambda: SAGEConv((WIDTH, 6), 4), pair),
    "SAGEConv, max": (lambda: SAGEConv((WIDTH, 6), 4, aggr="max"), pair),
    "GraphConv": (lambda: GraphConv((WIDTH, 6), 4), pair),
    "GATConv": (lambda: GATConv((WIDTH, 6), 4, heads=2, add_self_loops=False), pair),
    "GATv2Conv": (lambda: GATv2Conv((WIDTH, 6), 4, add_self_loops=False), pair),
    "TransformerConv": (lambda: TransformerConv((WIDTH, 6), 4), pair),
    "GINConv": (lambda: GINConv(mlp()), pair_alike),
}
PAIRS = {
    "all different": (14, 9, 33),
    "N == E": (18, 18, 18),
    "targets == E": (13, 21, 21),
    "sources == E": (21, 13, 21),
}


@pytest.mark.sample(3)
@pytest.mark.parametrize("size", PAIRS)
@pytest.mark.parametrize("name", BIPARTITE)
def test_bipartite_float_identity(name, size):
    torch.manual_seed(0)
    factory, inputs = BIPARTITE[name]
    assert_float_identity(factory(), inputs(PAIRS[size]), inputs((23, 15, 50)))


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", BIPARTITE)
def test_bipartite_trains(name):
    torch.manual_seed(0)
    factory, inputs = BIPARTITE[name]
    assert_trains(factory(), inputs(PAIRS["all different"]), inputs((23, 15, 50)))


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", BIPARTITE)
def test_bipartite_in_integers(name):
    """Senders and receivers are counted apart: there may be more of either."""
    torch.manual_seed(0)
    factory, inputs = BIPARTITE[name]
    module, _ = dqconvert.prepare(factory(), "int8-dq", inputs((14, 9, 60)))
    module(*inputs((23, 15, 50)))
    integer = dqconvert.convert(module.eval())
    for size in ((14, 9, 60), (9, 14, 60)):
        given = inputs(size)
        torch.testing.assert_close(integer(*given), module(*given))
        wrong = given[1].clone()
        wrong[1, 0] = size[1]
        with pytest.raises(InputIndexError, match=f"node {size[1]}, and there are {size[1]} nodes"):
            integer(given[0], wrong)


@pytest.mark.sample(3)
@pytest.mark.parametrize("size", PAIRS)
@pytest.mark.parametrize("name", BIPARTITE)
def test_bipartite_protection(name, size):
    """One draw for the sources, one for the targets: messages go by the first, aggregates by the second."""
    torch.manual_seed(0)
    factory, inputs = BIPARTITE[name]
    module, report = dqconvert.prepare(factory(), protecting(0.5, 0.5), inputs(PAIRS[size]))
    assert len(report.protection) == 2
    watch, draws = Watch(module, report), draws_by_path(module)
    for run_size in (PAIRS[size], (23, 15, 50)):
        arguments = inputs(run_size)
        module.train()(*arguments)
        index = arguments[1]
        fits = []
        for source, target in itertools.permutations([found[-1] for found in draws.values()]):
            if (len(source), len(target)) != run_size[:2]:
                continue
            fits.append(
                torch.equal(mask_of(watch, "quant.message"), source[index[0]])
                and torch.equal(mask_of(watch, "quant.aggregate"), target)
            )
        assert any(fits)


def test_only_targets_of_a_bipartite_layer_have_in_edges():
    size = PAIRS["all different"]
    module, _ = dqconvert.prepare(SAGEConv((WIDTH, 6), 4), draws_only(0.0, 1.0), pair((23, 15, 50)))
    draws = draws_by_path(module)
    with torch.no_grad():
        for _ in range(200):
            module.train()(*pair(size))
    expected = {
        size[0]: torch.zeros(size[0]),
        size[1]: expected_probability(pair(size)[1][1], size[1], 0.0, 1.0),
    }
    for found in draws.values():
        assert_frequencies(found, expected[len(found[0])])


class Sampled(nn.Module):
    """Bipartite layers as PyG's older sampling examples call them: the targets are the first of the sources."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([SAGEConv(WIDTH, 16), SAGEConv(16, 4)])

    def forward(self, x, adjs):
        for i, (edge_index, size) in enumerate(adjs):
            x_target = x[: size[1]]
            x = self.convs[i]((x, x_target), edge_index)
            if i == 0:
                x = F.relu(x)
        return x.log_softmax(dim=-1)


def test_targets_among_the_sources():
    def inputs(first, second, third, number):
        return normal(first, WIDTH), [
            (edges(first, second, number, 1), (first, second)),
            (edges(second, third, number - 7, 2), (second, third)),
        ]

    model = Sampled()
    module, _ = dqconvert.prepare(model, QConfig(), inputs(23, 14, 5, 40))
    for arguments in (inputs(23, 14, 5, 40), inputs(31, 17, 6, 53)):
        assert_same(step(copy.deepcopy(module), arguments), step(copy.deepcopy(model), arguments))
        assert_same(evaluation(module, arguments), evaluation(model, arguments))


def test_a_node_type_that_no_input_ever_had(tmp_path):
    """Its weights stay without a shape, as in float: what is computed works, and a file is refused in words."""
    metadata = ["author", "paper", "school"], [("author", "writes", "paper"), ("school", "employs", "author")]
    x = {"author": torch.randn(4, 8), "paper": torch.randn(6, 12)}
    edges = {("author", "writes", "paper"): torch.randint(4, (2, 20))}
    model = HGTConv(-1, 16, metadata, heads=2)
    model(x, edges)
    module, _ = dqconvert.prepare(model, QConfig(), (x, edges))
    assert torch.equal(module(x, edges)["paper"], model(x, edges)["paper"])
    module, _ = dqconvert.prepare(model, "int8-dq", (x, edges))
    module.train()(x, edges)["paper"].sum().backward()
    expected = module.eval()(x, edges)["paper"]
    assert (dqconvert.convert(module)(x, edges)["paper"] - expected).abs().max() < 0.1
    with pytest.raises(CheckpointError, match=r"^'kqv_lin.lins.school.weight'.* of lazy layers without a shape cannot"):
        dqconvert.save(module, tmp_path / "hgt.dq")
