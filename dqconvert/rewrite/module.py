"""The module that :func:`dqconvert.prepare` returns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

from torch import nn
from torch.fx import Graph
from torch_geometric.nn.conv import MessagePassing

from dqconvert import notebook
from dqconvert.qconfig import QConfig
from dqconvert.quant import FakeQuantize
from dqconvert.report import Fusion, Report
from dqconvert.rewrite.boundary import Boundary, bounded
from dqconvert.rewrite.fuse import fuse, guard_islands, keep_apart, refuse_explanations
from dqconvert.rewrite.undo import Before
from dqconvert.trace import Island, TracedModule


class PreparedModule(TracedModule):
    """A trainable quantized model: the user's parameters, methods and attributes, and quantizers among them.

    Train it with the loop that trained the float model. In training mode ranges are observed and nodes are
    protected; in evaluation mode everything is quantized and nothing is random.

    Attributes:
        qconfig: The config it was prepared with.
        report: What was inserted where.
        source: The float graphs (training, and evaluation where it differs), to prepare it again from.
        method: The method of the user's class that ``forward`` stands for.
        islands: Modules kept whole, and why.
        fuse: Whether groups of nodes run as one operator each. ``graph`` is the graph before that; after changing this
            call ``recompile()``.
    """

    qconfig: QConfig
    report: Report
    source: tuple[Graph, Graph | None]
    method: str
    islands: tuple[Island, ...]
    fuse: bool = True
    _form: ClassVar[str] = "prepared"

    @classmethod
    def _namespace(cls, user: type[nn.Module]) -> dict[str, Any]:
        return {"reset_parameters": _reset_parameters} if hasattr(user, "reset_parameters") else {}

    def _runs(self, graph: Graph) -> Graph:
        runs, fusions = fuse(graph, self) if self.fuse else (copy.deepcopy(graph), ())
        guard_islands(runs, [island.module for island in self.islands])
        keep_apart(runs, dict(self.named_modules()))
        refuse_explanations(runs, self._layers())
        if graph is not self.eval_graph:
            self.report = replace(self.report, fusions=fusions)
        return runs

    def _bounded(self, forward: Callable[..., Any], graph: Graph, runs: Graph) -> Callable[..., Any]:
        return bounded(forward, Boundary(graph, runs), Before)

    def _layers(self) -> list[str]:
        """Paths of the message-passing layers that the graph stands for."""
        paths = [path for path, module in self.named_modules() if path and isinstance(module, MessagePassing)]
        whole = tuple(f"{island.module}." for island in self.islands)
        return [path for path in paths if not f"{path}.".startswith(whole)]

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
