"""Operations on one entry at a time: arithmetic, nonlinearities, comparisons.

To support a new one, add its line here; nothing else needs to know.
"""

from __future__ import annotations

from typing import Any

from dqconvert.ops.record import InPlace, Op, Sign, Storage

_NONNEGATIVE, _KEEPS, _ARITHMETIC = Sign.NONNEGATIVE, Sign.KEEPS, Sign.ARITHMETIC
_CASTS, _ON_COPY, _FROM_RESULT = InPlace.CASTS, InPlace.ON_COPY, InPlace.FROM_RESULT


def _entry(name: str, *modules: str, **facts: Any) -> Op:
    """A function of one entry of each operand, which is a table on codes; `modules` are the layers of torch's."""
    layers = tuple(f"torch.nn.{module}" for module in modules)
    return Op(name, modules=layers, pointwise=True, **{"storage": Storage.OWN, **facts})


def _activation(name: str, *modules: str, **facts: Any) -> Op:
    return _entry(name, *modules, activation=True, **facts)


def _compares(name: str, *aliases: str, method: str, onnx: str = "") -> Op:
    return _entry(name, aliases=aliases, operator=name, methods=(method,), in_place=_ON_COPY, onnx=onnx)


def _special(name: str, *aliases: str, **facts: Any) -> Op:
    """A function that torch also has in `torch.special`."""
    return _entry(name, aliases=(f"special_{name}", *aliases), **facts)


ARITHMETIC = (
    _entry(
        "add",
        variants=("iadd",),
        operator="add",
        methods=("add",),
        sign=_ARITHMETIC,
        in_place=_CASTS,
        scalar=True,
        onnx="Add",
    ),
    _entry(
        "sub",
        aliases=("subtract",),
        variants=("isub",),
        operator="sub",
        methods=("sub",),
        swapped=("__rsub__",),
        in_place=_CASTS,
        scalar=True,
        onnx="Sub",
    ),
    _entry("rsub"),
    _entry(
        "mul",
        aliases=("multiply",),
        variants=("imul",),
        operator="mul",
        methods=("mul",),
        sign=_ARITHMETIC,
        in_place=_CASTS,
        scalar=True,
        onnx="Mul",
    ),
    _entry(
        "div",
        aliases=("divide", "true_divide"),
        variants=("truediv", "itruediv"),
        operator="truediv",
        methods=("div", "true_divide"),
        swapped=("__rtruediv__", "__rdiv__"),
        sign=_ARITHMETIC,
        in_place=_CASTS,
        onnx="Div",
    ),
    _entry("floordiv", operator="floordiv", methods=("__floordiv__",), swapped=("__rfloordiv__",), scalar=True),
    _entry("floor_divide", in_place=_CASTS),
    _entry("mod", operator="mod", methods=("__mod__", "remainder"), swapped=("__rmod__",)),
    _entry("remainder", in_place=_CASTS),
    _entry("fmod", in_place=_CASTS),
    _entry("pow", operator="pow", methods=("__pow__",), swapped=("__rpow__",), in_place=_CASTS, onnx="Pow"),
    _entry("neg", aliases=("negative",), operator="neg", methods=("neg",), onnx="Neg"),
    _entry("pos", variants=("positive",), operator="pos", storage=Storage.SHARED),
    _entry("abs", aliases=("absolute",), operator="abs", sign=_NONNEGATIVE, onnx="Abs"),
    _entry("square", sign=_NONNEGATIVE),
    _entry("sqrt", sign=_KEEPS, onnx="Sqrt"),
    _entry("rsqrt"),
    _entry("reciprocal", onnx="Reciprocal"),
    _entry("exp", sign=_NONNEGATIVE, onnx="Exp"),
    _entry("expm1", aliases=("special_expm1",), sign=_KEEPS),
    _entry("log", onnx="Log"),
    _entry("log2"),
    _entry("log10"),
    _entry("log1p", aliases=("special_log1p",), sign=_KEEPS),
    _entry("erf", aliases=("special_erf",), sign=_KEEPS, onnx="Erf"),
    _entry("sign", sign=_KEEPS, onnx="Sign"),
    _entry("sgn", sign=_KEEPS),
    _entry("nan_to_num", sign=_ARITHMETIC),
    _entry("maximum", sign=_KEEPS, onnx="Max"),
    _entry("minimum", sign=_KEEPS, onnx="Min"),
    _entry("fmax", sign=_KEEPS),
    _entry("fmin", sign=_KEEPS),
    _entry("hypot", sign=_NONNEGATIVE),
    _entry("copysign"),
    _entry("heaviside", sign=_KEEPS),
    _entry("logaddexp"),
    _entry("logaddexp2"),
    _entry("clamp", aliases=("clip",), activation=True, in_place=_CASTS),
    _entry("clamp_min", activation=True, in_place=_CASTS, sign=_KEEPS),
    _entry("clamp_max", activation=True, in_place=_CASTS, sign=_ARITHMETIC),
    _entry("float", casts=True, sign=_KEEPS, storage=Storage.SHARED),
    _entry("addcmul", in_place=_CASTS),
    _entry("addcdiv", in_place=_CASTS),
    _entry("lerp", in_place=_CASTS),
    _entry("where", sign=_ARITHMETIC),  # of three; the tracer records that of one as nonzero
    _entry("masked_fill", sign=_ARITHMETIC),
)

