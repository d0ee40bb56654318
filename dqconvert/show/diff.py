"""The float graph and the rewritten one side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher

from dqconvert.show.groups import quantizer_words
from dqconvert.show.view import NodeView, View


@dataclass(frozen=True)
class DiffRow:
    """One row: the same place in both graphs.

    Attributes:
        left: What the float graph does there; empty where the rewritten one has something new.
        right: What the rewritten graph does there.
        inserted: Whether the right side is new.
    """

    left: str
    right: str
    inserted: bool = False


def diff_rows(view: View) -> list[DiffRow]:
    """The rows of the comparison, in the order of execution."""
    old = [node for node in view.nodes["float_train"] if node.is_arithmetic]
    new = [node for node in view.nodes["train"] if node.is_arithmetic]
    matcher = SequenceMatcher(a=list(map(_key, old)), b=list(map(_key, new)), autojunk=False)
    rows: list[DiffRow] = []
    for kind, start, stop, first, last in matcher.get_opcodes():
        rows += _rows(view, old[start:stop], new[first:last], same=kind == "equal")
    return rows


def _rows(view: View, old: list[NodeView], new: list[NodeView], *, same: bool) -> Iterator[DiffRow]:
    if same:
        for left, right in zip(old, new, strict=True):
            yield DiffRow(_text(left), _text(right))
        return
    remaining = list(old)
    for node in new:
        if node.kind == "quantizer":
            yield DiffRow("", quantizer_words(view.quantizers[node.target]), inserted=True)
        elif node.kind == "protection":
            yield DiffRow("", f"+ {node.target}", inserted=True)
        else:  # an operation that is spelled differently: a layer that was opened
            yield DiffRow(_text(remaining.pop(0)) if remaining else "", _text(node))
    for node in remaining:
        yield DiffRow(_text(node), "")


def _key(node: NodeView) -> tuple[str, str]:
    """Equal for a layer and the operation that it was opened into."""
    if node.kind in ("quantizer", "protection"):
        return node.kind, node.target
    opened = node.kind == "module" or node.label in ("linear", "bilinear", "embedding", "call_with_weights")
    return ("layer", node.module) if opened else (node.module, node.label)


def _text(node: NodeView) -> str:
    if node.kind == "module":
        return node.target
    return f"{node.module}: {node.label}" if node.module else node.label
