"""An integer module as a document and tensors, and back, without the code of the model that it was made from."""

from __future__ import annotations

import base64
import json
import warnings
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from operator import attrgetter
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph

from dqconvert.checkpoint.document import versions
from dqconvert.checkpoint.graph_data import decode_graph, encode_graph, wellformed
from dqconvert.checkpoint.graph_words import named_tuples
from dqconvert.checkpoint.leaf_data import decode_module, encode_module
from dqconvert.checkpoint.limits import read_json, unpack
from dqconvert.checkpoint.schema import IntegerData, check_document, made
from dqconvert.checkpoint.tables import check_sizes, deflate, inflate
from dqconvert.checkpoint.typed import check_graphs
from dqconvert.checkpoint.weights import grow, shrink, weight_columns
from dqconvert.errors import CheckpointError
from dqconvert.lower import IntegerModule, IntegerReport
from dqconvert.lower.program import holder
from dqconvert.lower.remember import Remember
from dqconvert.prepared.base import NOTHING
from dqconvert.trace import TracedModule
from dqconvert.trace.globals import place_name, read_global
from dqconvert.trace.hooks import of_torch, tables
from dqconvert.trace.method import Method

KIND = "integer"

_LONG = ("report", "constants", "weights", "tables", "modules", "memos", "graph", "methods", "order")


def describe(module: IntegerModule) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns everything about an integer module: JSON-ready data with stable keys, and tensors by name.

    Args:
        module: What :func:`dqconvert.convert` returned.

    Raises:
        CheckpointError: If it computes with functions or modules that only the model's own code can make again.
    """
    methods, left_out = _methods(module)
    graphs = [method.graph for method in methods]
    for graph in graphs:
        _check_results(graph)
    _check_hooks(module)
    tensors, modules = _read(module, graphs)
    held = _globals(graphs, tensors)
    remarks = [_HELD.format(place_name(*args[1:3]), args[0]) for args in held]
    if remarks:
        warnings.warn("\n".join(remarks), stacklevel=3)
    memos = {path: child for path, child in modules.items() if isinstance(child, Remember)}
    leaves = {path: child for path, child in modules.items() if path not in memos}
    constants = sorted(tensors)
    weights: dict[str, Any] = {}
    columns_of = {name: columns for graph in graphs for name, columns in weight_columns(graph).items()}
    for name, columns in columns_of.items():
        shrunk = shrink(tensors[name], columns)
        if shrunk is not None:
            tensors[name], weights[name] = shrunk
    deflated: dict[str, Any] = {}
    for name in constants:
        smaller = deflate(tensors[name]) if name not in weights else None
        if smaller is not None:
            tensors[name], deflated[name] = smaller
    for path, child in leaves.items():
        tensors |= {f"{path}.{name}": value for name, value in (*child.named_parameters(), *child.named_buffers())}
    document = {
        "kind": KIND,
        "versions": versions(),
        "model": module.report.model,
        "report": replace(module.report, remarks=(*module.report.remarks, *remarks)).to_dict(),
        "constants": constants,
        "weights": weights,
        "tables": deflated,
        "modules": {path: encode_module(child, path) for path, child in leaves.items()},
        "memos": {path: encode_graph(_inner(child)) for path, child in memos.items()},
        "graph": encode_graph(module.graph, held),
        "method": module.graph_method,
        "called_method": module.called_method,
        "methods": [
            {"name": method.name, "how": method.how, "graph": encode_graph(method.graph, held)}
            for method in methods[1:]
        ],
        "left_out": {**left_out, **module.lost()},
        "order": _order(module, {*constants, *modules}),
    }
    return document, tensors


def _methods(module: IntegerModule) -> tuple[list[Method], dict[str, str]]:
    """Returns the methods that a file is to hold, and why not the others: some that have nothing to quantize."""
    kept = [method for method in module.all_methods() if method.how != NOTHING]
    left_out: dict[str, str] = {}
    for method in [method for method in module.more_methods if method.how == NOTHING]:
        try:
            _door_name(method.name)
            _check_results(method.graph)
            for path, child in _read(module, [method.graph])[1].items():
                if not isinstance(child, Remember):
                    encode_module(child, path)
            graphs = [one.graph for one in (*kept, method)]
            check_graphs([decode_graph(encode_graph(graph), module, integer=True) for graph in graphs], module)
        except CheckpointError as error:
            left_out[method.name] = (
                f"{method.name} runs the model's own code, and a file cannot hold its graph: {error}"
            )
        else:
            kept.append(method)
    return kept, left_out


_HELD = "the file holds the global {} of module {!r} as it is when saved: what is loaded from it follows no change"


def _globals(graphs: Iterable[Graph], tensors: dict[str, Tensor]) -> dict[Any, str]:
    """Adds the global tensors that the graphs read to those of the file; returns their paths, by where they are."""
    nodes = (node for graph in graphs for node in graph.find_nodes(op="call_function", target=read_global))
    held = {args: f"_globals.{index}" for index, args in enumerate(dict.fromkeys(node.args for node in nodes))}
    tensors |= {path: read_global(*args) for args, path in held.items()}
    return held


def _check_hooks(module: IntegerModule) -> None:
    """Refuses hooks: they are code, which a file does not hold, and may change what is computed."""
    for path, child in module.named_modules():
        table = next((name for name, hooks in tables(child) if not all(map(of_torch, hooks.values()))), None)
        if table is not None:
            where = f"module {path!r}" if path else "the module itself"
            raise CheckpointError(
                f"{where} has a hook ({table}), which a file cannot hold: compute what it changes in the model's "
                f"forward; if it only looks, remove it from the integer module before saving."
            )


def _order(module: nn.Module, paths: set[str]) -> list[str]:
    """Returns the constants and modules in the order of the ``state_dict``."""
    found: dict[str, None] = {}
    for path, child in module.named_modules():
        found |= dict.fromkeys(f"{path}.{name}" if path else name for name in ("", *child._buffers))
    return [path for path in (name.rstrip(".") for name in found) if path in paths]


def pack_document(document: dict[str, Any]) -> dict[str, Any]:
    """Deflates the long parts of a description, in base64: they would be a tenth of a small model's file."""
    long = {key: document[key] for key in _LONG if key in document}
    text = base64.b64encode(zlib.compress(json.dumps(long, separators=(",", ":")).encode(), 9)).decode()
    return {**{key: value for key, value in document.items() if key not in _LONG}, "deflated": text}


