"""The share of a module's multiply-adds that are of integers, counted while it runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_Count: TypeAlias = Callable[..., int]


def _linear(x: Tensor, x_grid: Tensor, weight: Tensor, columns: int, packed_input: bool, *_: Any) -> int:
    return int(x.size(0)) * int(x.size(1)) * (2 if packed_input else 1) * columns


def _propagate(x: Tensor, x_grid: Tensor, ptr: Tensor, senders: Tensor, columns: int, *_: Any) -> int:
    return senders.numel() * columns


_INTEGER: Mapping[str, _Count] = MappingProxyType(
    {
        "integer_linear": _linear,
        "integer_propagate": _propagate,
        "add_heads": lambda x, *_: x.numel(),
        "edge_products": lambda a, edges, *_: edges.numel() * int(a.size(1)),
        "quantize_sum": lambda terms, *_: sum(term.numel() for term in terms),
    }
)
"""Multiply-adds of our operators, by name."""


def _source(x: Tensor, dim: int, index: Tensor, source: Tensor, *_: Any, **__: Any) -> int:
    return source.numel()


def _recurrent(x: Tensor, input_weights: Tensor, hidden_weights: Tensor, *_: Any) -> int:
    return int(x.size(0)) * int(x.size(1)) * (input_weights.numel() + hidden_weights.numel())


_FLOAT: Mapping[str, _Count] = MappingProxyType(
    {
        **dict.fromkeys(("scatter_add", "scatter_add_", "index_add", "index_add_"), _source),
        **dict.fromkeys(("scatter_reduce", "scatter_reduce_", "index_reduce", "index_reduce_"), _source),
        "segment_reduce": lambda data, *_, **__: data.numel(),
        "mkldnn_rnn_layer": _recurrent,
    }
)
"""Multiply-adds of torch's operators, by name, besides those that torch counts itself."""


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
        if func.namespace == "dqconvert":
            self.integer += _INTEGER.get(name, _nothing)(*args)
        elif name in _FLOAT:
            self.floating += _FLOAT[name](*args, **kwargs)
        elif packet in flop_registry:
            self.floating += flop_registry[packet](*args, **kwargs, out_val=result) // 2
        return result


def _nothing(*_: Any) -> int:
    return 0
