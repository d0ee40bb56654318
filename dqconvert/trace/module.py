"""The ``torch.fx.GraphModule`` that traced and prepared models are.

A plain ``GraphModule`` drops parameters that its graph does not use, loses ``node.meta`` and traces its own code
again when it is pickled. This one keeps the user's module hierarchy, methods and attributes, and carries its graph
as data.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn
from torch.fx import Graph, GraphModule

from dqconvert.errors import ExportError
from dqconvert.trace.check import Check
from dqconvert.trace.computed import at_rest
from dqconvert.trace.copies import deepcopy
from dqconvert.trace.guarded import guarded
from dqconvert.trace.in_place import runs_alike
from dqconvert.trace.packing import pack, unpack
from dqconvert.trace.unchanged import ASIDE, checks, without_reads
from dqconvert.words import article

_PROTOTYPE = GraphModule(nn.Module(), Graph())
_MODULE_STATE = set(vars(nn.Module()))


def body_names() -> tuple[str, ...]:
    """Attributes that a ``GraphModule`` has and the user's module does not."""
    return tuple(name for name in vars(_PROTOTYPE) if name not in _MODULE_STATE)


class TracedModule(GraphModule):
    """A ``GraphModule`` that is also an instance of the user's class.

    ``graph`` is what the forward does; where the float model does structurally different things in training and in
    evaluation, ``graph`` is the training one and ``eval_graph`` the other (``None`` otherwise). After editing a
    graph call ``recompile()``.

    Attributes:
        from_file: Whether the graph came from a file: then what runs looks at what it would believe otherwise.
    """

    eval_graph: Graph | None
    from_file: bool = False
    _form: ClassVar[str] = "traced"
    """Its kind in messages: ``"traced"``, ``"prepared"`` or ``"integer"``."""

    @classmethod
    def build(cls, root: nn.Module, graph: Graph, eval_graph: Graph | None = None, **state: Any) -> Any:
        """Makes one from ``root``, whose submodules, parameters, buffers and attributes it takes over.

        Args:
            root: A module that nobody else uses.
            graph: The forward, in terms of ``root``'s paths.
            eval_graph: The forward in evaluation mode, where its structure differs.
        """
        body = {key: value for key, value in vars(_PROTOTYPE).items() if key not in _MODULE_STATE}
        body = {key: copy.copy(value) for key, value in body.items() if key not in ("_graph", "_code")}
        return cls._assemble(_user_class(type(root)), {**vars(root), **body, **state}, graph, eval_graph)

    @classmethod
    def _assemble(
        cls, user: type[nn.Module], state: dict[str, Any], graph: Graph, eval_graph: Graph | None, **own: Any
    ) -> Any:
        """Makes a module from what :meth:`_parts` returns; ``own``: more attributes of its class."""
        # The forward lives on the class, so every instance needs a class of its own, as in torch.fx. One that the
        # user's instance has (PyG's Sequential) would come before it.
        if callable(state.get("forward")):
            state = {**state, ASIDE: {**state.get(ASIDE, {}), "forward": state["forward"]}}
            del state["forward"]
        names = {"_user_class": user, "_kind": cls, **cls._namespace(user), **own}
        singleton = type(f"{cls.__name__}_{user.__name__}", (cls, user), names)
        module: Any = object.__new__(singleton)
        module.__dict__.update(state)
        module.__dict__["eval_graph"] = eval_graph
        write_nowhere(module, graph, eval_graph)
        module.__dict__["_graph"] = graph
        graph.owning_module = module
        module._write_code()
        return module

    @classmethod
    def _namespace(cls, user: type[nn.Module]) -> dict[str, Any]:
        """Attributes of an instance's class that depend on the user's class."""
        return {}

    def recompile(self) -> Any:
        """Generates the forward from the graphs again, after they were edited."""
        return self._write_code()

    def _write_code(self) -> Any:
        forward, code = self._generate(self._graph, self.eval_graph)
        type(self).forward = forward
        return code

    def _generate(self, graph: Graph, eval_graph: Graph | None, part: str = "") -> tuple[Callable[..., Any], Any]:
        """Generates the function of two graphs, which takes this module first, and the code of the first.

        Args:
            graph: What to do in training, and in evaluation where there is no other.
            eval_graph: What to do in evaluation.
            part: The path of the module whose mode counts.
        """
        with at_rest(self):  # what is looked at on the way is not trained
            return self._generated(graph, eval_graph, part)

    def _generated(self, graph: Graph, eval_graph: Graph | None, part: str) -> tuple[Callable[..., Any], Any]:
        cls, own_graph = type(self), self._graph
        runs, eval_runs = self.to_run(graph), None if eval_graph is None else self.to_run(eval_graph)
        try:
            if eval_graph is not None and eval_runs is not None:
                self._graph = eval_runs
                super().recompile()
                evaluate = self._bounded(cls.forward, eval_graph, eval_runs)
            self._graph = runs
            code = super().recompile()
            cls.forward = self._bounded(cls.forward, graph, runs)
        finally:
            self._graph = own_graph
        # torch.compile looks lines of the code up among the nodes of `graph`; they may be those of another one.
        self._lineno_map: dict[int, int | None] = {}
        run = cls.forward if eval_graph is None else _by_mode(cls.forward, evaluate, part)
        return _checked(run, Check(self, checks((graph, eval_graph)))), code

    def to_run(self, graph: Graph) -> Graph:
        """Returns the graph that runs for one of the graphs."""
        runs = self._runs(graph)
        runs = without_reads(copy.deepcopy(graph) if runs is graph else runs)
        return guarded(runs, self) if self.from_file else runs

    def graphs(self) -> list[Graph]:
        """Returns the graph, and that of evaluation where it is another."""
        return [self.graph] if self.eval_graph is None else [self.graph, self.eval_graph]

    @property
    def _itself(self) -> TracedModule:
        return self

    def _runs(self, graph: Graph) -> Graph:
        """Returns the graph to generate code from, where that is not ``graph`` itself."""
        return graph

    def _bounded(self, forward: Callable[..., Any], graph: Graph, runs: Graph) -> Callable[..., Any]:
        """Returns the forward that was generated from ``runs``, and what happens around it."""
        return forward

    def __repr__(self) -> str:
        return nn.Module.__repr__(self)

    def __prepare_scriptable__(self) -> Any:
        """Refuses ``torch.jit.script``, which asks this first."""
        raise ExportError(self._no_torchscript("torch.jit.script"))

    def _slow_forward(self, *args: Any, **kwargs: Any) -> Any:
        """Refuses ``torch.jit.trace`` and ``torch.onnx``, which call this instead of ``forward``."""
        exporting = torch.onnx.is_in_onnx_export()
        raise ExportError(self._no_torchscript("torch.onnx.export" if exporting else "torch.jit.trace"))

    def _no_torchscript(self, tool: str) -> str:
        what = article(f"{self._form} module")
        return (
            f"{tool} cannot take {what}: TorchScript has no place for its operators and for what it remembers of a "
            f"graph. To run it elsewhere: dqconvert.export(module, path); faster here: torch.compile(module); to "
            f"keep it: dqconvert.save(module, path)."
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        graph, eval_graph, state = self._parts()
        copied = self._kind._assemble(
            self._user_class, deepcopy(state, memo), copy.deepcopy(graph), copy.deepcopy(eval_graph)
        )
        memo[id(self)] = copied
        return copied

    def for_one_run(self) -> Any:
        """Returns a deep copy that shares the graph and its code: neither may be edited while it is in use."""
        graph, eval_graph, state = self._parts()
        copied = object.__new__(type(self))
        copied.__dict__.update(deepcopy(state), _graph=graph, eval_graph=eval_graph)
        return copied

    def __copy__(self) -> Any:
        graph, eval_graph, state = self._parts()
        return self._kind._assemble(self._user_class, dict(state), graph, eval_graph)

    def __reduce__(self) -> Any:
        graph, eval_graph, state = self._parts()
        return _unpickle, (self._kind, self._user_class, *map(pack, (state, graph, eval_graph)))

    def _parts(self) -> tuple[Graph, Graph | None, dict[str, Any]]:
        state = {key: value for key, value in self.__dict__.items() if key not in ("_graph", "eval_graph")}
        return self._graph, self.eval_graph, state

    _user_class: type[nn.Module]
    _kind: type[TracedModule]


def write_nowhere(root: nn.Module, *graphs: Graph | None) -> None:
    """Lets the modules that graphs call return what they would write into what they are given."""
    for node in (node for graph in graphs if graph is not None for node in graph.nodes):
        if node.op == "call_module":
            called = root.get_submodule(str(node.target))
            if runs_alike(called) and getattr(called, "inplace", False):
                called.inplace = False  # type: ignore[assignment]


def _user_class(cls: type[nn.Module]) -> type[nn.Module]:
    """Returns the class that the user wrote, also for an instance that torch.fx gave a class of its own."""
    if issubclass(cls, TracedModule):
        return cls._user_class
    return next(base for base in cls.__mro__ if base.__qualname__.split(".")[-1] != "GraphModuleImpl")


def _by_mode(train: Callable[..., Any], evaluate: Callable[..., Any], part: str) -> Callable[..., Any]:
    @functools.wraps(train)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        module = self.get_submodule(part) if part else self
        return (train if module.training else evaluate)(self, *args, **kwargs)

    return forward


def _checked(run: Callable[..., Any], check: Check) -> Callable[..., Any]:
    @functools.wraps(run)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        check(self)
        return run(self, *args, **kwargs)

    return forward


def _unpickle(kind: type[TracedModule], user: type[nn.Module], *packed: Any) -> Any:
    return kind._assemble(user, *map(unpack, packed))
