"""The rewritten graph as a tree: layers, their stages and operations, and beside each what was inserted.

GCN: 14 quantizers (8-bit), protection 0 to 0.1
├─ conv1 (GCNConv)
│  ├─ lin  linear                     + weight      param 8s [-0.41, 0.4]
│  │                                  + input       node  8s [0, 1]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import zip_longest

from dqconvert.rewrite import PreparedModule
from dqconvert.show.view import NodeView, QuantizerView, View, view_module

_WIDTH = 80
_LEFT = 37
"""Where the column of inserted nodes begins, such that they fit."""

_STAGE_OF_ROLE = {"message": "message", "aggregate": "aggregate", "edge_weight": "message"}
_LEVELS = {"parameter": "param"}


@dataclass(frozen=True)
class Line:
    """One line of the tree: what the model does, and what was inserted there."""

    left: str
    right: str = ""


def tree(module: PreparedModule) -> str:
    """The tree of a prepared module as text, as ``print(module)`` shows it.

    Example:
        >>> from torch_geometric.nn import SAGEConv
        >>> from dqconvert import prepare
        >>> print(tree(prepare(SAGEConv(8, 4)).module))
        SAGEConv: 9 quantizers (8-bit), protection 0 to 0.1
        ...
    """
    return "\n".join(f"{line.left:<{_LEFT}}{line.right}".rstrip() for line in tree_lines(view_module(module)))


def tree_lines(view: View) -> list[Line]:
    """The lines of the tree."""
    lines = [Line(_title(view))]
    inputs = [node.target for node in view.graphs["train"] if node.kind == "input"]
    blocks = [_Block("", groups=[_Group("inputs", texts=inputs)]), *_blocks(view)]
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
    protections = view.document["protections"]
    drawn = f", protection {protections[0]['p_min']:g} to {protections[0]['p_max']:g}" if protections else ""
    return f"{view.report.model}: {len(view.report.entries)} quantizers ({bits}){drawn}"


def _closing(view: View) -> list[Line]:
    lines = []
    if view.report.left_float:
        lines.append(Line(f"{len(view.report.left_float)} values stay in float: see the report"))
    if "eval" in view.graphs:
        lines.append(Line("evaluation has a graph of its own; this is the one of training"))
    return lines


# -- grouping: which nodes make one line ---------------------------------------------------------------------------


@dataclass
class _Group:
    """Operations that stand on one line, and the quantizers beside them."""

    where: str
    texts: list[str] = field(default_factory=list)
    inserted: list[str] = field(default_factory=list)


@dataclass
class _Block:
    """The lines under one header: a call of a message-passing layer; without a header, lines of the model itself."""

    header: str
    key: tuple[str, int] = ("", 0)
    groups: list[_Group] = field(default_factory=list)


def _blocks(view: View) -> list[_Block]:
    nodes = [node for node in view.graphs["train"] if node.is_arithmetic]
    layers = _layers(view.graphs["train"])
    nodes = _adopted(nodes, layers)
    blocks: list[_Block] = []
    waiting: list[tuple[NodeView, str]] = []
    for node in nodes:
        if node.kind == "quantizer" and view.quantizers[node.target].entry.role in ("weight", "input"):
            waiting.append((node, _words(node, view)))
            continue
        group = _group_for(node, view, layers, blocks)
        mine = [pair for pair in waiting if pair[0].module == node.module]
        group.inserted += [text for _, text in mine]
        waiting = [pair for pair in waiting if pair not in mine]
        if node.kind in ("quantizer", "protection"):
            group.inserted.append(_words(node, view))
        else:
            group.texts.append(_text(node, layers))
    for node, text in waiting:
        _group_for(node, view, layers, blocks).inserted.append(text)
    return blocks


def _layers(nodes: tuple[NodeView, ...]) -> dict[int, str]:
    """The path of the message-passing layer behind each propagation: the outermost module that ran in it."""
    found: dict[int, str] = {}
    for node in nodes:
        if node.propagation >= 0 and node.kind != "quantizer":
            known = found.get(node.propagation, node.module)
            found[node.propagation] = min(known, node.module, key=len)
    return found


def _layer_of(path: str, layers: dict[int, str]) -> str:
    """The message-passing layer that a module is, or is in; the root module's path if none."""
    inside = [layer for layer in layers.values() if layer and f"{path}.".startswith(f"{layer}.")]
    return max(inside, key=len, default="")


