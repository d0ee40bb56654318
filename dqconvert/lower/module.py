"""The module that :func:`dqconvert.convert` returns."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch.fx import Graph

from dqconvert import notebook
from dqconvert.errors import LoweringError
from dqconvert.lower.report import IntegerReport
from dqconvert.rewrite.boundary import Boundary, bounded
from dqconvert.rewrite.fuse import keep_apart
from dqconvert.trace import TracedModule
from dqconvert.words import article, count


class IntegerModule(TracedModule):
    """A model for inference whose values are integers wherever they can be.

    Its forward takes what the float model's takes and returns values of the same dtype. It computes without gradients,
    and is always in evaluation mode.

    Attributes:
        report: What runs on codes, and what stays in float.
    """

    report: IntegerReport
    _form: ClassVar[str] = "integer"

    def recompile(self) -> Any:
        """Generates the forward from the graph again, after it was edited."""
        code = super().recompile()
        type(self).forward = _without_gradients(type(self).forward)
        return code

    def _runs(self, graph: Graph) -> Graph:
        return keep_apart(copy.deepcopy(graph), dict(self.named_modules()), constants=True)

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
        return super()._apply(fn, recurse)

    def __repr__(self) -> str:
        shown = ", ".join(f"{number} {name}" for name, number in self.report.ops.items() if name.startswith("integer"))
        floats = f"{count(len(self.report.floats), 'operation')} in float"
        return f"<IntegerModule of {article(self.report.model)}: {shown or 'no sums of integers'}, {floats}>"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        return notebook.lines([repr(self)]) + self.report._repr_html_()

    def train(self, mode: bool = True) -> IntegerModule:
        """Stays in evaluation mode, whatever is asked for."""
        super().train(False)
        return self


def _without_gradients(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def without_gradients(*args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return forward(*args, **kwargs)

    return without_gradients
