"""The share of a module's multiply-adds that are of integers, counted while it runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from dqconvert.ops import OURS, TORCH, op_named


@dataclass(frozen=True, kw_only=True)
class MultiplyAdds:
    """Counts of :func:`multiply_adds`.

    Attributes:
        integer: On integers.
        floating: In floating point.
    """

    integer: int
    floating: int

    @property
    def share(self) -> float:
        """Share of all that are on integers; NaN where there are none."""
        total = self.integer + self.floating
        return self.integer / total if total else math.nan


def multiply_adds(run: Callable[[], object]) -> MultiplyAdds:
    """Counts the multiply-adds of a call: of products with a weight, one for each number that is multiplied; of a sum
    over edges or over the rows of a group, one for each entry that is added up.

    Args:
        run: Calls an integer module, or anything else.

    Example:
        >>> import torch
        >>> linear = torch.nn.Linear(8, 3)
        >>> multiply_adds(lambda: linear(torch.ones(5, 8)))
        MultiplyAdds(integer=0, floating=120)
    """
    counter = _Counter()
    with counter:
        run()
    return MultiplyAdds(integer=counter.integer, floating=counter.floating)


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.integer = 0
        self.floating = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        packet = func.overloadpacket
        name = str(packet).rsplit(".", 1)[-1]
        ours = func.namespace == OURS
        count = op_named(name, OURS if ours else TORCH).multiply_adds
        if ours:
            self.integer += count(*args) if count is not None else 0
        elif count is not None:
            self.floating += count(*args, **kwargs)
        elif packet in flop_registry:
            self.floating += flop_registry[packet](*args, **kwargs, out_val=result) // 2
        return result
