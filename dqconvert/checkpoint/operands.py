"""Signatures of the operations of integer graphs, which :mod:`.typed` holds a file against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dqconvert.checkpoint import constants
from dqconvert.kernels.integer.attention import attention_codes, softmax_codes
from dqconvert.kernels.integer.codes import check_numbers, quantize
from dqconvert.kernels.integer.edge_products import edge_products
from dqconvert.kernels.integer.folding.fold import DEEPEST, Level, fold_nodes, place_rows, take_rows
from dqconvert.kernels.integer.groups import look_up_groups, look_up_pairs_groups, quantize_groups
from dqconvert.kernels.integer.heads import add_heads
from dqconvert.kernels.integer.linear import integer_linear
from dqconvert.kernels.integer.propagate import REDUCTIONS, integer_propagate
from dqconvert.kernels.integer.receivers import gcn_codes, gcn_order, receiver_order
from dqconvert.kernels.integer.sums import quantize_sum
from dqconvert.kernels.integer.tables import look_up, look_up_pairs
from dqconvert.lower.runtime import check_edges, group_order, in_edge_order, look_up_last, reshaped_like


@dataclass(frozen=True)
class Value:
    """Any value that is not one of the kinds below: a tensor, a size, an argument of the forward."""


@dataclass(frozen=True)
class Literal:
    """An operand that is written into the graph, and is no node's value.

    Attributes:
        words: What it must be, for messages.
        holds: Whether it is.
    """

    words: str
    holds: Callable[[Any], bool] = field(compare=False)


@dataclass(frozen=True)
class Constant:
    """A tensor of the file.

    Attributes:
        words: What it must be, for messages.
        sound: Whether it is, given the other arguments of the call.
    """

    words: str
    sound: Callable[[dict[str, Any]], Callable[[Tensor], bool]] = field(compare=False)


@dataclass(frozen=True)
class Part:
    """A part of an order of edges: made by an operator that orders, and by nothing else.

    Attributes:
        names: Which part it may be.
    """

    names: tuple[str, ...]


@dataclass(frozen=True)
class Optional:
    """Something of a kind, or ``None``."""

    kind: Any


@dataclass(frozen=True)
class Several:
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
_COUNT = Literal("a number of columns", lambda value: _whole(value) and 0 <= value <= _MOST)
_WHOLE = Literal("a whole number", lambda value: _whole(value) and abs(value) <= _MOST)
_CODE = Literal("a code", lambda value: _whole(value) and -255 <= value <= 255)
_NUMBER = Literal("a finite number", lambda value: _whole(value) or (isinstance(value, float) and abs(value) < 1e300))
_FLAG = Literal("True or False", lambda value: isinstance(value, bool))
_NAME = Optional(Literal("a name", lambda value: isinstance(value, str)))
_REDUCE = Literal(f"one of {', '.join(REDUCTIONS)}", lambda value: isinstance(value, str) and value in REDUCTIONS)
_DEPTH = Literal("a number of layers", lambda value: _whole(value) and 0 <= value <= DEEPEST)


def _always(sound: Callable[[Tensor], bool]) -> Callable[[dict[str, Any]], Callable[[Tensor], bool]]:
    return lambda given: sound


_GRID = Constant("a grid", _always(constants.is_grid))
_LOGITS = Constant("a finite number for each code", _always(constants.by_code))
_TABLE = Constant("a table by code", _always(constants.is_table))
_PAIRS = Constant("a table by pairs of codes", _always(constants.is_table_of_pairs))
_GROUP_TABLE = Constant("a table by code for each group", _always(constants.is_group_table))
_GROUP_PAIRS = Constant("a table by pairs of codes for each group", _always(constants.is_group_table_of_pairs))
_GROUP_GRIDS = Constant("a grid for each group", _always(constants.of_groups(constants.is_grid)))
_CODES_OF_PAIRS = Constant("a table of codes by pairs of codes", _always(constants.is_code_of_pairs))
_TERM_WEIGHT = Constant("a table by code or a number", _always(constants.is_term_weight))
_PACKED_WEIGHT = Constant("a packed weight of as many columns", lambda given: constants.is_weight(given["columns"]))
_QUANTIZED = Constant("a grid", lambda given: constants.is_grid if given.get("dim") is None else constants.is_any_grid)

_GRIDS = Constant("a grid, or one for each group of rows", _always(constants.is_grids))


def _of_rows(sound: Callable[[dict[str, Any]], constants.Sound]) -> Callable[[dict[str, Any]], constants.Sound]:
    """Returns what is asked of a constant of a finish, of each group if rows differ by group."""
    return lambda given: sound(given) if given.get("groups") is None else constants.of_groups(sound(given))


FINISH: dict[str, Any] = {
    "packed": _FLAG,
    "factor": Constant(
        "a number, or one for each column", _of_rows(lambda given: constants.is_factor(given["columns"]))
    ),
    "grid": Constant("a grid", _of_rows(_always(constants.is_grid))),
    "bias": Optional(Constant("a number for each column", lambda given: constants.is_bias(given["columns"]))),
    "table": Optional(
        Constant(
            "a table that fits the sums",
            _of_rows(
                lambda given: constants.is_finishing(given["columns"], given["other"] is not None, given["packed"])
            ),
        )
    ),
    "other": Optional(Value()),
    "shares": Optional(Value()),
    "groups": Optional(Value()),
}
"""The members of a :class:`dqconvert.kernels.integer.finish.Finish`."""

MESSAGE_WEIGHT: dict[str, Any] = {"codes": Value(), "multipliers": _LOGITS, "grid": _GRID}
"""The members of a :class:`dqconvert.kernels.integer.propagate.MessageWeight`."""

_PTR, _SENDERS, _EDGES, _ROOTS = (Part((name,)) for name in ("ptr", "senders", "edges", "roots"))

SIGNATURES: dict[Callable[..., Any], dict[str, Any]] = {
    integer_linear: {
        "x": Value(),
        "columns": _COUNT,
        "x_grid": _GRIDS,
        "weight": _PACKED_WEIGHT,
        "finish": FINISH,
        "packed_input": _FLAG,
        "name": _NAME,
        "depth": Optional(_COUNT),
    },
    integer_propagate: {
        "x": Value(),
        "x_grid": _GRID,
        "ptr": _PTR,
        "senders": _SENDERS,
        "columns": _COUNT,
        "finish": FINISH,
        "weight": Optional(MESSAGE_WEIGHT),
        "reduce": _REDUCE,
        "packed_input": _FLAG,
    },
    add_heads: {"x": Value(), "x_grid": _GRID, "columns": _COUNT, "finish": FINISH},
    quantize: {"x": Value(), "dim": Optional(_WHOLE), "grid": _QUANTIZED, "packed": _FLAG, "name": _NAME},
    quantize_sum: {"terms": Several(Value()), "weights": Several(_TERM_WEIGHT), "grid": _GRID},
    check_numbers: {"x": Value(), "name": _NAME},
    look_up: {"codes": Value(), "table": _TABLE, "packed": _FLAG},
    look_up_last: {"codes": Value(), "table": _TABLE, "packed": _FLAG},
    look_up_groups: {"codes": Value(), "table": _GROUP_TABLE, "groups": Value()},
    look_up_pairs_groups: {"a": Value(), "b": Value(), "table": _GROUP_PAIRS, "groups": Value()},
    quantize_groups: {"x": Value(), "grids": _GROUP_GRIDS, "groups": Value(), "name": _NAME},
    look_up_pairs: {"a": Value(), "b": Value(), "table": _PAIRS},
    edge_products: {
        "a": Value(),
        "a_rows": Value(),
        "a_zero": _CODE,
        "b": Value(),
        "b_rows": Value(),
        "b_zero": _CODE,
        "heads": _COUNT,
        "factor": _NUMBER,
    },
    softmax_codes: {"codes": Value(), "logits": _LOGITS, "ptr": _PTR, "edges": _EDGES, "grid": _GRID},
    attention_codes: {
        "source": Value(),
        "target": Value(),
        "table": _CODES_OF_PAIRS,
        "logits": _LOGITS,
        "ptr": _PTR,
        "senders": _SENDERS,
        "grid": _GRID,
    },
    gcn_codes: {"ptr": _PTR, "senders": _SENDERS, "roots": _ROOTS, "grid": _GRID},
    gcn_order: {"edge_index": Value(), "num_nodes": Value(), "loops": _FLAG},
    receiver_order: {
        "sender": Value(),
        "receiver": Value(),
        "num_source": Value(),
        "num_target": Value(),
        "positions": _FLAG,
    },
    group_order: {"index": Value(), "num_rows": Value(), "size": Optional(Value())},
    check_edges: {"edge_index": Value(), "num_nodes": Value(), "ends": _FLAG},
    in_edge_order: {"codes": Value(), "edges": _EDGES},
    reshaped_like: {"rows": Value(), "x": Value(), "columns": _COUNT},
    fold_nodes: {"x": Value(), "ptr": _PTR, "senders": _SENDERS, "depth": _DEPTH, "by_degree": _FLAG},
    take_rows: {"values": Value(), "index": Optional(Part(("edges", "own", "place")))},
    place_rows: {"rows": _SENDERS, "place": Optional(Part(("place",)))},
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
