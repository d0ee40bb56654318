"""Operations that move entries and compute nothing: views, picks, repetitions, joins, copies, dropout."""

from __future__ import annotations

from typing import Any

from dqconvert.ops.record import InPlace, Moves, Op, Sign, Storage


def _moves(how: Moves, name: str, **facts: Any) -> Op:
    return Op(name, moves=how, **{"sign": Sign.KEEPS, **facts})


def _view(how: Moves, name: str, **facts: Any) -> Op:
    """Records an operation that moves entries by strides alone, where it can."""
    return _moves(how, name, storage=Storage.SHARED, **facts)


def _unseen(name: str) -> Op:
    """Records an operation that may return a view, and that no pass looks through."""
    return Op(name, storage=Storage.SHARED)


def _drops(name: str, module: str, sign: Sign = Sign.KEEPS) -> Op:
    return Op(
        name,
        modules=(f"torch.nn.{module}",),
        parameters=("input", "p", "training"),
        drops=True,
        keeps_columns=True,
        sign=sign,
        storage=Storage.SHARED,
    )


VIEWS = (
    _view(Moves.RESHAPE, "view", spreads=True),
    _view(Moves.RESHAPE, "reshape", as_method=True, spreads=True),
    _view(Moves.RESHAPE, "flatten", as_method=True, parameters=("input", "start_dim", "end_dim")),
    _view(Moves.RESHAPE, "unflatten", as_method=True),
    _view(Moves.RESHAPE, "squeeze", in_place=InPlace.VIEW, as_method=True, parameters=("input", "dim")),
    _view(Moves.RESHAPE, "unsqueeze", in_place=InPlace.VIEW, as_method=True, parameters=("input", "dim")),
    _view(Moves.RESHAPE, "contiguous", keeps_columns=True),
    _view(Moves.RESHAPE, "view_as"),
    _view(Moves.RESHAPE, "reshape_as"),
    _view(Moves.RESHAPE, "ravel"),
    _view(Moves.PERMUTE, "transpose", in_place=InPlace.VIEW, aliases=("swapaxes", "swapdims"), as_method=True),
    _view(Moves.PERMUTE, "permute", as_method=True, spreads=True),
    _view(Moves.PERMUTE, "movedim", aliases=("moveaxis",), as_method=True),
    _view(Moves.PERMUTE, "t", in_place=InPlace.VIEW, as_method=True),
    _view(Moves.EXPAND, "expand", spreads=True),
    _view(Moves.EXPAND, "expand_as"),
    _view(Moves.SPLIT, "chunk", as_method=True, parameters=("input", "split_size", "dim")),
    _view(Moves.SPLIT, "split", parameters=("input", "split_size", "dim")),
    _view(Moves.SPLIT, "unbind", as_method=True, parameters=("input", "dim")),
    _view(Moves.CUT, "narrow", as_method=True, parameters=("input", "dim", "start", "length")),
    _view(Moves.SELECT, "select", as_method=True, parameters=("input", "dim", "index")),
    _view(Moves.ITEM, "getitem", operator="getitem", methods=("__getitem__",), bookkeeping=True, scalar=True),
    *map(_unseen, ("tensor_split", "split_with_sizes", "hsplit", "vsplit", "dsplit", "diagonal", "unfold")),
    *map(_unseen, ("atleast_1d", "atleast_2d", "atleast_3d", "broadcast_to", "broadcast_tensors")),
    *map(_unseen, ("unsafe_chunk", "unsafe_split", "unsafe_split_with_sizes", "linalg_diagonal", "slice_inverse")),
    *map(_unseen, ("meshgrid", "cartesian_prod", "resize_as", "to_dense", "as_tensor", "conj_physical", "dequantize")),
    Op("as_strided", storage=Storage.SHARED, in_place=InPlace.VIEW),
    *map(_unseen, ("conj", "real", "imag", "adjoint", "resolve_conj", "resolve_neg")),
)

COPIES = (
    _moves(Moves.COPY, "clone", storage=Storage.OWN),
    _view(Moves.COPY, "detach", in_place=InPlace.VIEW),
    _view(Moves.COPY, "alias"),
)

PICKS = (
    _moves(Moves.PICK, "index_select", as_method=True, parameters=("input", "dim", "index"), storage=Storage.OWN),
    _moves(Moves.GATHER, "gather", as_method=True, parameters=("input", "dim", "index")),
    _moves(Moves.REPEAT, "repeat", spreads=True),
    _moves(Moves.REPEAT, "repeat_interleave"),
    _moves(Moves.REORDER, "flip", as_method=True, spreads=True),
    _moves(Moves.REORDER, "roll"),
    Op("tile", as_method=True, spreads=True),
)

JOINS = (
    _moves(Moves.JOIN, "cat", aliases=("concat", "concatenate"), parameters=("tensors", "dim")),
    _moves(Moves.STACK, "stack", parameters=("tensors", "dim")),
    Op("vstack", aliases=("row_stack",)),
)

DROPOUTS = (
    _drops("dropout", "Dropout"),
    _drops("dropout1d", "Dropout1d"),
    _drops("dropout2d", "Dropout2d"),
    _drops("dropout3d", "Dropout3d"),
    # These put a value below zero where others put zero.
    _drops("alpha_dropout", "AlphaDropout", sign=Sign.ANY),
    _drops("feature_alpha_dropout", "FeatureAlphaDropout", sign=Sign.ANY),
    Op("identity", modules=("torch.nn.Identity",), identity=True, sign=Sign.KEEPS, storage=Storage.SHARED),
)

MOVING = VIEWS + COPIES + PICKS + JOINS + DROPOUTS
