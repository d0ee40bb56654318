"""Products of what lies at both ends of an edge, as attention by keys and queries has them, on codes.

    result[e, h] = factor * sum over the columns c of head h of (a[i[e], c] - zero of a) * (b[j[e], c] - zero of b)

The sums are exact, and rows of edges are never stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dqconvert.errors import InputShapeError
from dqconvert.kernels._buffers import empty
from dqconvert.kernels._operator import Operator
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.cpu.integer.edge_products import multiply_rows
from dqconvert.kernels.cpu.threads import parts, run

MOST = 1 << 15
"""Columns of a head whose sum fits into int32, whatever the codes: 2^15 * 255^2 < 2^31."""


def plain_edge_products(
    a: Tensor, a_rows: Tensor, a_zero: int, b: Tensor, b_rows: Tensor, b_zero: int, heads: int, factor: float
) -> Tensor:
    """Defines what every implementation is held to; the arguments are those of :func:`edge_products`."""
    products = (a[a_rows].long() - a_zero) * (b[b_rows].long() - b_zero)
    return products.view(a_rows.numel(), heads, a.size(1) // heads).sum(2).to(torch.float32) * factor


def _on_cpu(
    a: Tensor, a_rows: Tensor, a_zero: int, b: Tensor, b_rows: Tensor, b_zero: int, heads: int, factor: float
) -> Tensor:
    found = empty((a_rows.numel(), heads), torch.float32)
    arrays = [array(t) for t in (a, a_rows, b, b_rows)]
    args = *arrays, np.int16(a_zero), np.int16(b_zero), np.float32(factor), array(found)
    there = run(
        lambda _, start, stop: multiply_rows(*args, start, stop), parts(a_rows.numel(), a_rows.numel() * a.size(1))
    )
    if not all(there):
        raise IndexError(f"an edge ends at a node that is not there: there are {a.size(0)} and {b.size(0)} nodes")
    return found


def _fake(
    a: Tensor, a_rows: Tensor, a_zero: int, b: Tensor, b_rows: Tensor, b_zero: int, heads: int, factor: float
) -> Tensor:
    return a.new_empty((a_rows.numel(), heads), dtype=torch.float32)


def _check(sizes: Mapping[str, int], args: Sequence[Any]) -> None:
    heads, width = args[6], sizes["width"]
    if heads < 1 or width % heads != 0 or width // heads > MOST:
        raise InputShapeError(f"rows of {width} columns are not {heads} heads of up to {MOST}")


edge_products_operator = Operator(
    "edge_products",
    plain_edge_products,
    fake=_fake,
    cpu=_on_cpu,
    takes=Takes(
        "edge_products",
        a="uint8 [a_nodes, width]",
        a_rows="int64 [edges]",
        a_zero="free",
        b="uint8 [b_nodes, width]",
        b_rows="int64 [edges]",
        b_zero="free",
        heads="size",
        factor="free",
        also=_check,
    ),
)


def edge_products(
    a: Tensor, a_rows: Tensor, a_zero: int, b: Tensor, b_rows: Tensor, b_zero: int, heads: int, factor: float
) -> Tensor:
    """Returns the product of two rows for each edge, head by head: of a node's query, say, and a neighbour's key.

    Args:
        a, b: uint8 codes `[nodes, heads * columns]`, of as many nodes as each has.
        a_rows, b_rows: int64 `[num_edges]`, the row of each for every edge.
        a_zero, b_zero: The codes of 0.
        heads: How many sums a row has.
        factor: The value of one step of the sums: the product of both scales.

    Returns:
        float32 `[num_edges, heads]`.
        IndexError: For a row that is not there (on the CPU).

    Example:
        >>> a, b = torch.tensor([[1, 2, 3, 4]], dtype=torch.uint8), torch.tensor([[5, 5, 6, 6]], dtype=torch.uint8)
        >>> edge = torch.tensor([0])
        >>> edge_products(a, edge, 0, b, edge, 5, heads=2, factor=0.5)
        tensor([[0.0000, 3.5000]])
    """
    fits = a.dim() == b.dim() == 2 and a.size(1) == b.size(1) and heads > 0 and a.size(1) % heads == 0
    if not fits or a.size(1) // heads > MOST or a_rows.dim() != 1 or a_rows.shape != b_rows.shape:
        shapes = ", ".join(str(tuple(t.shape)) for t in (a, a_rows, b, b_rows))
        raise ValueError(f"expected rows of the same heads ({heads}) and one of each for every edge, got {shapes}")
    if any(t.dtype != torch.uint8 for t in (a, b)) or any(t.dtype != torch.int64 for t in (a_rows, b_rows)):
        dtypes = ", ".join(str(t.dtype) for t in (a, a_rows, b, b_rows))
        raise TypeError(f"expected uint8 codes and int64 rows, got {dtypes}")
    return edge_products_operator(a, a_rows, a_zero, b, b_rows, b_zero, heads, factor)
