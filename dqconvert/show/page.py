"""The graph as one HTML page that needs nothing else: a box per layer, what is in it, details on a click."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from importlib.resources import files
from typing import Any

from torch.fx import Graph

from dqconvert.report import ROLE_COLORS, Report
from dqconvert.show.picture import Box, layers_of, outermost, shown
from dqconvert.show.view import NodeView, View, node_view
from dqconvert.words import article, count

_NUMBERS = ("size", "getattr", "numel", "item", "guard", "given_probability")
"""What computes a number, or checks: no value flows on behind it."""

ONCE = ", computed once for each graph:"
"""What the title of a graph ends in that is a part of others."""

_ON_CODES = ("dqconvert.kernels.integer.", "dqconvert.lower.runtime.look_up")
_MOVES = "dqconvert.kernels.integer.folding."

_COLORS = {**ROLE_COLORS, "protection": "#d95fa5", "codes": "#3f8fd2"}
_LEGEND = {
    "weight": "a parameter that enters a weighted operation",
    "input": "a value that enters one",
    "feature": "what one returns",
    "edge_weight": "a factor of each message: a norm, an attention coefficient",
    "message": "what each edge carries",
    "aggregate": "sum, mean or maximum of the messages",
    "update": "what a message-passing layer returns",
    "protection": "draws the rows that pass in full precision in a training step",
    "codes": "an operation on integers",
    "float": "an operation that computes in float",
}
_SIGNS = {
    "s8": "codes of 8 bits, signed: -128 to 127 (int8)",
    "u4": "codes of 4 bits, unsigned: 0 to 15",
    "shield": "in training, rows of protected nodes pass in full precision",
    "grey pill": "says where values go (an index): click it to see its source",
    "edges": "of what is chosen: orange from its sources, green to its consumers",
}


def page_of(view: View, ratios: Mapping[str, float] | None = None) -> str:
    """Returns the page of a prepared module, as HTML.

    What a file says ends up in it as text only: no name in a file becomes markup or script.

    Args:
        view: What there is to see.
        ratios: Signal-to-quantization-noise ratios in dB by the path of a quantizer, to color layers by.
    """
    report = view.report
    boxes = {
        title: _boxes(nodes, lambda node: _inserted(view, node, ratios or {}), view.modules, _flows_by_type)
        for title, nodes in view.methods.items()
    }
    summary = [f"{count(len(report.entries), 'quantizer')}, {_bits(report)}."] if report.entries else []
    for low, high in list(view.protections.values())[:1]:
        summary.append(f"In training, rows of a node pass in full precision with a probability of {low:g} to {high:g}.")
    if report.agreement:
        summary.append(f"Agreement with float: {report.agreement}.")
    lists = {
        "Stays in float": [f"{left.what}: {left.reason} ({left.source})" for left in report.left_float],
        "Notes": list(report.remarks),
    }
    return _page(f"{report.model}: {count(len(report.entries), 'quantizer')}", summary, boxes, view.modules, lists)


def integer_page(
    model: str,
    graphs: Mapping[str, Graph],
    *,
    method: str = "forward",
    held: Mapping[str, Sequence[tuple[str, str]]],
    floats: Mapping[str, str],
    notes: Sequence[str] = (),
    ratios: Mapping[str, float] | None = None,
) -> str:
    """Returns the page of an integer module.

    Args:
        model: The float model's class.
        graphs: The graphs by title, from :func:`dqconvert.checkpoint.view.integer_graphs`.
        method: The method that the first is of, which has no title.
        held: By node of it, the quantizers whose codes it holds, each with its grid in words.
        floats: Why a node of it computes in float.
        notes: What there is to say of it.
        ratios: Signal-to-quantization-noise ratios in dB by the path of a quantizer, to color layers by.
    """
    drawn = {
        title.removeprefix("method ").removesuffix(":") or method: graph
        for title, graph in graphs.items()
        if not title.endswith(ONCE)
    }
    inside = {
        title.partition(",")[0]: ", ".join(one.label for node in graph.nodes if (one := node_view(node)).is_arithmetic)
        for title, graph in graphs.items()
    }

    def more(node: NodeView, first: bool) -> dict[str, Any]:
        holds = held.get(node.name, ()) if first else ()  # which is known of the first graph's nodes
        found = [ratio for path, _ in holds if (ratio := (ratios or {}).get(path)) is not None]
        facts: dict[str, Any] = {"sqnr": min(found)} if found else {}
        details = [("holds", f"{path}: {grid}") for path, grid in holds]
        if node.target.startswith(_ON_CODES) and not node.target.startswith(_MOVES):
            facts |= {"kind": "integer", "role": "codes"}
        elif first and node.name in floats:
            facts |= {"in_float": floats[node.name]}
        elif node.label in inside:
            facts |= {"label": "once per graph", "below": inside[node.label]}
        return {**facts, "details": details}

    first = next(iter(drawn))
    boxes = {
        title: _boxes(
            [node_view(node) for node in graph.nodes],
            partial(more, first=title == first),
            {},
            lambda parent, shown: shown and not parent.dtype.startswith("int"),
        )
        for title, graph in drawn.items()
    }
    known = sum(box.kind == "integer" for box in boxes[first])
    summary = [f"{count(known, 'operation')} on codes, {count(len(floats), 'operation')} in float, in {first}."]
    lists = {"Notes": list(notes)}
    return _page(f"{article(model)[:1].upper()}{article(model)[1:]} in integers", summary, boxes, {}, lists)


def _page(
    title: str,
    summary: list[str],
    graphs: Mapping[str, list[Box]],
    modules: Mapping[str, str],
    lists: Mapping[str, list[str]],
) -> str:
    used = {
        name for boxes in graphs.values() for box in boxes for name in (box.role, *(["float"] if box.in_float else []))
    }
    first, *others = graphs
    about = {first: [f"There are other graphs, above: {', '.join(others)}."] if others else []}
    picture = {
        "summary": summary,
        "colors": _COLORS,
        "graphs": [_drawn(name, about.get(name, []), boxes, modules) for name, boxes in graphs.items()],
        "legend": [[name, text] for name, text in _LEGEND.items() if name in used],
        "signs": list(_SIGNS.items())[0 if "protection" in used or ROLE_COLORS.keys() & used else 3 :],
        "lists": [[name, lines] for name, lines in lists.items() if lines],
    }
    room = files("dqconvert.show").joinpath("web")
    parts = {"TITLE": escape(title), "DATA": json.dumps(picture).replace("<", "\\u003c")}
    for mark, name in {"CSS": "page.css", "LAYOUT": "layout.js", "SCRIPT": "page.js"}.items():
        parts[mark] = room.joinpath(name).read_text(encoding="utf-8")
    page = room.joinpath("page.html").read_text(encoding="utf-8")
    return re.sub(r"@([A-Z]+)@", lambda found: parts[found[1]], page)


def _drawn(title: str, about: list[str], boxes: list[Box], modules: Mapping[str, str]) -> dict[str, Any]:
    """Returns a graph as the page draws it."""
    layers, named = layers_of(boxes), {box.id: box for box in boxes}
    homes = {name: layer.id for layer in layers for name in layer.members}
    return {
        "title": title,
        "about": about,
        "layers": [
            {
                "id": layer.id,
                "path": layer.path,
                "kind": modules.get(layer.path, ""),
                "facts": _facts([named[name] for name in layer.members]),
            }
            for layer in layers
        ],
        "nodes": [{**box.to_dict(), "layer": homes.get(box.id, "")} for box in boxes],
    }


def _boxes(
    nodes: Sequence[NodeView],
    more: Callable[[NodeView], dict[str, Any]],
    modules: Mapping[str, str],
    flows: Callable[[NodeView, bool], bool],
) -> list[Box]:
    """Returns a box for each node that is drawn.

    Args:
        nodes: In the order of execution.
        more: Gives fields that a node's box has beside, or instead of, those of all.
        modules: The class of every module, by path.
        flows: True if a value, which is drawn or not, flows where it goes; else it says where values go.
    """
    called = {node.name: node for node in nodes}
    hidden = ("check", "parameter")
    found = shown(nodes, lambda node: node.kind not in hidden, lambda node: node.label in _NUMBERS)
    layers: dict[int, str] = {}
    for node in nodes:
        if node.propagation >= 0 and node.kind != "quantizer":
            path = node.module.removesuffix(".aggr_module")  # which every layer has, and integers may have alone
            layers[node.propagation] = min(layers.get(node.propagation, path), path, key=len)
    taken = {source.name for sources in found.values() for source in sources}
    boxes = []
    for name, sources in found.items():
        node = called[name]
        if node.kind == "input" and name not in taken:
            continue
        home = outermost(layers, node.module)
        counts = node.kind != "quantizer" and node.module == home
        box = {"label": node.label, "kind": node.kind, "home": home, "call": node.call if counts else None}
        if node.kind == "module":
            box["label"] = modules.get(node.target, node.label)
        inner = (node.target if node.kind == "module" else node.module)[len(home) :].lstrip(".")
        size = " \u00d7 ".join(map(str, node.shape))
        box["below"] = "" if node.kind == "quantizer" else " \u00b7 ".join(filter(None, (inner, size)))
        added = more(node)
        calls = "" if node.kind in ("quantizer", "protection") else node.target
        details = {"name": name, "calls": calls, "module": node.module, "stage": node.stage.replace("none", "")}
        details |= {"example's shape": size, "type": node.dtype, "source": node.source}
        added["details"] = [*added.get("details", ()), *((term, text) for term, text in details.items() if text)]
        edges: tuple[list[str], list[str]] = [], []
        for source in sources:
            parent = called[source.through]
            edges[0 if flows(parent, source.through == source.name) else 1].append(source.name)
        inputs = list(dict.fromkeys(edges[0]))
        refs = [ref for ref in dict.fromkeys(edges[1]) if ref not in inputs]
        boxes.append(Box(id=name, module=node.module, inputs=inputs, refs=refs, **(box | added)))
    return boxes


def _flows_by_type(parent: NodeView, drawn: bool) -> bool:
    if parent.kind == "protection":
        return False
    return parent.dtype.startswith(("float", "bfloat", "complex")) or (drawn and not parent.dtype)


def _inserted(view: View, node: NodeView, ratios: Mapping[str, float]) -> dict[str, Any]:
    """Returns what the box of an inserted node has beside."""
    if node.kind == "protection":
        low, high = view.protections[node.target]
        return {"label": "protect", "role": "protection", "below": f"p {low:g} to {high:g}"}
    if node.kind != "quantizer":
        return {}
    quantizer = view.quantizers[node.target]
    entry = quantizer.entry
    facts: dict[str, Any] = {
        "label": entry.role,
        "role": entry.role,
        "code": quantizer.bits,
        "protected": entry.protected,
    }
    if node.target in ratios:
        facts["sqnr"] = ratios[node.target]
    if quantizer.range is not None:
        facts["range"] = quantizer.range
        if entry.scheme.startswith("affine") and entry.bits is not None:
            low = -(1 << entry.bits - 1) if entry.signed else 0
            facts["ends"] = (low, low + (1 << entry.bits) - 1)
    range_text = quantizer.range_text or "not observed"
    details = {"quantizer": entry.path, "codes": entry.codes, "range": range_text, "scheme": entry.scheme}
    details |= {"level": entry.level, "protected rows pass": "yes" if entry.protected else "no"}
    return {**facts, "details": list(details.items())}


def _facts(members: Sequence[Box]) -> str:
    """Returns what a layer holds, in words."""
    codes = sorted({box.code for box in members if box.kind == "quantizer"})
    quantizers = [box for box in members if box.kind == "quantizer"]
    parts = [f"{count(len(quantizers), 'quantizer')} ({', '.join(codes)})"] if quantizers else []
    integers = sum(box.kind == "integer" for box in members)
    parts += [count(integers, "operation") + " on codes"] if integers else []
    others = len(members) - len(quantizers) - integers
    return " \u00b7 ".join([*parts, *([count(others, "operation")] if others else [])])


def _bits(report: Report) -> str:
    """Returns how wide codes are, in words: ``of 8 bits``; ``12 of 4 bits, 2 of 8 bits``."""
    bits = report.totals["bits"]
    each = {f"of {bit} bits" if bit != "own" else "of your own": number for bit, number in bits.items()}
    return next(iter(each)) if len(each) == 1 else ", ".join(f"{number} {width}" for width, number in each.items())
