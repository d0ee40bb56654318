"""A penalty that makes weights robust to how they are quantized."""

from __future__ import annotations

from operator import attrgetter

import torch
from torch import Tensor, nn

from dqconvert.errors import ConfigError
from dqconvert.expect import expect_prepared
from dqconvert.quant import FakeQuantize
from dqconvert.words import shortened


def kurtosis_penalty(module: nn.Module, target: float = 1.8) -> Tensor:
    """Returns how far the weights that are quantized are from a kurtosis: a differentiable scalar, to add to a loss.

    A uniform distribution has the kurtosis 1.8, and loses least when its step is not quite right; the bell of trained
    weights has about 3.

    Args:
        module: A prepared module.
        target: The kurtosis wanted.

    Returns:
        Float ``[]``: the mean, over the weights of two numbers or more, of ``(kurtosis(weight) - target) ** 2``.

    Raises:
        ConfigError: If ``module`` is no prepared module or quantizes no weight, or ``target`` is no number from 1 on,
            which every kurtosis is.

    Source:
        Shkolnik et al., *Robust Quantization: One Model to Rule Them All* (KURE), NeurIPS 2020, equations 4 to 6.

    Example:
        >>> import dqconvert
        >>> from torch_geometric.nn import GCN
        >>> module, _ = dqconvert.prepare(GCN(8, 16, num_layers=2, out_channels=4), "int4-dq")
        >>> penalty = dqconvert.kurtosis_penalty(module)
        >>> penalty.shape, bool(penalty < 0.5)  # weights of a model that is not trained are uniform
        (torch.Size([]), True)
    """
    prepared = expect_prepared(module, "kurtosis_penalty")
    if isinstance(target, bool) or not isinstance(target, int | float) or not target >= 1:
        raise ConfigError(f"kurtosis_penalty takes as target a number from 1 on, got {shortened(target)}.")
    modules = dict(prepared.named_modules(remove_duplicate=False))
    names = {
        str(node.args[0].target)
        for method in prepared.all_methods()
        for graph in method.graphs()
        for node in graph.nodes
        if node.op == "call_module" and isinstance(modules.get(node.target), FakeQuantize)
        if node.args[0].op == "get_attr"
    }
    weights = {id(weight): weight for name in sorted(names) if (weight := attrgetter(name)(prepared)).numel() > 1}
    if not weights:
        raise ConfigError("kurtosis_penalty: no weight of the module is quantized: give its config a weight QSpec.")
    return torch.stack([(_kurtosis(weight) - target).square() for weight in weights.values()]).mean()


def _kurtosis(weight: Tensor) -> Tensor:
    centred = weight.float() - weight.float().mean()
    variance = centred.square().mean()
    return centred.pow(4).mean() / variance.square().clamp(min=torch.finfo(torch.float32).tiny)