ACTIVATIONS = (
    _activation("relu", "ReLU", sign=_NONNEGATIVE, cuts=True, onnx="Relu"),
    _activation("relu6", "ReLU6", sign=_NONNEGATIVE, cuts=True),
    _activation("leaky_relu", "LeakyReLU", sign=_KEEPS),
    _activation("prelu", "PReLU"),
    _activation("elu", "ELU", in_place=_FROM_RESULT),
    _activation("celu", "CELU", in_place=_FROM_RESULT),
    _activation("selu", "SELU", in_place=_FROM_RESULT),
    _activation("gelu", "GELU", sign=_KEEPS),
    _activation("silu", "SiLU", sign=_KEEPS),
    _activation("mish", "Mish", sign=_KEEPS, onnx="Mish"),
    _activation("hardswish", "Hardswish", sign=_KEEPS, onnx="HardSwish"),
    _activation("hardshrink", "Hardshrink"),
    _activation("softshrink", "Softshrink"),
    _activation("tanhshrink", "Tanhshrink"),
    _activation("threshold", "Threshold"),
    _activation("softplus", "Softplus", sign=_NONNEGATIVE),
    _activation("logsigmoid", "LogSigmoid", variants=("log_sigmoid",)),
    _activation("sigmoid", "Sigmoid", aliases=("special_expit",), sign=_NONNEGATIVE, squashes=True, onnx="Sigmoid"),
    _activation("hardsigmoid", "Hardsigmoid", sign=_NONNEGATIVE, squashes=True),
    _activation("tanh", "Tanh", squashes=True, sign=_KEEPS, onnx="Tanh"),
    _activation("hardtanh", "Hardtanh", squashes=True),
    _activation("softsign", "Softsign", sign=_KEEPS, onnx="Softsign"),
)

COMPARISONS = (
    _entry("eq", operator="eq", methods=("__eq__",), in_place=_ON_COPY, onnx="Equal"),
    _compares("ne", "not_equal", method="ne"),
    _compares("lt", "less", method="lt", onnx="Less"),
    _compares("le", "less_equal", method="le", onnx="LessOrEqual"),
    _compares("gt", "greater", method="gt", onnx="Greater"),
    _compares("ge", "greater_equal", method="ge", onnx="GreaterOrEqual"),
    _entry("isnan", onnx="IsNaN"),
    _entry("isinf", onnx="IsInf"),
    _entry("isfinite"),
    _entry("logical_not", in_place=_ON_COPY, onnx="Not"),
    _entry("logical_and", in_place=_ON_COPY, onnx="And"),
    _entry("logical_or", in_place=_ON_COPY, onnx="Or"),
    _entry("logical_xor", in_place=_ON_COPY, onnx="Xor"),
    _entry("and", variants=("bitwise_and",), operator="and_", methods=("__and__",), onnx="And"),
    _entry("or", variants=("bitwise_or",), operator="or_", methods=("__or__",), onnx="Or"),
    _entry("xor", variants=("bitwise_xor",), operator="xor", methods=("__xor__",), onnx="Xor"),
    _entry("lshift", variants=("bitwise_left_shift",), operator="lshift"),
    _entry("rshift", variants=("bitwise_right_shift",), operator="rshift"),
    _entry("invert", variants=("bitwise_not",), operator="invert", methods=("__invert__",), onnx="Not"),
)

FUNCTIONS = (
    _entry("sin", onnx="Sin"),
    _entry("cos", onnx="Cos"),
    _entry("tan", onnx="Tan"),
    _entry("sinh", sign=_KEEPS, onnx="Sinh"),
    _entry("cosh", sign=_NONNEGATIVE, onnx="Cosh"),
    _entry("acos", aliases=("arccos",), onnx="Acos"),
    _entry("acosh", aliases=("arccosh",), onnx="Acosh"),
    _entry("asin", aliases=("arcsin",), onnx="Asin"),
    _entry("asinh", aliases=("arcsinh",), sign=_KEEPS, onnx="Asinh"),
    _entry("atan", aliases=("arctan",), sign=_KEEPS, onnx="Atan"),
    _entry("atanh", aliases=("arctanh",), onnx="Atanh"),
    _entry("atan2", aliases=("arctan2",)),
    _entry("deg2rad", sign=_KEEPS),
    _entry("rad2deg", sign=_KEEPS),
    _entry("floor", sign=_KEEPS, onnx="Floor"),
    _entry("ceil", sign=_KEEPS, onnx="Ceil"),
    _entry("trunc", aliases=("fix",), sign=_KEEPS),
    _entry("frac", sign=_KEEPS),
    _special("digamma", "special_psi"),
    _entry("lgamma", aliases=("special_gammaln",)),
    _special("erfc", sign=_NONNEGATIVE),
    _special("erfinv"),
    _special("exp2", sign=_NONNEGATIVE),
    _special("i0", sign=_NONNEGATIVE),
    _special("logit"),
    _special("round", sign=_KEEPS, onnx="Round"),
    _special("sinc"),
    _special("xlogy"),
)

# They return what they are given where it has the type.
CASTS = (
    Op("to", sign=_KEEPS, storage=Storage.SHARED),
    Op("long", casts=True, storage=Storage.SHARED, remembered=True),
    *(Op(name, casts=True, storage=Storage.SHARED) for name in ("int", "short", "bool", "half", "bfloat16", "double")),
    Op("type", storage=Storage.SHARED),
    Op("type_as", storage=Storage.SHARED),
    Op("cpu", storage=Storage.SHARED),
    Op("cuda", storage=Storage.SHARED),
)

POINTWISE = ARITHMETIC + ACTIVATIONS + COMPARISONS + FUNCTIONS + CASTS
