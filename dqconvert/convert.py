"""``convert``: trained prepared module → integer module. Read this page first."""

from __future__ import annotations

from typing import Any

from dqconvert.errors import LoweringError
from dqconvert.expect import expect_prepared
from dqconvert.lower import PASSES, IntegerModule, lower
from dqconvert.lower.passes.colors import fold_colors


def convert(module: Any, *, fold: bool = True) -> IntegerModule:
    """Turns a prepared module, trained or calibrated, into an integer module for inference.

    Values are held as codes of 8 bits or fewer wherever what takes them can take codes: linear layers multiply
    integers, messages are added up as integers, and what lies between two grids is looked up in a table. What has no
    integer form computes in float, on the values that the codes stand for; ``report`` lists it. The outputs are those
    of the prepared module in evaluation mode but for roundings that fall on a tie. The given module is not changed.

    Args:
        module: What :func:`dqconvert.prepare` returned, with ranges.
        fold: Compute one row for all nodes that a layer cannot tell apart, as in graphs whose nodes have few different
            features. Off, every layer computes the rows of all nodes; the outputs are the same, bit for bit. A saved
            file keeps it.

    Returns:
        A module whose forward takes what the float model's takes and returns the same dtype. It needs no
        ``torch.no_grad``.

    Raises:
        LoweringError: If the module is not prepared, if a quantizer never observed a value, or if a weight is NaN.

    Example:
        >>> import torch, dqconvert
        >>> from torch_geometric.nn import GCN
        >>> module, report = dqconvert.prepare(GCN(16, 32, num_layers=2, out_channels=7), "int8-dq")
        >>> x, edge_index = torch.randn(5, 16), torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])
        >>> _ = module.train()(x, edge_index)                # observes ranges
        >>> integer = dqconvert.convert(module)
        >>> bool((integer(x, edge_index) - module.eval()(x, edge_index)).abs().max() < 0.1)
        True
    """
    expect_prepared(module, "convert", error=LoweringError)
    return lower(module, passes=PASSES if fold else [run for run in PASSES if run is not fold_colors])
