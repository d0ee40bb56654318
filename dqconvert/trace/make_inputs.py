"""Inputs made up from a forward's signature and the model's layers, where the user gives none."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric import EdgeIndex
from torch_geometric.data import Data
from torch_geometric.utils import to_dense_adj, to_torch_csr_tensor

from dqconvert.errors import TraceError
from dqconvert.trace.inputs import Inputs, from_bound, method_of, signature_of
from dqconvert.trace.leaves import uninitialized
from dqconvert.words import raised

NODES, EDGES, GRAPHS = (13, 17), (37, 53), (2, 3)
"""Sizes of the first and second made-up graph: no two alike, none shared."""

_X_NAMES = ("x", "h", "feat", "features", "node_feat", "inputs", "input", "node_attr")
_EDGE_ATTR_NAMES = ("edge_attr", "edge_feat", "edge_features", "e")
_DATA_NAMES = ("data", "batch_data", "graph", "g")
_EDGE_INDEX_NAMES = ("edge_index", "edge_indices", "adj_t", "adj", "adjacency", "A")


def make_inputs(model: nn.Module, method: str = "forward") -> tuple[Inputs, Inputs]:
    """Makes up two inputs of different sizes that the model accepts.

    Args:
        model: A copy of the model; it is run in evaluation mode to find out what it accepts.

    Raises:
        TraceError: If the inputs cannot be made up; it says what to pass.
    """
    signature = signature_of(model, method)
    name = type(model).__name__
    lazy = uninitialized(model)
    if lazy:
        raise TraceError(
            f"{name} has lazy parameters ({', '.join(lazy[:3])}{', …' if len(lazy) > 3 else ''}) whose shapes only an "
            f"input can settle: pass example_inputs to prepare()."
        )
    required = _required(signature)
    failures: list[str] = []
    model.eval()
    for candidate in _candidates(model, signature, required):
        names = required + [name for name in candidate.extra if name in signature.parameters]
        pair = [_build(signature, names, candidate, size) for size in (0, 1)]
        if pair[0] is None or pair[1] is None:
            continue
        failure = _try(model, method, pair[0]) or _try(model, method, pair[1])
        if failure is None:
            return pair[0], pair[1]
        if failure not in failures:
            failures.append(failure)
    unknown = [p for p in required if not _known(p, signature)]
    why = (
        f"nothing is known about {', '.join(map(repr, unknown))}"
        if unknown
        else f"the model rejected every guess, the first with: {failures[0]}"
        if failures
        else "the model has no layer that tells the width of its input"
    )
    raise TraceError(
        f"inputs for {name}.{method}({', '.join(signature.parameters)}) could not be made up: {why}. "
        f"Pass example_inputs to prepare(): a tuple of forward's arguments, for instance "
        f"example_inputs=({', '.join(required) or 'x, edge_index'},)."
    )


def _required(signature: inspect.Signature) -> list[str]:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [n for n, p in signature.parameters.items() if p.default is p.empty and p.kind not in kinds]


def _try(model: nn.Module, method: str, inputs: Inputs) -> str | None:
    args, kwargs = inputs.call()
    try:
        with torch.no_grad():
            method_of(model, method)(*args, **kwargs)
    except Exception as error:  # whatever a wrong guess makes the user's code raise
        return raised(error)
    return None


# -- what to try -------------------------------------------------------------------------------------------------


_DATA_EXTRAS = (("edge_attr",), ("edge_weight",), ("pos",), ("pos", "edge_attr"), ("z", "pos"))
_OPTIONAL = (
    *("edge_index", "edge_attr", "edge_weight", "batch", "index", "pos", "edge_type"),
    *("num_nodes", "batch_size", "dim_size"),
)


class _Guess(NamedTuple):
    """One way to make up inputs: the width of x (or the number of categories), of edge features, what to add, and the
    form that a connectivity has where its name leaves that open."""

    width: int
    edge_width: int | None
    categories: int | None
    extra: tuple[str, ...]
    form: str = ""


def _candidates(model: nn.Module, signature: inspect.Signature, required: list[str]) -> Iterator[_Guess]:
    """Guesses in order of likelihood, each with every form that a connectivity of this name may have."""
    open_ones = [signature.parameters[name] for name in required if name in _EDGE_INDEX_NAMES]
    forms = next((found for parameter in open_ones if len(found := _forms(parameter)) > 1), ("edge_index",))
    for guess in _guesses(model, signature, required):
        for form in forms:
            yield guess._replace(form=form)


def _forms(parameter: inspect.Parameter) -> tuple[str, ...]:
    """Returns the forms that a connectivity may have by its name and annotation, the likeliest first."""
    hint = str(getattr(parameter.annotation, "__name__", parameter.annotation)).rpartition(".")[2]
    if hint == "EdgeIndex":
        return "EdgeIndex", "edge_index"
    if hint == "SparseTensor" or parameter.name == "adj_t":
        return "sparse", "edge_index"
    if parameter.name in ("adj", "adjacency", "A"):
        return "edge_index", "sparse", "dense"
    return ("edge_index",)


def _guesses(model: nn.Module, signature: inspect.Signature, required: list[str]) -> Iterator[_Guess]:
    """Yields inputs to try; optional ones are added only where the model fails without them."""
    widths = _widths(model)
    edge_widths = _edge_widths(model, widths)
    tables = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
    data_like = any(name in _DATA_NAMES for name in required)
    extras: list[tuple[str, ...]] = [(), *_DATA_EXTRAS]
    if not data_like:
        optional = [name for name in _OPTIONAL if name in signature.parameters and name not in required]
        extras = [(), *((name,) for name in optional), *itertools.combinations(optional, 2)]
    narrow = min(tables) if tables else None
    starts_with_table = isinstance(next((m for m in model.modules() if m._parameters), None), nn.Embedding)
    for extra in extras:
        for edge_width in edge_widths if data_like or "edge_attr" in [*required, *extra] else edge_widths[:1]:
            by_table = [_Guess(width, edge_width, narrow, extra) for width in (0, 1) if tables]
            by_width = [_Guess(width, edge_width, None, extra) for width in widths]
            yield from by_table + by_width if starts_with_table else by_width + by_table


def _widths(model: nn.Module) -> list[int]:
    found: list[int] = []
    for module in nn.Module.modules(model):
        for attribute in ("in_channels", "in_features", "in_dim", "input_dim", "num_features", "channels"):
            value = getattr(module, attribute, None)
            if isinstance(value, tuple | list) and value and isinstance(value[0], int):
                value = value[0]
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                found.append(value)
    # An edge convolution's network sees [x_i, x_j - x_i], a PointNet's sees [x_j, pos_j - pos_i].
    found += [value // 2 for value in found if value % 2 == 0] + [value - 3 for value in found if value > 3]
    return list(dict.fromkeys(found or [16]))[:24]


def _edge_widths(model: nn.Module, widths: list[int]) -> list[int | None]:
    found = [getattr(m, name, None) for m in model.modules() for name in ("edge_dim", "edge_channels")]
    known: list[int | None] = [value for value in found if isinstance(value, int) and value > 0]
    linears = [getattr(m, "in_features", getattr(m, "in_channels", 0)) for m in model.modules()]
    known += [value for value in linears if isinstance(value, int) and value > 0]
    return list(dict.fromkeys([*known, *widths, 1]))[:10]


# -- building ----------------------------------------------------------------------------------------------------


def _known(name: str, signature: inspect.Signature) -> bool:
    guess = _Guess(4, 4, None, ())
    return _value(name, signature.parameters[name], guess, 0, _graph(0)) is not None


def _graph(size: int) -> dict[str, Tensor]:
    """Makes up a graph: sorted by target, with a hub, a self-loop, an isolated node and a duplicate edge."""
    generator = torch.Generator().manual_seed(5 + size)
    nodes, edges = NODES[size], EDGES[size]
    source = torch.randint(nodes - 1, (edges,), generator=generator)
    target = torch.randint(nodes - 1, (edges,), generator=generator)
    target[: edges // 4] = 0
    source[0] = target[0]
    source[2], target[2] = source[1], target[1]
    order = target.argsort(stable=True)
    batch = (torch.arange(nodes) * GRAPHS[size]) // nodes
    return {"edge_index": torch.stack([source, target])[:, order], "batch": batch}


def _features(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def _build(signature: inspect.Signature, required: list[str], guess: _Guess, size: int) -> Inputs | None:
    graph = _graph(size)
    values = {name: _value(name, signature.parameters[name], guess, size, graph) for name in required}
    if any(value is None for value in values.values()):
        return None
    with suppress(TypeError):
        return from_bound(signature, signature.bind(**values))
    return None


def _value(name: str, parameter: inspect.Parameter, guess: _Guess, size: int, graph: dict[str, Tensor]) -> Any:
    """Makes up one argument by its name and annotation; ``None`` if nothing is known about it."""
    nodes = NODES[size]
    if name in _DATA_NAMES or "Data" in str(parameter.annotation) or str(parameter.annotation).endswith("Batch'>"):
        return _data(guess, size, graph)
    if name in _X_NAMES:
        return _x(guess, nodes)
    if name in _EDGE_INDEX_NAMES:
        return _connectivity(graph["edge_index"], nodes, guess.form if len(_forms(parameter)) > 1 else "edge_index")
    return _named(name, guess, size, graph)


def _named(name: str, guess: _Guess, size: int, graph: dict[str, Tensor]) -> Any:
    """Makes up an argument, or a field of a data object, by its name alone."""
    nodes, edges = NODES[size], EDGES[size]
    if name in ("batch", "index"):  # as layers and as aggregations call the group of each row
        return graph["batch"]
    if name in ("edge_weight", "edge_weights", "weight"):
        return torch.rand(edges, generator=torch.Generator().manual_seed(3)) + 0.5
    if name in _EDGE_ATTR_NAMES:
        return _features(edges, guess.edge_width or 1, 2)
    if name in ("pos", "coords"):
        return _features(nodes, 3, 4)
    if name in ("z", "atomic_numbers", "atom_types"):
        return torch.randint(1, 10, (nodes,), generator=torch.Generator().manual_seed(6))
    if name == "edge_type":
        return torch.randint(2, (edges,), generator=torch.Generator().manual_seed(7))
    if name == "node_type":
        return torch.randint(2, (nodes,), generator=torch.Generator().manual_seed(8))
    if name == "edge_label_index":
        return graph["edge_index"][:, : edges // 2]
    if name in ("x_0", "x0"):
        return _x(guess, nodes)
    sizes = {"num_nodes": nodes, "batch_size": GRAPHS[size], "num_graphs": GRAPHS[size], "dim_size": GRAPHS[size]}
    return sizes.get(name)


def _connectivity(edge_index: Tensor, nodes: int, form: str) -> Tensor:
    if form == "EdgeIndex":
        return EdgeIndex(edge_index, sparse_size=(nodes, nodes), sort_order="col")
    if form == "sparse":  # transposed, as PyG wants it
        return to_torch_csr_tensor(edge_index.unique(dim=1).flip(0), size=(nodes, nodes))
    return to_dense_adj(edge_index.unique(dim=1), max_num_nodes=nodes)[0] if form == "dense" else edge_index


def _x(guess: _Guess, nodes: int) -> Tensor:
    if guess.categories is None:
        return _features(nodes, guess.width, 1)
    shape = (nodes,) if guess.width == 0 else (nodes, 1)
    return torch.randint(guess.categories, shape, generator=torch.Generator().manual_seed(1))


def _data(guess: _Guess, size: int, graph: dict[str, Tensor]) -> Data:
    data = Data(x=_x(guess, NODES[size]), edge_index=graph["edge_index"], batch=graph["batch"])
    for name in guess.extra:
        data[name] = _named(name, guess, size, graph)
    return data
