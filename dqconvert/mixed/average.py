"""``average_bits``: the average width of a module's codes on data."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dqconvert.bits import AverageBits, Elements, averages, words_of
from dqconvert.calibrate import callee_of
from dqconvert.errors import ConfigError
from dqconvert.expect import expect_prepared
from dqconvert.prepared.base import note_bits
from dqconvert.prepared.switches import rounding
from dqconvert.samples import watching
from dqconvert.trace.given import calls_of


def average_bits(module: nn.Module, data: Any) -> AverageBits:
    """Returns the average bits of a prepared module's codes, counted by the elements that it rounds on data.

    Nothing is rounded, observed or changed; ``module.report`` has the averages from then on. ``calibrate``
    counts the same on its data.

    Args:
        module: A prepared module, with or without ranges.
        data: One call's worth of inputs or several, as for :func:`dqconvert.calibrate`.

    Returns:
        The averages: of activations, of those that the module computes itself, of weights, and per quantizer.

    Raises:
        ConfigError: If ``module`` is not prepared, or ``data`` holds nothing.

    Example:
        >>> import torch, dqconvert
        >>> from torch_geometric.nn import GCNConv
        >>> module, _ = dqconvert.prepare(GCNConv(8, 4), {"rules": [{"role": "input", "spec": {"bits": 2}}]})
        >>> x, edge_index = torch.randn(5, 8), torch.tensor([[0, 1, 2], [1, 2, 3]])
        >>> found = dqconvert.average_bits(module, (x, edge_index))
        >>> found.elements["lin.quant.input"], found.elements["quant.message"]  # 5 × 8; 3 edges and 5 self-loops × 4
        (40, 32)
        >>> print(found)
        6.29 activations (hidden 8.00), 8.00 weights, 7.14 per quantizer
    """
    prepared = expect_prepared(module, "average_bits")
    batches, found = 0, Elements()
    with rounding(prepared), watching(prepared.quantizers(), found.see), torch.no_grad():
        for call in calls_of(callee_of(prepared), data):
            prepared(*call.args, **call.kwargs)
            batches += 1
    if not batches:
        raise ConfigError("average_bits: there was no data to count on; pass at least one batch.")
    result = averages(prepared, found)
    note_bits(prepared, words_of(result, batches))
    return result
