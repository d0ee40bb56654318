"""Tallies: what a quantizer clips and which codes occur, against what it makes of the same values."""

from __future__ import annotations

import pytest
import torch
from torch_geometric.nn import GCN

import dqconvert
from dqconvert.quant import FakeQuantize
from dqconvert.tally import Tally, tallies

SPECS = {
    "affine": dqconvert.QSpec(bits=4),
    "symmetric": dqconvert.QSpec(bits=8, symmetric=True),
    "by channel": dqconvert.QSpec(bits=4, granularity="channel"),
    "by group": dqconvert.QSpec(bits=4, granularity="degree", groups=3),
    "from zero": dqconvert.QSpec(bits=4, signed="graph"),
}


@pytest.mark.parametrize("name", SPECS)
def test_codes_are_those_that_values_are_rounded_to(name):
    spec = SPECS[name]
    groups = torch.tensor([0, 1, 2, 1, 0, 2, 1], dtype=torch.uint8) if name == "by group" else None
    quantizer = FakeQuantize(spec, name="q", signed=name != "from zero", channels=5, channel_dim=1)
    quantizer(torch.randn(7, 5), None, groups)
    quantizer.eval()
    x = 2 * torch.randn(7, 5)
    scale, zero = quantizer.scale, quantizer.zero_point
    if groups is not None:
        scale, zero = scale[groups.long(), None], zero[groups.long(), None]
    expected = (quantizer(x, None, groups) / scale + zero).round().long()
    tally = Tally(quantizer)
    tally.add(x, groups)
    assert torch.equal(tally.codes, (expected - quantizer.quant_min).flatten().bincount(minlength=len(tally.codes)))
    seen = x.clamp(min=0) if name == "from zero" else x
    beyond = (seen / scale + zero).round()
    assert tally.clipped == int(((beyond < quantizer.quant_min) | (beyond > quantizer.quant_max)).sum()) > 0
    assert tally.values == int(tally.bins.sum()) == 35
    assert tally.share == tally.clipped / 35


def test_what_is_no_number_does_not_count():
    quantizer = FakeQuantize(dqconvert.QSpec(), name="q", signed=True)
    quantizer(torch.tensor([-1.0, 1.0]))
    tally = Tally(quantizer)
    tally.add(torch.tensor([torch.nan, torch.inf, -torch.inf, 0.5, 9.0]))
    assert (tally.values, tally.clipped, int(tally.codes.sum()), int(tally.bins[-1])) == (2, 1, 2, 1)
    tally.add(torch.empty(0, 3))
    assert tally.values == 2


def test_every_quantizer_that_data_reaches_is_tallied_and_the_module_stays():
    x, edges = torch.randn(20, 6), torch.randint(20, (2, 60))
    module, report = dqconvert.prepare(GCN(6, 8, 2, 3, dropout=0.5), "int8-dq")
    module.train()(x, edges).sum().backward()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    drawn = torch.get_rng_state()
    found = tallies(module, [(x, edges), (x, edges)])
    assert found.keys() == {entry.path for entry in report.entries}
    assert found["convs.0.lin.quant.input"].values == 2 * 20 * 6
    assert tallies(module, [(x, edges), (x, edges)], batches=1)["convs.0.lin.quant.input"].values == 20 * 6
    assert torch.equal(torch.get_rng_state(), drawn)
    assert module.training
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
