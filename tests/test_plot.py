"""Charts: what they say, read from their SVG, and the numbers behind them."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import GCN, GIN, GraphSAGE, to_hetero
from torch_geometric.utils import degree

import dqconvert
from dqconvert import plot
from dqconvert.errors import CommandError, ConfigError, ObserverError, UsageError
from dqconvert.node_errors import errors_of_nodes
from dqconvert.report import ROLE_COLORS

torch.manual_seed(0)
NODES = 60
DATA = Data(
    x=torch.randn(NODES, 6),
    edge_index=torch.stack([torch.randint(NODES, (400,)), (NODES * torch.rand(400) ** 3).long()]),
)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    module, _ = dqconvert.prepare(GCN(6, 8, 2, 3), "int8-dq")
    module.train()(DATA.x, DATA.edge_index).sum().backward()
    return module.eval()


def texts(path):
    """The words of an SVG file."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text())


def test_histograms_have_a_panel_per_quantizer_in_the_color_of_its_role(trained, tmp_path):
    plot.histograms(trained, DATA, tmp_path / "first.svg", only=r"convs\.0\.lin")
    said = " | ".join(texts(tmp_path / "first.svg"))
    entries = [entry for entry in trained.report.entries if entry.module == "convs.0.lin"]
    for entry in entries:
        module, _, name = entry.path.rpartition(".quant.")
        assert f"{module} {name}, {'s' if entry.signed else 'u'}8" in said
    assert said.count("% clipped") == len(entries) == 3
    plot.histograms(trained, DATA, tmp_path / "some.svg", only=r"message")
    assert " ".join(texts(tmp_path / "some.svg")).count("% clipped") == 2
    drawn = (tmp_path / "some.svg").read_text()
    assert [role for role, color in ROLE_COLORS.items() if color in drawn] == ["message"]


def test_histograms_of_grids_by_group_and_own_ends(tmp_path):
    module, _ = dqconvert.prepare(GIN(6, 8, 1, 3), {"activation": {"granularity": "degree", "groups": 3}})
    module.train()(DATA.x, DATA.edge_index).sum().backward()
    plot.histograms(module, DATA, tmp_path / "groups.svg", only="input")
    assert "code" in texts(tmp_path / "groups.svg")


def test_protection_is_drawn_against_in_degrees(trained, tmp_path):
    plot.protection(trained, DATA, tmp_path / "a.svg")
    assert {"probability", "nodes", "in-degree", "0.10", "0", "10"} <= {*texts(tmp_path / "a.svg")}
    data = HeteroData()
    data["paper"].num_nodes, data["author"].num_nodes = 5, 3
    data["author", "writes", "paper"].edge_index = torch.tensor([[0, 1, 2, 2], [0, 0, 1, 3]])
    data["paper", "by", "author"].edge_index = torch.tensor([[0, 0], [1, 2]])
    plot.protection(trained, data, tmp_path / "b.svg")
    assert {"paper", "author"} <= {*texts(tmp_path / "b.svg")}


def test_errors_are_the_definition_s_by_node(trained):
    """Relative to the root mean square of all float values of the layer."""
    found = errors_of_nodes(trained, [(DATA.x, DATA.edge_index)] * 2, {"convs.0.quant.aggregate"})
    degrees, errors = found["convs.0.quant.aggregate"]
    assert torch.equal(degrees, degree(DATA.edge_index[1], NODES, dtype=torch.long).repeat(2))
    comparison = dqconvert.compare(trained, trained, (DATA.x, DATA.edge_index))
    ratio = next(layer.sqnr_db for layer in comparison.layers if layer.path == "convs.0.quant.aggregate")
    torch.testing.assert_close(10 * torch.log10(1 / errors.square().mean()), torch.tensor(ratio).double())


def test_errors_grow_with_the_in_degree_where_messages_are_summed(tmp_path):
    module, _ = dqconvert.prepare(GIN(6, 8, 1, 3), "int4-dq")
    module.train()(DATA.x, DATA.edge_index).sum().backward()
    ((degrees, errors),) = errors_of_nodes(module, (DATA.x, DATA.edge_index), {"convs.0.quant.aggregate"}).values()
    assert errors[degrees > 20].mean() > 2 * errors[degrees < 4].mean()
    plot.errors_by_degree(module, DATA, tmp_path / "a.svg")
    assert {"convs.0", "in-degree", "error of aggregates, relative"} <= {*texts(tmp_path / "a.svg")}


