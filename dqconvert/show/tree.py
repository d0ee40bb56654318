"""The rewritten graph as a tree: layers, their stages and operations, and beside each what was inserted.

GCN: 14 quantizers (8-bit), protection 0 to 0.1
├─ conv1 (GCNConv)
│  ├─ lin  linear                     + weight      param s8 [-0.41, 0.4]
│  │                                  + input       node  s8 [0, 1]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

from dqconvert.show.groups import Group, LayerBlock, blocks_of
from dqconvert.show.view import View
from dqconvert.words import count

_WIDTH = 80
LEFT = 37
"""Where the column of inserted nodes begins, such that they fit."""


@dataclass(frozen=True)
class Line:
    """One line of the tree: what the model does, and what was inserted there."""

    left: str
    right: str = ""


def tree(view: View) -> str:
    """Returns the tree as text, as ``print(module)`` shows it.

    Example:
        >>> from torch_geometric.nn import SAGEConv
        >>> from dqconvert import prepare
        >>> from dqconvert.prepared.module import view_module
        >>> print(tree(view_module(prepare(SAGEConv(8, 4)).module)))
        SAGEConv: 8 quantizers (8-bit), protection 0 to 0.1
        ...
    """
    return "\n".join(f"{line.left:<{LEFT}}{line.right}".rstrip() for line in tree_lines(view))


def tree_lines(view: View) -> list[Line]:
    """Returns the lines of the tree."""
    lines = [Line(_title(view))]
    inputs = [node.target for node in view.nodes["train"] if node.kind == "input"]
    blocks = [LayerBlock("", groups=[Group("inputs", operations=inputs)]), *blocks_of(view)]
    items: list[tuple[str, list[Line]]] = []
    for block in blocks:
        if block.header:
            items.append((block.header, [line for group in block.groups for line in _group_lines(group, 5)]))
        else:
            items += [("", _group_lines(group, 3)) for group in block.groups]
    return lines + list(_drawn(items)) + _closing(view)


def _title(view: View) -> str:
    bits = ", ".join(f"{n} x {b}-bit" if b != "own" else f"{n} own" for b, n in view.report.totals["bits"].items())
    if len(view.report.totals["bits"]) == 1:
        bits = bits.split(" x ")[-1]
    drawn = "".join(f", protection {low:g} to {high:g}" for low, high in list(view.protections.values())[:1])
    return f"{view.report.model}: {count(len(view.report.entries), 'quantizer')} ({bits}){drawn}"


def _closing(view: View) -> list[Line]:
    lines = []
    if view.report.left_float:
        lines.append(Line(f"{count(len(view.report.left_float), 'value')} left in float: see the report"))
    if view.report.fusions:
        lines.append(Line(f"{count(len(view.report.fusions), 'group')} fused into one operator each: see the report"))
    others = list(dict.fromkeys(method.name for method in view.report.methods[1:]))
    if others:
        lines.append(Line(f"{len(others)} more methods are prepared: see the report"))
    if "eval" in view.graphs:
        lines.append(Line("evaluation has a graph of its own; this is the one of training"))
    return lines


# -- drawing -------------------------------------------------------------------------------------------------------


def _group_lines(group: Group, indent: int) -> list[Line]:
    """A group's operations, wrapped, with its quantizers beside them, one a line."""
    texts = _runs(group.operations)
    left = f"{group.where}  {', '.join(texts)}" if group.where else ", ".join(texts)
    rows = list(_wrapped(left, (LEFT if group.inserted else _WIDTH) - 1 - indent))
    return [Line(row, right) for row, right in zip_longest(rows, group.inserted, fillvalue="")]


def _runs(texts: list[str]) -> list[str]:
    """``add, add, add`` as ``add x3``."""
    runs: list[tuple[str, int]] = []
    for text in texts:
        if runs and runs[-1][0] == text:
            runs[-1] = text, runs[-1][1] + 1
        else:
            runs.append((text, 1))
    return [text if count == 1 else f"{text} x{count}" for text, count in runs]


def _wrapped(text: str, width: int) -> Iterator[str]:
    while len(text) > width:
        cut = text.rfind(", ", 0, width) + 1 or width
        yield text[:cut]
        text = "  " + text[cut:].strip()
    yield text


def _drawn(items: list[tuple[str, list[Line]]]) -> Iterator[Line]:
    """Draws the branches: an item is a header with lines below it, or the lines of one group."""
    for index, (header, lines) in enumerate(items):
        last = index == len(items) - 1
        branch, trunk = ("└─ ", "   ") if last else ("├─ ", "│  ")
        if header:
            yield Line(branch + header)
            for line in lines:
                yield Line(f"{trunk}  {line.left}", line.right)
        else:
            for number, line in enumerate(lines):
                yield Line((trunk if number else branch) + line.left, line.right)
