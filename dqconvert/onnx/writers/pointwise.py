"""Arithmetic, nonlinearities and casts that none of ONNX's operators computes by itself, or that take numbers."""

from __future__ import annotations

import math
from typing import Any

import torch

from dqconvert.onnx.values import TYPES, Wire
from dqconvert.onnx.writing import Writing, writes
from dqconvert.ops import OURS

# -- arithmetic ------------------------------------------------------------------------------------------------------


@writes("rsub")
def _rsub(w: Writing, x: Any, other: Any) -> Wire:
    return w.math("Sub", other, x)


@writes("floordiv", "floor_divide")
def _floor_divide(w: Writing, x: Any, other: Any) -> Wire:
    """Divides what the remainder leaves: 1 // 0.1 is 9, as 0.1 is a little more than a tenth."""
    whole = w.math("Div", w.math("Sub", x, _remainder(w, x, other)), other)
    return w.number_of(w.op("Round", whole), whole) if whole.dtype.is_floating_point else whole


@writes("mod", "remainder")
def _remainder(w: Writing, x: Any, other: Any) -> Wire:
    _, divisor = w.promoted(x, other)
    if not divisor.dtype.is_floating_point:
        return w.math("Mod", x, other)
    rest = w.math("Mod", x, other, fmod=1)  # of the sign of x; what is wanted has that of the other
    signs = (w.math("Less", one, 0, dtype=torch.bool) for one in (rest, other))
    turned = w.op("And", w.op("Xor", *signs, ndim=rest.ndim), _ne(w, rest, 0))
    more = w.op("Where", turned, divisor, w.file.constant(0, rest.dtype), dtype=rest.dtype, ndim=rest.ndim)
    return w.number_of(w.op("Add", rest, more), x, other)


@writes("square")
def _square(w: Writing, x: Any) -> Wire:
    return w.math("Mul", x, x)


@writes("rsqrt")
def _rsqrt(w: Writing, x: Any) -> Wire:
    return w.op("Reciprocal", w.op("Sqrt", w.reals(x)))


@writes("log1p")
def _log1p(w: Writing, x: Any) -> Wire:
    return w.number_of(w.op("Log", w.math("Add", w.reals(x), 1.0)), x)


@writes("log2")
def _log2(w: Writing, x: Any) -> Wire:
    """In double precision: of a power of two it is whole."""
    value = w.reals(x)
    wide = w.op("Div", w.op("Log", w.file.cast(value, w.real)), w.file.constant(math.log(2), w.real))
    return w.number_of(w.file.cast(wide, value.dtype), x)


@writes("clamp")
def _clamp(w: Writing, x: Any, min: Any = None, max: Any = None) -> Wire:
    value = w.wire(x)
    low, high = (None if end is None else w.file.cast(end, value.dtype) for end in (min, max))
    if any(end is not None and end.ndim for end in (low, high)):  # Clip takes numbers alone
        value = value if low is None else w.math("Max", value, low)
        return value if high is None else w.math("Min", value, high)
    return w.op("Clip", value, low, high)


@writes("clamp_min")
def _clamp_min(w: Writing, x: Any, min: Any) -> Wire:
    return _clamp(w, x, min)


@writes("clamp_max")
def _clamp_max(w: Writing, x: Any, max: Any) -> Wire:
    return _clamp(w, x, None, max)


@writes("ne")
def _ne(w: Writing, x: Any, other: Any) -> Wire:
    return w.op("Not", w.math("Equal", x, other, dtype=torch.bool))


@writes("isfinite")
def _isfinite(w: Writing, x: Any) -> Wire:
    value = w.reals(x)
    return w.op("Not", w.op("Or", w.op("IsNaN", value, dtype=torch.bool), w.op("IsInf", value, dtype=torch.bool)))


# -- nonlinearities --------------------------------------------------------------------------------------------------


@writes("leaky_relu")
def _leaky_relu(w: Writing, x: Any, negative_slope: float = 0.01, inplace: bool = False) -> Wire:
    return w.op("LeakyRelu", x, alpha=float(negative_slope))


@writes("prelu")
def _prelu(w: Writing, x: Any, weight: Any) -> Wire:
    value, slope = w.wire(x), w.wire(weight)
    if value.ndim > 2:
        slope = w.file.reshape(slope, [-1, *[1] * (value.ndim - 2)])
    return w.op("PRelu", value, slope)


