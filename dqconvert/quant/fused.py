"""What a fused graph calls: several quantizers, and what lies between them, in one operator.

Each function first asks its quantizers whether they would observe and round as usual. Where one would not (its
observer was disabled, a dtype or a granularity that the operators do not know, a range that was never set), it does
the same step by step, as the graph that was not fused does. The quantizers' state is the same either way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dqconvert.kernels import EdgeOrder, edge_order, propagate, quantize_chain
from dqconvert.kernels import dropout as kernel_dropout
from dqconvert.kernels import linear as kernel_linear
from dqconvert.quant.fake_quantize import FakeQuantize
from dqconvert.quant.protection import gather_protected


def chain(
    x: Tensor,
    first: FakeQuantize | None,
    bias: Tensor | None,
    other: Tensor | None,
    alpha: Tensor | None,
    second: FakeQuantize | None,
    relu: bool,
    third: FakeQuantize | None,
    protected: Tensor | None,
) -> Tensor:
    """`third(relu(second(first(x) + bias)))`, or `+ alpha * other`; whatever is `None` (or False) is left out.

    See :func:`dqconvert.kernels.quantize_chain`. `protected`: bool `[x.size(0)]`, for all quantizers.
    """
    quantizers = (first, second, third)
    present = [quantizer for quantizer in quantizers if quantizer is not None]
    schemes = [None if quantizer is None else quantizer.scheme_for(x) for quantizer in quantizers]
    # A part of the model may be in evaluation, and autocast mixes types.
    alike = len({quantizer.training for quantizer in present}) == 1
    one_type = all(t is None or t.dtype == x.dtype for t in (bias, other, alpha))
    if not alike or not one_type or sum(scheme is not None for scheme in schemes) < len(present):
        return _step_by_step(x, first, bias, other, alpha, second, relu, third, protected)
    ranges = [end for quantizer in present for end in (quantizer.min_val, quantizer.max_val)]
    y, ends = quantize_chain(
        x,
        schemes,
        ranges,
        bias=bias,
        other=other,
        alpha=alpha,
        protected=protected if present[0].training else None,
        relu=relu,
    )
    used = [scheme for scheme in schemes if scheme is not None]
    for place, (quantizer, scheme) in enumerate(zip(present, used, strict=True)):
        quantizer.take(scheme, ends[2 * place : 2 * place + 2])
    return y


def _step_by_step(
    x: Tensor,
    first: FakeQuantize | None,
    bias: Tensor | None,
    other: Tensor | None,
    alpha: Tensor | None,
    second: FakeQuantize | None,
    relu: bool,
    third: FakeQuantize | None,
    protected: Tensor | None,
) -> Tensor:
    value = x if first is None else first(x, protected)
    if bias is not None:
        value = value + bias
    if other is not None:
        value = value + (other if alpha is None else alpha * other)
    value = value if second is None else second(value, protected)
    value = value.relu() if relu else value
    return value if third is None else third(value, protected)


def message_passing(
    x: Tensor,
    weight: Tensor | None,
    sender: Tensor,
    receiver: Tensor,
    num_nodes: int,
    by_receiver: EdgeOrder | None,
    by_sender: EdgeOrder | None,
    quantizer: FakeQuantize,
    protected: Tensor | None,
    mean: bool,
) -> Tensor:
    """Gathers `x` along the edges, multiplies by `weight`, quantizes, and adds up (or averages) per receiver.

    **Arguments**

    - `x`: `[num_senders, *features]`.
    - `weight`: `[num_edges]` or, for features `[heads, channels]`, `[num_edges, heads]`; `None`: the message is
      `x_j`.
    - `sender`, `receiver`: int64 `[num_edges]`; `num_nodes`: how many nodes receive.
    - `by_receiver`, `by_sender`: from :class:`EdgeOrders`; `None` on devices that do without.
    - `quantizer`: of the messages. `protected`: bool `[num_senders]`, or None.
    - `mean`: whether to average.

    **Returns** `[num_nodes, *features]`.
    """
    scheme = quantizer.scheme_for(x) if by_receiver is not None and by_sender is not None else None
    fits = weight is None or weight.dtype == x.dtype
    if scheme is None or by_receiver is None or by_sender is None or not fits:
        return _message_by_message(x, weight, sender, receiver, num_nodes, quantizer, protected, mean)
    flat = x if x.dim() == 2 else x.reshape(x.size(0), math.prod(x.shape[1:]))
    per_head = None if weight is None else _by_head(weight)
    out, ends = propagate(
        flat,
        per_head,
        sender,
        receiver,
        by_receiver,
        by_sender,
        scheme,
        (quantizer.min_val, quantizer.max_val),
        protected if quantizer.training else None,
        mean,
    )
    quantizer.take(scheme, ends)
    return out.view(out.size(0), *x.shape[1:])


def _by_head(weight: Tensor) -> Tensor:
    """`[num_edges, heads]`, of weights that may have no dimension for heads, or one more for channels."""
    return weight.unsqueeze(1) if weight.dim() == 1 else weight.squeeze(2) if weight.dim() == 3 else weight


def _message_by_message(
    x: Tensor,
    weight: Tensor | None,
    sender: Tensor,
    receiver: Tensor,
    num_nodes: int,
    quantizer: FakeQuantize,
    protected: Tensor | None,
    mean: bool,
) -> Tensor:
    message = x.index_select(0, sender)
    if weight is not None:
        message = weight.reshape(*weight.shape, *[1] * (message.dim() - weight.dim())) * message
    message = quantizer(message, gather_protected(protected, sender))
    index = receiver.reshape(-1, *[1] * (message.dim() - 1)).expand_as(message)
    out = message.new_zeros(num_nodes, *message.shape[1:]).scatter_add(0, index, message)
    if mean:
        count = message.new_zeros(num_nodes).scatter_add(0, receiver, message.new_ones(len(receiver)))
        out = out / count.clamp(min=1).reshape(-1, *[1] * (out.dim() - 1))
    return out


def own_memory(x: Any) -> Any:
    """A copy of a tensor, or of those in a tuple or list, in memory of its own: for code that may free or resize it."""
    if isinstance(x, tuple | list) and not hasattr(x, "_fields"):
        return type(x)(map(own_memory, x))
    return x.clone() if isinstance(x, Tensor) else x


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, in memory that is used again where that is possible."""
    if x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or type(x) is not Tensor:
        return nn.functional.linear(x, weight, bias)
    return kernel_linear(x, weight, bias)


