"""What a page draws: nodes, what flows between them, and the layers that they stand in, as plain data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass(kw_only=True)
class Box:
    """One node of a picture.

    Attributes:
        id: Unique in the picture.
        label: What it is called.
        kind: input, output, op, module, quantizer, protection, or integer (an operation on codes).
        role: What gives it its color; empty: none.
        module: Path of the module that it belongs to.
        home: Path of the layer that it stands in; empty: in none.
        call: Which call of that layer; ``None``: any.
        inputs: The nodes whose values flow into it.
        refs: Those that say where values go (indices, which rows are protected): named beside it, not drawn as edges.
        below: A second line.
        code: The type of its codes.
        details: Terms and texts for the panel.
        protected: True if rows may pass in full precision.
        in_float: Why it computes in float, where most do not.
        sqnr: The signal-to-quantization-noise ratio in dB.
        range: The ends of its range.
        ends: Their codes.
    """

    id: str
    label: str
    kind: str
    role: str = ""
    module: str = ""
    home: str = ""
    call: int | None = None
    inputs: list[str] = field(default_factory=list)
    refs: list[str] = field(default_factory=list)
    below: str = ""
    code: str = ""
    details: list[tuple[str, str]] = field(default_factory=list)
    protected: bool = False
    in_float: str = ""
    sqnr: float | None = None
    range: tuple[float, float] | None = None
    ends: tuple[int, int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns what the page reads; what is empty, left out."""
        needed = ("id", "label", "kind", "role", "module", "inputs", "refs", "below", "code", "details")
        more = ("protected", "in_float", "sqnr", "range", "ends")
        found = {name: getattr(self, name) for name in needed}
        found |= {name: value for name in more if (value := getattr(self, name)) not in (None, False, "")}
        if self.sqnr is not None and math.isinf(self.sqnr):
            found["sqnr"] = "exact" if self.sqnr > 0 else "lost"  # JSON has no infinities
        return found


class Source(NamedTuple):
    """A node that another takes a value of: it, and the last one on the way, which hands it on."""

    name: str
    through: str


@dataclass(frozen=True)
class Layer:
    """Boxes that stand together: of one module, one call, such that what is drawn has no cycle."""

    id: str
    path: str
    members: tuple[str, ...]


def shown(nodes: Iterable[Any], keep: Callable[[Any], bool], ends: Callable[[Any], bool]) -> dict[str, list[Source]]:
    """Returns from which kept nodes each kept node takes its values, through those that are not kept.

    Args:
        nodes: With ``name`` and ``inputs``, in order.
        keep: True for those to draw.
        ends: True for those behind which no value flows on: what reads a size.
    """
    behind: dict[str, list[str]] = {}
    kept: dict[str, list[Source]] = {}
    for node in nodes:
        sources = [Source(name, at) for at in node.inputs for name in ([at] if at in kept else behind.get(at, ()))]
        if keep(node):
            kept[node.name] = list(dict.fromkeys(sources))
        elif not ends(node):
            behind[node.name] = [source.name for source in sources]
    return kept


def layers_of(boxes: list[Box]) -> list[Layer]:
    """Returns the layers of boxes that are in the order of execution; a box alone in its layer has none.

    Example:
        >>> boxes = [Box(id=i, label=i, kind="op", home=i[0], inputs=list(s)) for i, s in [("a1", []), ("a2", ["a1"])]]
        >>> layers_of(boxes)
        [Layer(id='layer-0', path='a', members=('a1', 'a2'))]
    """
    units = _Units()
    takers: dict[str, list[Box]] = {}
    for box in boxes:
        for source in box.inputs:
            takers.setdefault(source, []).append(box)
    _adopt(boxes, takers)
    for box in boxes:
        if box.inputs or not takers.get(box.id):
            units.add(box)
    for box in boxes:  # what takes nothing stands with what takes it
        if not box.inputs and box.kind != "input" and (taken := takers.get(box.id)):
            units.members[units.of[taken[0].id]].append(box.id)
    order = {box.id: place for place, box in enumerate(boxes)}
    found = [(path, sorted(units.members[unit], key=order.__getitem__)) for unit, path in units.paths.items() if path]
    many = [(path, members) for path, members in found if len(members) > 1]
    return [Layer(f"layer-{place}", path, tuple(members)) for place, (path, members) in enumerate(many)]


def _adopt(boxes: list[Box], takers: Mapping[str, list[Box]]) -> None:
    """Lets what a layer calls in its middle (an activation of the root, say) stand in it."""
    named = {box.id: box for box in boxes}
    tied = {box.home for box in boxes if box.call}
    for box in boxes:
        around = {named[name].home for name in box.inputs} | {taker.home for taker in takers.get(box.id, ())}
        if box.inputs and box.id in takers and len(around) == 1 and not around & tied:
            box.home, box.call = around.pop() or box.home, None


class _Units:
    """Layers under construction, and which of them feed which."""

    def __init__(self) -> None:
        self.of: dict[str, int] = {}
        self.paths: dict[int, str] = {}
        self.members: dict[int, list[str]] = {}
        self._next: dict[int, set[int]] = {}
        self._latest: dict[str, tuple[int, int | None]] = {}

    def add(self, box: Box) -> None:
        sources = {self.of[name] for name in box.inputs if name in self.of}
        unit, call = self._latest.get(box.home, (-1, None)) if box.home else (-1, None)
        again = call is not None and box.call is not None and call != box.call
        if unit < 0 or again or self._reaches(unit, sources - {unit}):
            unit = len(self.paths)
            self.paths[unit], self.members[unit], self._next[unit] = box.home, [], set()
            call = None
        if box.home:
            self._latest[box.home] = unit, box.call if call is None else call
        self.of[box.id] = unit
        self.members[unit].append(box.id)
        for source in sources - {unit}:
            self._next[source].add(unit)

    def _reaches(self, start: int, ends: set[int]) -> bool:
        """True if one of the ends lies behind: another edge from it would close a circle."""
        waiting, seen = [start], {start}
        while waiting and ends:
            for unit in self._next[waiting.pop()] - seen:
                if unit in ends:
                    return True
                seen.add(unit)
                waiting.append(unit)
        return False


def outermost(propagations: Mapping[int, str], path: str) -> str:
    """Returns the layer that a module belongs to: a message-passing layer, or a part of the model.

    Args:
        propagations: The paths of the modules that pass messages.

    Example:
        >>> [outermost({0: "convs.0"}, path) for path in ("convs.0.lin", "convs.0", "head.lins.1", "norms.0", "")]
        ['convs.0', 'convs.0', 'head', 'norms.0', '']
    """
    inside = [layer for layer in propagations.values() if layer and f"{path}.".startswith(f"{layer}.")]
    if inside:
        return max(inside, key=len)
    first, _, rest = path.partition(".")
    second = rest.partition(".")[0]
    return f"{first}.{second}" if second.isdigit() else first
