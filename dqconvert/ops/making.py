"""Operations that make tensors or read sizes, and those whose in-place variants draw or fill."""

from __future__ import annotations

from dqconvert.ops.record import InPlace, Op, Storage

SIZES = (
    Op("size", reads_size=True, reads_number=True, bookkeeping=True, scalar=True, remembered=True),
    Op("numel", reads_size=True, reads_number=True, bookkeeping=True, scalar=True),
    Op("item", reads_number=True, bookkeeping=True, scalar=True),
    Op("getattr", bookkeeping=True, scalar=True),
    Op("set_grad_enabled", bookkeeping=True),
)

MAKERS = (Op("full", remembered=True), Op("ones_like", remembered=True), Op("zeros_like", remembered=True))

FILLS = tuple(
    Op(name, in_place=InPlace.ON_COPY)
    for name in (
        *("zero", "fill", "copy", "fill_diagonal"),
        *("uniform", "normal", "bernoulli", "exponential", "random", "geometric", "cauchy", "log_normal"),
    )
)

SPARSE = (Op("values", storage=Storage.SHARED), Op("indices", storage=Storage.SHARED))

MAKING = SIZES + MAKERS + FILLS + SPARSE