def _adopted(nodes: list[NodeView], layers: dict[int, str]) -> list[NodeView]:
    """A module of the root that is called in the middle of a layer (a shared activation) counts to that layer."""
    adopted, current, call = [], "", 0
    for index, node in enumerate(nodes):
        layer = _layer_of(node.module, layers)
        if node.kind == "module" and not layer and current:
            rest = (_layer_of(other.module, layers) for other in nodes[index + 1 :] if other.module != node.module)
            if next(rest, "") == current:
                node, layer = replace(node, module=current, call=call), current
        if layer and node.module == layer and node.kind != "quantizer":
            call = node.call
        current = layer
        adopted.append(node)
    return adopted


def _group_for(node: NodeView, view: View, layers: dict[int, str], blocks: list[_Block]) -> _Group:
    """The line that a node belongs to: the last one, or a new one behind it."""
    layer = _layer_of(node.module, layers)
    call = node.call if layer and node.module == layer and node.kind != "quantizer" else None
    last = blocks[-1] if blocks else None
    if last is None or last.key[0] != layer or (call is not None and last.key[1] != call):
        number = call or 0
        again = f", call {number + 1}" if number else ""
        header = f"{layer} ({view.modules.get(layer, 'module')}{again})" if layer else ""
        blocks.append(_Block(header, (layer, number)))
    block = blocks[-1]
    where = _where(node, view, layer)
    follows = node.kind == "quantizer" and view.quantizers[node.target].entry.role in ("feature", "update")
    if block.groups and (block.groups[-1].where == where or (follows and block.groups[-1].texts)):
        return block.groups[-1]
    plain = block.groups and not block.groups[-1].inserted and node.kind in ("op", "module")
    if plain and block.groups[-1].where == "" and where not in _STAGES and not _has_quantizers(node, view):
        return block.groups[-1]
    block.groups.append(_Group(where if where in _STAGES or _has_quantizers(node, view) else ""))
    return block.groups[-1]


_STAGES = ("message", "aggregate", "update", "edge_update", "protection")


def _where(node: NodeView, view: View, layer: str) -> str:
    """The name of a node's line: a stage, or the path of a module within its layer."""
    if node.kind == "protection":
        return "protection"
    stage = node.stage
    if node.kind == "quantizer":
        stage = _STAGE_OF_ROLE.get(view.quantizers[node.target].entry.role, "none")
    elif stage == "none" and node.propagation >= 0 and node.module == layer:
        stage = "message"  # what is gathered for it
    if stage in _STAGES and (node.module == layer or node.kind == "module" or stage != "message"):
        return stage
    return _within(node.module, layer)


def _within(path: str, layer: str) -> str:
    return path[len(layer) :].lstrip(".") if layer else path


def _has_quantizers(node: NodeView, view: View) -> bool:
    """Whether the module that a node belongs to has weights or inputs that are quantized."""
    return any(q.entry.module == node.module and q.entry.role in ("weight", "input") for q in view.quantizers.values())


def _text(node: NodeView, layers: dict[int, str]) -> str:
    if node.kind == "module":
        return _within(node.target, _layer_of(node.target, layers))  # a leaf: its own path says more than its class
    return node.label


def _words(node: NodeView, view: View) -> str:
    """An inserted node: role, level, bits and range."""
    if node.kind == "protection":
        data = next((data for data in view.document["protections"] if data["path"] == node.target), None)
        return f"+ {node.target}" + (f"  p {data['p_min']:g} to {data['p_max']:g}" if data else "")
    return quantizer_words(view.quantizers[node.target])


def quantizer_words(quantizer: QuantizerView) -> str:
    """``+ message       edge  8s [-2.3, 1.9]``."""
    entry = quantizer.entry
    name = entry.path.rpartition(".")[2]
    level = _LEVELS.get(entry.level, entry.level)
    return f"+ {name:<13} {level:<5} {quantizer.bits:<2} {quantizer.range_text}".rstrip()


# -- drawing -------------------------------------------------------------------------------------------------------


def _group_lines(group: _Group, indent: int) -> list[Line]:
    """A group's operations, wrapped, with its quantizers beside them, one a line."""
    texts = _runs(group.texts)
    left = f"{group.where}  {', '.join(texts)}" if group.where else ", ".join(texts)
    rows = list(_wrapped(left, (_LEFT if group.inserted else _WIDTH) - 1 - indent))
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
