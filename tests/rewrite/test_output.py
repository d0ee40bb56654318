"""``output=False``: what the model returns stays in float, and nothing that goes on to a quantized value does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch_geometric.nn import GAT, GCN, GIN, GCNConv, global_mean_pool

import dqconvert
from dqconvert import QConfig, presets

LEFT = "a result of the model, which output=False leaves in float"
FREE = replace(presets["int8-dq"], output=False)


def graph(nodes: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(nodes, 8, generator=generator)
    return x, torch.randint(nodes, (2, 40), generator=generator)


def left(report: dqconvert.report.Report) -> list[str]:
    return [entry.what for entry in report.left_float if entry.reason == LEFT]


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lin = GCNConv(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        return self.lin(global_mean_pool(self.conv(x, edge_index).relu(), None)).log_softmax(-1)


class Pair(nn.Module):
    """Returns what it goes on with, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = GCNConv(8, 8), GCNConv(8, 3)

    def encode(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        return self.conv1(x, edge_index)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.encode(x, edge_index)
        return h, self.conv2(h.relu(), edge_index)


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (lambda: GCN(8, 8, 2, 3), ["convs.1: update"]),
        (lambda: GIN(8, 8, 2, 3), ["convs.1.nn.lins.1: feature", "convs.1: update"]),
        (lambda: GAT(8, 8, 2, 3, heads=1), ["convs.1: update"]),
        (Pooled, ["lin: feature"]),
        (Pair, ["conv2: update"]),
    ],
    ids=["GCN", "GIN", "GAT", "pooled", "two results"],
)
@pytest.mark.parametrize("fuse", [True, False])
def test_the_last_values_stay_in_float_and_no_others(model, expected, fuse):
    module, report = dqconvert.prepare(model(), FREE, graph(), fuse=fuse)
    assert left(report) == expected
    _, all_of_it = dqconvert.prepare(model(), "int8-dq", graph())
    assert len(report.entries) == len(all_of_it.entries) - len(expected)
    module.train()(*graph())
    calls = [module.eval()(*graph()), dqconvert.convert(module)(*graph())]
    torch.testing.assert_close(*calls, rtol=1e-4, atol=1e-4)


def test_results_have_values_between_the_steps_of_a_grid():
    torch.manual_seed(0)
    model = GIN(8, 8, 2, 8)
    results = []
    for output in (True, False):
        module, _ = dqconvert.prepare(model, replace(presets["int4-qat"], output=output), graph(400))
        module.train()(*graph(400))
        results.append(len(module.eval()(*graph(400))[:, 0].unique()))
    assert results[0] <= 16 < results[1]


def test_a_door_in_the_middle_rounds_what_forward_rounds():
    """`encode` returns what is no result of forward, and has forward's quantizer."""
    module, _ = dqconvert.prepare(Pair(), FREE, graph())
    module.train()(*graph())
    h, _ = module.eval()(*graph())
    torch.testing.assert_close(module.encode(*graph()), h, rtol=0, atol=0)


def test_a_config_file_says_so(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(FREE.to_toml())
    assert dqconvert.qconfig.as_qconfig(path) == FREE
    assert dqconvert.qconfig.as_qconfig({"output": False}) == FREE
    with pytest.raises(dqconvert.ConfigError, match="output='float': must be True or False"):
        QConfig(output="float")