def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """`torch.nn.functional.dropout`, likewise; `inplace` may be ignored, as no one else sees `x`."""
    ordinary = x.device.type == "cpu" and x.is_floating_point() and x.is_contiguous()
    if not training or not ordinary or not 0 < p < 1:
        return nn.functional.dropout(x, p, training)
    return kernel_dropout(x, p)


class Memo(nn.Module):
    """Base class of what remembers something between calls that it could as well compute again.

    No state of it is saved, copied or pickled.
    """

    def __init__(self) -> None:
        super().__init__()
        self._last: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}


class Remembered(Memo):
    """A function of the graph alone, such as GCN's normalization, and what it returned the last time.

    The result is used again only where every argument equals, value by value, that of the last call, and nobody
    changed the result in place. It has no state that is saved.

    ```python
    >>> from torch_geometric.utils import remove_self_loops
    >>> remembered = Remembered(remove_self_loops)
    >>> edge_index = torch.tensor([[0, 1], [1, 1]])
    >>> remembered(edge_index)[0] is remembered(edge_index.clone())[0]
    True

    ```
    """

    _last: tuple[list[Any], Any, list[int]] | None

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the function returns for these arguments."""
        given = [*args, *kwargs.values()]
        tensors = [value for value in given if isinstance(value, Tensor)]
        if torch.compiler.is_compiling() or any(not _plain_integers(value) for value in tensors):
            return self.function(*args, **kwargs)
        last = self._last
        if last is not None and _all_equal(last[0], given) and last[2] == _versions(last[1]):
            return last[1]
        with torch.inference_mode(False):  # what is remembered may be used in training later
            result = self.function(*args, **kwargs)
            known = [value.clone() if isinstance(value, Tensor) else value for value in given]
            self._last = (known, result, _versions(result))
        return result

    def extra_repr(self) -> str:
        return self.function.__name__


def _plain_integers(value: Tensor) -> bool:
    return type(value) is Tensor and value.device.type == "cpu" and not value.is_floating_point()


def _all_equal(old: list[Any], new: list[Any]) -> bool:
    def same(one: Any, two: Any) -> bool:
        if isinstance(one, Tensor) and isinstance(two, Tensor):
            return one.dtype == two.dtype and torch.equal(one, two)
        return type(one) is type(two) and one == two

    return len(old) == len(new) and all(map(same, old, new))


def _versions(result: Any) -> list[int]:
    results = result if isinstance(result, tuple) else (result,)
    return [value._version for value in results if isinstance(value, Tensor)]


class EdgeOrders(Memo):
    """Groups edges by node, and remembers the last grouping: a graph often stays the same for a thousand steps.

    A grouping is used again only where the index equals, value by value, the one it was made for, so a graph that was
    changed in place is never mistaken for the old one. It has no state that is saved.

    ```python
    >>> orders = EdgeOrders()
    >>> orders(torch.tensor([1, 0, 1]), torch.tensor([0, 0, 1]), 2).edges
    tensor([1, 0, 2])

    ```
    """

    _last: tuple[Tensor, Tensor, int, EdgeOrder] | None

    def forward(self, index: Tensor, other: Tensor, num_nodes: int) -> EdgeOrder | None:
        """The grouping of edges by `index` (int64 `[num_edges]`; `other`: the other ends); None on devices whose
        kernels do without."""
        if index.device.type != "cpu":
            return None
        if torch.compiler.is_compiling():
            return edge_order(index, other, num_nodes)
        last = self._last
        if last is not None and last[2] == num_nodes and torch.equal(last[0], index) and torch.equal(last[1], other):
            return last[3]
        with torch.inference_mode(False):  # what is remembered may be used in training later
            order = edge_order(index, other, num_nodes)
            self._last = (index.clone(), other.clone(), num_nodes, order)
        return order


__all__ = ["EdgeOrders", "Memo", "Remembered", "chain", "dropout", "linear", "message_passing", "own_memory"]
