"""Which quantizers of a module round and observe, for one run."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from dqconvert.prepared.base import PreparedBase


@contextmanager
def rounding(module: PreparedBase, paths: Collection[str] = (), *, observing: bool = False) -> Iterator[None]:
    """Evaluation mode, in which the quantizers at some paths round, and all others let values pass.

    Args:
        observing: Whether all of them observe.
    """
    modes = {child: child.training for child in module.modules()}
    before = {quantizer: quantizer.fake_quant_enabled for _, quantizer in module.quantizers()}
    module.eval()
    for path, quantizer in module.quantizers():
        quantizer.fake_quant_enabled, quantizer.calibrating = path in paths, observing
    try:
        yield
    finally:
        for _, quantizer in module.quantizers():  # to which the first call of a method adds some
            quantizer.fake_quant_enabled, quantizer.calibrating = before.get(quantizer, True), False
        for child in module.modules():
            child.training = modes.get(child, modes[module])
        for _, quantizer in module.quantizers() if observing else ():
            quantizer.is_observed()
