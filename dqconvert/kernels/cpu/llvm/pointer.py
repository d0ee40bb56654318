"""Where an array's memory is: for loops that are called for every row.

An array that is passed on is counted, and that costs such a loop more than its row. A pointer is not counted: what it
points into has to be kept by whoever made it.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic
from numba.np import arrayobj


@intrinsic
def pointer(typing_context: Any, array: Any, at: Any) -> Any:
    """To element `at` of a contiguous array, counted through all its dimensions; others are an error of types."""
    if array.layout != "C":
        return None

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = arrayobj.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.gep(data, [args[1]])

    return types.CPointer(array.dtype)(array, types.intp), write
