"""The list of what must stay in a model's modules as it was when the graph was recorded.

The list goes with the graph, as the argument of a node that does nothing: so it is copied, pickled and saved as the
graph is. :mod:`.check` compares.
"""

from __future__ import annotations

import operator
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.fx import Graph, Node

from dqconvert.trace.constants import literal
from dqconvert.trace.in_place import runs_alike
from dqconvert.trace.note import Note, annotate
from dqconvert.trace.runtime import unchanged

Step = tuple[str, Any]
"""A step from a value to a part of it: ``("attr", name)`` or ``("item", key)``."""

Read = tuple[str, tuple[Step, ...]]
"""A value that a forward reads: the path of a module, and the steps from there."""

ITSELF = "_itself"
"""The name under which a traced module finds itself, for its graph to set attributes."""

ASIDE = "_dqconvert_methods"
"""The attribute with the methods that were set on an instance, while graphs run in their place."""

RESERVED = frozenset(
    (
        *("graph", "code", "eval_graph", "meta", "report", "qconfig", "float_graphs", "graph_method"),
        *("fuse", "fusions", "islands"),
        *("called_method", "more_methods", "own_code", "user_fuse", "from_file", "graphs", "all_methods", "quantizers"),
        "plain_methods",
    )
)
"""Names that a traced module has for itself: what the model at the root calls so is out of reach in it."""

ATOMS = (bool, int, str, bytes, complex, type(None), type(...), torch.dtype, torch.layout, torch.memory_format)
COLLECTIONS = (dict, list, tuple, set, frozenset, deque, np.ndarray)
"""Types that are compared with a copy, where they cannot report which of their parts are read."""

GLOBAL = ("global", "contents")
"""Kinds of what Python modules hold, not the model's."""

MISSING = object()


class Condition(NamedTuple):
    """One thing that must stay.

    Attributes:
        path: Of the module.
        steps: From there to the value.
        kind: In what sense it stays: ``value`` (equal to ``value``), ``object`` (the same object), ``equal`` (to a
            copy), ``number`` (some number: it is followed), ``none``, ``some`` (there is one), ``absent``, ``method``
            (the class's), ``class`` (and the parts of the module), ``len``, ``keys``, ``in`` and ``not in``. Of
            kind ``global`` is a constant behind a name of a Python module, which ``path`` is the name of; of kind
            ``contents``, all constants of a collection there, as :func:`frozen` gives them.
        value: What it was.
    """

    path: str
    steps: tuple[Step, ...]
    kind: str
    value: Any = None


@dataclass(frozen=True)
class Reads:
    """The list of what must stay for a graph to hold: one object, into which torch.fx does not look.

    Attributes:
        entries: One for each thing.
    """

    entries: tuple[Condition, ...]


def words(key: Read) -> str:
    """Describes a value that a forward reads.

    Example:
        >>> words(("convs.0", (("attr", "cfg"), ("item", "alpha"))))
        "'cfg['alpha']' of module convs.0"
    """
    path, steps = key
    text = "".join(f".{name}" if kind == "attr" else f"[{name!r}]" for kind, name in steps).lstrip(".")
    return f"{text!r} of module {path}".replace('"', "'") if path else f"{text!r} of the model".replace('"', "'")


# -- with the graph ----------------------------------------------------------------------------------------------


def note_reads(
    graph: Graph, reads: Iterable[tuple[Read, str]], root: nn.Module, others: Iterable[Condition] = ()
) -> None:
    """Adds to a graph what its recording read, with the values that ``root`` has; and ``others``."""
    modules = dict(nn.Module.named_modules(root, remove_duplicate=False))
    entries = tuple(
        _entry(modules[key[0]], key, kind)
        for key, kind in dict.fromkeys(reads)
        if kind != "method" or key[1][0][1] not in vars(modules[key[0]])  # replaced on the instance already
    )
    first = next(node for node in graph.nodes if node.op != "placeholder")
    with graph.inserting_before(first):
        node = graph.create_node("call_function", unchanged, (Reads((*entries, *others)),))  # type: ignore[arg-type]
    annotate(node, Note())


def join_reads(graph: Graph, other: Graph) -> None:
    """Adds the conditions of another graph, of the same calls, to those of a graph."""
    for node in graph.nodes:
        if node.target is unchanged:
            node.args = (Reads(tuple(dict.fromkeys((*entries_of(graph), *entries_of(other))))),)


def entries_of(graph: Graph) -> list[Condition]:
    """Returns the conditions under which a graph holds."""
    nodes = graph.find_nodes(op="call_function", target=unchanged)
    return [entry for node in nodes for entry in reads_of(node).entries]


def reads_of(node: Node) -> Reads:
    """Returns the list that a node of :func:`~.runtime.unchanged` holds."""
    (reads,) = node.args
    assert isinstance(reads, Reads)
    return reads


def reads_from(entries: Iterable[Any]) -> Reads:
    """Returns the list that was written to a file as these tuples."""
    return Reads(tuple(Condition(*entry) for entry in entries))


