"""Signatures of the operations of integer graphs, which :mod:`.typed` holds a file against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dqconvert.checkpoint import constants
from dqconvert.kernels.integer.attention import attention_codes, attention_sums, softmax_codes
from dqconvert.kernels.integer.codes import check_numbers, quantize
from dqconvert.kernels.integer.edge_products import edge_products
from dqconvert.kernels.integer.folding.fold import DEEPEST, Level, fold_nodes, place_rows, take_rows
from dqconvert.kernels.integer.groups import look_up_groups, look_up_pairs_groups, quantize_groups
from dqconvert.kernels.integer.heads import add_heads
from dqconvert.kernels.integer.linear import integer_linear
from dqconvert.kernels.integer.message_weights import REDUCTIONS
from dqconvert.kernels.integer.propagate import integer_propagate
from dqconvert.kernels.integer.receivers import gcn_codes, gcn_order, receiver_order
from dqconvert.kernels.integer.sums import quantize_sum
from dqconvert.kernels.integer.tables import look_up, look_up_pairs
from dqconvert.lower.runtime import check_edges, group_order, in_edge_order, look_up_last, reshaped_like


@dataclass(frozen=True)
class AnyValue:
    """Any value that is not one of the kinds below: a tensor, a size, an argument of the forward."""


@dataclass(frozen=True)
class LiteralOf:
    """An operand that is written into the graph, and is no node's value.

    Attributes:
        words: What it must be, for messages.
        holds: Whether it is.
    """

    words: str
    holds: Callable[[Any], bool] = field(compare=False)


@dataclass(frozen=True)
class ConstantOf:
    """A tensor of the file.

    Attributes:
        words: What it must be, for messages.
        sound: Whether it is, given the other arguments of the call.
    """

    words: str
    sound: Callable[[dict[str, Any]], Callable[[Tensor], bool]] = field(compare=False)


@dataclass(frozen=True)
class OrderPart:
    """A part of an order of edges: made by an operator that orders, and by nothing else.

    Attributes:
        names: Which part it may be.
    """

    names: tuple[str, ...]


@dataclass(frozen=True)
class OrNone:
    """Something of a kind, or ``None``."""

    kind: Any


@dataclass(frozen=True)
class ListOf:
    """A list of values of a kind."""

    kind: Any


@dataclass(frozen=True)
class Makes:
    """The result of an operation, if that is no plain value.

    Attributes:
        parts: An order of edges, of which these are the parts.
        unless: A part that is empty where the flag of that name is off.
        levels: How many levels there are, each with these parts.
        renames: The operand whose order the result is a part of, under the name of that part.
    """

    parts: tuple[str, ...] = ()
    unless: tuple[str, str] = ("", "")
    levels: Callable[[dict[str, Any]], int] | None = None
    renames: str = ""


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_MOST = (1 << 31) - 1
_COUNT = LiteralOf("a number of columns", lambda value: _whole(value) and 0 <= value <= _MOST)
_WHOLE = LiteralOf("a whole number", lambda value: _whole(value) and abs(value) <= _MOST)
_CODE = LiteralOf("a code", lambda value: _whole(value) and -255 <= value <= 255)
_NUMBER = LiteralOf("a finite number", lambda value: _whole(value) or (isinstance(value, float) and abs(value) < 1e300))
_FLAG = LiteralOf("True or False", lambda value: isinstance(value, bool))
_NAME = OrNone(LiteralOf("a name", lambda value: isinstance(value, str)))
_REDUCE = LiteralOf(f"one of {', '.join(REDUCTIONS)}", lambda value: isinstance(value, str) and value in REDUCTIONS)
_DEPTH = LiteralOf("a number of layers", lambda value: _whole(value) and 0 <= value <= DEEPEST)


def _always(sound: Callable[[Tensor], bool]) -> Callable[[dict[str, Any]], Callable[[Tensor], bool]]:
    return lambda given: sound


_GRID = ConstantOf("a grid", _always(constants.is_grid))
_LOGITS = ConstantOf("a finite number for each code", _always(constants.by_code))
_TABLE = ConstantOf("a table by code", _always(constants.is_table))
_PAIRS = ConstantOf("a table by pairs of codes", _always(constants.is_table_of_pairs))
_GROUP_TABLE = ConstantOf("a table by code for each group", _always(constants.of_groups(constants.is_table)))
_GROUP_PAIRS = ConstantOf(
    "a table by pairs of codes for each group", _always(constants.of_groups(constants.is_table_of_pairs))
)
_GROUP_GRIDS = ConstantOf("a grid for each group", _always(constants.of_groups(constants.is_grid)))
_CODES_OF_PAIRS = ConstantOf("a table of codes by pairs of codes", _always(constants.is_code_of_pairs))
_TERM_WEIGHT = ConstantOf("a table by code or a number", _always(constants.is_term_weight))
_PACKED_WEIGHT = ConstantOf("a packed weight of as many columns", lambda given: constants.is_weight(given["columns"]))
_QUANTIZED = ConstantOf(
    "a grid", lambda given: constants.is_grid if given.get("dim") is None else constants.is_any_grid
)

_GRIDS = ConstantOf("a grid, or one for each group of rows", _always(constants.is_grids))


def _of_rows(sound: Callable[[dict[str, Any]], constants.Sound]) -> Callable[[dict[str, Any]], constants.Sound]:
    """Returns what is asked of a constant of a finish, of each group if rows differ by group."""
    return lambda given: sound(given) if given.get("groups") is None else constants.of_groups(sound(given))


def _finishing(given: dict[str, Any]) -> constants.Sound:
    if given["grid"] is None:
        return lambda constant: False
    return constants.is_finishing(given["columns"], given["other"] is not None, given["packed"])


FINISH: dict[str, Any] = {
    "packed": _FLAG,
    "factor": ConstantOf(
        "a number, or one for each column", _of_rows(lambda given: constants.is_factor(given["columns"]))
    ),
    "grid": OrNone(ConstantOf("a grid", _of_rows(_always(constants.is_grid)))),
    "bias": OrNone(ConstantOf("a number for each column", lambda given: constants.is_bias(given["columns"]))),
    "table": OrNone(ConstantOf("a table that fits the sums, of codes of a grid", _of_rows(_finishing))),
    "other": OrNone(AnyValue()),
    "shares": OrNone(AnyValue()),
    "groups": OrNone(AnyValue()),
}
"""The members of a :class:`dqconvert.kernels.integer.finish.Finish`."""

MESSAGE_WEIGHT: dict[str, Any] = {
    "codes": AnyValue(),
    "multipliers": ConstantOf("a finite number for each code", _always(constants.by_codes)),
    "grid": _GRIDS,
    "groups": OrNone(AnyValue()),
}
"""The members of a :class:`dqconvert.kernels.integer.propagate.MessageWeight`."""

_PTR, _SENDERS, _EDGES, _ROOTS = (OrderPart((name,)) for name in ("ptr", "senders", "edges", "roots"))

SIGNATURES: dict[Callable[..., Any], dict[str, Any]] = {
    integer_linear: {
        "x": AnyValue(),
        "columns": _COUNT,
        "x_grid": _GRIDS,
        "weight": _PACKED_WEIGHT,
        "finish": FINISH,
        "packed_input": _FLAG,
        "name": _NAME,
        "depth": OrNone(_COUNT),
    },
    integer_propagate: {
        "x": AnyValue(),
        "x_grid": _GRIDS,
        "ptr": _PTR,
        "senders": _SENDERS,
        "columns": _COUNT,
        "finish": FINISH,
        "weight": OrNone(MESSAGE_WEIGHT),
        "reduce": _REDUCE,
        "packed_input": _FLAG,
    },
    add_heads: {"x": AnyValue(), "x_grid": _GRIDS, "columns": _COUNT, "finish": FINISH},
    quantize: {"x": AnyValue(), "dim": OrNone(_WHOLE), "grid": _QUANTIZED, "packed": _FLAG, "name": _NAME},
    quantize_sum: {
        "terms": ListOf(AnyValue()),
        "weights": ListOf(_TERM_WEIGHT),
        "grid": ConstantOf("a grid", _of_rows(_always(constants.is_grid))),
        "groups": OrNone(AnyValue()),
    },
    check_numbers: {"x": AnyValue(), "name": _NAME},
    look_up: {"codes": AnyValue(), "table": _TABLE, "packed": _FLAG},
    look_up_last: {"codes": AnyValue(), "table": _TABLE, "packed": _FLAG},
    look_up_groups: {"codes": AnyValue(), "table": _GROUP_TABLE, "groups": AnyValue()},
    look_up_pairs_groups: {"a": AnyValue(), "b": AnyValue(), "table": _GROUP_PAIRS, "groups": AnyValue()},
    quantize_groups: {"x": AnyValue(), "grids": _GROUP_GRIDS, "groups": AnyValue(), "name": _NAME},
    look_up_pairs: {"a": AnyValue(), "b": AnyValue(), "table": _PAIRS},
    edge_products: {
        "a": AnyValue(),
        "a_rows": AnyValue(),
        "a_zero": _CODE,
        "b": AnyValue(),
        "b_rows": AnyValue(),
        "b_zero": _CODE,
        "heads": _COUNT,
        "factor": _NUMBER,
    },
    softmax_codes: {
        "codes": AnyValue(),
        "logits": ConstantOf(_LOGITS.words, _of_rows(_LOGITS.sound)),
        "ptr": _PTR,
        "edges": _EDGES,
        "grid": ConstantOf(_GRID.words, _of_rows(_GRID.sound)),
        "groups": OrNone(AnyValue()),
    },
    attention_codes: {
        "source": AnyValue(),
        "target": AnyValue(),
        "table": _CODES_OF_PAIRS,
        "logits": _LOGITS,
        "ptr": _PTR,
        "senders": _SENDERS,
        "grid": _GRID,
    },
    attention_sums: {
        "source": AnyValue(),
        "target": AnyValue(),
        "steps": _GROUP_GRIDS,
        "logits": ConstantOf("a finite number by group and code", _always(constants.of_groups(constants.by_code))),
        "ptr": _PTR,
        "senders": _SENDERS,
        "grid": _GROUP_GRIDS,
        "groups": AnyValue(),
    },
    gcn_codes: {"ptr": _PTR, "senders": _SENDERS, "roots": _ROOTS, "grid": _GRID},
    gcn_order: {"edge_index": AnyValue(), "num_nodes": AnyValue(), "loops": _FLAG},
    receiver_order: {
        "sender": AnyValue(),
        "receiver": AnyValue(),
        "num_source": AnyValue(),
        "num_target": AnyValue(),
        "positions": _FLAG,
    },
    group_order: {"index": AnyValue(), "num_rows": AnyValue(), "size": OrNone(AnyValue())},
    check_edges: {"edge_index": AnyValue(), "num_nodes": AnyValue(), "ends": _FLAG},
    in_edge_order: {"codes": AnyValue(), "edges": _EDGES},
    reshaped_like: {"rows": AnyValue(), "x": AnyValue(), "columns": _COUNT},
    fold_nodes: {"x": AnyValue(), "ptr": _PTR, "senders": _SENDERS, "depth": _DEPTH, "by_degree": _FLAG},
    take_rows: {"values": AnyValue(), "index": OrNone(OrderPart(("edges", "own", "place")))},
    place_rows: {"rows": _SENDERS, "place": OrNone(OrderPart(("place",)))},
}
"""The operands of every operation of integer graphs, by the names of its parameters, in the order of checking."""

RESULTS: dict[Callable[..., Any], Makes] = {
    receiver_order: Makes(("ptr", "senders", "edges"), unless=("edges", "positions")),
    gcn_order: Makes(("ptr", "senders", "roots")),
    group_order: Makes(("ptr", "senders")),
    fold_nodes: Makes(Level._fields, levels=lambda given: int(given["depth"]) + 1),
    place_rows: Makes(renames="rows"),
}
"""What is made by those that make no plain value."""
