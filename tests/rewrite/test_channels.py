"""Where ranges per channel are placed: not on values of one number per row, whose only dimension is the rows'."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch_geometric.nn import GCN

import dqconvert
from dqconvert import QConfig, QSpec


@pytest.mark.sample(2)
@pytest.mark.parametrize("range_", ["minmax", "mse", "relative", "percentile", "ema", "learned"])
def test_one_number_per_edge_has_one_range_and_graphs_may_differ(range_, tmp_path):
    spec = QSpec(granularity="channel", range=range_)
    torch.manual_seed(0)
    x, edges = torch.randn(20, 6), torch.randint(20, (2, 70))
    module, report = dqconvert.prepare(
        GCN(6, 8, 2), QConfig(weight=spec, activation=spec, message=spec, aggregate=spec), (x, edges)
    )
    schemes = {entry.role: entry.scheme for entry in report.entries}
    assert "per tensor (one number per row has no channels)" in schemes["edge_weight"]
    assert "per channel" in schemes["feature"]
    assert "per channel" in schemes["message"]
    dqconvert.calibrate(module, (x, edges))
    other = (torch.randn(35, 6), torch.randint(35, (2, 120)))
    integer = dqconvert.convert(module)
    torch.testing.assert_close(integer(*other), module.eval()(*other), rtol=0, atol=0.1)
    dqconvert.save(integer, tmp_path / "gcn.int")
    assert torch.equal(dqconvert.load(tmp_path / "gcn.int")(*other), integer(*other))


class Scores(nn.Module):
    """Scores edges by a vector of its own, as attention that is written by hand does."""

    def __init__(self):
        super().__init__()
        self.lin, self.att, self.out = nn.Linear(6, 8), nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8))

    def forward(self, x, edge_index):
        h = self.lin(x)
        scores = (h * self.att).sum(-1)[edge_index[0]].sigmoid()
        return h.index_add(0, edge_index[1], h[edge_index[0]] * scores[:, None]) @ self.out


@pytest.mark.parametrize("preset", ["int8-dq+", "int2-dq+"])
def test_a_vector_has_one_range(preset):
    """One for each of its entries would be a float for each."""
    x, edges = torch.randn(20, 6), torch.randint(20, (2, 70))
    module, report = dqconvert.prepare(Scores(), preset, (x, edges))
    vectors = [entry for entry in report.entries if entry.role == "weight" and entry.module == ""]
    assert ["per tensor (a vector has no channels)" in entry.scheme for entry in vectors] == [True, True]
    dqconvert.calibrate(module, (x, edges))
    module.train()(x, edges).sum().backward()
    torch.testing.assert_close(dqconvert.convert(module)(x, edges), module.eval()(x, edges), rtol=1e-4, atol=1e-4)
