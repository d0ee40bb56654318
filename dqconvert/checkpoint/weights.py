"""The integer weights of linear layers in a file: a byte for each code, or half a byte where 16 codes are enough.

In memory they are int16 in the order in which the loops read them, see
:func:`dqconvert.kernels.integer.linear.pack_weight`; that is made again on loading.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from dqconvert.errors import CheckpointError
from dqconvert.kernels.integer.finish import pack, unpack
from dqconvert.kernels.integer.linear import integer_linear, pack_weight, unpack_weight


def weight_columns(graph: Graph) -> dict[str, int]:
    """Returns the constants that are weights of linear layers, and how many columns their products have."""
    found = {}
    for node in graph.nodes:
        if node.target is integer_linear and isinstance(node.args[2], Node) and node.args[2].op == "get_attr":
            found[str(node.args[2].target)] = int(node.args[3])
    return found


def shrink(weight: Tensor, columns: int) -> tuple[Tensor, dict[str, Any]] | None:
    """Returns a weight as a file holds it, and its form; None if it has more than 256 codes.

    Example:
        >>> weight = pack_weight(torch.tensor([[-3, 2, 7]], dtype=torch.int16))
        >>> stored, form = shrink(weight, 1)
        >>> stored, form
        (tensor([[80, 58]], dtype=torch.uint8), {'columns': 1, 'depth': 4, 'low': -3, 'bits': 4})
        >>> torch.equal(grow(stored, form), weight)
        True
    """
    depth = 2 * weight.size(1)
    centred = unpack_weight(weight, columns, depth)
    low, high = (int(end) for end in centred.aminmax()) if centred.numel() else (0, 0)
    if high - low > 255:
        return None
    codes = (centred - low).to(torch.uint8)
    bits = 4 if high - low < 16 else 8
    form = {"columns": columns, "depth": depth, "low": low, "bits": bits}
    return (pack(codes) if bits == 4 else codes), form


def grow(stored: Tensor, form: dict[str, Any]) -> Tensor:
    """Returns the weight that :func:`shrink` was given.

    Raises:
        CheckpointError: If the tensor is not what the file says.
    """
    columns, depth, low, bits = (int(form[key]) for key in ("columns", "depth", "low", "bits"))
    shape = (columns, depth // 2 if bits == 4 else depth)
    sound = stored.dtype == torch.uint8 and stored.shape == shape and bits in (4, 8) and depth % 2 == 0
    if not sound or not -255 <= low <= 255:
        raise CheckpointError(f"the file holds a weight as {stored.dtype} {tuple(stored.shape)}, and says {form}.")
    codes = unpack(stored, depth) if bits == 4 else stored
    centred = codes.to(torch.int16) + low
    if centred.numel() and not -255 <= int(centred.min()) <= int(centred.max()) <= 255:
        raise CheckpointError(f"the file holds a weight whose codes reach past 255: {form}.")
    return pack_weight(centred)
