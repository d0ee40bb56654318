"""The size of a file beside that of the float weights that it stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from dqconvert.prepared import PreparedModule
from dqconvert.quant import FakeQuantize
from dqconvert.words import count


def sizes_of(out: Path, module: PreparedModule) -> dict[str, int]:
    """Returns sizes in bytes, for JSON.

    Args:
        out: A file that :func:`dqconvert.save` wrote.
        module: The prepared module that it was made of.

    Returns:
        ``bytes`` of the file; ``description_bytes`` of it that describe the graph; ``float_bytes`` of the float model's
        parameters and buffers.
    """
    with out.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    own = {id(value) for child in module.modules() if isinstance(child, FakeQuantize) for value in child.buffers()}
    state = {id(value): value for value in module.state_dict(keep_vars=True).values() if isinstance(value, Tensor)}
    floats = sum(value.numel() * value.element_size() for key, value in state.items() if key not in own)
    return {"bytes": out.stat().st_size, "description_bytes": 8 + header, "float_bytes": floats}


def size_in_words(sizes: dict[str, Any]) -> str:
    """Returns the sizes as a line for people, with the reason where a file is larger than the weights."""
    size, floats, description = sizes["bytes"], sizes["float_bytes"], sizes["description_bytes"]
    text = f"{count(size, 'byte')} written, {size / max(floats, 1):.2f} times the float weights' {floats:,}"
    if size > floats:
        text += f": what describes the graph ({description:,}) and its ranges or tables is as long for wider layers"
    return text
