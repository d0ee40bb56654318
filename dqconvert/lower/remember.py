"""The module of an integer graph that remembers what depends on the graph alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dqconvert.quant.memo import Memo


class Remember(Memo):
    """Computes something of the graph, and returns it again while it is given the same graph, value by value.

    Args:
        inner: Computes it; returns a tuple.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *given: Any) -> Any:
        """Returns what ``inner`` returns, computed before or now."""
        return self.inner(*given) if torch.compiler.is_compiling() else self.recall(self.inner, *given)
