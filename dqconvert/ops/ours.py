"""What graphs call of this package: marks and checks of traced graphs, operators of training, of integer modules.

The functions are defined elsewhere; their modules are named here and imported by nobody but those who need them all.
A function that moves keeps its name in files: write the old one into its ``file``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dqconvert.ops.pointwise import ACTIVATIONS
from dqconvert.ops.record import OURS, InPlace, Op, Sign, Storage

_RUNTIME = "dqconvert.trace.runtime"
_GUARDS = (
    "guard",
    "pinned",
    "present",
    "same_items",
    "same_keys",
    "same_layout",
    "still_absent",
    "check_sorted",
    "only_in",
)
_INTEGER = "dqconvert.kernels.integer"


def _mark(name: str, **facts: Any) -> Op:
    return Op(name, OURS, where=_RUNTIME, **facts)


def _guard(name: str) -> Op:
    file = f"{_RUNTIME}.{name}"
    return Op(name, OURS, where="dqconvert.trace.guards", file=file, checks=True, bookkeeping=True)


def _ours(where: str, name: str, **facts: Any) -> Op:
    return Op(name, OURS, where=f"dqconvert.{where}", **facts)


def _integer(where: str, name: str, **facts: Any) -> Op:
    return Op(name, OURS, where=f"{_INTEGER}.{where}", integer=True, **facts)


def _of_integer_graphs(name: str, **facts: Any) -> Op:
    return Op(name, OURS, where="dqconvert.lower.runtime", integer=True, **facts)


_FROM_RESULT = tuple(
    replace(op, package=OURS, aliases=(), modules=(), in_place=InPlace.NAMESAKE, where=_RUNTIME)
    for op in ACTIVATIONS
    if op.in_place is InPlace.FROM_RESULT
)

TRACED = (
    *_FROM_RESULT,
    *map(_guard, _GUARDS),
    _mark("stage_output", bookkeeping=True, identity=True, sign=Sign.KEEPS, storage=Storage.SHARED),
    _mark("by_mode", bookkeeping=True, storage=Storage.SHARED),
    _mark("either", storage=Storage.SHARED),
    _mark("after", bookkeeping=True, storage=Storage.SHARED),
    _mark("left_in", storage=Storage.SHARED),
    _mark("setitem", storage=Storage.OWN),
    _mark("on_a_copy", storage=Storage.OWN),
    _mark("private", storage=Storage.OWN),
    _mark("keep_gradient", storage=Storage.OWN),
    _mark("store", writes=True),
    _mark("keep"),
    _mark("unchanged", bookkeeping=True),
    *(_ours("trace.adjacency", name) for name in ("plain_connectivity", "edge_product", "edge_sizes", "targets_of")),
    _ours("trace.weighing", "unweighted"),
    _ours("trace.globals", "read_global"),
)

PREPARED = (
    _ours("rewrite.open", "call_with_weights"),
    _ours("rewrite.norms", "node_norm", of_graph=True, remembered=True, sign=Sign.NONNEGATIVE, storage=Storage.OWN),
    _ours("rewrite.norms", "scale_rows", sign=Sign.KEEPS, lets_relu_pass=True, storage=Storage.OWN),
    _ours(
        "rewrite.dropouts",
        "drop_messages",
        drops=True,
        parameters=("input", "like", "p", "training"),
        sign=Sign.KEEPS,
        storage=Storage.SHARED,
    ),
    _ours("rewrite.protect", "given_probability", bookkeeping=True),
    *(_ours("rewrite.derive", f"{how}_protected") for how in ("cut", "join", "repeat")),
    _ours("quant.protection", "gather_protected", bookkeeping=True),
    *(
        _ours("quant.degrees", name, bookkeeping=True, remembered=True, of_graph=True, storage=Storage.OWN)
        for name in ("groups_of_nodes", "groups_of_edges")
    ),
    _ours("kernels.fake_quantize", "fake_quantize", storage=Storage.OWN),  # of integer graphs, where grids differ
    # Operators that training runs; no file names them.
    *(Op(name, OURS, storage=Storage.OWN) for name in ("linear", "message_passing", "propagate")),
)


def _of_linear(x: Any, x_grid: Any, weight: Any, columns: int, packed_input: bool, *_: Any) -> int:
    return int(x.size(0)) * int(x.size(1)) * (2 if packed_input else 1) * columns


def _of_messages(x: Any, x_grid: Any, ptr: Any, senders: Any, columns: int, *_: Any) -> int:
    return int(senders.numel()) * columns


INTEGER = (
    _integer(
        "linear",
        "integer_linear",
        row_by_row=1,
        finish=4,
        packs=True,
        refuses_nan=True,
        storage=Storage.OWN,
        multiply_adds=_of_linear,
    ),
    _integer("propagate", "integer_propagate", finish=5, packs=True, storage=Storage.OWN, multiply_adds=_of_messages),
    _integer("heads", "add_heads", row_by_row=1, finish=3, storage=Storage.OWN, multiply_adds=lambda x, *_: x.numel()),
    _integer("edge_products", "edge_products", multiply_adds=lambda a, edges, *_: int(edges.numel()) * int(a.size(1))),
    _integer(
        "sums",
        "quantize_sum",
        pointwise=True,
        row_by_row=1,
        multiply_adds=lambda terms, *_: sum(term.numel() for term in terms),
    ),
    _integer(
        "codes", "quantize", row_by_row=1, keeps_columns=True, refuses_nan=True, storage=Storage.OWN, remembered=True
    ),
    _integer("codes", "check_numbers", row_by_row=1, keeps_columns=True, storage=Storage.SHARED, remembered=True),
    _integer("tables", "look_up", row_by_row=1, storage=Storage.OWN, remembered=True),
    _integer("tables", "look_up_pairs", row_by_row=2),
    _integer("groups", "look_up_groups", row_by_row=1, storage=Storage.OWN, remembered=True),
    _integer("groups", "look_up_pairs_groups", row_by_row=2, storage=Storage.OWN),
    _integer(
        "groups",
        "quantize_groups",
        row_by_row=1,
        keeps_columns=True,
        refuses_nan=True,
        storage=Storage.OWN,
        remembered=True,
    ),
    _integer("attention", "attention_codes"),
    _integer("attention", "attention_sums"),
    _integer("attention", "softmax_codes"),
    _integer("receivers", "gcn_codes", remembered=True),
    _integer("receivers", "gcn_order", remembered=True),
    _integer("receivers", "receiver_order", remembered=True),
    _integer("folding.fold", "fold_nodes", file="dqconvert.kernels.integer.fold.fold_nodes"),
    _integer("folding.fold", "place_rows", file="dqconvert.kernels.integer.fold.place_rows"),
    _integer("folding.fold", "take_rows", keeps_columns=True, file="dqconvert.kernels.integer.fold.take_rows"),
    _of_integer_graphs("look_up_last", row_by_row=1, remembered=True),
    _of_integer_graphs("check_edges", remembered=True),
    _of_integer_graphs("group_order", remembered=True),
    _of_integer_graphs("in_edge_order", file="dqconvert.lower.attention.in_edge_order"),
    _of_integer_graphs("reshaped_like", file="dqconvert.lower.linear.reshaped_like"),
)

OWN = TRACED + PREPARED + INTEGER
