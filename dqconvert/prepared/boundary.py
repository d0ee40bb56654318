"""The boundary of a graph: arguments that it cannot use are errors in the user's words, before it runs and after.

Before: types and shapes that the graph was not made for (:mod:`.arguments`). After, if something failed on the way:
which argument was wrong, of which layer (:mod:`.explain`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph

from dqconvert.distributed import several_ranks
from dqconvert.errors import CheckpointError, DQConvertError, InputError
from dqconvert.prepared.arguments import tensor_inputs
from dqconvert.prepared.explain import explain, failed, missing
from dqconvert.prepared.ranks import check_ranks
from dqconvert.trace.note import note_of


class Boundary:
    """The boundary of one graph.

    Args:
        graph: The graph whose nodes know where they come from.
        runs: The graph that is made of it, and runs.
        squeezes: Whether one column may stand for what was a vector while tracing: weights of edges, say.

    Attributes:
        has_run: True if the graph has computed something: then it is sound, and what fails later is for the inputs.
    """

    def __init__(self, graph: Graph, runs: Graph, squeezes: bool = False) -> None:
        self.inputs = tuple(tensor_inputs(graph))
        self.nodes = {node.name: node for node in runs.nodes}
        self._squeezes = squeezes
        self.has_run = False

    def admit(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Checks the arguments of a call, see :meth:`.TensorInput.check`.

        Returns:
            The arguments as the graph takes them.
        """
        for given in self.inputs:
            value = given.of(args, kwargs)
            if not isinstance(value, Tensor):
                continue
            new = given.check(value, module, squeezes=self._squeezes)
            if new is not value and not given.keys:
                if given.argument < len(args):
                    args = (*args[: given.argument], new, *args[given.argument + 1 :])
                else:
                    kwargs = {**kwargs, given.keyword: new}
        return args, kwargs

    def explain(
        self, error: Exception, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> DQConvertError | None:
        """Returns the error that says which argument was wrong; ``None`` if none is known to be, or the error says it.

        Args:
            error: The error that was raised on the way.
            module: The module that was called.
        """
        if isinstance(error, DQConvertError) and not isinstance(error, InputError):
            return None
        given = [(one, one.of(args, kwargs)) for one in self.inputs]
        if (unusable := missing(given)) is not None:
            return unusable
        place = failed(error, module, self.nodes)
        return None if place is None else explain(error, place, given)

    def unsound(self, error: Exception, module: nn.Module) -> CheckpointError | None:
        """Returns the error about a graph from a file that never computed anything, and does not now; else ``None``."""
        if self.has_run or not getattr(module, "from_file", False) or isinstance(error, DQConvertError | MemoryError):
            return None
        place = failed(error, module, self.nodes)
        node = None if place is None else place[0]
        where = "" if node is None else f"{note_of(node).source or 'a line without a source'}, {node.name}: "
        return CheckpointError(
            f"{where}the graph in the file does not compute what it was loaded for ({type(error).__name__}: {error}). "
            f"If the model takes these inputs, the file was changed after it was saved: save the module again."
        )


def bounded(forward: Callable[..., Any], boundary: Boundary) -> Callable[..., Any]:
    """Returns a forward that checks its arguments, and explains its errors.

    Args:
        forward: The forward that was generated from a graph.
    """

    @functools.wraps(forward)
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return forward(self, *args, **kwargs)
        args, kwargs = boundary.admit(self, args, kwargs)
        if self.training and several_ranks():
            check_ranks(self)
        gradients = torch.is_grad_enabled()
        try:
            result = forward(self, *args, **kwargs)
        except Exception as error:
            torch._C._set_grad_enabled(gradients)  # the graph may have switched them off, as the model does
            better = boundary.explain(error, self, args, kwargs) or boundary.unsound(error, self)
            if better is None or better is error:
                raise
            raise better from error
        boundary.has_run = True
        return result

    return run
