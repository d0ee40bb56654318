"""Message-passing layers that say, while they are recorded, which of their stages is running."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.nn.conv import MessagePassing

from dqconvert.trace import leaves
from dqconvert.trace.adjacency import edge_sizes, is_sparse
from dqconvert.trace.note import Stage, describe
from dqconvert.trace.runtime import either, stage_output
from dqconvert.trace.values import Untraceable
from dqconvert.trace.weighing import Values, is_unweighted, set_values, unweighted, values_of, weighed
from dqconvert.trace.writer import Writer


class NoProduct(Exception):  # noqa: N818  (a signal to the driver, not a user's error)
    """A layer's product does what a graph cannot hold: its messages alone are recorded."""

    def __init__(self, layer: str) -> None:
        super().__init__(layer)
        self.layer = layer


class Brackets:
    """Sets methods on the layers of a model, a copy, that bracket those of their class.

    Args:
        fused: Paths of layers that compute a product with a sparse adjacency where their messages would do.
        products: Paths of layers of which the product alone can be recorded.

    Attributes:
        met_sparse: True once a layer's messages went over a sparse adjacency or an ``EdgeIndex``.
    """

    def __init__(self, writer: Writer, fused: Collection[str], products: Collection[str]) -> None:
        self.writer = writer
        self.fused = fused
        self.products = products
        self.met_sparse = False

    def bracket(self, layer: MessagePassing, path: str) -> None:
        """Makes the layer say which part of it is running. The methods are set on the instance, which is a copy."""
        layer.fuse = path in self.products  # messages must be visible, also over a sparse adjacency
        values = values_of(layer)
        set_values(layer, Values.OWN)  # what the float model does in hooks is recorded as part of the message
        if values is Values.MULTIPLY:
            vars(layer)["message"] = self._weighed(layer.message, layer.node_dim)
        for name in leaves.STAGE_METHODS:
            vars(layer)[name] = self._stage_method(getattr(layer, name), Stage(name))
        for name in ("propagate", "edge_updater"):
            fused = name == "propagate" and path in self.fused
            vars(layer)[name] = self._over_edges(getattr(layer, name), values, fused)

    def _stage_method(self, method: Callable[..., Any], stage: Stage) -> Callable[..., Any]:
        @functools.wraps(method)
        def run(*args: Any, **kwargs: Any) -> Any:
            if not self.writer.recording or Stage.PRODUCT in self.writer.stage:
                return method(*args, **kwargs)
            self.writer.stage.append(stage)
            try:
                return mark(self.writer, method(*args, **kwargs), stage)
            finally:
                self.writer.stage.pop()

        return run

    def _weighed(self, message: Callable[..., Any], node_dim: int) -> Callable[..., Any]:
        """Messages multiplied by the values of the adjacency that they go over."""

        @functools.wraps(message)
        def run(*args: Any, **kwargs: Any) -> Any:
            result = message(*args, **kwargs)
            return weighed(result, self.writer.edge_index[-1][0], node_dim) if self.writer.recording else result

        return run

    def _over_edges(self, method: Callable[..., Any], values: Values, fused: bool) -> Callable[..., Any]:
        layer: Any = getattr(method, "__self__", None)

        @functools.wraps(method)
        def run(edge_index: Any, *args: Any, **kwargs: Any) -> Any:
            if not self.writer.recording:
                return method(edge_index, *args, **kwargs)
            if is_sparse(edge_index) or isinstance(edge_index, EdgeIndex):
                self.met_sparse = True
                with self.writer.paused():
                    ones = values is Values.ONES and is_unweighted(edge_index)
                if ones:
                    self.writer.node("call_function", unweighted, (edge_index,), {})
            self.writer.edge_index.append((edge_index, 0 if layer is None or layer.flow == "source_to_target" else 1))
            self.writer.propagation.append(self.writer.propagations)
            self.writer.propagations += 1
            try:
                multiplies = fused and self._multiplies(layer, edge_index)
                product = self._product(layer, method, edge_index, args, kwargs) if multiplies else None
                messages = method(edge_index, *args, **(kwargs | self._sizes(edge_index, kwargs)))
                return self._either(messages, product) if multiplies else messages
            finally:
                self.writer.edge_index.pop()
                self.writer.propagation.pop()

        return run

    def _multiplies(self, layer: Any, edge_index: Any) -> bool:
        """Returns True if the layer computes a sparse product over such a connectivity when it may."""
        given = self.writer.given(edge_index)
        sorted_edges = isinstance(given, EdgeIndex) and layer.SUPPORTS_FUSED_EDGE_INDEX and given.is_sorted_by_col
        return is_sparse(given) or bool(sorted_edges)

    def _sizes(self, edge_index: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Returns the sizes of an ``EdgeIndex`` for a layer that has features on one side alone: ``(x, None)``."""
        given = self.writer.given(edge_index)
        one_sided = any(
            isinstance(value, tuple | list) and any(side is None for side in value)
            for name, value in kwargs.items()
            if name != "size"
        )
        if not one_sided or not isinstance(given, EdgeIndex) or given.sparse_size() == (None, None):
            return {}
        with self.writer.paused():
            sizes = given.sparse_size()
        known = tuple(size is not None for size in sizes)
        node = self.writer.node("call_function", edge_sizes, (given, known), {})
        return {"size": self.writer.bind(sizes, node)}

    def _product(self, layer: Any, method: Callable[..., Any], edge_index: Tensor, args: Any, kwargs: Any) -> Any:
        """Computes the layer as PyG would: with one sparse product."""
        layer.fuse = True
        self.writer.stage.append(Stage.PRODUCT)
        try:
            return method(self.writer.given(edge_index), *args, **kwargs)
        except Untraceable:
            raise NoProduct(self.writer.modules[id(layer)]) from None
        finally:
            self.writer.stage.pop()
            layer.fuse = False

    def _either(self, messages: Any, product: Any) -> Any:
        if not isinstance(messages, Tensor) or not isinstance(product, Tensor):
            return messages
        node = self.writer.node("call_function", either, (messages, product), {})
        with self.writer.paused():
            alias = torch.ops.aten.alias.default(messages)
        return self.writer.bind(alias, node)


def mark(writer: Writer, result: Any, stage: Stage) -> Any:
    """Returns a stage's result with a node of its own, also where the stage returns its input."""
    if isinstance(result, Tensor):
        if not result.is_floating_point() or not writer.representable(result):
            return result
        edges: tuple[Any, ...] = ()
        if stage in (Stage.MESSAGE, Stage.EDGE_UPDATE) and writer.edge_index:
            edges = writer.edge_index[-1]
        node = writer.node("call_function", stage_output, (result, stage.value, *edges), {})
        with writer.paused():
            alias = torch.ops.aten.alias.default(result)
        return writer.bind(alias, describe(node, stage=stage))
    if isinstance(result, tuple) and stage is Stage.LAYER:  # (out, attention weights): the layer's output is first
        return type(result)((mark(writer, result[0], stage), *result[1:])) if result else result
    if isinstance(result, tuple | list):
        return type(result)(mark(writer, item, stage) for item in result)
    if isinstance(result, dict) and stage is Stage.LAYER:
        return {key: mark(writer, item, stage) for key, item in result.items()}
    return result
