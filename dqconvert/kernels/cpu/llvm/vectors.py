"""What loops that are written in vectors have in common."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

_LANE = ir.IntType(32)


def everywhere(builder: Any, value: Any, lanes: int) -> Any:
    """A vector that holds a value in each of its lanes."""
    nothing = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    one = builder.insert_element(nothing, value, _LANE(0))
    return builder.shuffle_vector(one, nothing, ir.Constant(ir.VectorType(_LANE, lanes), [0] * lanes))


def load(builder: Any, place: Any, kind: Any, align: int) -> Any:
    """A vector, from a pointer to whatever its values are."""
    loaded = builder.load(builder.bitcast(place, kind.as_pointer()))
    loaded.align = align
    return loaded
