"""Loops of :mod:`dqconvert.kernels.noise`."""

from __future__ import annotations

from dqconvert.kernels.cpu.compiled import loop


@loop
def choose(x, rounded, drawn, y, start, stop):  # type: ignore[no-untyped-def]
    for i in range(start, stop):
        y[i] = rounded[i] if drawn[i] > 0 else x[i]


@loop
def share_out(grad, drawn, to_x, to_rounded, start, stop):  # type: ignore[no-untyped-def]
    zero = grad.dtype.type(0)
    for i in range(start, stop):
        to_x[i] = zero if drawn[i] > 0 else grad[i]
        to_rounded[i] = grad[i] if drawn[i] > 0 else zero
