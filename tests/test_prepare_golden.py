"""A GCN layer through the public API alone, against Degree-Quant's official implementation."""

import json
from pathlib import Path

import pytest
import torch
from torch_geometric.nn import GCNConv

import dqconvert

GOLDEN = json.loads((Path(__file__).parent / "golden" / "gcn_layer.json").read_text())

QUANTIZERS = {
    "layer_quantizers.inputs_low": "lin.quant.input",
    "layer_quantizers.weights_low": "lin.quant.weight",
    "layer_quantizers.features_low": "lin.quant.feature",
    "layer_quantizers.norm_low": "quant.edge_weight",
    "mp_quantizers.message_low": "quant.message",
    "mp_quantizers.aggregate_low": "quant.aggregate",
    "mp_quantizers.update_low": "quant.update",
}


@pytest.fixture(params=GOLDEN, ids=lambda case: f"int{case['bits']}")
def case(request):
    return request.param


@pytest.fixture(params=["given inputs", "made-up inputs"])
def step(request, case):
    """The prepared layer after the official training step, its output and the gradient of x."""
    x = torch.tensor(case["x"], requires_grad=True)
    edge_index = torch.tensor(case["edge_index"])
    example = (x.detach(), edge_index) if request.param == "given inputs" else None
    conv = GCNConv(len(case["weight"]), len(case["bias"]))
    with torch.no_grad():
        conv.lin.weight.copy_(torch.tensor(case["weight"]).t())  # [in, out] in the file
        conv.bias.copy_(torch.tensor(case["bias"]))
    module, _ = dqconvert.prepare(conv, f"int{case['bits']}-dq", example)
    protect_prob = torch.tensor(case["mask"]).float()  # 0 is never, 1 always
    out = module.train()(x, edge_index, protect_prob=protect_prob)
    out.backward(torch.tensor(case["grad_output"]))
    return module, out, x


def assert_close(value, expected):
    torch.testing.assert_close(value, torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_training_output(step, case):
    assert_close(step[1], case["train_output"])


def test_gradients(step, case):
    module, _, x = step
    assert_close(x.grad, case["grad_x"])
    assert_close(module.lin.weight.grad.t(), case["grad_weight"])
    assert_close(module.bias.grad, case["grad_bias"])


def test_ranges(step, case):
    module = step[0]
    assert {path for path, _ in module.quantizers()} == set(QUANTIZERS.values())
    for official, path in QUANTIZERS.items():
        quantizer = module.get_submodule(path)
        assert_close(torch.stack([quantizer.min_val, quantizer.max_val]), case["ranges"][official])


def test_evaluation(step, case):
    module, _, x = step
    with torch.no_grad():
        out = module.eval()(x, torch.tensor(case["edge_index"]))
    assert_close(out, case["eval_output"])
