"""Records one forward: its arguments become the graph's inputs, its calls the nodes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch_geometric.data.data import BaseData

from dqconvert.trace import leaves
from dqconvert.trace.adjacency import plain_connectivity
from dqconvert.trace.attributes import Attributes
from dqconvert.trace.constants import literal
from dqconvert.trace.copies import deepcopy, set_mode
from dqconvert.trace.guards import pinned, present, same_items, same_keys, same_layout, still_absent
from dqconvert.trace.inputs import Inputs, attributes_of_batch, shallow
from dqconvert.trace.interception import Interception
from dqconvert.trace.nested import is_named
from dqconvert.trace.note import Note, annotate
from dqconvert.trace.plain_globals import functions_of, plain_globals
from dqconvert.trace.randomness import seed
from dqconvert.trace.unchanged import note_reads
from dqconvert.trace.writer import Writer


def record(
    interception: Interception,
    inputs: Inputs,
    method: str,
    training: bool,
    kept: frozenset[str],
    values: dict[str, Tensor] | None = None,
    remarks: dict[str, None] | None = None,
    left: list[str] | None = None,
    attributes: dict[bool, Attributes] | None = None,
) -> Graph:
    """Records one forward of a copy of a model.

    Args:
        inputs: What to call it on.
        training: Whether to record the training mode.
        kept: Paths of modules to keep whole.
        values: Collects every node's value by the node's name.
        remarks: Collects, as keys, what the user should know.
        left: Collects the names of attributes that the method set, which a graph does not.
        attributes: Collects, by mode, what was read and set.

    Raises:
        Untraceable: If a module does what a graph cannot hold.
    """
    model = set_mode(deepcopy(interception.root), training)
    modes = {module: module.training for module in nn.Module.modules(model)}
    caches = functools.partial(interception.caches, inputs, method)
    writer = Writer(model, kept, values, interception.stateful, caches)
    seed()
    inputs = inputs.copied()
    arguments = {name: _bind_argument(writer, inputs, name) for name in inputs.signature.parameters}
    _pin(writer, inputs)
    args, kwargs = Inputs(inputs.signature, arguments, frozenset(arguments)).bound_call()
    with torch.enable_grad(), interception.into(writer):
        result = interception.call_root(method, args, kwargs)
        writer.attributes.finish()
        writer.output(result)
        _check_absent(writer.graph, writer.asked)
    part = writer.root.get_submodule(method.rpartition(".")[0])
    ran = [*functions_of(part, (method.rpartition(".")[2],)), *writer.attributes.ran]
    note_reads(writer.graph, writer.attributes.reads, interception.root, plain_globals(ran))
    if left is not None:
        changed = (path for path, module in nn.Module.named_modules(model) if module.training != modes.get(module))
        left += [*writer.attributes.lost, *(f"{path}.training".lstrip(".") for path in changed)]
    if remarks is not None:
        remarks.update(writer.remarks)
    if attributes is not None:
        attributes[training] = writer.attributes
    return writer.graph


def _bind_argument(writer: Writer, inputs: Inputs, name: str) -> Any:
    """Makes an argument's placeholder and connects the tensors and numbers in it with the graph."""
    parameter = inputs.signature.parameters[name]
    value = shallow(inputs.arguments[name])
    stars = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}.get(parameter.kind.name, "")
    default = () if parameter.default is parameter.empty else (literal(parameter.default),)
    node = writer.graph.create_node("placeholder", stars + name, default)
    annotate(node, writer.note(value, source=f"argument {stars + name!r}"))
    if name not in inputs.given and not stars and not isinstance(value, int | float):
        return value
    return _bind_parts(writer, value, node, name)


