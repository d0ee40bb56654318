"""The method that inputs are for: its parameters, and which of them are tensors or data objects."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.fx import Graph

from dqconvert.errors import ConfigError, DQConvertError
from dqconvert.trace.guards import pinned, present
from dqconvert.trace.note import note_of
from dqconvert.words import listed

STARS: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
PLAIN = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True, kw_only=True)
class Callee:
    """The method that inputs are for.

    Attributes:
        name: ``"GCN.forward"``.
        signature: Its parameters, without ``self``.
        absent: Arguments that it has no place for, as they were absent when it was traced.
        needed: Optional arguments that it cannot do without, as they were given when it was traced.
        tensors: Arguments known to be tensors.
        objects: Arguments known to be data objects.
        reads: What it reads off them.
        subject: How messages begin: ``"the data does not fit"``.
        error: What to raise.
    """

    name: str
    signature: inspect.Signature
    absent: frozenset[str] = frozenset()
    needed: frozenset[str] = frozenset()
    tensors: frozenset[str] = frozenset()
    objects: frozenset[str] = frozenset()
    reads: frozenset[str] = frozenset()
    subject: str = "the data does not fit"
    error: type[DQConvertError] = ConfigError

    @property
    def required(self) -> list[str]:
        """Parameters that must be given."""
        kinds = self.signature.parameters.items()
        without = [name for name, p in kinds if p.default is p.empty and p.kind not in STARS]
        return [*without, *(name for name in self.needed if name not in without)]

    def refusal(self, why: str, do: str = "pass a tuple or a dict of its arguments") -> DQConvertError:
        """Returns the error that says why inputs do not fit."""
        shown = listed((_parameter(p) for p in self.signature.parameters.values()), most=6)
        stop = "" if why.endswith("?") else "."
        return self.error(f"{self.subject} {self.name}({shown}): {why}{stop} {do[0].upper()}{do[1:]}.")


def callee_of_method(function: Callable[..., Any], name: str, *, subject: str, error: type[DQConvertError]) -> Callee:
    """Describes a method of a float model."""
    signature = inspect.signature(function)
    kinds = {name: _annotation(p) for name, p in signature.parameters.items()}
    return Callee(
        name=name,
        signature=signature,
        tensors=frozenset(name for name, kind in kinds.items() if kind in ("Tensor", "Optional[Tensor]", "OptTensor")),
        objects=frozenset(name for name, kind in kinds.items() if kind in ("Data", "Batch", "HeteroData", "BaseData")),
        subject=subject,
        error=error,
    )


def callee_of_graph(graph: Graph, name: str, keyword: str = "") -> Callee:
    """Describes the forward of a prepared or an integer module.

    Args:
        keyword: The argument that it takes by name only.
    """
    found = {str(node.target): node for node in graph.nodes if node.op == "placeholder"}
    reads = {name: [user for user in node.users if user.target is getattr] for name, node in found.items()}
    checks = [(node.target, node.args) for node in graph.nodes]
    return Callee(
        name=name,
        signature=signature_of_graph(graph, keyword),
        absent=frozenset(str(args[2]) for target, args in checks if target is pinned and args[1] is None),
        needed=frozenset(str(args[1]) for target, args in checks if target is present),
        tensors=frozenset(name for name, node in found.items() if note_of(node).is_tensor),
        objects=frozenset(name for name, users in reads.items() if users and not note_of(found[name]).is_tensor),
        reads=frozenset(str(user.args[1]) for users in reads.values() for user in users),
    )


def signature_of_graph(graph: Graph, keyword: str = "") -> inspect.Signature:
    """Returns the signature of the forward that a graph generates; ``keyword``: an argument taken by name only.

    Example:
        >>> graph = Graph()
        >>> x, weight = graph.placeholder("x"), graph.placeholder("edge_weight", default_value=None)
        >>> signature_of_graph(graph)
        <Signature (x, edge_weight=None)>
    """
    parameters: list[inspect.Parameter] = []
    for node in graph.find_nodes(op="placeholder"):
        target = str(node.target)
        kind: Any = inspect.Parameter.POSITIONAL_OR_KEYWORD
        if target.startswith("*"):
            kind = inspect.Parameter.VAR_KEYWORD if target.startswith("**") else inspect.Parameter.VAR_POSITIONAL
        elif target == keyword or (parameters and parameters[-1].kind not in PLAIN):
            kind = inspect.Parameter.KEYWORD_ONLY
        default = node.args[0] if node.args and kind not in STARS else inspect.Parameter.empty
        parameters.append(inspect.Parameter(target.lstrip("*"), kind, default=default))
    parameters.sort(key=lambda p: (p.kind, p.default is not p.empty and p.kind in PLAIN))
    return inspect.Signature(parameters)


def _parameter(parameter: inspect.Parameter) -> str:
    optional = parameter.default is not parameter.empty
    return f"{STARS.get(parameter.kind, '')}{parameter.name}{'=…' if optional else ''}"


def _annotation(parameter: inspect.Parameter) -> str:
    """Returns the last part of an annotation's name: ``"Tensor"``, ``"Data"``."""
    kind = parameter.annotation
    text = kind.__name__ if isinstance(kind, type) else str(kind)
    return text.replace("typing.", "").replace("torch.", "").replace("NoneType", "None").rpartition(".")[2]