def test_errors_by_degree_of_several_types_of_nodes(tmp_path):
    """In-degrees are summed over the types of edges; a layer that is called twice counts twice."""
    torch.manual_seed(0)
    edges = {(a, "to", b): torch.randint(9, (2, 40)) for a, b in (("a", "b"), ("b", "a"), ("a", "a"))}
    model = to_hetero(GraphSAGE(6, 8, 2, 3), (["a", "b"], [*edges]))
    inputs = {"a": torch.randn(12, 6), "b": torch.randn(9, 6)}, edges
    module, _ = dqconvert.prepare(model, "int8-ptq", inputs)
    dqconvert.calibrate(module, inputs)
    plot.errors_by_degree(module, inputs, tmp_path / "a.svg")
    wanted = {entry.path for entry in module.report.entries if entry.role == "aggregate"}
    found = errors_of_nodes(module, inputs, wanted)
    assert found.keys() == wanted
    ends = {kind: torch.cat([e[1] for (_, _, to), e in edges.items() if to == kind]) for kind in "ab"}
    into = {kind: degree(ends[kind], len(inputs[0][kind]), dtype=torch.long) for kind in "ab"}
    for path, (degrees, _) in found.items():
        assert torch.equal(degrees, into["a" if "__to__a" in path else "b"]), path


def test_accuracy_by_bits(tmp_path):
    found = {"int-dq": {4: [21.0, 25.5], 8: [82.0, 82.6]}, "searched": {2.5: 76.0, 4: 82.0}}
    plot.accuracy_by_bits(found, tmp_path / "a.svg", reference=81.7)
    assert {"int-dq", "searched", "float", "2.5", "4", "8", "bits"} <= {*texts(tmp_path / "a.svg")}


def test_a_comparison_is_colored_by_role_from_zero(trained, tmp_path):
    comparison = dqconvert.compare(trained, trained, DATA)
    comparison.plot(tmp_path / "a.svg")
    said, drawn = texts(tmp_path / "a.svg"), (tmp_path / "a.svg").read_text()
    assert {role.replace("_", " ") for role in ROLE_COLORS} <= {*said}
    assert all(color in drawn for color in ROLE_COLORS.values())
    assert all(f"{layer.sqnr_db:.1f}" in {one.strip() for one in said} for layer in comparison.layers)
    one = replace(comparison, layers=comparison.layers[:1])
    one.plot(tmp_path / "one.svg")
    assert "output" in texts(tmp_path / "one.svg")


def test_mistakes_say_what_to_give(trained, tmp_path):
    out = tmp_path / "a.svg"
    fresh, _ = dqconvert.prepare(GCN(6, 8, 1, 3), "int8-qat")
    with pytest.raises(ConfigError, match="no quantizer with 'nothing' in its path"):
        plot.histograms(trained, DATA, out, only="nothing")
    with pytest.raises(ConfigError, match="no protection to draw"):
        plot.protection(fresh, DATA, out)
    with pytest.raises(ConfigError, match="takes a Data with an edge_index"):
        plot.protection(trained, Data(x=DATA.x), out)
    with pytest.raises(ConfigError, match="'aggregates'; did you mean 'aggregate'"):
        plot.errors_by_degree(trained, DATA, out, role="aggregates")
    for wrong in ({}, {"a": {}}, {"a": {4: []}}, {"a": [4, 5]}, {"a": {"four": 3.0}}, {"a": {4: None}}, [1]):
        with pytest.raises(ConfigError, match="by method and bits"):
            plot.accuracy_by_bits(wrong, out)
    with pytest.raises(ConfigError, match=r"only='\(' is no regular expression"):
        plot.histograms(trained, DATA, out, only="(")
    for batches in (0, -1, "a", True):
        with pytest.raises(ConfigError, match="batches a whole number from 1 on"):
            plot.histograms(trained, DATA, out, batches=batches)
    hetero = HeteroData(a={"x": DATA.x}, a__to__a={"edge_attr": DATA.x})
    for empty in (hetero, HeteroData(a={"x": DATA.x}), torch.empty(2, 0, dtype=torch.long)):
        with pytest.raises(ConfigError, match="has no edges"):
            plot.protection(trained, empty, out)
    for wrong in (DATA.edge_index.float(), DATA.edge_index - 1):
        with pytest.raises(ConfigError, match="of nodes from 0 on"):
            plot.protection(trained, Data(x=DATA.x, edge_index=wrong), out)
    with pytest.raises(ConfigError, match="takes a prepared module"):
        plot.histograms(GCN(6, 8, 1, 3), DATA, out)
    with pytest.raises(UsageError, match="must end in"):
        plot.protection(trained, DATA, tmp_path / "a.bmp")
    with pytest.raises(ObserverError):
        plot.histograms(fresh, DATA, out)
    assert not out.exists()


def test_missing_matplotlib_names_the_extra(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(CommandError, match=r"pip install 'dqconvert\[plot\]'"):
        plot.histograms(trained, DATA, tmp_path / "a.svg")
