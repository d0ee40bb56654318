"""Modules that keep what they computed, in a memory that they share: a graph often stays for a thousand steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dqconvert.errors import InputTypeError
from dqconvert.kernels import EdgeOrder, edge_order, own_size
from dqconvert.kernels.memory import Memory


class Memo(nn.Module):
    """Base class of modules that cache results.

    Nothing of that is saved, copied or pickled. Threads may call one at once.

    Attributes:
        memory: Where results are kept. Those of all modules in a prepared or integer module are in one, its
            ``graph_memory``.
    """

    memory: Memory

    def __init__(self) -> None:
        super().__init__()
        self.memory = Memory()
        self._key = _Key()

    def recall(self, compute: Callable[..., Any], *given: Any) -> Any:
        """Returns ``compute(*given)``, or what it returned when it was given the same, see :mod:`.kernels.memory`.

        While a dispatch mode looks on (of tensors without values, say), nothing is kept.

        Example:
            >>> memo, index = Memo(), torch.tensor([0, 2, 2])
            >>> counts = memo.recall(torch.bincount, index)
            >>> memo.recall(torch.bincount, index.clone()) is counts
            True
        """
        if torch._C._len_torch_dispatch_stack() > 0:
            return compute(*given)
        return self.memory.recall(self._key, compute, *given)


class _Key:
    """Stands for a module in a memory; unlike the module, the memory may hold it. Of a copy it is another one."""


def share_memory(root: nn.Module) -> Memory:
    """Gives the modules in a module that keep results one memory.

    Returns:
        The memory: that of the first such module, which keeps what it holds.

    Example:
        >>> orders, remembered = EdgeOrders(), Remembered(torch.bincount)
        >>> memory = share_memory(nn.Sequential(orders, remembered))
        >>> memory is orders.memory is remembered.memory
        True
    """
    memos = [module for module in root.modules() if isinstance(module, Memo)]
    memory = memos[0].memory if memos else Memory()
    for memo in memos:
        memo.memory = memory
    return memory


def apart(value: Any, *kept: Any) -> Any:
    """Returns a value for code outside, in which what lies in memory of something that is kept is copied.

    What is remembered is never handed out: whoever gets it may write into it, through numpy unnoticed, and it would be
    wrong from then on.

    Args:
        value: A tensor, or tensors in tuples, lists and dicts.
        kept: Likewise, what is used again.

    Example:
        >>> kept = torch.tensor([1, 2, 3])
        >>> apart((kept[1:], kept + 1), kept)[0].numpy()[0] = 7
        >>> kept
        tensor([1, 2, 3])
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return value  # then nothing is remembered
    return _copied(value, frozenset(_places(kept)))


def _copied(value: Any, places: frozenset[int]) -> Any:
    if isinstance(value, Tensor):
        return value if places.isdisjoint(_places(value)) else value.clone()
    if isinstance(value, tuple | list):
        parts = [_copied(part, places) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, dict):
        return type(value)((key, _copied(part, places)) for key, part in value.items())
    return value


def _places(value: Any) -> Iterator[int]:
    """Yields the addresses of the storages of tensors, whatever part of them they show."""
    if isinstance(value, tuple | list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _places(part)
    elif isinstance(value, Tensor) and value.layout in _PARTS:
        for part in _PARTS[value.layout]:
            yield from _places(getattr(value, part)())
    elif isinstance(value, Tensor) and value.layout == torch.strided:
        yield value.untyped_storage().data_ptr()


_ROWS, _COLUMNS = ("crow_indices", "col_indices", "values"), ("ccol_indices", "row_indices", "values")
_PARTS = {
    torch.sparse_coo: ("_indices", "_values"),
    **dict.fromkeys((torch.sparse_csr, torch.sparse_bsr), _ROWS),
    **dict.fromkeys((torch.sparse_csc, torch.sparse_bsc), _COLUMNS),
}
"""What sparse tensors are made of, without copies of it."""


class Remembered(Memo):
    """A function of the edges alone, such as GCN's normalization, whose results are kept.

    Example:
        >>> from torch_geometric.utils import remove_self_loops
        >>> remembered = Remembered(remove_self_loops)
        >>> edge_index = torch.tensor([[0, 1], [1, 1]])
        >>> remembered(edge_index)[0] is remembered(edge_index.clone())[0]
        True
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Returns what the function returns for these arguments."""
        given = [*args, *kwargs.values()]
        tensors = [value for value in given if isinstance(value, Tensor)]
        if torch.compiler.is_compiling():
            return _with_own_size(self.function(*args, **kwargs))
        if not all(map(plain_integers, tensors)):
            return self.function(*args, **kwargs)
        names = tuple(kwargs)

        def compute(*given: Any) -> Any:
            named = dict(zip(names, given[len(args) : len(args) + len(names)], strict=True))
            return self.function(*given[: len(args)], **named)

        return self.recall(compute, *given, names)

    def extra_repr(self) -> str:
        return self.function.__name__


def _with_own_size(result: Any) -> Any:
    """Returns the results of a function of edges with a number of edges that compiled code can carry on."""
    if not isinstance(result, tuple):
        return result
    sized = iter(own_size([value for value in result if isinstance(value, Tensor)]))
    return tuple(next(sized) if isinstance(value, Tensor) else value for value in result)


def plain_integers(value: Tensor) -> bool:
    """True if a tensor can be compared and kept: integers, on the CPU, where reading them waits for no device."""
    return type(value) is Tensor and value.device.type == "cpu" and not value.is_floating_point()


class EdgeOrders(Memo):
    """Groups edges by node, and keeps the groupings: a graph often stays the same for a thousand steps.

    Example:
        >>> orders = EdgeOrders()
        >>> orders(torch.tensor([1, 0, 1]), torch.tensor([0, 0, 1]), 2).edges
        tensor([1, 0, 2])
    """

    def forward(self, index: Tensor, other: Tensor, num_nodes: int) -> EdgeOrder | None:
        """Groups edges by node.

        Args:
            index: int64 ``[num_edges]``, the nodes to group by.
            other: int64 ``[num_edges]``, the other ends.
            num_nodes: The number of nodes.

        Returns:
            The grouping; ``None`` on devices whose kernels do without.

        Raises:
            InputTypeError: If the ends are no integers.
        """
        if index.is_floating_point() or other.is_floating_point():
            raise InputTypeError(f"edge_index must hold integers (torch.int64), got {index.dtype}")
        if index.device.type != "cpu":
            return None
        if torch.compiler.is_compiling():
            return edge_order(index, other, num_nodes)
        return self.recall(edge_order, index, other, num_nodes)


__all__ = ["EdgeOrders", "Memo", "Remembered", "apart", "plain_integers", "share_memory"]
