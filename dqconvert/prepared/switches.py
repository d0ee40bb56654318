"""Which quantizers of a module round, for one run."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from dqconvert.prepared.base import PreparedBase


@contextmanager
def rounding(module: PreparedBase, paths: Collection[str]) -> Iterator[None]:
    """Evaluation mode, in which the quantizers at some paths round, and all others let values pass."""
    modes = {child: child.training for child in module.modules()}
    quantizers = list(module.quantizers())
    before = {path: quantizer.fake_quant_enabled for path, quantizer in quantizers}
    module.eval()
    for path, quantizer in quantizers:
        quantizer.fake_quant_enabled = path in paths
    try:
        yield
    finally:
        for path, quantizer in quantizers:
            quantizer.fake_quant_enabled = before[path]
        for child, mode in modes.items():
            child.training = mode
