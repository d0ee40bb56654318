"""The module that :func:`dqconvert.prepare` returns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import nn
from torch.fx import Graph
from torch_geometric.nn.conv import MessagePassing

from dqconvert import notebook
from dqconvert.fuse import fuse, guard_islands, keep_apart, refuse_explanations
from dqconvert.kernels.memory import Memory
from dqconvert.prepared.boundary import Boundary, bounded
from dqconvert.prepared.undo import Before
from dqconvert.qconfig import QConfig
from dqconvert.quant import FakeQuantize
from dqconvert.quant.memo import Memo, share_memory
from dqconvert.report import Fusion, Report
from dqconvert.rewrite.place import Quantizers
from dqconvert.trace import Island
from dqconvert.trace.doors import DoorModule
from dqconvert.trace.method import Method


class PreparedModule(DoorModule):
    """A trainable quantized model: the user's parameters, methods and attributes, and quantizers among them.

    Train it with the loop that trained the float model. In training mode ranges are observed and nodes are
    protected; in evaluation mode everything is quantized and nothing is random. Methods of the user's class, and parts
    of the model called by themselves, compute with the same quantizers: each is traced when it is first called, unless
    ``prepare`` did.

    Attributes:
        qconfig: The config it was prepared with.
        report: What was inserted where.
        source: The float graphs (training, and evaluation where it differs), to prepare it again from.
        method: The method of the user's class that ``graph`` stands for.
        called_method: The method that calling the module runs.
        more_methods: The graphs of other methods, and of calls on other forms of arguments.
        own_code: Methods that no graph can hold, and why: they run the user's code, in which layers are prepared each
            for itself.
        islands: Modules kept whole, and why.
        fuse: Whether groups of nodes run as one operator each. ``graph`` is the graph before that; after changing this
            call ``recompile()``.
        user_fuse: The attribute of that name that the user's class has, where the model is a message-passing layer.
    """

    qconfig: QConfig
    report: Report
    source: tuple[Graph, Graph | None]
    islands: tuple[Island, ...]
    fuse: bool = True
    user_fuse: Any = None
    _fused: dict[int, tuple[Fusion, ...]]
    _form: ClassVar[str] = "prepared"

    @classmethod
    def _namespace(cls, user: type[nn.Module]) -> dict[str, Any]:
        resets = {"reset_parameters": _reset_parameters} if hasattr(user, "reset_parameters") else {}
        return {**super()._namespace(user), **resets, "_fused": {}}

    def all_methods(self) -> Iterator[Method]:
        """Every graph of the module; first the one that is ``graph``."""
        yield Method(
            name=self.method,
            graph=self._graph,
            eval_graph=self.eval_graph,
            source=self.source,
            islands=self.islands,
            how="named",
        )
        yield from self.more_methods

    def _runs(self, graph: Graph) -> Graph:
        number, method = next((n, m) for n, m in enumerate(self.all_methods()) if any(g is graph for g in m.graphs()))
        tag = f"_of_{number}" if number else ""
        runs, fusions = fuse(graph, self, tag) if self.fuse else (copy.deepcopy(graph), ())
        guard_islands(runs, [island.module for island in method.islands])
        share_memory(self)
        keep_apart(runs, dict(self.named_modules()))
        refuse_explanations(runs, self._layers())
        if graph is method.graph:
            self._fused[number] = fusions
            self.report = replace(self.report, fusions=tuple(f for n in sorted(self._fused) for f in self._fused[n]))
        return runs

    def _bounded(self, forward: Callable[..., Any], graph: Graph, runs: Graph) -> Callable[..., Any]:
        return bounded(forward, Boundary(graph, runs))

    def _layers(self) -> list[str]:
        """Paths of the message-passing layers that the graph stands for."""
        paths = [path for path, module in self.named_modules() if path and isinstance(module, MessagePassing)]
        whole = tuple(f"{island.module}." for island in self.islands)
        return [path for path in paths if not f"{path}.".startswith(whole)]

    def _inserted(self, module: nn.Module) -> bool:
        return isinstance(module, Quantizers | FakeQuantize | Memo)

    def _before(self, part: nn.Module) -> Before | None:
        return None if torch.compiler.is_compiling() else Before.of(self, part)

    def _no_graph(
        self,
        door: str,
        part: nn.Module,
        user: Callable[..., Any] | None,
        args: Any,
        kwargs: Any,
        refusal: Exception | None = None,
    ) -> Any:
        from dqconvert.prepared.first_call import first_call  # tracing stands on this module

        return first_call(self, door, part, user, args, kwargs, refusal)

    def __repr__(self) -> str:
        """The rewritten graph as a tree: layers, their stages, and beside each what was inserted."""
        from dqconvert.show.tree import tree  # the drawing stands on this module, not the other way round

        return tree(self)

    __str__ = __repr__

    def _repr_html_(self) -> str:
        """For notebooks."""
        first, _, rest = repr(self).partition("\n")
        return notebook.folded(first, notebook.preformatted(rest))

    @property
    def graph_memory(self) -> Memory:
        """The results kept of the graphs that the module was given: orders of edges, norms, degrees.

        It is neither saved nor copied; ``clear()`` frees it, and its ``results`` and ``size`` bound it.
        """
        return share_memory(self)

    @property
    def fusions(self) -> tuple[Fusion, ...]:
        """What runs as one operator; nothing where ``fuse`` is off."""
        return self.report.fusions

    def quantizers(self) -> Iterator[tuple[str, FakeQuantize]]:
        """Path and module of every :class:`~dqconvert.quant.FakeQuantize`, in the order of registration."""
        for path, module in self.named_modules():
            if isinstance(module, FakeQuantize):
                yield path, module


def _reset_parameters(self: PreparedModule, *args: Any, **kwargs: Any) -> Any:
    """The user's ``reset_parameters``; the ranges of the old weights go with them."""
    user: Any = self._user_class
    result = user.reset_parameters(self, *args, **kwargs)
    for _, quantizer in self.quantizers():
        quantizer.reset()
    return result
