"""A whole GCN layer, its quantizers placed by hand, against Degree-Quant's official implementation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from dqconvert.qconfig import QSpec
from dqconvert.quant import FakeQuantize, gather_protected

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "gcn_layer.json").read_text())

ROLES = {
    "layer_quantizers.inputs_low": "input",
    "layer_quantizers.weights_low": "weight",
    "layer_quantizers.features_low": "feature",
    "layer_quantizers.norm_low": "edge_weight",
    "mp_quantizers.message_low": "message",
    "mp_quantizers.aggregate_low": "aggregate",
    "mp_quantizers.update_low": "update",
}


class QuantizedGCNLayer(nn.Module):
    def __init__(self, case: dict) -> None:
        super().__init__()
        spec = QSpec(bits=case["bits"], range="percentile", percentile=case["percentile"], grad="clip")
        self.quant = nn.Module()  # a ModuleDict cannot hold the name "update"
        for role in ROLES.values():
            self.quant.add_module(role, FakeQuantize(spec, name=role, signed=True))
        self.weight = nn.Parameter(torch.tensor(case["weight"]))  # [in, out]
        self.bias = nn.Parameter(torch.tensor(case["bias"]))

    def forward(self, x: Tensor, edge_index: Tensor, mask: Tensor | None) -> Tensor:
        quant = self.quant
        x = quant.input(x, mask)
        h = quant.feature(x @ quant.weight(self.weight), mask)
        edge_index, norm = gcn_norm(edge_index, num_nodes=x.size(0))
        norm = quant.edge_weight(norm)
        source, target = edge_index
        message = quant.message(norm[:, None] * h[source], gather_protected(mask, source))
        summed = torch.zeros_like(h).index_add(0, target, message)
        return quant.update(quant.aggregate(summed, mask) + self.bias, mask)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"int{case['bits']}")
def test_training_step_and_evaluation(case):
    layer = QuantizedGCNLayer(case)
    x = torch.tensor(case["x"], requires_grad=True)
    edge_index, mask = torch.tensor(case["edge_index"]), torch.tensor(case["mask"])

    out = layer(x, edge_index, mask)
    out.backward(torch.tensor(case["grad_output"]))

    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(out, torch.tensor(case["train_output"]), **close)
    torch.testing.assert_close(x.grad, torch.tensor(case["grad_x"]), **close)
    torch.testing.assert_close(layer.weight.grad, torch.tensor(case["grad_weight"]), **close)
    torch.testing.assert_close(layer.bias.grad, torch.tensor(case["grad_bias"]), **close)
    for official, role in ROLES.items():
        quantizer = layer.quant.get_submodule(role)
        got = [quantizer.min_val.item(), quantizer.max_val.item()]
        assert got == pytest.approx(case["ranges"][official], rel=1e-5), role

    with torch.no_grad():
        evaluated = layer.eval()(x, edge_index, mask)
    torch.testing.assert_close(evaluated, torch.tensor(case["eval_output"]), **close)
