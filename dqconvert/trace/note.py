"""The annotation of a node: one small record, written while recording, read everywhere after."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

import torch
from torch.fx import Node

_KEY = "dqconvert_note"


class Stage(enum.StrEnum):
    """The part of a message-passing layer that a node was recorded in."""

    NONE = "none"
    MESSAGE = "message"
    AGGREGATE = "aggregate"
    UPDATE = "update"
    EDGE_UPDATE = "edge_update"
    PRODUCT = "product"
    """One sparse product in the place of messages and their aggregation."""
    LAYER = "layer"
    """The layer's ``forward`` as a whole; appears only on the node that marks its output."""


@dataclass(frozen=True, kw_only=True)
class Note:
    """The origin of a node, and the form of its value.

    Attributes:
        module: Path of the innermost module that was running (``"convs.0.lin"``; ``""`` is the root).
        call: Which call of that module it was, from 0 (a weight-tied layer is called more than once).
        stage: The part of a message-passing layer, see :class:`Stage`.
        propagation: Which ``propagate`` or ``edge_updater`` call of the forward it ran in, from 0; -1 outside of all.
        source: File and line that made the call, ``"torch_geometric/nn/conv/gcn_conv.py:263"``.
        sizes: The value's shape on the example input and on the second input of other sizes, one entry each;
            ``()`` if the value is not a tensor. A dimension whose two entries differ follows the graph.
        dtype: The value's dtype on the example input; ``None`` if the value is not a tensor.
        sparse: Whether the value is a sparse matrix.
    """

    module: str = ""
    call: int = 0
    stage: Stage = Stage.NONE
    propagation: int = -1
    source: str = ""
    sizes: tuple[tuple[int, ...], ...] = ()
    dtype: torch.dtype | None = None
    sparse: bool = False

    @property
    def is_tensor(self) -> bool:
        """True if the node's value is a tensor."""
        return self.dtype is not None

    @property
    def is_float(self) -> bool:
        """True if the node's value is a floating point tensor."""
        return self.dtype is not None and self.dtype.is_floating_point

    @property
    def ndim(self) -> int:
        """Number of dimensions of the value."""
        return len(self.sizes[0]) if self.sizes else 0


def note_of(node: Node) -> Note:
    """Returns the note of a node; an empty one for nodes without."""
    return node.meta.get(_KEY) or Note()


def annotate(node: Node, note: Note) -> Node:
    """Sets the note of a node and returns the node."""
    node.meta[_KEY] = note
    return node


def describe(node: Node, **changes: object) -> Node:
    """Replaces some fields of a node's note and returns the node."""
    return annotate(node, replace(note_of(node), **changes))  # type: ignore[arg-type]