@writes("elu")
@writes("elu", package=OURS)
def _elu(w: Writing, x: Any, alpha: float = 1.0, inplace: bool = False) -> Wire:
    return w.op("Elu", x, alpha=float(alpha))


@writes("celu")
@writes("celu", package=OURS)
def _celu(w: Writing, x: Any, alpha: float = 1.0, inplace: bool = False) -> Wire:
    return w.op("Celu", x, alpha=float(alpha))


@writes("selu")
@writes("selu", package=OURS)
def _selu(w: Writing, x: Any, inplace: bool = False) -> Wire:
    return w.op("Selu", x, alpha=1.6732632423543772, gamma=1.0507009873554805)


@writes("relu6")
def _relu6(w: Writing, x: Any, inplace: bool = False) -> Wire:
    return _clamp(w, x, 0.0, 6.0)


@writes("hardtanh")
def _hardtanh(w: Writing, x: Any, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Wire:
    return _clamp(w, x, float(min_val), float(max_val))


@writes("hardsigmoid")
def _hardsigmoid(w: Writing, x: Any, inplace: bool = False) -> Wire:
    return w.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)


@writes("gelu")
def _gelu(w: Writing, x: Any, approximate: str = "none") -> Wire:
    value = w.wire(x)
    if approximate == "none":
        inner = w.op("Erf", w.math("Mul", value, math.sqrt(0.5)))
    else:
        cube = w.math("Mul", w.math("Mul", value, value), value)
        inner = w.op("Tanh", w.math("Mul", w.math("Add", value, w.math("Mul", cube, 0.044715)), math.sqrt(2 / math.pi)))
    return w.math("Mul", w.math("Mul", value, 0.5), w.math("Add", inner, 1.0))


@writes("silu")
def _silu(w: Writing, x: Any, inplace: bool = False) -> Wire:
    return w.math("Mul", x, w.op("Sigmoid", x))


@writes("softplus")
def _softplus(w: Writing, x: Any, beta: float = 1.0, threshold: float = 20.0) -> Wire:
    value = w.wire(x)
    steep = w.math("Mul", value, float(beta))
    soft = w.math("Div", w.op("Softplus", steep), float(beta))
    straight = w.math("Greater", steep, float(threshold), dtype=torch.bool)
    return w.op("Where", straight, value, soft, dtype=value.dtype, ndim=value.ndim)


@writes("logsigmoid")
def _logsigmoid(w: Writing, x: Any) -> Wire:
    return w.op("Neg", w.op("Softplus", w.op("Neg", x)))


@writes("threshold")
def _threshold(w: Writing, x: Any, threshold: float, value: float, inplace: bool = False) -> Wire:
    kept = w.wire(x)
    above = w.math("Greater", kept, float(threshold), dtype=torch.bool)
    return w.op("Where", above, kept, float(value), dtype=kept.dtype, ndim=kept.ndim)


# -- casts -----------------------------------------------------------------------------------------------------------


@writes("to", "type")
def _to(
    w: Writing, x: Any, *how: Any, dtype: Any = None, device: Any = None, copy: bool = False, non_blocking: bool = False
) -> Wire:
    value = w.wire(x)
    wanted = next((one for one in (*how, dtype) if isinstance(one, torch.dtype)), None)
    other = next((one for one in how if isinstance(one, Wire)), None)
    return _as_type(w, value, wanted or (value.dtype if other is None else other.dtype))


def _as_type(w: Writing, x: Wire, dtype: torch.dtype) -> Wire:
    if dtype not in TYPES:
        raise w.refusal(f"it is cast to {dtype}")
    if not x.number:
        return w.file.cast(x, dtype)
    return w.number_of(w.file.cast(x, w.real), x) if dtype.is_floating_point else w.whole(x)  # int(…), float(…)


@writes("type_as")
def _type_as(w: Writing, x: Any, other: Any) -> Wire:
    return w.file.cast(w.wire(x), w.wire(other).dtype)


def _cast(name: str, dtype: torch.dtype) -> None:
    @writes(name)
    def write(w: Writing, x: Any) -> Wire:
        return _as_type(w, w.wire(x), dtype)


for _name in ("float", "long", "int", "bool", "double", "half", "bfloat16"):
    _cast(_name, getattr(torch, _name))
