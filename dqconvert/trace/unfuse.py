"""Layers over sparse adjacencies, made to compute the messages that PyG's fused products skip."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch_geometric import EdgeIndex
from torch_geometric.nn.conv import MessagePassing

from dqconvert.trace import verify
from dqconvert.trace.adjacency import is_sparse, with_visible_messages
from dqconvert.trace.inputs import Inputs
from dqconvert.trace.islands import Island
from dqconvert.trace.weighing import Values, ignores_values, set_values


def has_sparse(inputs: Inputs) -> bool:
    """Returns True if the inputs hold a sparse adjacency or an ``EdgeIndex``."""
    forms: list[bool] = []
    inputs.map(lambda tensor: forms.append(is_sparse(tensor) or isinstance(tensor, EdgeIndex)))
    return any(forms)


@dataclass(frozen=True)
class Unfused:
    """The layers that compute a sparse product where they may, and how each is recorded.

    Attributes:
        both: Paths of layers that are recorded twice: as messages and as a product.
        products: The layers whose product is not what their messages add up to, or that have no messages: their product
            is recorded, and stays in float.
    """

    both: frozenset[str] = frozenset()
    products: tuple[Island, ...] = ()


def unfuse(root: nn.Module, inputs: Inputs, method: str) -> Unfused:
    """Makes layers compute their messages where a sparse adjacency would let them skip that; in place."""
    fused = {
        path: module for path, module in root.named_modules() if isinstance(module, MessagePassing) and module.fuse
    }
    plain = inputs.map(with_visible_messages)
    wanted = verify.outputs(root, method, inputs)

    def same() -> bool:
        try:
            found = verify.outputs(root, method, plain)
        except Exception:  # whatever a layer raises that counts on its product (EGConv: an assertion)
            return False
        return all(
            torch.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True) for a, b in zip(wanted, found, strict=True)
        )

    def unfuse_one(layer: MessagePassing, values: Values) -> None:
        layer.fuse = False
        set_values(layer, values if ignores_values(layer) else Values.OWN)

    for values in (Values.ONES, Values.MULTIPLY):
        for layer in fused.values():
            unfuse_one(layer, values)
        if same():
            return Unfused(frozenset(fused))
    islands: dict[str, Island] = {}
    for layer in fused.values():
        layer.fuse = True
        set_values(layer, Values.OWN)
    for path, layer in fused.items():
        unfuse_one(layer, Values.MULTIPLY)
        if not same():
            layer.fuse = True
            set_values(layer, Values.OWN)
            why = "computes something else in its product with a sparse adjacency than its messages add up to"
            code = type(layer).message_and_aggregate.__code__
            source = "/".join(code.co_filename.replace("\\", "/").split("/")[-2:]) + f":{code.co_firstlineno}"
            islands[path] = Island(module=path, reason=why, source=source)
    return Unfused(frozenset(fused.keys() - islands.keys()), tuple(islands.values()))
