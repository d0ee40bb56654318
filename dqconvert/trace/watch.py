"""Watches the user's own code for weights that it multiplies by, past the quantizers."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dqconvert.errors import TraceError
from dqconvert.ops import Op, op_named
from dqconvert.trace.nested import tensors_in


class Watch(TorchFunctionMode):
    """Raises where a weight of a module, or what was computed of weights alone, meets values in a product.

    Sums, norms and initial values of weights are no products: a penalty may read them.

    Args:
        vectors: Names of those of its parameters that count in products entry by entry, too: attention vectors.
    """

    def __init__(self, module: nn.Module, vectors: set[str], what: str) -> None:
        super().__init__()
        self._module = module
        self._vectors = vectors
        self._what = what
        self._of_weights: dict[int, weakref.ref[Tensor]] = {}
        self.paused = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        tensors = list(tensors_in((args, kwargs)))
        weights = [tensor for tensor in tensors if self._is_weight(tensor)]
        name = getattr(func, "__name__", "")
        op = op_named(name.replace("__r", "__"))
        if weights and (op.product or op.name == "mul"):
            others = [tensor for tensor in tensors if not self._is_weight(tensor) and tensor.dim() > 0]
            if (others or name in ("embedding", "embedding_bag")) and (parameter := self._named(weights, op)):
                if not name.endswith("_"):
                    func(*args, **kwargs)  # arguments that do not fit are its own error, as in the float model
                raise TraceError(f"{self._what}, and it calls {name}() on the weight {parameter!r} itself, in float.")
        result = func(*args, **kwargs)
        if weights and len(weights) == len(tensors):
            for tensor in tensors_in(result):
                self._of_weights[id(tensor)] = weakref.ref(tensor)
        return result

    def _is_weight(self, tensor: Tensor) -> bool:
        if isinstance(tensor, nn.Parameter):
            return True
        known = self._of_weights.get(id(tensor))
        return known is not None and known() is tensor

    def _named(self, weights: list[Tensor], op: Op) -> str | None:
        """Returns the parameter that a product is with; ``None`` if it is none of the module's that count."""
        parameters = dict(self._module.named_parameters())
        kept = {id(value): path for path, value in parameters.items()}
        for weight in weights:
            path = kept.get(id(weight)) or ("(computed of weights)" if not isinstance(weight, nn.Parameter) else None)
            if path is not None and weight.dim() > 0 and (op.product or path in self._vectors):
                return path
        return None


_local = threading.local()
watching = [0]
"""Number of calls that are watched right now, in all threads: at none, graphs have nothing to pause."""


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Watches what runs inside, but for the graphs among it."""
    before = _watches()
    _local.watches, watching[0] = (*before, watch), watching[0] + 1
    try:
        with watch:
            yield
    finally:
        _local.watches, watching[0] = before, watching[0] - 1


@contextmanager
def unwatched() -> Iterator[None]:
    """Runs a graph inside watched code."""
    awake = [watch for watch in _watches() if not watch.paused]
    for watch in awake:
        watch.paused = True
    try:
        if awake and torch.overrides._get_current_function_mode() is awake[-1]:
            with torch.overrides._pop_mode_temporarily():
                yield
        else:
            yield
    finally:
        for watch in awake:
            watch.paused = False


def _watches() -> tuple[Watch, ...]:
    return getattr(_local, "watches", ())
