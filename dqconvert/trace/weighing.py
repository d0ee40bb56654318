"""Sparse adjacencies with values, under layers whose messages leave the values out.

Over a sparse adjacency PyG's layers skip their messages for one sparse product, which multiplies by the matrix's
values. ``SAGEConv`` and ``GINConv`` say nothing of them in ``message``: computed one by one, to be quantized, their
messages must be multiplied by the values, too.
"""

from __future__ import annotations

import enum
import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn.conv import MessagePassing

from dqconvert.errors import GuardError
from dqconvert.trace.adjacency import is_sparse

_KEY = "_dqconvert_values"
_SEEN = "_dqconvert_adjacency"


class Values(enum.StrEnum):
    """Ways in which a layer that computes single messages uses an adjacency's values."""

    OWN = "own"
    """They are the layer's own affair."""
    MULTIPLY = "multiply"
    """Its messages are multiplied by them."""
    ONES = "ones"
    """It leaves them out. Where they are all one, that is checked when the graph runs."""


def values_of(layer: nn.Module) -> Values:
    """Returns what a layer does with an adjacency's values."""
    return vars(layer).get(_KEY, Values.OWN)


def ignores_values(layer: MessagePassing) -> bool:
    """Returns True if the layer's messages leave the adjacency's values out, as far as its signature tells.

    Example:
        >>> from torch_geometric.nn import GCNConv, SAGEConv
        >>> ignores_values(SAGEConv(2, 2)), ignores_values(GCNConv(2, 2))
        (True, False)
    """
    return not {"edge_weight", "edge_attr", "edge_type"} & set(inspect.signature(layer.message).parameters)


def set_values(layer: MessagePassing, values: Values) -> None:
    """Has a layer multiply its messages by the adjacency's values, or not; in place, on a copy only."""
    vars(layer)[_KEY] = values
    for hooks in (layer._propagate_forward_pre_hooks, layer._message_forward_hooks):
        for key in [key for key, hook in hooks.items() if hook in (_remember, _multiply)]:
            del hooks[key]
    if values is Values.MULTIPLY:
        layer.register_propagate_forward_pre_hook(_remember)
        layer.register_message_forward_hook(_multiply)
    if values is Values.OWN:
        vars(layer).pop(_KEY, None)
        vars(layer).pop(_SEEN, None)


def weighed(message: Tensor, adjacency: Any, node_dim: int) -> Tensor:
    """Multiplies a message by the adjacency's values if it was made over one.

    Example:
        >>> weighed(torch.ones(1, 2), torch.tensor([[0.0, 3.0], [0.0, 0.0]]).to_sparse_csr(), -2)
        tensor([[3., 3.]])
    """
    if not is_sparse(adjacency):
        return message
    shape = [1] * message.dim()
    shape[node_dim] = -1
    return message * adjacency.values().view(shape)


def is_unweighted(adjacency: Any) -> bool:
    """Returns True if all values of a sparse adjacency are one."""
    return is_sparse(adjacency) and bool((adjacency.values() == 1).all())


def unweighted(adjacency: Tensor) -> None:
    """Checks that the values of an adjacency are all one, as they were while tracing.

    Raises:
        GuardError: If they are not; the graph does not multiply by them. (On a GPU the check is made there.)
    """
    ones = (adjacency.values() == 1).all()
    what = (
        "the sparse adjacency had no values but 1 when the model was prepared and has others now, which the graph "
        "would leave out: prepare the model again with a weighted adjacency among the example_inputs."
    )
    if ones.is_cuda:
        torch._assert_async(ones, what)
    elif not bool(ones):
        raise GuardError(what)


# The float model's messages, as hooks of PyG's: functions that copies of the layer share.


def _remember(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
    vars(layer)[_SEEN] = inputs[0]


def _multiply(layer: Any, inputs: Any, message: Tensor) -> Tensor:
    return weighed(message, vars(layer).pop(_SEEN), layer.node_dim)
