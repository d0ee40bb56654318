"""Products, reductions, scatters and softmaxes of torch, and tensors that are made."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dqconvert.onnx.segments import number_of_groups, reduce_rows
from dqconvert.onnx.stored import Stored
from dqconvert.onnx.values import Wire
from dqconvert.onnx.writing import Writing, is_number, writes

# -- products --------------------------------------------------------------------------------------------------------


@writes("linear")
def linear(w: Writing, input: Any, weight: Any, bias: Any = None) -> Wire:
    """Writes a linear layer."""
    x = w.wire(input)
    if isinstance(weight, Stored):
        columns = weight.wire(w.file, transposed=True, plain=x.rounded is None)
    else:
        columns = (
            w.wire(weight.t().contiguous()) if isinstance(weight, Tensor) else w.op("Transpose", weight, perm=[1, 0])
        )
    y = w.op("MatMul", x, columns)
    if bias is None:
        return y
    # Of the sum ONNX Runtime makes a QGemm, for which it rounds the bias.
    return w.math("Add", y, bias) if w.plain or not isinstance(bias, Tensor) else w.op("Sub", y, -bias)


def matmul(w: Writing, input: Any, other: Any) -> Wire:
    """Writes a product of dense matrices or vectors."""
    x, y = w.promoted(input, other)
    dims = (
        max(x.ndim, y.ndim)
        if min(x.ndim, y.ndim) > 1
        else x.ndim + y.ndim - 2
        if 1 in (x.ndim, y.ndim) and max(x.ndim, y.ndim) <= 2
        else max(x.ndim, y.ndim) - 1
    )
    return w.op("MatMul", x, y, ndim=dims)


@writes("addmm")
def _addmm(w: Writing, input: Any, mat1: Any, mat2: Any, *, beta: float = 1, alpha: float = 1) -> Wire:
    if (beta, alpha) != (1, 1):
        raise w.refusal("addmm with beta or alpha")
    return w.math("Add", input, matmul(w, mat1, mat2))


@writes("einsum")
def _einsum(w: Writing, equation: str, *operands: Any) -> Wire:
    wires = w.promoted(*(operands[0] if len(operands) == 1 and isinstance(operands[0], tuple | list) else operands))
    return w.op("Einsum", *wires, ndim=w.note.ndim, equation=equation)


@writes("embedding")
def _embedding(
    w: Writing, input: Any, weight: Any, padding_idx: Any = None, max_norm: Any = None, *_: Any, **__: Any
) -> Wire:
    if max_norm is not None:
        raise w.refusal("an embedding with max_norm")
    index = w.wire(input)
    w.require_places(index, "an embedding is asked for a negative entry")
    return w.file.gather(w.wire(weight), index)


# -- reductions ------------------------------------------------------------------------------------------------------


def reduced_over(w: Writing, kind: str, x: Any, dim: Any, keepdim: bool) -> Wire:
    """Writes a reduction of ONNX's; of nothing a mean is NaN, and the largest is none."""
    value = w.wire(x)
    every = range(value.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    dims = sorted({each % value.ndim for each in every})
    free = [size for each in dims if isinstance(size := w.file.size(value, each), Wire)]
    if free and kind in ("ReduceMax", "ReduceMin"):
        for size in free:
            w.file.require(w.math("Greater", size, 0, dtype=torch.bool), "the largest or smallest of nothing")
    mean = free and kind == "ReduceMean"
    ndim = value.ndim if keepdim else value.ndim - len(dims)
    along = [] if dim is None else [torch.tensor(dims)]
    result = w.op("ReduceSum" if mean else kind, value, *along, ndim=ndim, keepdims=int(keepdim))
    return w.math("Div", result, w.file.cast(_count(w, value, dims), value.dtype)) if mean else result


def _count(w: Writing, x: Wire, dims: Iterable[int]) -> Wire:
    """Returns how many entries there are along dimensions."""
    number = w.wire(1)
    for dim in dims:
        number = w.math("Mul", number, w.file.size(x, dim))
    return number


def _reduction(name: str, kind: str) -> None:
    @writes(name)
    def write(w: Writing, input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Wire:
        x = w.wire(input)
        whole = dtype or (torch.int64 if name == "sum" and not x.dtype.is_floating_point else x.dtype)
        return reduced_over(w, kind, w.file.cast(x, whole), dim, keepdim)


for _name, _kind in (
    ("sum", "ReduceSum"),
    ("mean", "ReduceMean"),
    ("amax", "ReduceMax"),
    ("amin", "ReduceMin"),
    ("prod", "ReduceProd"),
    ("logsumexp", "ReduceLogSumExp"),
):
    _reduction(_name, _kind)


@writes("any")
def _any(w: Writing, input: Any, dim: Any = None, keepdim: bool = False) -> Wire:
    counts = w.file.cast(w.file.cast(w.wire(input), torch.bool), torch.int64)
    return w.math("Greater", reduced_over(w, "ReduceSum", counts, dim, keepdim), 0, dtype=torch.bool)


@writes("all")
def _all(w: Writing, input: Any, dim: Any = None, keepdim: bool = False) -> Wire:
    return w.op("Not", _any(w, w.op("Not", w.file.cast(w.wire(input), torch.bool)), dim, keepdim))


def _extreme(name: str, kind: str, arg: str) -> None:
    @writes(name)
    def write(w: Writing, input: Any, dim: Any = None, keepdim: bool = False) -> Any:
        if is_number(input) or not isinstance(dim, int | None):
            return w.math(kind, input, dim)
        x = w.wire(input)
        reduced = reduced_over(w, f"Reduce{kind}", x, dim, keepdim)
        if dim is None:
            return reduced
        where = w.op(arg, x, dtype=torch.int64, ndim=reduced.ndim, axis=dim % x.ndim, keepdims=int(keepdim))
        return reduced, where


_extreme("max", "Max", "ArgMax")
_extreme("min", "Min", "ArgMin")


def _variance(w: Writing, x: Any, dim: Any, unbiased: bool, keepdim: bool) -> Wire:
    value = w.wire(x)
    dims = list(range(value.ndim)) if dim is None else [dim] if isinstance(dim, int) else list(dim)
    apart = w.math("Sub", value, reduced_over(w, "ReduceMean", value, dims, True))
    if not unbiased:
        return reduced_over(w, "ReduceMean", w.math("Mul", apart, apart), dims, keepdim)
    rest = w.file.cast(w.math("Max", w.math("Sub", _count(w, value, dims), 1), 0), value.dtype)
    return w.math("Div", reduced_over(w, "ReduceSum", w.math("Mul", apart, apart), dims, keepdim), rest)


@writes("var")
def _var(
    w: Writing, input: Any, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction: Any = None
) -> Wire:
    if isinstance(dim, bool):  # x.var(False)
        dim, unbiased = None, dim
    if correction not in (None, 0, 1):
        raise w.refusal(f"a variance with correction={correction}")
    return _variance(w, input, dim, unbiased if correction is None else bool(correction), keepdim)


@writes("std")
def _std(
    w: Writing, input: Any, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction: Any = None
) -> Wire:
    return w.op("Sqrt", _var(w, input, dim, unbiased, keepdim, correction=correction))


@writes("norm")
def _norm(
    w: Writing, input: Any, p: Any = 2, dim: Any = None, keepdim: bool = False, out: None = None, dtype: None = None
) -> Wire:
    kinds = {1: "ReduceL1", 2: "ReduceL2", "fro": "ReduceL2"}
    if p not in kinds:
        raise w.refusal(f"a norm of order {p}")
    return reduced_over(w, kinds[p], input, dim, keepdim)


@writes("normalize")
def _normalize(w: Writing, input: Any, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None) -> Wire:
    return w.math("Div", input, w.math("Max", _norm(w, input, p, dim, True), eps))


def _softmax(name: str, kind: str) -> None:
    @writes(name)
    def write(w: Writing, input: Any, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Wire:
        x = w.wire(input)
        if dim is None or dtype not in (None, x.dtype):
            raise w.refusal(f"{name} with dtype={dtype}, dim={dim}")
        return w.op(kind, x, axis=dim % x.ndim)


_softmax("softmax", "Softmax")
_softmax("log_softmax", "LogSoftmax")


@writes("cumsum")
def _cumsum(w: Writing, input: Any, dim: int, *, dtype: Any = None) -> Wire:
    x = w.wire(input)
    summed = w.file.cast(x, dtype or (x.dtype if x.dtype.is_floating_point else torch.int64))
    return w.op("CumSum", summed, dim % x.ndim)


def _place(name: str, kind: str) -> None:
    @writes(name)
    def write(w: Writing, input: Any, dim: Any = None, keepdim: bool = False) -> Wire:
        x = w.wire(input)
        if dim is None:
            if keepdim:
                raise w.refusal("it keeps all dimensions")
            x, dim = w.file.reshape(x, [-1]), 0
        if isinstance(size := w.file.size(x, dim), Wire):
            w.file.require(w.math("Greater", size, 0, dtype=torch.bool), "the largest or smallest of nothing")
        how = {"axis": dim % x.ndim, "keepdims": int(keepdim)}
        return w.op(kind, x, dtype=torch.int64, ndim=x.ndim - (not keepdim), **how)


_place("argmax", "ArgMax")
_place("argmin", "ArgMin")


@writes("topk")
def _topk(w: Writing, input: Any, k: Any, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Wire, ...]:
    x, number = w.wire(input), w.wire(k) if not isinstance(k, int) else k
    results = [(x.dtype, x.ndim), (torch.int64, x.ndim)]
    how = {"axis": dim % x.ndim, "largest": int(largest), "sorted": int(sorted)}
    return tuple(w.file.ops("TopK", [x, w.wire(w.file.vector([number]))], results, **how))


@writes("sort")
def _sort(w: Writing, input: Any, dim: int = -1, descending: bool = False, *, stable: bool = False) -> tuple[Wire, ...]:
    """TopK puts what is equal in the order of its places: stable."""
    return _topk(w, input, w.file.size(w.wire(input), dim), dim, descending)


@writes("argsort")
def _argsort(w: Writing, input: Any, dim: int = -1, descending: bool = False, *, stable: bool = False) -> Wire:
    return _sort(w, input, dim, descending)[1]


# -- scatters --------------------------------------------------------------------------------------------------------


@writes("index_add")
def _index_add(w: Writing, input: Any, dim: int, index: Any, source: Any) -> Wire:
    x = w.wire(input)
    if dim % x.ndim != 0:
        raise w.refusal("columns are added up")
    return w.math("Add", x, reduce_rows(w, w.wire(source), w.wire(index), w.file.size(x, 0), "sum"))


# -- made ------------------------------------------------------------------------------------------------------------


def _made(w: Writing, sizes: Any, value: Any, dtype: Any) -> Wire:
    wanted = w.numbers(sizes)
    if isinstance(value, Wire):
        kind = dtype or (value.dtype if value.dtype is not torch.float64 else torch.float32)
        result = w.op("Expand", w.file.cast(value, kind), w.file.vector(wanted), ndim=len(wanted))
        return replace(result, number=False)
    kind = dtype or (
        torch.bool if isinstance(value, bool) else torch.int64 if isinstance(value, int) else torch.float32
    )
    return w.file.full(wanted, value, kind)


def _maker(name: str, value: float) -> None:
    @writes(name)
    def make(
        w: Writing,
        *size: Any,
        dtype: Any = None,
        device: Any = None,
        layout: Any = None,
        requires_grad: bool = False,
        pin_memory: Any = None,
    ) -> Wire:
        return _made(w, size, value, dtype or torch.float32)

    @writes(f"new_{name}")
    def make_new(
        w: Writing, x: Any, *size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False
    ) -> Wire:
        return _made(w, size, value, dtype or w.wire(x).dtype)

    @writes(f"{name}_like")
    def make_like(
        w: Writing, input: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
    ) -> Wire:
        x = w.wire(input)
        return w.file.full(_size(w, x), value, dtype or x.dtype)


_maker("zeros", 0)
_maker("ones", 1)


@writes("full")
def _full(w: Writing, size: Any, fill_value: Any, *, dtype: Any = None, device: Any = None, layout: Any = None) -> Wire:
    return _made(w, (size,), fill_value, dtype)


@writes("new_full")
def _new_full(w: Writing, x: Any, size: Any, fill_value: Any, *, dtype: Any = None, device: Any = None) -> Wire:
    return _made(w, (size,), fill_value, dtype or w.wire(x).dtype)


@writes("full_like")
def _full_like(w: Writing, input: Any, fill_value: Any, *, dtype: Any = None, device: Any = None) -> Wire:
    x = w.wire(input)
    return _made(w, (_size(w, x),), fill_value, dtype or x.dtype)


@writes("arange")
def _arange(w: Writing, *ends: Any, dtype: Any = None, device: Any = None) -> Wire:
    start, end, step = w.promoted(*(ends if len(ends) == 3 else (*ends, 1) if len(ends) == 2 else (0, *ends, 1)))
    if start.dtype is not torch.int64:
        raise w.refusal("a range of numbers that are no integers")
    return w.file.cast(w.op("Range", start, end, step, dtype=torch.int64, ndim=1), dtype or torch.int64)


@writes("one_hot")
def _one_hot(w: Writing, input: Any, num_classes: Any = -1) -> Wire:
    x = w.wire(input)
    number: Any = num_classes if num_classes != -1 else number_of_groups(w, w.file.reshape(x, [-1]))
    w.require_places(x, "one_hot is asked for a negative class")
    beyond = _any(w, w.math("GreaterOrEqual", x, number, dtype=torch.bool))
    w.file.require(w.op("Not", beyond), "one_hot is asked for a class that there is not")
    result = w.op("OneHot", x, number, torch.tensor([0, 1]), dtype=torch.int64, ndim=x.ndim + 1)
    w.file.set_sizes(result, [*w.file.sizes(x), number if isinstance(number, int) else None])
    return result


@writes("size")
def _size(w: Writing, x: Any, dim: Any = None) -> Any:
    value = w.wire(x)
    return tuple(w.file.size(value, each) for each in range(value.ndim)) if dim is None else w.file.size(value, dim)


@writes("numel")
def _numel(w: Writing, x: Any) -> Wire:
    return w.whole(w.op("Size", x, dtype=torch.int64, ndim=0))


@writes("item")
def _item(w: Writing, x: Any) -> Wire:
    value = w.file.reshape(w.wire(x), [])
    return replace(w.file.cast(value, w.real), number=True) if value.dtype.is_floating_point else w.whole(value)


@writes("getattr")
def _getattr(w: Writing, x: Any, name: str) -> Any:
    value = w.wire(x)
    known: dict[str, Callable[[], Any]] = {
        "dtype": lambda: value.dtype,
        "device": lambda: torch.device("cpu"),
        "shape": lambda: _size(w, value),
        "ndim": lambda: value.ndim,
        "requires_grad": lambda: False,
        "is_cuda": lambda: False,
        "layout": lambda: torch.strided,
    }
    if name not in known:
        raise w.refusal(f"it reads {name!r} of a tensor")
    return known[name]()
