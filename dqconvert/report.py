"""What ``prepare`` did: which quantizers it inserted where, and what stayed in float and why."""

from __future__ import annotations

import re
import weakref
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from dqconvert import notebook
from dqconvert.advice import Advice, advice_on
from dqconvert.errors import ConfigError
from dqconvert.words import article, count


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One inserted quantizer.

    Attributes:
        path: Its name in the module's state: ``"convs.0.quant.message"``.
        module: Path of the module whose value it quantizes.
        role: The value's role: weight, input, feature, edge_weight, message, aggregate or update.
        kind: What the config calls it: weight, activation, message or aggregate.
        level: What one row of the value belongs to: node, edge, graph or parameter.
        rule_level: What a rule's ``level`` is compared with: of a weight, the level of what is made with it.
        op: The operation that gives the value its role.
        source: File and line of that operation.
        bits: Bit width; ``None`` for a user's own quantizer.
        signed: Whether codes are signed; ``None`` for a user's own quantizer.
        scheme: The rest of the scheme in words, or the name of the user's quantizer.
        protected: Whether protected rows pass in full precision here.
    """

    path: str
    module: str
    role: str
    kind: str
    level: str
    rule_level: str
    op: str
    source: str
    bits: int | None
    signed: bool | None
    scheme: str
    protected: bool

    @property
    def codes(self) -> str:
        """The integers that the quantizer rounds to: ``"int8"``, ``"uint4"``; ``"own"`` for a user's own quantizer."""
        return "own" if self.bits is None else f"{'' if self.signed else 'u'}int{self.bits}"


@dataclass(frozen=True, kw_only=True)
class LeftFloat:
    """A value or module that stays in float.

    Attributes:
        what: Its module path and role, or the module as a whole.
        reason: Why.
        source: File and line.
    """

    what: str
    reason: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Fusion:
    """A group of nodes that runs as one operator.

    Attributes:
        op: What it does, in order: ``"quantizer, linear, chain"``, say; a chain is quantizers with sums and ReLUs
            between them.
        quantizers: Paths of the quantizers in it.
        nodes: Names of the nodes of the prepared graph, in order.
    """

    op: str
    quantizers: tuple[str, ...]
    nodes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PreparedMethod:
    """A method of a prepared module, or of a part of it, and how what it computes is prepared.

    Attributes:
        name: ``"forward"``, ``"encode"``; of a part, its path before it: ``"encoder.forward"``.
        arguments: Those that its graph is for; absent tensors and flags with the value that they have.
        how: ``"named"`` (in ``prepare``), ``"first call"``; or why it has no graph and runs the model's own code, in
            which every layer is prepared for itself.
    """

    name: str
    arguments: str
    how: str


