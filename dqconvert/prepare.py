"""``prepare``: float module → traced graph → prepared module. Read this page first."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from dqconvert.expect import expect_float
from dqconvert.optimizers import watch_optimizers
from dqconvert.qconfig import QConfig, as_qconfig
from dqconvert.report import Report
from dqconvert.rewrite import PreparedModule, rewrite
from dqconvert.rewrite.again import keep_ranges, traced_again
from dqconvert.trace import trace


class Prepared(NamedTuple):
    """What :func:`prepare` returns.

    Attributes:
        module: The trainable quantized model.
        report: What was inserted where, and what stayed float and why.
    """

    module: PreparedModule
    report: Report


def prepare(
    model: nn.Module,
    qconfig: QConfig | str | os.PathLike[str] | Mapping[str, Any] | None = None,
    example_inputs: Any = None,
    *,
    method: str = "forward",
    strict: bool = False,
    fuse: bool = True,
) -> Prepared:
    """Turns a float PyG model into a trainable Degree-Quant model.

    The model is traced by running it on example inputs, the trace is checked against it bit for bit, and quantizers
    are inserted by the role that each value has: weights, inputs and outputs of weighted operations, edge weights,
    messages, aggregates and layer outputs. In training, nodes are protected with a probability that grows with their
    in-degree. The given model is not changed, and neither is the global random state: the module has copies of its
    parameters. An optimizer of the model's own parameters trains nothing of it; build one of ``module.parameters()``.

    Args:
        model: Any PyG model. A prepared module is prepared again: quantizers that stay keep their ranges.
        qconfig: A preset's name, a path to a TOML or JSON file, a dict of overrides, or a :class:`QConfig`. ``None``:
            ``"int8-dq"``.
        example_inputs: One call's worth of inputs, or several, of which the first is taken: as
            :func:`dqconvert.calibrate` takes them. ``None``: made up from the signature and the layers. Tensor
            arguments that are absent here must stay absent.
        method: The method to turn into the prepared module's ``forward``.
        strict: Raise where a submodule cannot be traced, instead of leaving it in float.
        fuse: Whether groups of nodes (message passing; quantizers with sums and ReLUs between them) run as one operator
            each: less memory, several times faster, the same results. Modules that have hooks by now stay apart; those
            that get hooks later need ``module.recompile()``. ``False``: node by node.

    Returns:
        The prepared module and the report. The module's ``state_dict`` has every key of the float model's, and the
        quantizers'. Its forward takes one more argument, ``protect_prob``: float ``[num_nodes]`` (or a dict by node
        type), protection probabilities to use instead of those computed from the ``edge_index`` given.

    Raises:
        ConfigError: If the config is wrong, or one of its rules matches nothing in this model.
        TraceError: If the model cannot be traced, or has nothing to quantize.

    Source:
        Tailor, Fernandez-Marques, Lane. Degree-Quant: Quantization-Aware Training for Graph Neural Networks. ICLR 2021.

    Example:
        >>> import torch, dqconvert
        >>> from torch_geometric.nn import GCN
        >>> module, report = dqconvert.prepare(GCN(16, 32, num_layers=2, out_channels=7), "int8-dq")
        >>> x, edge_index = torch.randn(5, 16), torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])
        >>> module.train()(x, edge_index).sum().backward()   # observes ranges, protects nodes
        >>> module.eval()(x, edge_index).shape               # everything quantized
        torch.Size([5, 7])
    """
    config = as_qconfig(qconfig)
    expect_float(model, "prepare", prepared=True)
    if isinstance(model, PreparedModule):
        module = rewrite(traced_again(model), config, method=model.method, fuse=fuse)
        keep_ranges(model, module)
    else:
        module = rewrite(trace(model, example_inputs, method=method, strict=strict), config, method=method, fuse=fuse)
    watch_optimizers(model, module)
    return Prepared(module, module.report)
