"""Rows made from other rows keep their protection."""

import pytest
import torch
from torch import nn
from torch_geometric.nn import GCNConv, HGTConv, SAGEConv
from torch_geometric.nn.pool.connect.filter_edges import filter_adj

import dqconvert
from checks import mask_of
from test_prepare_protection import assert_frequencies, draws_only, expected_probability, protecting, some, watched

WIDTH = 8


def graph(nodes, edges, seed=0):
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(nodes - 1, (2, edges), generator=generator)
    index[1, : edges // 4] = 0
    return torch.randn(nodes, WIDTH, generator=generator), index


def flattened(x):
    """Two heads, one behind the other."""
    return torch.stack([x, x.tanh()]).view(-1, WIDTH)


def interleaved(x):
    return torch.stack([x, x.tanh(), -x], dim=1).reshape(-1, WIDTH)


# What is done to node rows, and what that does to a mask of them.
MADE = {
    "a slice": (lambda x: x[:-3], lambda mask: mask[:-3]),
    "a slice from a size": (lambda x: x[x.size(0) // 2 :], lambda mask: mask[len(mask) // 2 :]),
    "a slice with steps, and of columns": (
        lambda x: x[1::2, :4].repeat(1, 2),
        lambda mask: mask[1::2],
    ),
    "narrow": (lambda x: x.narrow(0, 0, x.size(0) - 4), lambda mask: mask[:-4]),
    "narrow of the last rows": (lambda x: torch.narrow(x, -2, 0, x.size(0) - 1), lambda mask: mask[:-1]),
    "an index": (
        lambda x: x[torch.arange(x.size(0) - 2, device=x.device).flip(0)],
        lambda mask: mask[:-2].flip(0),
    ),
    "index_select": (
        lambda x: x.index_select(dim=0, index=torch.arange(1, x.size(0), device=x.device)),
        lambda mask: mask[1:],
    ),
    "a concatenation": (lambda x: torch.cat([x[:-3], x]), lambda mask: torch.cat([mask[:-3], mask])),
    "heads, one behind the other": (flattened, lambda mask: mask.repeat(2)),
    "heads of each row": (interleaved, lambda mask: mask.repeat_interleave(3)),
    "one after the other": (
        lambda x: torch.cat([x[:-2], x], dim=0)[3:],
        lambda mask: torch.cat([mask[:-2], mask])[3:],
    ),
}


class Made(nn.Module):
    """A layer, and another linear layer on rows made from its nodes."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.lin, self.function = SAGEConv(WIDTH, WIDTH), nn.Linear(WIDTH, 4), function

    def forward(self, x, edge_index):
        return self.lin(self.function(self.conv(x, edge_index)))


@pytest.mark.sample(3)
@pytest.mark.parametrize("size", [(14, 40), (18, 18)], ids=["N != E", "N == E"])
@pytest.mark.parametrize("name", MADE)
def test_rows_made_from_nodes_keep_their_protection(name, size):
    function, of_mask = MADE[name]
    torch.manual_seed(0)
    module, watch = watched(Made(function), protecting(0.0, 0.1), graph(*size))
    assert len(module.report.protection) == 1
    for run_size in (size, (23, 71)):
        given = some(run_size[0])
        module(*graph(*run_size), protect_prob=given)
        for role in ("input", "feature"):
            paths = [e.path for e in module.report.entries if (e.module, e.role, e.level) == ("lin", role, "node")]
            for path in paths:  # an input may be on the layer's grid already
                assert torch.equal(mask_of(watch, path), of_mask(given.bool()))
            assert paths or role == "input"


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", MADE)
def test_rows_made_from_nodes_in_evaluation_and_from_a_file(name, tmp_path):
    torch.manual_seed(0)
    model = Made(MADE[name][0])
    module, _ = dqconvert.prepare(model, "int8-dq", graph(14, 40))
    module.train()(*graph(14, 40)).sum().backward()
    dqconvert.save(module, tmp_path / "made.dq")
    again = dqconvert.load(tmp_path / "made.dq", model=model)
    found, wanted = (each.eval()(*graph(23, 71)) for each in (again, module))
    assert torch.equal(found, wanted)
    seeded = []
    for each in (again, module):
        torch.manual_seed(3)
        seeded.append(each.train()(*graph(23, 71)))
    assert torch.equal(*seeded)


def test_a_boolean_mask_is_not_taken_for_positions():
    """Which rows it picks is known when the graph runs, and what they were before is not followed: no protection."""
    module, watch = watched(Made(lambda x: x.sort(dim=0).values[x[:, 0] > 0]), protecting(0.0, 0.1), graph(14, 40))
    module(*graph(23, 71), protect_prob=torch.ones(23))
    entry = next(e for e in module.report.entries if (e.module, e.role) == ("lin", "feature"))
    assert entry.level == "graph"
    assert watch.told[entry.path][-1] is None


class ByClass(nn.Module):
    """A linear layer for each class of nodes: as many rows in one as in the other, by chance or for good."""

    def __init__(self):
        super().__init__()
        self.conv = SAGEConv(WIDTH, WIDTH)
        self.lins = nn.ModuleList([nn.Linear(WIDTH, 4) for _ in range(2)])

    def forward(self, x, edge_index, classes):
        x = self.conv(x, edge_index)
        out = x.new_zeros(x.size(0), 4)
        for number, lin in enumerate(self.lins):
            index = (classes == number).nonzero().view(-1)
            out[index] = lin(x[index])
        return out


def test_rows_picked_twice_are_told_apart_though_there_are_as_many():
    def inputs(nodes, edges, classes):
        return *graph(nodes, edges), torch.tensor(classes)

    example = inputs(14, 40, [0, 0, 1, 0, 1, 1, 0] * 2)
    module, watch = watched(ByClass(), protecting(0.0, 0.1), example)
    for arguments in (example, inputs(11, 30, [1, 0, 0, 0, 1, 0, 0, 1, 1, 1, 0])):
        given, classes = some(len(arguments[0])), arguments[2]
        module(*arguments, protect_prob=given)
        for number in range(2):
            told = mask_of(watch, f"lins.{number}.quant.feature")
            assert torch.equal(told, given.bool()[classes == number])


# -- several node types in one propagation -------------------------------------------------------------------------

METADATA = (
    ["paper", "author"],
    [("paper", "cites", "paper"), ("author", "writes", "paper"), ("paper", "rev", "author")],
)


def between(sources, targets, number, seed):
    generator = torch.Generator().manual_seed(seed)
    index = torch.stack([torch.randint(n, (number,), generator=generator) for n in (sources, targets)])
    index[1, : number // 3] = 0
    return index


def hetero(papers, authors):
    x = {"paper": graph(papers, 1)[0], "author": graph(authors, 1, seed=1)[0]}
    return x, {
        METADATA[1][0]: between(papers, papers, 2 * papers, 1),
        METADATA[1][1]: between(authors, papers, 3 * authors, 2),
        METADATA[1][2]: between(papers, authors, papers + 4, 3),
    }


def test_a_type_that_is_joined_with_others_draws_by_its_own_in_degrees():
    """HGTConv concatenates the types: no propagation ends at one of them, the keys of the inputs do."""
    module, _ = watched(HGTConv(WIDTH, WIDTH, METADATA), draws_only(0.0, 1.0), hetero(9, 6))
    assert len(module.report.protection) == 2
    draws = {}
    for path in module.report.protection:
        module.get_submodule(path).register_forward_hook(
            lambda m, a, drawn: draws.setdefault(len(drawn), []).append(drawn)
        )
    with torch.no_grad():
        for _ in range(400):
            module(*hetero(11, 7))
    edges = hetero(11, 7)[1]
    papers = torch.cat([edges[key][1] for key in METADATA[1][:2]])
    assert_frequencies(draws[11], expected_probability(papers, 11, 0.0, 1.0))
    assert_frequencies(draws[7], expected_probability(edges[METADATA[1][2]][1], 7, 0.0, 1.0))


class KeepsWhatIsLarge(nn.Module):
    """Picks the rows above a threshold, as pooling by a minimum score does: on the example inputs, all of them."""

    def __init__(self):
        super().__init__()
        self.one, self.two = GCNConv(8, 8), GCNConv(8, 4)

    def forward(self, x, edge_index):
        x = self.one(x, edge_index)
        perm = (x.sum(1).tanh() > -0.999999).nonzero().view(-1).flip(0)
        edge_index, _ = filter_adj(edge_index, None, perm, num_nodes=x.size(0))
        return self.two(x[perm], edge_index)


def test_rows_that_all_stayed_on_the_example_are_picked_all_the_same():
    torch.manual_seed(0)
    model, edge_index = KeepsWhatIsLarge(), torch.randint(12, (2, 40))
    module, _ = dqconvert.prepare(model, "int8-dq", (0.1 * torch.randn(12, 8), edge_index))
    x = torch.randn(12, 8)
    x[[2, 7]] = -1e4 * torch.sign(model.one.lin.weight.sum(0))  # two rows that do not stay
    with torch.no_grad():
        kept = int((model.one(x, edge_index).sum(1).tanh() > -0.999999).sum())
    assert kept < 12
    module(x, edge_index).sum().backward()
    rows = [node for node in module.graph.nodes if str(node.target).startswith("two.") and len(node.args) == 2]
    assert {"two.quant.message", "two.quant.aggregate"} <= {str(node.target) for node in rows}
    assert "quant_protect" not in {str(node.args[1]) for node in rows}
