"""Every preset on a whole model: calibrated, trained a step fused and step by step, in integers, in both files."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch_geometric.nn import GAT, GCN, GIN

import dqconvert
from dqconvert import presets

MODELS = {
    "GCN": lambda: GCN(8, 8, 2, 3, dropout=0.3),
    "GIN": lambda: GIN(8, 8, 2, 3, dropout=0.3),
    "GAT": lambda: GAT(8, 8, 2, 3, heads=2, dropout=0.3),
}


def graph() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 8, generator=generator) * (torch.rand(60, 8, generator=generator) < 0.3)
    hubs = (60 * torch.rand(200, generator=generator) ** 3).long()
    return x, torch.stack([torch.randint(60, (200,), generator=generator), hubs])


def trained(model: nn.Module, preset: str, *, fuse: bool) -> nn.Module:
    module, report = dqconvert.prepare(model, preset, graph(), fuse=fuse)
    assert report.entries
    dqconvert.calibrate(module, graph())
    optimizer = torch.optim.Adam(dqconvert.parameter_groups(module), lr=1e-3)
    torch.manual_seed(1)
    module.train()(*graph()).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model_parameters(module))
    optimizer.step()
    return module.eval()


def model_parameters(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for name, parameter in module.named_parameters() if ".quant." not in name]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("preset", presets)
@pytest.mark.sample(13, keep=("int2-dq+-GIN", "int4-dq+-GAT"))
def test_from_float_to_files(preset, model, tmp_path):
    torch.manual_seed(0)
    start = MODELS[model]().eval()
    module, stepwise = trained(start, preset, fuse=True), trained(start, preset, fuse=False)
    with torch.no_grad():
        out = module(*graph())
        torch.testing.assert_close(stepwise(*graph()), out, rtol=1e-3, atol=0.02)
        integer = dqconvert.convert(module)
        apart = (integer(*graph()) - out).abs() > 1e-3
        assert apart.float().mean() <= 0.02
        dqconvert.save(module, tmp_path / "prepared.dq")
        dqconvert.save(integer, tmp_path / "integer.dq")
        loaded = dqconvert.load(tmp_path / "prepared.dq", MODELS[model]())
        torch.testing.assert_close(loaded.eval()(*graph()), out, rtol=0, atol=0)
        again = dqconvert.load(tmp_path / "integer.dq")
        torch.testing.assert_close(again(*graph()), integer(*graph()), rtol=0, atol=0)
