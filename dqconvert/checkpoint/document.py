"""The description of a prepared module in a file, as JSON-ready data, and the tensors that the file holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
import torch_geometric
from torch import Tensor, nn
from torch.fx import Graph
from torch.nn.parameter import is_lazy

import dqconvert
from dqconvert.checkpoint.graph_data import encode_graph
from dqconvert.checkpoint.stored import encode_extra
from dqconvert.errors import CheckpointError, ConfigError
from dqconvert.prepared.module import PreparedModule, class_names
from dqconvert.quant import FakeQuantize, Protection
from dqconvert.quant.memo import Memo
from dqconvert.rewrite.place import Quantizers
from dqconvert.trace.computed import at_rest, computed_names
from dqconvert.trace.hooks import call_hook
from dqconvert.trace.method import Method
from dqconvert.trace.unchanged import Read, entries_of, followed_reads
from dqconvert.words import kind_of, listed

KIND = "prepared"

PLAIN = (bool, int, float, str, type(None))
"""Kinds of attributes that a file keeps."""

FLAGS = ("observer_enabled", "fake_quant_enabled")
"""Switches of a quantizer that a file keeps."""


def facts_of(
    module: PreparedModule,
    *,
    factory: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
    lenient: bool = False,
) -> dict[str, Any]:
    """Returns what a file says of itself first, as JSON-ready data.

    Args:
        factory: What built the float model, as information for people.
        lenient: Describe a config that a file cannot hold by its text, for display only.

    Raises:
        CheckpointError: If a file cannot hold the module's config.
    """
    return {
        "kind": KIND,
        "model": module._user_class.__name__,
        "method": module.graph_method,
        "factory": factory,
        "kwargs": None if kwargs is None else json.loads(json.dumps(dict(kwargs), default=repr)),
        "versions": versions(),
        "qconfig": _qconfig(module, lenient),
    }


def versions() -> dict[str, str]:
    """Returns the versions that a file is written with."""
    packages = {"dqconvert": dqconvert, "torch": torch, "torch_geometric": torch_geometric}
    return {name: str(package.__version__) for name, package in packages.items()}


def describe(
    module: PreparedModule, *, factory: str | None = None, kwargs: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns everything about a prepared module but its tensors, as JSON-ready data with stable keys.

    Args:
        factory: What built the float model, as information for people.

    Raises:
        CheckpointError: If the module holds something that a file cannot, such as a quantizer of the user's own.
    """
    hooked = [str(node.args[0]) for graph in every_graph(module) for node in graph.nodes if node.target is call_hook]
    if hooked:
        raise CheckpointError(
            f"the forward runs hooks of yours ({hooked[0]}), which a file cannot hold: prepare the model without them, "
            f"or save module.state_dict() and prepare the model with its hooks again to load it."
        )
    own = _own_quantizers(module)
    if own:
        raise CheckpointError(
            f"{own[0]} is {kind_of(module.get_submodule(own[0]))}, a quantizer of your own, which only your "
            f"code can make again: save module.state_dict() instead, and prepare the model again to load it."
        )
    facts = facts_of(module, factory=factory, kwargs=kwargs)
    return {
        **{key: facts[key] for key in ("kind", "versions", "model", "method")},
        "called_method": module.called_method,
        "own_code": dict(module.own_code),
        "fuse": module.fuse,
        **{key: facts[key] for key in ("factory", "kwargs", "qconfig")},
        "report": {key: value for key, value in asdict(module.report).items() if key != "agreement"},
        "islands": [asdict(island) for island in module.islands],
        "quantizers": [_quantizer(path, quantizer) for path, quantizer in module.quantizers()],
        "protections": [
            {"path": path, **asdict(child.protect)}
            for path, child in module.named_modules()
            if isinstance(child, Protection)
        ],
        "modules": class_names(module),
        "state": _state(module),
        "graphs": _graphs(module.graph, module.eval_graph, *module.float_graphs),
        "methods": [_method(method) for method in module.more_methods],
        "plain_methods": [data for method in module.plain_methods if (data := _plain_method(method)) is not None],
    }


def _method(method: Method) -> dict[str, Any]:
    """Returns one more method: its name, how it came in, and its graphs."""
    assert method.source is not None
    return {
        "name": method.name,
        "how": method.how,
        "islands": [asdict(island) for island in method.islands],
        "graphs": _graphs(method.graph, method.eval_graph, *method.source),
    }


def _plain_method(method: Method) -> dict[str, Any] | None:
    """Returns one that has nothing to quantize; ``None`` if a file cannot hold it: then the user's code alone runs."""
    try:
        return _method(replace(method, source=(method.graph, method.eval_graph)))
    except CheckpointError:
        return None


def _graphs(*graphs: Graph | None) -> dict[str, Any]:
    names = ("train", "eval", "float_train", "float_eval")
    return {name: None if graph is None else encode_graph(graph) for name, graph in zip(names, graphs, strict=True)}


def _qconfig(module: PreparedModule, lenient: bool) -> Any:
    try:
        return module.qconfig.to_dict()
    except ConfigError as error:
        if lenient:
            return repr(module.qconfig)
        raise CheckpointError(f"the module cannot be saved: its qconfig's {error}") from error


