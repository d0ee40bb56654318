"""The graph as one HTML page that needs nothing else: boxes coloured by role, details on a click."""

from __future__ import annotations

import json
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

from dqconvert.show.view import NodeView, View
from dqconvert.words import count

_BOX, _GAP_X, _GAP_Y, _MARGIN = (190, 30), 24, 26, 20


def page_of(view: View) -> str:
    """The page's HTML.

    What a file says ends up in it as text only: no name in a file becomes markup or script.
    """
    template = files("dqconvert.show").joinpath("page.html").read_text(encoding="utf-8")
    title = f"{view.report.model}: {count(len(view.report.entries), 'quantizer')}"
    data = json.dumps(_picture(view)).replace("<", "\\u003c")
    return template.replace("@TITLE@", escape(title)).replace("@DATA@", data)


def _picture(view: View) -> dict[str, Any]:
    nodes = [node for node in view.nodes["train"] if node.kind not in ("check", "parameter")]
    edges = _edges(view, {node.name for node in nodes})
    used = {source for sources in edges.values() for source in sources}
    nodes = [node for node in nodes if node.kind != "input" or node.name in used]
    places = _layout([node.name for node in nodes], {node.name: edges[node.name] for node in nodes})
    boxes = [{**_box(view, node), "x": places[node.name].x, "y": places[node.name].y} for node in nodes]
    width = max(place.x for place in places.values()) + _BOX[0] + _MARGIN
    height = max(place.y for place in places.values()) + _BOX[1] + _MARGIN
    main = {node.name for node in nodes if node.kind not in ("input", "protection")}
    lines = [[source, target, source in main] for target, sources in edges.items() for source in sources]
    return {"nodes": boxes, "edges": lines, "width": width, "height": height, "box": list(_BOX)}


def _box(view: View, node: NodeView) -> dict[str, Any]:
    details = {"module": node.module, "kind": node.kind, "calls": node.target, "source": node.source}
    if node.stage != "none":
        details["stage"] = node.stage
    if node.shape:
        details["shape on the example"] = " x ".join(map(str, node.shape))
    role, label = node.kind, node.label
    if node.kind == "quantizer":
        quantizer = view.quantizers[node.target]
        entry = quantizer.entry
        role, label = entry.role, f"{entry.role} {quantizer.bits}"
        details |= {"role": entry.role, "level": entry.level, "scheme": entry.scheme, "operation": entry.op}
        details |= {"bits": quantizer.bits, "range": quantizer.range_text or "not observed"}
        details["protected rows pass"] = "yes" if entry.protected else "no"
    return {"id": node.name, "role": role, "label": label, "module": node.module, "details": details}


def _edges(view: View, shown: set[str]) -> dict[str, list[str]]:
    """From which shown nodes each shown node takes its values, through nodes that are not shown."""
    sources: dict[str, list[str]] = {}
    for node in view.nodes["train"]:
        found = [name for parent in node.inputs for name in ([parent] if parent in shown else sources.get(parent, []))]
        sources[node.name] = list(dict.fromkeys(found))
    return {name: found for name, found in sources.items() if name in shown}


@dataclass(frozen=True)
class _Corner:
    x: int
    y: int


def _layout(names: list[str], edges: dict[str, list[str]]) -> dict[str, _Corner]:
    """Rows by the longest way from an input; within a row, each node as near below its sources as there is room."""
    rows: dict[str, int] = {}
    for name in names:
        rows[name] = max((rows[source] + 1 for source in edges[name]), default=0)
    targets: dict[str, list[str]] = {name: [] for name in names}
    for name in names:
        for source in edges[name]:
            targets[source].append(name)
    for name in names:  # what has no source (a parameter's quantizer) moves down to where it is used
        if not edges[name] and targets[name]:
            rows[name] = max(0, min(rows[target] for target in targets[name]) - 1)
    columns: dict[str, int] = {}
    taken: dict[int, set[int]] = {}
    for name in sorted(
        names, key=lambda name: (rows[name], not edges[name])
    ):  # what has a place to keep to comes first
        known = [columns[source] for source in edges[name] if source in columns]
        wanted, used = min(known, default=0), taken.setdefault(rows[name], set())
        columns[name] = next(column for column in range(wanted, wanted + len(names) + 1) if column not in used)
        used.add(columns[name])
    step_x, step_y = _BOX[0] + _GAP_X, _BOX[1] + _GAP_Y
    return {name: _Corner(_MARGIN + columns[name] * step_x, _MARGIN + rows[name] * step_y) for name in names}
