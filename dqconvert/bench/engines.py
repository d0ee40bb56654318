"""The forwards that are compared: the float model's in several forms, and each preset's integer module's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dqconvert.bench.case import Subject
from dqconvert.bench.variants import why_not_csr, with_csr
from dqconvert.convert import convert
from dqconvert.errors import CommandError
from dqconvert.lower import IntegerModule
from dqconvert.prepare import prepare
from dqconvert.trace.inputs import Inputs
from dqconvert.words import raised

_OBSERVED = 3
"""Training forwards on the whole graph before conversion: ranges, and what batch norms have seen, are those of it."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One forward among those compared.

    Attributes:
        name: What the results call it.
        preset: What the model was prepared with before it was converted; ``None``: the float model.
        csr: If true, the connectivity is a sparse matrix instead of an ``edge_index``.
        bfloat16: If true, parameters and features are bfloat16.
        compiled: If true, the model went through ``torch.compile``.
    """

    name: str
    preset: str | None = None
    csr: bool = False
    bfloat16: bool = False
    compiled: bool = False


EDGE_INDEX = Engine(name="fp32, edge_index")
CSR = Engine(name="fp32, CSR", csr=True)
_BFLOAT16 = (Engine(name="bf16, edge_index", bfloat16=True), Engine(name="bf16, CSR", csr=True, bfloat16=True))
_COMPILED = (Engine(name="compiled, edge_index", compiled=True), Engine(name="compiled, CSR", csr=True, compiled=True))


def engines_of(presets: Sequence[str], *, bfloat16: bool = True, compiled: bool = False) -> tuple[Engine, ...]:
    """Returns the float forms, the plain one first, then the presets.

    Example:
        >>> [engine.name for engine in engines_of(["int8-dq"], bfloat16=False)]
        ['fp32, edge_index', 'fp32, CSR', 'int8-dq']
    """
    floats = (EDGE_INDEX, CSR, *(_BFLOAT16 if bfloat16 else ()), *(_COMPILED if compiled else ()))
    return (*floats, *(Engine(name=preset, preset=preset) for preset in presets))


class Forward:
    """A forward that can be repeated, on a graph that it knows and on new ones.

    Args:
        call: Takes the inputs and computes.
        module: The module that it calls, for its size.
        known: Inputs that stay the same, with what a user would keep of the graph.
        graphs: Two graphs in ``edge_index`` form, equal in size, that differ in every edge.
        open_graph: Turns a new graph into what ``call`` takes.
        forget: Drops what layers keep of a graph.
    """

    def __init__(
        self,
        call: Callable[[Inputs], Tensor],
        module: nn.Module,
        known: Inputs,
        graphs: tuple[Inputs, Inputs],
        open_graph: Callable[[Inputs], Inputs],
        forget: Callable[[], None],
    ) -> None:
        self.module = module
        self.known = known
        self._call = call
        self._graphs = graphs
        self._open = open_graph
        self._forget = forget

    def warm(self) -> Tensor:
        """Runs on the known graph."""
        return self._call(self.known)

    def renew(self) -> None:
        """Makes the graph for the next :meth:`cold`: other tensors, other values than those of the last one."""
        self._graphs = self._graphs[1], self._graphs[0]
        self.new = self._graphs[0].map(Tensor.clone)

    def cold(self) -> Tensor:
        """Runs on the new graph, from its ``edge_index`` on; :meth:`renew` comes before each."""
        self._forget()
        found = self._call(self._open(self.new))
        self._forget()
        return found


def forward_of(engine: Engine, subject: Subject, example: bool = False) -> Forward:
    """Returns the engine's forward; the subject's model stays as it is.

    Args:
        example: If true, run on the small part of the graph that models are traced on.

    Raises:
        DQConvertError: If the model cannot be prepared or converted.
    """
    inputs = subject.inputs
    if engine.preset is not None:
        return forward_with(_integer(engine.preset, subject), _part(subject) if example else inputs)
    module = copy.deepcopy(subject.model).eval()
    inputs = _part(subject) if example else inputs
    if engine.bfloat16:
        module = module.bfloat16()
        inputs = inputs.map(lambda t: t.bfloat16() if t.is_floating_point() else t)
    called = torch.compile(module) if engine.compiled else module
    if not engine.csr:
        return _forward(_float_caller(called), module, inputs)
    _keep_norms(module)
    return _forward(_float_caller(called), module, inputs, with_csr, lambda: _forget_norms(module))


def forward_with(integer: IntegerModule, inputs: Inputs) -> Forward:
    """Returns the forward of an integer module, which from here on remembers one graph."""
    integer.graph_memory.results = 1  # two graphs take turns, each of which is to be new
    return _forward(_caller(integer), integer, inputs)


def why_not(engine: Engine, subject: Subject) -> str | None:
    """Tries a float form on a small part of the graph.

    Returns:
        Why it does not work; ``None``: it does.
    """
    if engine.preset is not None:
        return None
    if engine.csr and (reason := why_not_csr(subject)) is not None:
        return reason
    try:
        forward_of(engine, subject, example=True).warm()
    except Exception as error:  # whatever torch raises on a type, a matrix or a compiler that it cannot do with
        return raised(error)
    return None


def mirrored(inputs: Inputs) -> Inputs:
    """Returns the graph with its nodes in reverse order: as much work, as sorted, and no edge is where it was."""
    nodes = inputs.arguments["x"].size(0)
    found = dict(inputs.arguments)
    for name in inputs.given:
        value = found[name]
        if name == "edge_index":
            found[name] = (nodes - 1 - value).flip(1)
        elif name == "batch":
            found[name] = (value.max() - value).flip(0)
        elif isinstance(value, Tensor) and value.size(0) == nodes:
            found[name] = value.flip(0)
        else:
            raise CommandError(f"it is not known how {name!r} goes with a graph whose nodes are in another order.")
    return Inputs(inputs.signature, found, inputs.given)


def _forward(
    call: Callable[[Inputs], Tensor],
    module: nn.Module,
    inputs: Inputs,
    open_graph: Callable[[Inputs], Inputs] = lambda inputs: inputs,
    forget: Callable[[], None] = lambda: None,
) -> Forward:
    return Forward(call, module, open_graph(inputs), (inputs, mirrored(inputs)), open_graph, forget)


def _caller(module: Any) -> Callable[[Inputs], Tensor]:
    def call(inputs: Inputs) -> Tensor:
        args, kwargs = inputs.call()
        return module(*args, **kwargs)

    return call


def _float_caller(module: Any) -> Callable[[Inputs], Tensor]:
    """Returns :func:`_caller` without gradients, to which an integer module sees itself."""
    return torch.inference_mode()(_caller(module))


def _integer(preset: str, subject: Subject) -> IntegerModule:
    module = prepare(subject.model, preset, subject.example).module.train()
    call = torch.no_grad()(_caller(module))
    for _ in range(_OBSERVED):
        call(subject.inputs)
    return convert(module)


def _part(subject: Subject) -> Inputs:
    inputs = subject.inputs
    return Inputs(inputs.signature, {**inputs.arguments, **subject.example}, inputs.given)


def _keep_norms(module: nn.Module) -> None:
    """Lets layers keep what they compute of the graph alone, as PyG does for one that never changes."""
    for part in module.modules():
        if hasattr(part, "cached"):
            setattr(part, "cached", True)  # noqa: B010  a plain attribute, whatever types say of modules


def _forget_norms(module: nn.Module) -> None:
    for part in module.modules():
        for name in ("_cached_edge_index", "_cached_adj_t"):
            if hasattr(part, name):
                setattr(part, name, None)