def _bind_parts(writer: Writer, value: Any, node: Node, name: str) -> Any:
    if isinstance(value, Tensor):
        _check_input(writer, same_layout, (node, str(value.layout).removeprefix("torch."), name))
    plain = plain_connectivity(value)
    if plain is not value:
        writer.convert_input(value, plain, node)
        node = _input_node(writer, plain_connectivity, (node,), plain, f"argument {name}")
        value = plain
    if isinstance(value, Tensor) or (isinstance(value, int | float) and not isinstance(value, bool)):
        return writer.bind_input(value, node)
    if isinstance(value, BaseData):
        return _bind_data(writer, value, node, name)
    if isinstance(value, dict):
        if value or node.op == "placeholder":
            _check_input(writer, same_keys, (node, tuple(value), name))
        return {key: _bind_item(writer, item, node, key, f"{name}[{key!r}]") for key, item in value.items()}
    if isinstance(value, tuple | list):
        _check_input(writer, same_items, (node, len(value), name))
        items = [_bind_item(writer, item, node, index, f"{name}[{index}]") for index, item in enumerate(value)]
        return type(value)(*items) if is_named(value) else type(value)(items)
    return value


def _bind_item(writer: Writer, item: Any, node: Node, key: Any, name: str) -> Any:
    part = _input_node(writer, leaves.GETITEM, (node, key), item, f"argument {name}")
    if item is None or isinstance(item, bool | str):
        _check_input(writer, pinned, (part, item, name))
        return item
    return _bind_parts(writer, item, part, name)


def _input_node(writer: Writer, function: Callable[..., Any], args: tuple[Any, ...], value: Any, source: str) -> Node:
    """Adds a node that takes one part out of an input (``data.x``, ``x_dict["paper"]``)."""
    node = writer.graph.create_node("call_function", function, args)
    return annotate(node, writer.note(value, source=source))


def _check_input(writer: Writer, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Adds a check of an input that is repeated whenever the graph runs."""
    annotate(writer.graph.create_node("call_function", function, args), Note())


class _Asked(dict[str, Any]):
    """The mapping of a data object, which records the keys that were looked for in vain."""

    def __init__(self, held: dict[str, Any]) -> None:
        super().__init__(held)
        self.missed: dict[str, None] = {}

    def __contains__(self, key: object) -> bool:
        found = super().__contains__(key)
        if not found:
            self.missed[str(key)] = None
        return found

    def __missing__(self, key: str) -> Any:
        self.missed[key] = None
        raise KeyError(key)

    def get(self, key: str, default: Any = None) -> Any:
        return super().get(key, default) if key in self else default  # the look-up is noted


def _check_absent(graph: Graph, asked: list[tuple[Node, str, _Asked]]) -> None:
    """Has a graph check, first of all, that what data objects were asked for in vain is absent still."""
    last = [node for node in graph.nodes if node.op == "placeholder"][-1:]
    for node, name, held in asked:
        absent = tuple(sorted(key for key in held.missed if key not in dict.keys(held) and key.isidentifier()))
        if absent:
            with graph.inserting_after(node if node.op != "placeholder" else last[0]):
                annotate(graph.call_function(still_absent, (node, absent, name)), Note())


def _bind_data(writer: Writer, data: BaseData, node: Node, name: str) -> BaseData:
    for store in data.stores:
        key = store._key
        owner = node
        if key is not None:
            owner = _input_node(writer, leaves.GETITEM, (node, key), None, f"argument {name}[{key!r}]")
        for attribute, value in list(store.items()):
            if isinstance(value, bool | str) or not isinstance(value, Tensor | int | float):
                continue
            part = _input_node(writer, getattr, (owner, attribute), value, f"argument {name}.{attribute}")
            store[attribute] = _bind_parts(writer, value, part, f"{name}.{attribute}")
        store._mapping = asked = _Asked(store._mapping)
        writer.asked.append((owner, name, asked))
    attributes = attributes_of_batch(data)
    graphs = attributes.get("_num_graphs")
    if isinstance(graphs, int):
        part = _input_node(writer, getattr, (node, "num_graphs"), graphs, f"argument {name}.num_graphs")
        attributes["_num_graphs"] = writer.bind_input(graphs, part)
    return data


def _pin(writer: Writer, inputs: Inputs) -> None:
    """Pins arguments that a graph cannot follow: absent tensors, flags and words must stay as they are."""
    for node in [node for node in writer.graph.nodes if node.op == "placeholder"]:
        name = str(node.target).lstrip("*")
        value = inputs.arguments[name]
        if value is None or isinstance(value, bool | str):
            _check_input(writer, pinned, (node, literal(value), name))
        elif node.args == (None,):
            _check_input(writer, present, (node, name))
