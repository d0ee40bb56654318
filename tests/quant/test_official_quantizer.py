"""`FakeQuantize` against Degree-Quant's official implementation: its ranges, codes and gradients."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dqconvert.kernels import qparams
from dqconvert.qconfig import QSpec
from dqconvert.quant import FakeQuantize

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "quantizer.json").read_text())


def from_config(config: dict) -> FakeQuantize:
    percentile = config.get("percentile")
    spec = QSpec(
        bits=config["num_bits"],
        signed=config["signed"],
        symmetric=config.get("symmetric", False),
        range="percentile" if percentile else "ema" if config["use_momentum"] else "minmax",
        percentile=percentile,
        momentum=0.01 if config["use_momentum"] else None,
        grad="ste" if config["use_ste"] else "clip",
    )
    return FakeQuantize(spec, name="golden", signed=config["signed"])


def codes(values: torch.Tensor, quantizer: FakeQuantize, min_val: float, max_val: float) -> torch.Tensor:
    scale, zero_point = qparams(
        torch.tensor(min_val),
        torch.tensor(max_val),
        quantizer.quant_min,
        quantizer.quant_max,
        quantizer.spec.symmetric,
    )
    exact = values.double() / scale + zero_point
    assert (exact - exact.round()).abs().max() < 1e-3, "not on the grid"
    return exact.round()


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: "-".join(map(str, case["config"].values())))
def test_training_steps_and_evaluation(case):
    quantizer = from_config(case["config"])
    for step in case["steps"]:
        x = torch.tensor(step["input"], requires_grad=True)
        y = quantizer(x)
        y.backward(torch.tensor(step["grad_output"]))

        assert quantizer.min_val.item() == pytest.approx(step["min_val"], rel=1e-5)
        assert quantizer.max_val.item() == pytest.approx(step["max_val"], rel=1e-5)
        want, ends = torch.tensor(step["output"]), (step["min_val"], step["max_val"])
        torch.testing.assert_close(y, want, rtol=1e-5, atol=0)
        assert torch.equal(codes(y.detach(), quantizer, *ends), codes(want, quantizer, *ends))
        torch.testing.assert_close(x.grad, torch.tensor(step["grad_input"]), rtol=1e-5, atol=0)

    y, want = quantizer.eval()(torch.tensor(case["eval"]["input"])), torch.tensor(case["eval"]["output"])
    torch.testing.assert_close(y, want, rtol=1e-5, atol=0)
    assert torch.equal(codes(y, quantizer, *ends), codes(want, quantizer, *ends))
