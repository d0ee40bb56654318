"""Which grids are unsigned: only those of values that cannot be negative, whatever is set on the model later."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import dqconvert

X = torch.linspace(-1, 1, 40).view(10, 4)


class Scaled(nn.Module):
    """Scales what a ReLU returns by a number, before a linear layer."""

    def __init__(self, how):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.alpha, self.how = 0.5, how

    def forward(self, x):
        h = self.first(x).relu()
        return self.last({"literal": lambda: h * 0.5, "attribute": lambda: h * self.alpha}[self.how]())


@pytest.mark.parametrize(("how", "signed"), [("literal", False), ("attribute", True)])
def test_a_factor_that_may_be_set_later_may_be_negative(how, signed):
    config = dqconvert.QConfig(activation=dqconvert.QSpec(), weight=dqconvert.QSpec())
    _, report = dqconvert.prepare(Scaled(how), config, X)
    assert {entry.path: entry.signed for entry in report.entries}["last.quant.input"] is signed


def test_a_followed_factor_that_turns_negative_is_rounded_and_not_cut_off():
    module, _ = dqconvert.prepare(Scaled("attribute"), dqconvert.QConfig(activation=dqconvert.QSpec()), X)
    module.alpha = -0.5
    module.train()(X)
    low = dict(module.quantizers())["last.quant.input"].min_val
    assert low < 0
    seen = []
    module.last.quant.input.register_forward_hook(lambda layer, args, out: seen.append(out))
    module.eval()(X)
    assert seen[0].min() < 0.9 * low