@dataclass(frozen=True, kw_only=True, repr=False)
class Report:
    """What was inserted, what stayed float and why, what could not be checked.

    ``print(report)`` shows tables; :meth:`to_dict` is JSON-ready.

    Example:
        >>> from torch_geometric.nn import GCNConv
        >>> from dqconvert import prepare
        >>> report = prepare(GCNConv(8, 4), "int8-dq").report
        >>> report.totals["role"]
        {'weight': 1, 'input': 1, 'feature': 1, 'edge_weight': 1, 'message': 1, 'aggregate': 1, 'update': 1}
    """

    model: str
    entries: tuple[Entry, ...]
    left_float: tuple[LeftFloat, ...] = ()
    remarks: tuple[str, ...] = ()
    of_config: tuple[str, ...] = ()
    """The remarks that are due to this config: preparing again with another one drops them."""
    protection: tuple[str, ...] = field(default=())
    """Paths of the modules that draw the protected nodes."""
    fusions: tuple[Fusion, ...] = ()
    """What runs as one operator."""
    methods: tuple[PreparedMethod, ...] = ()
    """What computes with quantizers: the methods named, and those that were called since."""
    agreement: str = ""
    """How near the module was to the model without rounding when that was last looked at; empty: it never was."""
    average_bits: str = ""
    """How wide codes were on average when that was last counted, see :func:`dqconvert.average_bits`; likewise."""

    @property
    def totals(self) -> dict[str, dict[str, int]]:
        """Number of quantizers per role, per kind and per bit width."""
        return {
            "role": _count((entry.role for entry in self.entries), _ROLE_ORDER),
            "kind": _count((entry.kind for entry in self.entries), _KIND_ORDER),
            "bits": _count(str(entry.bits or "own") for entry in self.entries),
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data for JSON, with stable keys."""
        return {**asdict(self), "totals": self.totals}

    def of(self, module: Any) -> Report:
        """Returns this report, which knows the module that it is of: its ranges are what there is advice on."""
        object.__setattr__(self, "_module", weakref.ref(module))
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_module"}

    def advice(self) -> Advice:
        """Returns what costs accuracy in the module as it is now, with the rule that mends each: ranges that are empty,
        clip more than 1 % of the values, or are set by a few of them; roundings that lose far more than others do; bags
        of words in 4 bits.

        After :func:`dqconvert.calibrate`, :func:`dqconvert.finetune` and :func:`dqconvert.evaluate` it is based on a
        part of the values that they saw; else on the ranges alone, and says so.

        Raises:
            ConfigError: If the module is gone.

        Example:
            >>> import torch, dqconvert
            >>> from torch_geometric.nn import SAGEConv
            >>> words, edge_index = torch.zeros(200, 50), torch.randint(200, (2, 600))
            >>> words[::5, 7] = 0.1
            >>> module, report = dqconvert.prepare(SAGEConv(50, 4), "int4-dq")
            >>> dqconvert.calibrate(module, (words, edge_index))
            >>> "bag of words" in {one.kind for one in report.advice()}
            True
            >>> print(report.advice()[0].option)
            --rule lin_r@input=bits=8,range=minmax
        """
        module = self.__dict__.get("_module", lambda: None)()
        if module is None:
            raise ConfigError(
                "report.advice() looks at the module's ranges, and the module is gone: ask module.report."
            )
        return advice_on(module)

    def __repr__(self) -> str:
        parts = [count(len(self.entries), "quantizer")]
        parts += [f"{len(self.left_float)} left in float"] if self.left_float else []
        parts += [count(len(self.remarks), "remark")] if self.remarks else []
        return f"<Report of {article(self.model)}: {', '.join(parts)}; print it>"

    def _repr_html_(self) -> str:
        rows = [(e.path, e.level, e.codes, "yes" if e.protected else "", e.scheme) for e in self.entries]
        parts = [notebook.table("", ["quantizer", "level", "codes", "protected", "scheme"], rows)]
        if self.left_float:
            floats = [(left.what, left.reason, left.source) for left in self.left_float]
            parts.append(notebook.table("stays in float", ["what", "why", "where"], floats))
        title = f"{self.model}: {count(len(self.entries), 'quantizer')}"
        return notebook.folded(title, "".join(parts)) + notebook.lines(self._lines())

    def _lines(self) -> list[str]:
        agreement = [f"agreement with float: {self.agreement}"] if self.agreement else []
        bits = [f"average bits: {self.average_bits}"] if self.average_bits else []
        return [*(f"note: {remark}" for remark in self.remarks), *bits, *agreement]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._inserted()
        if self.left_float:
            yield self._floats()
        if self.fusions:
            yield self._fused()
        if len(self.methods) > 1 or any(method.name != "forward" for method in self.methods):
            yield self._methods()
        yield from self._lines()

    def _inserted(self) -> Table:
        """One row per quantizer; the scheme has a column only where quantizers differ in it."""
        schemes = list(dict.fromkeys(entry.scheme for entry in self.entries))
        same = f" ({schemes[0]})" if len(schemes) == 1 else ""
        columns = ("quantizer", "level", "codes", "protected", *(["scheme"] if not same else []))
        table = _table(f"{self.model}: {count(len(self.entries), 'quantizer')}{same}", *columns)
        for entry in self.entries:
            row = [entry.path, entry.level, entry.codes, "yes" if entry.protected else ""]
            table.add_row(*row, *([entry.scheme] if not same else []))
        table.caption = ", ".join(f"{number} {role}" for role, number in self.totals["role"].items())
        return table

    def _floats(self) -> Table:
        table = _table("stays in float", "what", "why", "where")
        for left in self.left_float:
            table.add_row(left.what, left.reason, left.source)
        return table

    def _fused(self) -> Table:
        table = _table("runs as one operator each", "operator", "quantizers in it")
        for op, quantizers in dict.fromkeys((fusion.op, fusion.quantizers) for fusion in self.fusions):
            table.add_row(op, ", ".join(quantizers))
        return table

    def _methods(self) -> Table:
        table = _table("methods that are prepared", "method", "arguments", "how")
        for method in self.methods:
            table.add_row(method.name, method.arguments, method.how)
        return table

    def __str__(self) -> str:
        console = Console(width=100, no_color=True, highlight=False)
        with console.capture() as capture:
            console.print(self)
        return capture.get().rstrip()


ROLE_COLORS = {
    "weight": "#e58e26",
    "input": "#3f8fd2",
    "feature": "#1fa39a",
    "edge_weight": "#9b6fd0",
    "message": "#dc5a5a",
    "aggregate": "#6aa121",
    "update": "#c9a70c",
}
"""The colors of roles on pages and in charts."""


def role_of(path: str) -> str:
    """Returns the role that the path of a quantizer names; empty if it is none.

    Example:
        >>> [role_of(path) for path in ("convs.0.quant.edge_weight", "conv.quant.message_1", "output")]
        ['edge_weight', 'message', '']
    """
    name = path.rpartition(".quant.")[2] if ".quant." in f".{path}" else ""
    return next((role for role in ROLE_COLORS if re.fullmatch(rf"{role}(_\d+)?", name.removeprefix("quant."))), "")


_ROLE_ORDER = tuple(ROLE_COLORS)
_KIND_ORDER = ("weight", "activation", "message", "aggregate")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _count(values: Iterable[str], order: tuple[str, ...] = ()) -> dict[str, int]:
    counted = Counter(values)
    return {key: counted[key] for key in [*order, *sorted(set(counted) - set(order))] if counted[key]}
