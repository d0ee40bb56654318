"""Watches torch while a real forward runs, and has every call written down.

Symbolic tracing needs proxies, and proxies fail PyG's ``isinstance(x, Tensor)`` and its checks of sizes. Here the
forward runs on real tensors under a :class:`torch.overrides.TorchFunctionMode`; a map from each live tensor to the
node that made it turns the calls into a graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.overrides import TorchFunctionMode, resolve_name

from dqconvert.trace.adjacency import is_sparse
from dqconvert.trace.blocks import overlap
from dqconvert.trace.calls import Call, normal_call
from dqconvert.trace.constants import as_data, holds_numpy
from dqconvert.trace.in_place import becomes_a_view, written
from dqconvert.trace.values import TracedInt, plain_arguments
from dqconvert.trace.writer import Writer
from dqconvert.words import kind_of

# Calls that answer with a Python value which follows from a tensor's contents.
_READS_VALUES = {"__bool__", "is_nonzero", "equal", "allclose", "__contains__", "tolist", "numpy", "__array__"}
# Integers that never depend on the graph's size.
_PLAIN_INTS = {"dim", "ndimension", "element_size", "get_device", "stride", "storage_offset", "__hash__", "ndim"}
_PLAIN_INTS |= {"dense_dim", "sparse_dim"}
_NO_RESULT = {"retain_grad", "requires_grad_", "_assert", "_assert_async", "_check", "__repr__", "__format__"}
_OF_DATA = {torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, torch.scalar_tensor}
_SIDE_EFFECTS = {torch._C._set_grad_enabled}


class Recorder(TorchFunctionMode):
    """Turns torch calls into nodes."""

    def __init__(self, writer: Writer) -> None:
        super().__init__()
        self.writer = writer
        self._sizes: dict[tuple[Node, int], Node] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self.writer.recording:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name == "__get__":
            return self._attribute_read((resolve_name(func) or "..").split(".")[-2], func, args[0])
        if name == "__set__" and not (resolve_name(func) or "").endswith("requires_grad.__set__"):
            self.writer.fail(f"sets the attribute {(resolve_name(func) or '..').split('.')[-2]!r} of a tensor")
        if name in _READS_VALUES and self.writer.touches(args, kwargs):
            what = "branches on the value of a tensor" if name == "__bool__" else f"reads values with {name}()"
            self.writer.fail(what)
        if name == "register_hook":
            self.writer.fail("registers a hook on a tensor")
        if name in ("size", "numel", "nelement", "__len__"):
            return self._size(name, args, kwargs)
        if name in ("__int__", "__float__", "__index__", "__complex__"):
            self.writer.fail("turns a tensor into a Python number where the recording cannot follow")
        if name == "item":
            return self._item(args)
        if name.endswith("_") and not name.startswith("_") and args and is_sparse(args[0]):
            self.writer.fail("writes into a sparse matrix")
        before = self.writer.versions((args, kwargs))
        with self.writer.paused():
            result = func(*plain_arguments(args), **plain_arguments(kwargs))
        changed = self.writer.changed(before)
        if changed or becomes_a_view(name):
            return self._record_write(func, name, args, kwargs, result, changed)
        return self._record_torch(func, name, args, kwargs, result)

    def _record_torch(self, func: Any, name: str, args: Any, kwargs: Any, result: Any) -> Any:
        if func in _SIDE_EFFECTS:
            self.writer.node("call_function", func, args, kwargs)
            return result
        if result is None:
            if name not in _NO_RESULT and self.writer.touches(args, kwargs):
                self.writer.fail(f"calls {name}(), which returns nothing")
            return result
        if isinstance(result, bool | str | torch.dtype | torch.device | torch.layout) or name in _PLAIN_INTS:
            return result
        if func in _OF_DATA and args and holds_numpy(args[0]):
            func, name, args, kwargs = torch.tensor, "tensor", (as_data(args[0]),), {**kwargs, "dtype": result.dtype}
        call = normal_call(func, args, kwargs)
        if call.kwargs.get("training") is False:  # a dropout, which then writes nothing
            call.kwargs.pop("inplace", None)
        return self.writer.bind(result, self.writer.node(*call))

    def _record_write(self, func: Any, name: str, args: Any, kwargs: Any, result: Any, changed: list[Tensor]) -> Any:
        """Records a call that changed its arguments, as one that returns their new values."""
        if becomes_a_view(name):
            with self.writer.paused():
                call = normal_call(getattr(Tensor, name[:-1]), args, kwargs)
            self.writer.take_view(args[0], self.writer.node(*call))
            return result
        with self.writer.paused():
            found = written(func, name, args, kwargs)
            # Views count the changes of what they are views of.
            alone = found is not None and all(overlap(found.target, tensor) for tensor in changed)
        if found is None or not alone:
            return self.writer.changes(self.writer.node(*normal_call(func, args, kwargs)), result, changed)
        node = self.writer.node(*found.call)
        self.writer.write(found.target, node)
        return result

    def _attribute_read(self, name: str, func: Any, owner: Tensor) -> Any:
        with self.writer.paused():
            result = func(owner)
        if name == "shape":
            return self._size("size", (owner,), {})
        if isinstance(result, Tensor):
            with self.writer.paused():
                call = _property(name, owner)
            return self.writer.bind(result, self.writer.node(*call))
        if isinstance(result, torch.device | torch.dtype) and self.writer.knows(owner):
            self._remember_origin(result, owner, name)
        return result

    def _remember_origin(self, value: Any, owner: Tensor, name: str) -> None:
        """Has ``device=x.device`` and ``dtype=x.dtype`` follow ``x``, instead of what tracing saw."""
        if isinstance(value, torch.dtype) and not value.is_floating_point:
            return
        self.writer.origin[value] = self.writer.node("call_function", getattr, (owner, name), {})

    def _size(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensor = args[0]
        shape, counts = self.writer.shape(tensor), name in ("numel", "nelement")
        dim = 0 if name == "__len__" else kwargs.get("dim", args[1] if len(args) > 1 else None)
        if not self.writer.knows(tensor):  # a parameter: its shape is part of the model
            return math.prod(shape) if counts else torch.Size(shape) if dim is None else shape[dim]
        if counts:
            node = self._cached_size(tensor, -1, lambda: self.writer.node("call_method", "numel", (tensor,), {}))
            return self.writer.traced(math.prod(shape), node)
        if dim is None:
            return torch.Size([self._one_size(tensor, d, value) for d, value in enumerate(shape)])
        dim = int(dim)
        return self._one_size(tensor, dim % len(shape) if shape else dim, shape[dim])

    def _one_size(self, tensor: Tensor, dim: int, value: int) -> TracedInt:
        node = self._cached_size(tensor, dim, lambda: self.writer.node("call_method", "size", (tensor, dim), {}))
        return self.writer.traced(value, node)

    def _cached_size(self, tensor: Tensor, dim: int, make: Callable[[], Node]) -> Node:
        owner = self.writer.node_of(tensor)
        assert owner is not None
        if (owner, dim) not in self._sizes:
            self._sizes[owner, dim] = make()
        return self._sizes[owner, dim]

    def _item(self, args: tuple[Any, ...]) -> Any:
        with self.writer.paused():
            value = args[0].item()
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.writer.fail(f"reads {kind_of(value)} out of a tensor")
        return self.writer.traced(value, self.writer.node("call_method", "item", args, {}), from_values=True)


def _property(name: str, owner: Tensor) -> Call:
    """Returns the call for a tensor that is read off another one, as a method where there is one."""
    if name == "data":
        return Call("call_method", "detach", (owner,), {})
    if name in ("T", "mT", "H", "mH") and not owner.is_complex():
        if name == "T" and owner.dim() != 2:
            return Call("call_method", "permute", (owner, *reversed(range(owner.dim()))), {})
        if owner.dim() == 2:
            return Call("call_method", "t", (owner,), {})
        return Call("call_method", "transpose", (owner, -2, -1), {})
    return Call("call_function", getattr, (owner, name), {})
