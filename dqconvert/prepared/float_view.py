"""The float model that a prepared module was made of, with its present weights and attributes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dqconvert.prepared.base import PreparedBase
from dqconvert.trace.copies import deepcopy
from dqconvert.trace.inputs import map_tensors
from dqconvert.trace.module import body_names
from dqconvert.trace.parts import Part, put_back


def float_view(prepared: PreparedBase) -> nn.Module:
    """Returns a copy of a prepared module as an instance of the user's class: no quantizers, the present weights.

    Example:
        >>> from torch_geometric.nn import GCN
        >>> from dqconvert import prepare
        >>> float_view(prepare(GCN(8, 16, num_layers=2)).module)
        GCN(8, 16, num_layers=2)
    """
    memo: dict[int, Any] = {}
    shells: list[tuple[nn.Module, nn.Module]] = []
    for module in prepared.modules():
        if not prepared._inserted(module):
            user = module._user_class if isinstance(module, PreparedBase | Part) else type(module)
            shell = memo[id(module)] = user.__new__(user)
            shells.append((module, shell))
    for module, shell in shells:
        state = dict(vars(module))
        state["_modules"] = {n: m for n, m in module._modules.items() if m is None or id(m) in memo}
        if module is prepared:
            state = {name: value for name, value in state.items() if name not in (*body_names(), *_OWN)}
            if prepared.user_fuse is not None:
                state["fuse"] = prepared.user_fuse
        put_back(state)
        for value in state.values():
            map_tensors(value, lambda tensor: _without_history(tensor, memo))
        vars(shell).update(deepcopy(state, memo))
    return memo[id(prepared)]


_OWN = (
    *("qconfig", "_noted", "float_graphs", "graph_method", "called_method", "more_methods", "islands", "fuse"),
    *("own_code", "plain_methods", "user_fuse", "eval_graph", "_objects", "_hooks_seen", "_hook_number", "_agreement"),
)
"""Attributes of a prepared module that the float model does not have."""


def _without_history(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    """Puts a copy into the memo of a deep copy for a tensor with a gradient function, which cannot be copied itself."""
    if not tensor.is_leaf:
        memo[id(tensor)] = tensor.detach().clone()
    return tensor