def without_reads(graph: Graph) -> Graph:
    """Removes, in place, the nodes that hold what was read, and returns the graph."""
    for node in list(graph.nodes):
        if node.target is unchanged:
            graph.erase_node(node)
    return graph


def _entry(module: nn.Module, key: Read, kind: str) -> Condition:
    path, steps = key
    if kind == "class":
        return Condition(path, steps, kind, type_name(module))
    if kind == "value":
        found = reached(module, "", steps)
        if steps == (("attr", "inplace"),) and runs_alike(module):
            found = False  # in the copy, which writes nowhere
        return Condition(path, steps, kind, literal(found))
    if kind == "len":
        return Condition(path, steps, kind, len(reached(module, "", steps)))
    if kind == "keys":
        return Condition(path, steps, kind, tuple(reached(module, "", steps)))
    return Condition(path, steps, kind)


def type_name(module: nn.Module) -> str:
    """Returns the name of a module's class, which the user wrote."""
    kind = getattr(module, "_user_class", type(module))
    return str(kind.__qualname__)


def reached(root: nn.Module, path: str, steps: Iterable[Step]) -> Any:
    """Returns the value at the end of the steps; :data:`MISSING` if they lead nowhere."""
    try:
        owner: Any = root.get_submodule(path)
    except AttributeError:
        return MISSING
    return followed(owner, steps)


def followed(found: Any, steps: Iterable[Step]) -> Any:
    """Returns the value at the end of the steps from another; :data:`MISSING` if they lead nowhere."""
    try:
        for kind, name in steps:
            found = getattr(found, name) if kind == "attr" else found[name]
    except (AttributeError, LookupError, TypeError):
        return MISSING
    return found


def global_value(entry: Condition) -> Any:
    """Returns what is there now of what an entry of :data:`GLOBAL` names; :data:`MISSING` if it is gone."""
    found = followed(sys.modules.get(entry.path), entry.steps)
    return found if found is MISSING else frozen(found) if entry.kind == "contents" else literal(found)


def global_words(entry: Condition) -> str:
    """Describes what an entry of :data:`GLOBAL` names.

    Example:
        >>> global_words(Condition("settings", (("attr", "CFG"), ("item", "alpha")), "global", 0.5))
        "the global 'CFG['alpha']' of settings"
    """
    return f"the global {words(('', entry.steps)).removesuffix(' of the model')} of {entry.path}"


def frozen(value: Any) -> Any:
    """Returns the constants in a collection, at any depth, in a form that can be compared; of other values, nothing.

    Example:
        >>> frozen({"alpha": 0.5, "sizes": [1, 2], "x": torch.ones(1)})
        ('dict', (('alpha', 0.5), ('sizes', ('list', (1, 2))), ('x', '…')))
    """
    if hasattr(value, "__dict__") and type(value).__module__ in ("types", "argparse"):
        value = value.__dict__
    if isinstance(value, dict):
        return "dict", tuple([(name, frozen(item)) for name, item in value.items()])
    if isinstance(value, list | tuple):
        return "list", tuple([frozen(item) for item in value])
    if isinstance(value, set | frozenset):
        return "set", frozenset([frozen(item) for item in value])
    value = literal(value)
    return value if isinstance(value, float | str | int | bool | bytes | complex | None) and value == value else "…"


# -- what is followed ----------------------------------------------------------------------------------------------


def followed_reads(graph: Graph, root: nn.Module) -> Iterator[tuple[Read, int | float]]:
    """Yields the numbers among the attributes that a graph reads whenever it runs, with their values now."""
    found: dict[Node, Read] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            path, _, name = str(node.target).rpartition(".")
            key: Read = (path, (("attr", name),))
            if name == "training":
                continue
        elif node.target in (getattr, operator.getitem) and node.args[0] in found:
            path, steps = found[node.args[0]]
            key = (path, (*steps, ("attr" if node.target is getattr else "item", node.args[1])))
        else:
            continue
        value = literal(reached(root, *key))
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield key, value
        elif value is not MISSING and not isinstance(value, torch.Tensor | nn.Module):
            found[node] = key


def put(root: nn.Module, key: Read, value: Any) -> bool:
    """Sets an attribute of a module, or a part of one; returns True if it then has the value."""
    path, steps = key
    owner = reached(root, path, steps[:-1])
    kind, name = steps[-1]
    if not equal(literal(reached(root, path, steps)), value):
        try:
            if kind == "attr":
                setattr(owner, name, value)
            else:
                owner[name] = value
        except (AttributeError, TypeError, LookupError):  # a property, a tuple
            return False
    return True


def equal(found: Any, was: Any) -> bool:
    """Returns True if a value is what it was; a tensor of several values is not."""
    try:
        return bool(found is was or found == was)
    except (RuntimeError, ValueError):  # a tensor, or an array, of several values
        return False


def checks(graphs: Iterable[Graph | None]) -> Iterator[Condition]:
    """Yields the conditions of several graphs."""
    for graph in graphs:
        if graph is not None:
            yield from entries_of(graph)
