"""Rows whose grids and tables are those of their group: look-ups, and from values to codes."""

from __future__ import annotations

import torch
from torch import Tensor

from dqconvert.kernels._buffers import empty
from dqconvert.kernels._layout import wide_dtype
from dqconvert.kernels._operator import Operator
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.cpu.integer.codes import quantize_rows
from dqconvert.kernels.cpu.threads import parts, run
from dqconvert.kernels.integer.codes import not_a_number, not_floating, plain_quantize
from dqconvert.kernels.integer.tables import look_up_operator, look_up_pairs_operator


def look_up_groups(codes: Tensor, table: Tensor, groups: Tensor) -> Tensor:
    """Looks each code up in the table of its row's group.

    Args:
        codes: uint8 `[rows, *rest]`.
        table: `[groups, 256]`, by the code; or `[groups, columns, 256]`, by the place in the row and the code.
        groups: uint8 `[rows]`.

    Returns:
        A contiguous tensor of the codes' shape and the table's dtype.

    Example:
        >>> table = torch.stack([torch.arange(256) * 0.5, torch.arange(256) * 2.0])
        >>> codes, groups = torch.tensor([[2], [2]], dtype=torch.uint8), torch.tensor([1, 0], dtype=torch.uint8)
        >>> look_up_groups(codes, table, groups).tolist()
        [[4.0], [1.0]]
    """
    return look_up_operator(codes, table, False, groups)


def look_up_pairs_groups(a: Tensor, b: Tensor, table: Tensor, groups: Tensor) -> Tensor:
    """Looks each pair of codes up in the table of its row's group.

    Args:
        a, b: uint8 `[rows, *rest]`, of one shape.
        table: `[groups, 256, 256]`, by the code in `a` and that in `b`.
        groups: uint8 `[rows]`.

    Returns:
        A contiguous tensor of the codes' shape and the table's dtype.

    Example:
        >>> sums = torch.arange(256.0)[:, None] + torch.arange(256.0)
        >>> a, groups = torch.tensor([[2], [2]], dtype=torch.uint8), torch.tensor([1, 0], dtype=torch.uint8)
        >>> look_up_pairs_groups(a, a, torch.stack([sums, 10 * sums]), groups).tolist()
        [[40.0], [4.0]]
    """
    return look_up_pairs_operator(a, b, table, groups)


def plain_quantize_groups(x: Tensor, grids: Tensor, groups: Tensor, name: str | None = None) -> Tensor:
    """Defines what every implementation is held to; the arguments are those of :func:`quantize_groups`."""
    return plain_quantize(x, grids[groups.long()].t(), 0, False, name)


def _quantize_on_cpu(x: Tensor, grids: Tensor, groups: Tensor, name: str | None = None) -> Tensor:
    codes = empty(x.shape, torch.uint8)
    wide = wide_dtype(x.dtype)
    flat = array(x.detach().to(wide)).reshape(-1), array(grids.to(wide)), array(groups), array(codes).reshape(-1)
    columns = x.numel() // max(len(x), 1)
    cuts = parts(len(x), x.numel())
    missing = run(lambda _, start, stop: quantize_rows(*flat, columns, start, stop), cuts)
    if name is not None and any(missing):
        raise not_a_number(name)
    return codes


def _check_values(x: Tensor, grids: Tensor, groups: Tensor, name: str | None = None) -> None:
    if not x.is_floating_point():
        raise not_floating(name or "x", x)


quantize_groups_operator = Operator(
    "quantize_groups",
    plain_quantize_groups,
    fake=lambda x, *_: x.new_empty(x.shape, dtype=torch.uint8),
    cpu=_quantize_on_cpu,
    check=_check_values,
    serves=lambda x, grids, *_: len(grids) > 0,
    takes=Takes("quantize_groups", x="any [rows, ...]", grids="float32 [count, 4]", groups="uint8 [rows]", name="flag"),
)


def quantize_groups(x: Tensor, grids: Tensor, groups: Tensor, *, name: str | None = None) -> Tensor:
    """Returns the codes of values, each row on the grid of its group: see :func:`.codes.quantize`.

    Args:
        x: Floating `[rows, *rest]`.
        grids: float32 `[groups, 4]`: scale, zero, the highest code, and the lowest of training.
        groups: uint8 `[rows]`.
        name: What to call the values in an error, if NaN among them is one.

    Returns:
        uint8 of the values' shape.

    Raises:
        ValueError: For NaN if there is a name.
        TypeError: For other types.

    Example:
        >>> grids = torch.tensor([[1.0, 0.0, 15.0, 0.0], [2.0, 0.0, 15.0, 0.0]])
        >>> quantize_groups(torch.tensor([[4.0], [4.0]]), grids, torch.tensor([1, 0], dtype=torch.uint8)).tolist()
        [[2], [4]]
    """
    return quantize_groups_operator(x, grids, groups, name)