def _own_quantizers(module: nn.Module) -> list[str]:
    return [
        f"{path}.{name}" if path else name
        for path, holder in module.named_modules()
        if isinstance(holder, Quantizers)
        for name, child in holder.named_children()
        if not isinstance(child, FakeQuantize | Protection | Memo)
    ]


def _quantizer(path: str, quantizer: FakeQuantize) -> dict[str, Any]:
    """Returns the arguments of a quantizer's constructor, and its switches."""
    return {
        "path": path,
        "spec": asdict(quantizer.spec),
        "name": quantizer.name,
        "signed": quantizer.signed,
        "channels": None if quantizer.channel_dim is None else quantizer.min_val.numel(),
        "channel_dim": quantizer.channel_dim or 0,
        "row_dim": quantizer.row_dim,
        "flags": {flag: getattr(quantizer, flag) for flag in FLAGS},
        **({} if quantizer.noise is None else {"noise": quantizer.noise}),
        **({"behind": list(quantizer.behind)} if quantizer.behind else {}),
    }


# -- tensors -----------------------------------------------------------------------------------------------------


def tensors_of(module: PreparedModule) -> dict[str, Tensor]:
    """Returns every tensor that the module computes with, by name; tied ones under each of their names.

    The ``state_dict``, buffers that are not part of it, and plain attributes that the graph reads; not the weights that
    a parametrized layer computes from others.

    Raises:
        CheckpointError: If a parameter has no shape yet.
    """
    with at_rest(module):
        computed = computed_names(module)
        state = module.state_dict(keep_vars=True)
        if shapeless := [name for name, value in state.items() if isinstance(value, Tensor) and is_lazy(value)]:
            raise CheckpointError(
                f"{listed([*map(repr, shapeless)], most=3)} of lazy layers without a shape cannot be saved, as no "
                f"input reached them (a node type that no example had): prepare the model on inputs with all of them."
            )
        stored = {name: value for name, value in state.items() if isinstance(value, Tensor) and name not in computed}
        return {**stored, **_beside_state(module, {*state, *computed})}


def extra_of(module: PreparedModule) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns what a ``state_dict`` holds beside tensors, as JSON-ready data, and the tensors within that.

    Raises:
        CheckpointError: If it is something that a file cannot hold.
    """
    with at_rest(module):
        state = module.state_dict(keep_vars=True)
    found: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            found[name], parts = encode_extra(name, value)
            tensors |= parts
    return found, tensors


def every_graph(module: PreparedModule) -> list[Graph]:
    """Returns the graphs of all methods, and those that they were made of."""
    pairs = [(*method.graphs(), *(method.source or ())) for method in module.all_methods()]
    return [graph for pair in pairs for graph in pair if graph is not None]


def _beside_state(module: PreparedModule, state: set[str]) -> dict[str, Tensor]:
    found = {name: value for name, value in module.named_buffers(remove_duplicate=False) if name not in state}
    for path in [str(node.target) for graph in every_graph(module) for node in graph.nodes if node.op == "get_attr"]:
        if path in state:
            continue
        owner, _, name = path.rpartition(".")
        value = getattr(module.get_submodule(owner), name)
        if isinstance(value, Tensor):
            found[path] = value
    return found


def settings_of(module: PreparedModule) -> dict[Read, Any]:
    """Returns the numbers among the attributes that the forward reads, and those that it must find as they were."""
    found: dict[Read, Any] = {}
    with at_rest(module):
        for graph in every_graph(module):
            kept = [entry for entry in entries_of(graph) if entry.kind == "value"]
            found |= {(entry.path, entry.steps): entry.value for entry in kept if isinstance(entry.value, PLAIN)}
            found |= dict(followed_reads(graph, module))
    return found


def aliases_of(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of tied tensors and the name that each is stored under.

    Example:
        >>> weight = torch.ones(2)
        >>> aliases_of({"decoder": weight, "encoder": weight, "bias": torch.ones(2)})
        {'encoder': 'decoder'}
    """
    first: dict[int, str] = {}
    return {name: first[id(value)] for name, value in tensors.items() if first.setdefault(id(value), name) != name}


def _names(module: PreparedModule) -> set[str]:
    with at_rest(module):
        return set(module.state_dict())


def _state(module: PreparedModule) -> dict[str, Any]:
    """Returns what tensors do not say: which are tied or frozen, which parts are in which mode."""
    tensors = tensors_of(module)
    absent = [
        f"{path}.{name}".lstrip(".")
        for path, child in module.named_modules()
        for name, value in child._buffers.items()
        if value is None
    ]
    modes = {path: child.training for path, child in module.named_modules()}
    return {
        "aliases": aliases_of(tensors),
        "settings": [[*key, value] for key, value in settings_of(module).items()],
        "beside": sorted(set(tensors) - _names(module)),
        "absent": absent,
        "frozen": [name for name, value in module.named_parameters() if not value.requires_grad],
        "training": module.training,
        "modes": {path: mode for path, mode in modes.items() if mode is not module.training},
    }
