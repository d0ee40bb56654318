"""The module that :func:`dqconvert.convert` returns."""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import nn
from torch.fx import Graph
from torch_geometric.nn.conv import MessagePassing

from dqconvert import notebook
from dqconvert.errors import ArgumentError, GuardError, InputError, LoweringError
from dqconvert.fuse import keep_apart
from dqconvert.kernels.memory import Memory
from dqconvert.lower.report import IntegerReport
from dqconvert.lower.skeleton import Bare, guard_parts, lacks_weights, open_bare
from dqconvert.prepared.boundary import Boundary, bounded
from dqconvert.quant.memo import share_memory
from dqconvert.trace.doors import DoorModule
from dqconvert.trace.leaves import WEIGHTED_MODULES
from dqconvert.trace.parts import DoorCall, door_of, open_parts, part_class
from dqconvert.words import article, count


class IntegerModule(DoorModule):
    """A model for inference whose values are integers wherever they can be.

    Its forward takes what the float model's takes and returns values of the same dtype. It computes without gradients,
    and is always in evaluation mode. It has the methods that the prepared module had graphs of, and its parts:
    ``module.encode(x, edge_index)``, ``module.encoder(x, edge_index)``. Of a module that ``convert`` returned, other
    methods of the user's class run their own code over those; a file and a pickle have none but those, and graphs of
    those that have nothing to quantize.

    Attributes:
        report: What runs on codes, and what stays in float.
        skeleton: The user's model without the weights that were quantized, for methods that have no graph; not saved.
        left_out: Methods that could not be lowered, and why.
    """

    report: IntegerReport
    skeleton: nn.Module | None
    left_out: Mapping[str, str] = MappingProxyType({})
    _form: ClassVar[str] = "integer"

    def _generate(self, graph: Graph, eval_graph: Graph | None, part: str = "") -> tuple[Callable[..., Any], Any]:
        function, code = super()._generate(graph, eval_graph, part)
        return _without_gradients(function), code

    def _runs(self, graph: Graph) -> Graph:
        share_memory(self)
        runs = keep_apart(copy.deepcopy(graph), dict(self.named_modules()), constants=True)
        return _read_together(runs, self._buffers)

    def _bounded(self, forward: Callable[..., Any], graph: Graph, runs: Graph) -> Callable[..., Any]:
        return bounded(forward, Boundary(graph, runs, squeezes=True))

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """Moves to other devices; types stay: codes, grids and tables mean what they mean in theirs.

        Raises:
            LoweringError: If it is asked for another type.
        """
        held = [*self.parameters(), *self.buffers()] if recurse else [*self.parameters(False), *self.buffers(False)]
        for tensor in held:
            with torch.no_grad():
                cast = fn(tensor.detach()[:0] if tensor.dim() > 0 else tensor.detach())
            if cast.dtype is not tensor.dtype:
                raise LoweringError(
                    f"an integer module stays in the types that it was converted in, and cannot become {cast.dtype}: "
                    f"cast the float model, prepare it and convert that; inputs and outputs are of its type"
                )
        skeleton = vars(self).get("skeleton")
        if skeleton is not None and recurse:
            skeleton._apply(fn)
        return super()._apply(fn, recurse)

    @property
    def graph_memory(self) -> Memory:
        """Results kept of the graphs that the module was given: orders of edges, codes of norms, folded rows.

        It is neither saved nor copied; ``clear()`` frees it, and its ``results`` and ``size`` bound it.
        """
        return share_memory(self)

    def __repr__(self) -> str:
        shown = ", ".join(f"{number} {name}" for name, number in self.report.ops.items() if name.startswith("integer"))
        floats = f"{count(len(self.report.floats), 'operation')} in float"
        return f"<IntegerModule of {article(self.report.model)}: {shown or 'no sums of integers'}, {floats}>"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        return notebook.lines([repr(self)]) + self.report._repr_html_()

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute of the module's own, and refuses what the float model's forward read.

        Raises:
            GuardError: If the forward read an attribute of that name, or one of a part of that name.
        """
        self.refuse_setting(name)
        super().__setattr__(name, value)

    def refuse_setting(self, path: str) -> None:
        """Refuses to set what the float model's forward read: the integers hold what it was.

        Args:
            path: Of an attribute of the module or of a part, ``"convs.0.negative_slope"``.

        Raises:
            GuardError: If the forward read it, or an attribute of it.
        """
        if any(setting == path or setting.startswith(f"{path}.") for setting in self.__dict__["report"].settings):
            raise GuardError(
                f"{path!r} was read by the float model's forward, and the integer module holds what it was: set it on "
                f"the prepared module and convert that again."
            )

    def train(self, mode: bool = True) -> IntegerModule:
        """Stays in evaluation mode, whatever is asked for."""
        super().train(False)
        return self

    def _open_parts(self) -> None:
        for door in self._running:
            if "." not in door and not hasattr(IntegerModule, door):
                setattr(type(self), door, door_of(door, self))
        open_bare(self, [door for door in self._running if "." in door])
        skeleton = vars(self).get("skeleton")
        if skeleton is not None:
            open_parts(skeleton, self, lambda module: False)
            user = getattr(skeleton, "_user_class", type(skeleton))
            skeleton.__class__ = part_class(user, self, "", skeleton)
        trees = [self] if skeleton is None else [self, skeleton]
        guard_parts(self, trees, self.report.settings, self.refuse_setting)

    def _no_graph(self, call: DoorCall, refusal: Exception | None = None) -> Any:
        door, part, user = call.door, call.part, call.user
        path, _, name = door.rpartition(".")
        skeleton = vars(self).get("skeleton")
        if door in self.left_out:
            raise LoweringError(f"the integer module has no {door}: {self.left_out[door]}")
        if isinstance(refusal, InputError):
            raise refusal
        if refusal is not None:
            raise ArgumentError(
                f"{door}: {refusal} For an integer module: call it once in this form on the prepared module before "
                f"convert."
            )
        if part is self or isinstance(part, Bare):
            part = skeleton.get_submodule(path) if skeleton is not None else part
            user = getattr(getattr(part, "_user_class", None), name, None) if skeleton is not None else None
        never = LoweringError(
            f"the integer module has no {door}: the prepared module was never called that way. Call it once on the "
            f"prepared module before convert, or name it in prepare's method=."
        )
        if user is None or isinstance(part, (*WEIGHTED_MODULES, MessagePassing)):
            raise never
        try:
            with torch.no_grad():
                return user(part, *call.args, **call.kwargs)
        except AttributeError as error:
            if lacks_weights(error.obj):
                raise never from error
            raise

    def __getattr__(self, name: str) -> Any:
        held = self.__dict__.get("_buffers", ())
        if name in held:  # most of what a graph reads
            return held[name]
        try:
            return super().__getattr__(name)
        except AttributeError:
            skeleton = vars(self).get("skeleton")
            if skeleton is not None and not name.startswith("__") and hasattr(skeleton, name):
                return getattr(skeleton, name)
        if name in self.left_out:
            raise AttributeError(f"the integer module has no {name!r}: {self.left_out[name]}")
        raise AttributeError(
            f"the integer module has no {name!r}. Of the user's class it has what the prepared module was called by: "
            f"call it once on the prepared module before convert, or name it in prepare's method=. What calls no layer "
            f"runs as {self.report.model}.{name}(module, …)."
        )

    def __reduce__(self) -> Any:
        make, (kind, user, state, *graphs) = super().__reduce__()
        return make, (kind, user, {**state, "skeleton": None, "left_out": self.lost(), "own_code": {}}, *graphs)

    def _by_class(self, door: str) -> str:
        """Says how the user's code runs on a module that does not hold it."""
        return f"; {self.report.model}.{door}(module, …) runs it, if it needs no weights" if "." not in door else ""

    def lost(self) -> dict[str, str]:
        """Returns the methods that a file or a pickle of this module does not hold, and why."""
        own = {
            door: f"{door} {why}, and so runs the model's own code, which a file does not hold" + self._by_class(door)
            for door, why in self.own_code.items()
            if door not in self._running
        }
        return {**own, **self.left_out}


def _read_together(graph: Graph, constants: Mapping[str, Any]) -> Graph:
    """Reads a module's own constants from the table that holds them: through attributes it takes ten times as long.

    Returns:
        The graph.
    """
    reads = [node for node in graph.nodes if node.op == "get_attr" and node.target in constants]
    if reads:
        with graph.inserting_before(reads[0]):
            table = graph.create_node("get_attr", "_buffers")
        for node in reads:
            with graph.inserting_before(node):
                entry = graph.create_node("call_function", operator.getitem, (table, node.target), name=node.name)
            entry.meta.update(node.meta)
            node.replace_all_uses_with(entry)
            graph.erase_node(node)
    return graph


def _without_gradients(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def without_gradients(*args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return forward(*args, **kwargs)

    return without_gradients
