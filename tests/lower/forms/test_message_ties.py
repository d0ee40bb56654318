"""Weighted messages whose value lies in the middle of two codes: how far integer modules are off there, and no further.

In training a message is a float32 product, divided by a float32 scale: where it is beside the middle of two codes its
last bits decide, and those of another multiplication are others. Features of few values (one-hot, times 1e30) repeat
such a message at many edges. The receivers' sums are then off by as many steps as messages are.
"""

from __future__ import annotations

import pytest
import torch
from torch_geometric.nn import GAT

import dqconvert
from dqconvert.kernels.integer.codes import plain_quantize
from dqconvert.lower.forms.messages import _multipliers
from dqconvert.lower.values import QuantizerGrid


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e28])
def test_a_message_is_off_by_one_step_and_only_in_the_middle(scale):
    torch.manual_seed(0)
    wrong, pairs = 0, 0
    for _ in range(20):
        one, two, three = (torch.rand(3) + 0.5).tolist()
        x, weight = QuantizerGrid(one * scale, 127, 255, -128), QuantizerGrid(two / 255, 0, 255, -128)
        message = QuantizerGrid(three * scale, 128, 255, -128)
        products = weight.values(torch.float32)[:, None] * x.values(torch.float32)
        want = plain_quantize(products, message.numbers(), None, False).int()
        centred = (torch.arange(256) - x.zero).double()
        found = (
            (_multipliers(x, weight, message, several=False).double()[:, None] * centred + message.zero).float().round()
        )
        off = (found.clamp(0, 255).int() - want).abs()
        part = (products.double() / message.scale) % 1
        assert int(off.max()) <= 1
        assert bool(((part - 0.5).abs()[off > 0] < 1e-4).all())
        wrong, pairs = wrong + int((off > 0).sum()), pairs + off.numel()
    assert wrong <= 1e-3 * pairs


@pytest.mark.parametrize("seed", range(3))
def test_one_hot_features_times_1e30_through_attention(seed):
    """Logits and coefficients are equal; what differs behind the messages is what ties among them explain."""

    torch.manual_seed(seed)
    x = torch.eye(16)[torch.randint(16, (300,))] * 1e30
    edge_index = torch.randint(300, (2, 1500))
    module, _ = dqconvert.prepare(GAT(16, 16, 1, 7), "int8-dq", (x, edge_index))
    with torch.no_grad():
        for _ in range(3):
            module(x, edge_index)
    integer = dqconvert.convert(module.eval())
    module.fuse = False  # so that every quantizer is called
    module.recompile()
    seen = {}
    for path, quantizer in module.quantizers():
        quantizer.register_forward_hook(lambda q, given, out, path=path: seen.update({path: (given[0], q)}))
    with torch.no_grad():
        want, found = module(x, edge_index), integer(x, edge_index)
    path = next(path for path in seen if path.endswith("quant.message"))
    messages, quantizer = seen[path]
    tied = ((messages.double() / float(quantizer.scale)) % 1 - 0.5).abs() < 1e-4
    receivers = torch.cat([edge_index[1][edge_index[0] != edge_index[1]], torch.arange(300)])
    ends = seen[next(path for path in seen if path.endswith("quant.update"))][1]
    off = ((want - found).abs() / float(ends.scale)).round()
    ties = torch.zeros(300, 7).index_add(0, receivers, tied.flatten(1).float())
    assert bool((off <= ties).all())
    assert (off > 1).double().mean() < 0.02
