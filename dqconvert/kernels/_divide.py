"""Quotients by one number, to the last bit, without dividing: a division takes as long as everything else of a grid.

With `inverse`, the rounded 1 / by, and `rest`, what rounding it left out, `x * inverse + x * rest` is the quotient or
one of its neighbours. What it leaves over is exact, and adding that times the inverse rounds as a division does:
Markstein, *Computation of elementary functions on the IBM RISC System/6000 processor*, 1990, theorem 8.5; the rest is
Brisebarre's, Muller's and Raina's, *Accelerating correctly rounded floating-point division when the divisor is known in
advance*, 2004, algorithm 2. Where a value is infinite, NaN, or so large that its quotient is, it stands for its
quotient: on a grid it means the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import binding
from numba import types
from numba.extending import intrinsic

from dqconvert.kernels._threads import loop

FUSED = binding.get_host_cpu_features().get("fma", False)
"""Whether the processor multiplies and adds in one rounding; it divides where not."""


@intrinsic
def _fma(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """`a * b + c`, rounded once; of one floating type."""
    if not (a == b == c and isinstance(a, types.Float)):
        return None

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fma(*args)

    return a(a, a, a), write


@loop
def reciprocal(by):  # type: ignore[no-untyped-def]
    """`inverse` and `rest`, of a positive number that is not subnormal."""
    one = by / by
    inverse = one / by
    return inverse, _fma(-by, inverse, one) * inverse if FUSED else by - by


@loop
def quotient(x, by, inverse, rest):  # type: ignore[no-untyped-def]
    """`x / by`, given what :func:`reciprocal` says of `by`; where that is infinite, NaN or `x`, which is as large."""
    if FUSED:
        near = _fma(x, inverse, x * rest)
        left = _fma(-by, near, x)
        exact = _fma(left, inverse, near)
        return exact if exact == exact else x
    return x / by


def write_quotient(builder: Any, fma: Callable[..., Any], x: Any, by: Any, inverse: Any, rest: Any) -> Any:
    """The same of vectors; `fma` writes `a * b + c`."""
    if not FUSED:
        return builder.fdiv(x, by)
    near = fma(x, inverse, builder.fmul(x, rest))
    left = fma(builder.fneg(by), near, x)
    exact = fma(left, inverse, near)
    return builder.select(builder.fcmp_ordered("ord", exact, exact), exact, x)


def write_reciprocal(builder: Any, fma: Callable[..., Any], one: Any, by: Any) -> tuple[Any, Any]:
    """:func:`reciprocal` of vectors; `one` is a vector of ones."""
    inverse = builder.fdiv(one, by)
    rest = builder.fmul(fma(builder.fneg(by), inverse, one), inverse) if FUSED else by
    return inverse, rest
