"""The line of a model's code that is running."""

from __future__ import annotations

import functools
import os
import re
import sys
from contextlib import contextmanager

import torch
from torch_geometric.nn.conv import MessagePassing

_INTERNAL = (
    torch.__path__[0] + os.sep,
    os.path.dirname(__file__) + os.sep,
    sys.modules[MessagePassing.__module__].__file__ or "",
    "<",
    contextmanager.__code__.co_filename,
    functools.__file__,
)
# PyG writes each layer's propagate to a temporary file; the line that calls it says more.
_GENERATED = re.compile(r"_(propagate|edge_updater)_\w+\.py$")


def source_line() -> str:
    """Returns file and line of the innermost code that is neither torch's nor ours."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_internal(frame.f_code.co_filename):
        frame = frame.f_back
    parts = frame.f_code.co_filename.replace("\\", "/").split("/site-packages/")[-1].split("/")
    return "/".join(parts if parts[0] == "torch_geometric" else parts[-2:]) + f":{frame.f_lineno}"


@functools.lru_cache(maxsize=8192)
def _is_internal(file: str) -> bool:
    return file.startswith(_INTERNAL) or _GENERATED.search(file) is not None
