"""Tables of the modules and functions that stay whole in the graph."""

from __future__ import annotations

import functools
import inspect
import operator
import random
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np
import torch
import torch.utils.checkpoint
import torch_geometric.backend
import torch_geometric.nn
import torch_geometric.utils
from torch import nn
from torch_geometric.nn.aggr import Aggregation
from torch_geometric.nn.conv import MessagePassing

from dqconvert.ops import layers_of
from dqconvert.trace.names import module_of

WEIGHTED_MODULES: tuple[type[nn.Module], ...] = layers_of(lambda op: op.product)
"""Modules that multiply by a parameter matrix. A module that holds one is traced into, never kept whole."""

_PYG_LEAVES: tuple[type[nn.Module], ...] = (
    Aggregation,
    torch_geometric.nn.Linear,
    *(getattr(torch_geometric.nn.norm, name) for name in torch_geometric.nn.norm.__all__),
)

# Not PyG functions of tensors: they call back, build objects, or answer a question about types.
_NOT_KEPT = {
    *("is_sparse", *(f"is_torch_sparse_{form}tensor" for form in ("", "coo_", "csr_", "csc_"))),
    *(f"{way}_{form}" for way in ("to", "from") for form in ("networkx", "networkit", "trimesh", "cugraph", "dgl")),
    *("from_rdmol", "to_rdmol", "from_smiles", "to_smiles", "total_influence"),
    *("get_embeddings", "get_embeddings_hetero"),
    "trim_to_layer",  # cuts rows off: what is kept must be seen to be the same rows
}

_EXTRA_FUNCTIONS = (
    "torch_geometric.nn.conv.gcn_conv:gcn_norm",
    "torch_geometric.utils.num_nodes:maybe_num_nodes",
    "torch_geometric.index:ptr2index",
    "torch_geometric.index:index2ptr",
    "torch_geometric.utils.sparse:cat",
    "torch_geometric.utils.functions:cumsum",
    "torch_geometric.utils._spmm:spmm",
    "torch_geometric.nn.pool.glob:global_add_pool",
    "torch_geometric.nn.pool.glob:global_mean_pool",
    "torch_geometric.nn.pool.glob:global_max_pool",
)


def is_leaf_module(module: nn.Module) -> bool:
    """Returns True if a module stays one ``call_module`` node.

    torch's own layers and PyG's ``Linear``, norms and aggregations do, unless a weighted layer hides inside
    (an attentional aggregation's gate network), which must become visible.
    """
    if isinstance(module, WEIGHTED_MODULES):
        return module_of(type(module)).startswith(("torch.nn.", "torch_geometric.nn.dense"))
    own_torch = module_of(type(module)).startswith("torch.nn.") and not isinstance(
        module, nn.Sequential | nn.ModuleList | nn.ModuleDict
    )
    if not own_torch and not isinstance(module, _PYG_LEAVES):
        return False
    return not any(isinstance(child, WEIGHTED_MODULES) for child in nn.Module.modules(module))


@functools.cache
def leaf_functions() -> tuple[FunctionType, ...]:
    """Returns PyG's functions that stay one ``call_function`` node, so that the graph reads as it was written."""
    found: dict[int, Callable[..., Any]] = {}
    for name in torch_geometric.utils.__all__:
        value = getattr(torch_geometric.utils, name, None)
        if name not in _NOT_KEPT and inspect.isfunction(value):
            found[id(value)] = value
    for path in _EXTRA_FUNCTIONS:
        module, name = path.split(":")
        value = getattr(__import__(module, fromlist=[name]), name)
        found[id(value)] = value
    return tuple(value for value in found.values() if isinstance(value, FunctionType))


GETITEM = operator.getitem
"""Takes a part out of an input."""

HEURISTICS = ((torch_geometric.backend, torch_geometric.backend.use_segment_matmul_heuristic),)
"""Functions that pick the faster of two ways to compute the same, by module."""


def _without_checkpoint(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Calls what ``torch.utils.checkpoint.checkpoint`` would call, and keeps the activations."""
    own = {"use_reentrant", "preserve_rng_state", "context_fn", "determinism_check", "debug", "early_stop"}
    return function(*args, **{name: value for name, value in options.items() if name not in own})


SEEN_THROUGH: tuple[tuple[Any, str, Callable[..., Any], str], ...] = (
    (
        torch.utils.checkpoint,
        "checkpoint",
        _without_checkpoint,
        "activations are kept where the model recomputes them (torch.utils.checkpoint): the same values, more memory",
    ),
)
"""Functions that only call another: their module, name, what to call instead, and what to tell the user of it."""


def _draws(module: Any) -> list[tuple[Any, str, Callable[..., Any]]]:
    keeps = {"seed", "getstate", "setstate", "get_state", "set_state", "default_rng"}
    names = [name for name in module.__all__ if name not in keeps]
    return [(module, name, fn) for name in names if not isinstance(fn := getattr(module, name), type)]


RANDOM_FUNCTIONS = (*_draws(random), *_draws(np.random))
"""Functions that draw random numbers that are none of torch's, by module."""

STAGE_METHODS = ("message", "aggregate", "update", "edge_update")
"""The methods of :class:`MessagePassing` whose results are marked."""


def message_passing_layers(model: nn.Module) -> list[MessagePassing]:
    """Returns all message-passing layers of a model."""
    return [module for module in nn.Module.modules(model) if isinstance(module, MessagePassing)]


def has_hooks(module: nn.Module) -> bool:
    """Returns True if calling the module runs hooks of the user's, forward or backward."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def uninitialized(model: nn.Module) -> list[str]:
    """Names of the parameters of lazy layers that no input has reached yet."""
    names = [n for n, p in nn.Module.named_parameters(model) if isinstance(p, nn.UninitializedParameter)]
    return names + [n for n, b in nn.Module.named_buffers(model) if isinstance(b, torch.nn.UninitializedBuffer)]
