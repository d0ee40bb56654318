"""What rules and `graph_bits` take for the level of a value, and graphs in more bits than their nodes, to the end."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GINConv, global_add_pool

import dqconvert
from dqconvert import QSpec, Rule, presets


class Pooled(nn.Module):
    """Two layers, and a head on sums over graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.atoms = nn.Embedding(5, 8)
        mlps = [nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range(2)]
        self.convs = nn.ModuleList(GINConv(mlp) for mlp in mlps)
        self.head = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        x = self.atoms(x)
        for conv in self.convs:
            x = conv(x, edge_index).relu()
        return self.head(global_add_pool(x, batch))


def graphs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    edge_index = torch.randint(40, (2, 100), generator=generator)
    return torch.randint(5, (40,), generator=generator), edge_index, torch.arange(40).sort().values // 8


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Pooled().eval()


def test_weights_have_the_level_of_what_is_made_with_them(model: nn.Module) -> None:
    entries = dqconvert.prepare(model, replace(presets["int4-dq+"], output=True), graphs()).report.entries
    for entry in entries:
        head = entry.module.startswith("head")
        assert entry.rule_level == ("graph" if head else "edge" if entry.role == "message" else "node"), entry.path
        assert entry.bits == (8 if head else 4), entry.path
        assert entry.level == ("parameter" if entry.role == "weight" else entry.rule_level), entry.path


def test_a_rule_of_a_level(model: nn.Module) -> None:
    config = replace(presets["int4-dq+"], rules=[Rule(level="graph", spec=None)])
    module, report = dqconvert.prepare(model, config, graphs())
    assert not any(entry.module.startswith("head") for entry in report.entries)
    assert [left.what for left in report.left_float if left.reason == "by rules[0]"] == [
        f"head.{layer}: {role}" for layer in (0, 2) for role in ("input", "weight", "feature")
    ]
    with pytest.raises(dqconvert.ConfigError, match="no value is of level 'parameter'; there are: 'edge', 'graph', 'n"):
        dqconvert.prepare(module, replace(config, rules=[Rule(level="parameter", spec=QSpec())]))


def test_graphs_in_eight_bits_and_nodes_in_four(model: nn.Module, tmp_path) -> None:
    runs = []
    for fuse in (True, False):
        module = dqconvert.prepare(model, "int4-dq+", graphs(), fuse=fuse).module
        dqconvert.calibrate(module, graphs())
        module.train()(*graphs()).square().mean().backward()
        runs.append(module.eval()(*graphs()).detach())
        assert all(parameter.grad is not None for parameter in module.parameters())
    torch.testing.assert_close(*runs, rtol=1e-4, atol=1e-4)
    plain = dqconvert.prepare(model, {"preset": "int4-dq+", "graph_bits": None}, graphs()).module
    dqconvert.calibrate(plain, graphs())
    wanted = model(*graphs())
    assert (runs[0] - wanted).abs().mean() < 0.8 * (plain.eval()(*graphs()) - wanted).abs().mean()
    integer = dqconvert.convert(module)
    torch.testing.assert_close(integer(*graphs()), runs[0], rtol=0.02, atol=0.02)
    dqconvert.save(module, tmp_path / "prepared.dq")
    dqconvert.save(integer, tmp_path / "integer.dq")
    loaded = dqconvert.load(tmp_path / "prepared.dq", Pooled()).eval()
    assert loaded.qconfig.graph_bits == 8
    torch.testing.assert_close(loaded(*graphs()), runs[1], rtol=0, atol=0)
    torch.testing.assert_close(dqconvert.load(tmp_path / "integer.dq")(*graphs()), integer(*graphs()), rtol=0, atol=0)


def test_bits_are_searched_with_rules_of_levels(model: nn.Module) -> None:
    config = replace(presets["int8-ptq"], rules=[Rule(level="graph", role="input", spec=None)])
    found = dqconvert.bit_sensitivity(model, graphs(), config, bits=[2, 8], scores=False, progress=False)
    report = dqconvert.prepare(model, found.search(8), graphs()).report
    assert {entry.bits for entry in report.entries} == {8}
    assert any(left.what == "head.0: input" for left in report.left_float)
