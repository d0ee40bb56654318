"""The module that :func:`dqconvert.convert` returns."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch.fx import Graph

from dqconvert.lower.report import IntegerReport
from dqconvert.rewrite.fuse import keep_apart
from dqconvert.trace import TracedModule


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