def unpack_document(document: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns the description that :func:`pack_document` was given.

    Raises:
        CheckpointError: If it is damaged.
    """
    deflated = document.get("deflated")
    try:
        if not isinstance(deflated, str):
            raise ValueError("there is none")
        packed = base64.b64decode(deflated, validate=True)
        long = read_json(unpack(packed), len(packed))
        unpacked = {**document, "methods": [], **{key: long[key] for key in _LONG if key in long}}
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{where}: is damaged: its description cannot be read ({error}). Take another copy of it."
        ) from error
    check_document(unpacked, IntegerData, where)
    return unpacked


def rebuild(document: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> IntegerModule:
    """Returns the module that :func:`describe` described.

    Args:
        where: The file, as messages call it.

    Raises:
        CheckpointError: If the document is malformed, names what is not allowed, or does not fit the tensors.
    """
    with wellformed(f"{where}: the description of the module"):
        root = nn.Module()
        check_sizes(document["tables"], sum(tensor.nbytes for tensor in tensors.values()))
        order = {path: place for place, path in enumerate(document.get("order", []))}
        every = [*document["constants"], *document["modules"], *document["memos"]]
        for path in sorted(every, key=lambda path: order.get(path, len(order))):
            if path in document["modules"]:
                _place(root, path, decode_module(document["modules"][path], path, tensors))
            elif path in document["memos"]:
                _place(root, path, _memo(document["memos"][path], path, where))
            else:
                _place(root, path, _constant(path, tensors[path], document))
        graph = decode_graph(document["graph"], root, integer=True)
        report = made(IntegerReport, document["report"])
        more = [_method(data, root) for data in document.get("methods", [])]
        check_graphs([graph, *(method.graph for method in more)], root)
        name = _door_name(document.get("method", "forward"))
        module: IntegerModule = IntegerModule.build(
            root,
            graph,
            report=report,
            graph_method=name,
            called_method=_door_name(document.get("called_method", name)),
            more_methods=tuple(more),
            from_file=True,
            left_out={str(door): str(why) for door, why in document.get("left_out", {}).items()},
        )
    return module.eval()


def _method(data: Mapping[str, Any], root: nn.Module) -> Method:
    return Method(
        name=_door_name(data["name"]), graph=decode_graph(data["graph"], root, integer=True), how=str(data["how"])
    )


def _door_name(name: Any) -> str:
    """Returns the name of a method behind the path of its part, which becomes an attribute that no module has."""
    steps = name.split(".") if isinstance(name, str) else [""]
    taken = name != "forward" and len(steps) == 1 and hasattr(IntegerModule, name)
    sound = all(step.isidentifier() or step.isdigit() for step in steps) and steps[-1].isidentifier()
    if taken or not sound or any(step.startswith("__") for step in steps):
        raise CheckpointError(f"the file has a method of the name {name!r}, which is not allowed.")
    return str(name)


def _memo(nodes: list[dict[str, Any]], path: str, where: str) -> Remember:
    inner = decode_graph(nodes, nn.Module(), integer=True)
    if any(node.op in ("call_module", "get_attr") for node in inner.nodes):
        raise CheckpointError(f"{where}: {path} computes more than the graph.")
    return Remember(TracedModule.build(nn.Module(), inner, from_file=True))


def _read(module: IntegerModule, graphs: list[Graph]) -> tuple[dict[str, Tensor], dict[str, nn.Module]]:
    """Returns the tensors and the modules that the graphs use, by path."""
    tensors: dict[str, Tensor] = {}
    modules: dict[str, nn.Module] = {}
    for node in (node for graph in graphs for node in graph.nodes):
        if node.op in ("call_module", "get_attr"):
            path = str(node.target)
            found = attrgetter(path)(module)
            if isinstance(found, nn.Module):
                modules[path] = found
            else:
                tensors[path] = found
    return tensors, modules


def _inner(memo: Remember) -> Graph:
    assert isinstance(memo.inner, TracedModule)
    return memo.inner.graph


def _check_results(graph: Graph) -> None:
    own = named_tuples(graph)
    if own:
        raise CheckpointError(
            f"the model works with the named tuple {own[0]}, which only its own code can make: return a plain tuple, "
            f"or pickle the integer module."
        )


def _constant(name: str, stored: Tensor, document: Mapping[str, Any]) -> Tensor:
    if name in document["weights"]:
        return grow(stored, document["weights"][name])
    return inflate(stored, document["tables"][name]) if name in document["tables"] else stored


def _place(root: nn.Module, path: Any, found: Tensor | nn.Module) -> None:
    """Puts a constant or a module where the graph reads it."""
    owner, name = holder(root, str(path))
    if not name or hasattr(owner, name):
        raise CheckpointError(f"the file holds {path!r}, which is not allowed, or twice.")
    owner.add_module(name, found) if isinstance(found, nn.Module) else owner.register_buffer(name, found)
