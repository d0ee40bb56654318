"""What integer operations are given in a loaded graph: their loops trust it, so it is looked at once, here."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from dqconvert.errors import CheckpointError
from dqconvert.kernels.integer import INTEGER_FUNCTIONS
from dqconvert.kernels.integer.finish import Finish
from dqconvert.kernels.integer.propagate import MessageWeight

_FINITE = ("factor", "bias", "multipliers", "logits")
_GRIDS = ("grid", "x_grid")
_REACH = 1 << 16
"""How far a grid's lowest code of training may lie from zero."""


def check_operands(graph: Graph, root: nn.Module) -> None:
    """Makes sure that every integer operation has constants where it needs them, and that those are sound.

    Args:
        graph: Of an integer module.
        root: Holds its constants.

    Raises:
        CheckpointError: If a grid is none, or a factor, a bias or a table of multipliers or logits is not finite.
    """
    for node in graph.nodes:
        if node.op == "call_function" and node.target in INTEGER_FUNCTIONS:
            for name, value in _operands(node.target, node):
                _check(node, name, value, root)


def _operands(function: Callable[..., Any], node: Node) -> Iterator[tuple[str, Any]]:
    """The arguments of a call by name, those inside named tuples, too."""
    for name, value in inspect.signature(function).bind(*node.args, **node.kwargs).arguments.items():
        if isinstance(value, Finish | MessageWeight):
            yield from value._asdict().items()
        else:
            yield name, value


def _check(node: Node, name: str, value: Any, root: nn.Module) -> None:
    if value is None or name not in (*_FINITE, *_GRIDS) or (isinstance(value, float) and math.isfinite(value)):
        return
    constant = root._buffers.get(str(value.target)) if isinstance(value, Node) and value.op == "get_attr" else None
    if constant is None:
        raise CheckpointError(f"{node.name} in the file has no constant as its {name}.")
    sound = _is_grid(constant) if name in _GRIDS else _is_finite(constant)
    if not sound:
        raise CheckpointError(f"{node.name} in the file has a {name} that is damaged: {value.target}.")


def _is_finite(constant: Tensor) -> bool:
    return constant.dtype == torch.float32 and bool(constant.isfinite().all())


def _is_grid(constant: Tensor) -> bool:
    if constant.dim() not in (1, 2) or constant.size(0) != 4 or constant.numel() == 0 or not _is_finite(constant):
        return False
    scale, zero, top, low = constant
    reached = [(top.min(), 0), (255, top.max()), (zero.min(), -255), (255, zero.max()), (_REACH, low.abs().max())]
    return bool((scale > 0).all()) and all(bool(more >= less) for more, less in reached)
