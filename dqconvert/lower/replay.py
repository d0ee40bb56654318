"""Running the float graph and the quantized one on the same inputs, to look at values in between."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.fx import Graph, Interpreter, Node
from torch.utils._pytree import tree_map

from dqconvert.kernels.integer.folding.fold import fold_nodes, whole
from dqconvert.lower.evaluation import evaluation_graph
from dqconvert.lower.module import IntegerModule
from dqconvert.lower.places import Place, rounded_value
from dqconvert.prepared import PreparedModule
from dqconvert.quant import FakeQuantize
from dqconvert.trace.copies import set_mode

OnValue: TypeAlias = Callable[[str, Tensor, Tensor], None]
"""Takes a quantizer's path, what the float model has there, and what the quantized one has."""


def by_name(call: inspect.BoundArguments) -> dict[str, Any]:
    """Returns the arguments of a call, by the names that its graph has for them."""
    stars: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    parameters = call.signature.parameters
    return {f"{stars.get(parameters[name].kind, '')}{name}": value for name, value in call.arguments.items()}


def argument_of(target: str, defaults: tuple[Any, ...], given: Mapping[str, Any]) -> Any:
    """Returns an argument of a graph, by name; its default where it is not given."""
    empty: Any = {} if target.startswith("**") else () if target.startswith("*") else None
    return given[target] if target in given else defaults[0] if defaults else empty


class _Run(Interpreter):
    """Runs a graph on arguments by name, and shows every tensor to :meth:`seen`."""

    def __init__(self, module: nn.Module, graph: Graph) -> None:
        super().__init__(module, graph=graph)
        self.extra_traceback = False  # errors keep their own words
        self._given: Mapping[str, Any] = {}

    def start(self, given: Mapping[str, Any]) -> Any:
        """Runs the graph and returns what it returns."""
        self._given = given
        # The graph of an evaluation switches gradients neither on nor off: where it takes some itself, they are on.
        takes = any(node.target is torch.autograd.grad for node in self.graph.nodes)
        with torch.set_grad_enabled(takes):
            result = self.run(enable_io_processing=False)
        return tree_map(lambda value: value.detach() if isinstance(value, Tensor) else value, result)

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        return argument_of(target, args, self._given)

    def fetch_args_kwargs_from_env(self, n: Node) -> tuple[Any, Any]:
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        return plain(args), plain(kwargs)  # a graph's lists and dicts cannot be changed, what is called may want to

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.seen(n.name, value.detach())
        return value

    def seen(self, name: str, value: Tensor) -> None:
        raise NotImplementedError


class FloatRun(_Run):
    """A run of a prepared module in which nothing is rounded.

    Args:
        module: The module; it is not changed.
        wanted: Names of nodes whose values are wanted.

    Attributes:
        missing: Those that its graph does not have.
    """

    def __init__(self, module: PreparedModule, wanted: set[str]) -> None:
        module = set_mode(copy.deepcopy(module), False)
        super().__init__(module, evaluation_graph(module))
        self._wanted = wanted
        self.missing = wanted - {node.name for node in self.graph.nodes}
        self._values: dict[str, Tensor] = {}

    def values(self, given: Mapping[str, Any]) -> tuple[dict[str, Tensor], Any]:
        """Returns the values of the wanted nodes, by name, and what forward returns."""
        self._values = {}
        return self._values, self.start(given)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        if isinstance(self.fetch_attr(target), FakeQuantize):
            return args[0]
        return super().call_module(target, args, kwargs)

    def seen(self, name: str, value: Tensor) -> None:
        if name in self._wanted and value.is_floating_point():
            self._values[name] = value.clone()  # what comes later may change it in place


class ShownRun(_Run):
    """A run of a prepared module in evaluation that shows what each quantizer is given.

    Args:
        module: The module; it is not changed.
        show: Called as ``show(path, quantizer, x, groups)``, see :meth:`FakeQuantize.forward`.
    """

    def __init__(
        self, module: PreparedModule, show: Callable[[str, FakeQuantize, Tensor, Tensor | None], None]
    ) -> None:
        module = set_mode(copy.deepcopy(module), False)
        super().__init__(module, evaluation_graph(module))
        self._show = show

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        if isinstance(quantizer := self.fetch_attr(target), FakeQuantize):
            self._show(str(target), quantizer, args[0].detach(), args[2] if len(args) > 2 else kwargs.get("groups"))
        return super().call_module(target, args, kwargs)

    def seen(self, name: str, value: Tensor) -> None:
        pass


class QuantizedRun(_Run):
    """A run of an integer module, or of a prepared one in evaluation.

    Args:
        module: The module; it is not changed.
        report: Is shown every value that both models have.

    Attributes:
        places: Where it holds which values.
    """

    def __init__(self, module: IntegerModule | PreparedModule, report: OnValue) -> None:
        self.places: tuple[Place, ...]
        if isinstance(module, IntegerModule):
            super().__init__(module, module.to_run(module.graph))
            self.places = module.report.places
        else:
            module = set_mode(copy.deepcopy(module), False)
            super().__init__(module, evaluation_graph(module))
            self.places = _rounded(self.graph, module)
        self._at: dict[str, list[Place]] = {}
        for place in self.places:
            self._at.setdefault(place.node, []).append(place)
        self._report = report
        self._values: Mapping[str, Tensor] = {}

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return super().call_function(whole if target is fold_nodes else target, args, kwargs)  # each row is looked at

    def against(self, values: Mapping[str, Tensor], given: Mapping[str, Any]) -> Any:
        """Returns what forward returns; on the way its values are compared with those of the float run."""
        self._values = values
        return self.start(given)

    def seen(self, name: str, value: Tensor) -> None:
        for place in self._at.get(name, ()):
            expected = self._values.get(place.value)
            if expected is None or expected.dim() == 0:
                continue
            expected = expected.clamp(min=0) if place.from_zero else expected
            found = value if value.is_floating_point() else place.read(value, expected.size(-1))
            if found.shape == expected.shape:
                self._report(place.path, expected, found)


def plain(value: Any) -> Any:
    """Returns a graph's lists and dicts as Python's own."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return tuple(map(plain, value)) if type(value) is tuple else value


def _rounded(graph: Graph, module: nn.Module) -> tuple[Place, ...]:
    """Returns a place for every value that a prepared graph rounds; it is held as it is."""
    modules = dict(module.named_modules(remove_duplicate=False))
    quantizers = [node for node in graph.nodes if node.op == "call_module"]
    return tuple(
        Place(
            path=str(node.target),
            value=rounded_value(node, modules).name,
            node=node.name,
            scale=1.0,
            zero=0,
            from_zero=quantizer.from_zero,
        )
        for node in quantizers
        if isinstance(quantizer := modules[str(node.target)], FakeQuantize)
    )
