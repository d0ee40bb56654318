"""Switches of all quantizers in a module: whether they observe, and whether they round."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from dqconvert.errors import ConfigError
from dqconvert.quant.fake_quantize import FakeQuantize
from dqconvert.words import kind_of


def enable_observer(module: nn.Module) -> None:
    """Lets every quantizer in a module update its range in training; also as ``module.apply(enable_observer)``."""
    for quantizer in _quantizers(module, "enable_observer"):
        quantizer.observer_enabled = True


def disable_observer(module: nn.Module) -> None:
    """Freezes the range of every quantizer in a module; also as ``module.apply(disable_observer)``."""
    for quantizer in _quantizers(module, "disable_observer"):
        quantizer.observer_enabled = False
        quantizer.is_observed()  # looked up once, as compiled code cannot


def enable_fake_quant(module: nn.Module) -> None:
    """Lets every quantizer in a module round; also as ``module.apply(enable_fake_quant)``."""
    for quantizer in _quantizers(module, "enable_fake_quant"):
        quantizer.fake_quant_enabled = True


def disable_fake_quant(module: nn.Module) -> None:
    """Makes every quantizer in a module only observe; also as ``module.apply(disable_fake_quant)``."""
    for quantizer in _quantizers(module, "disable_fake_quant"):
        quantizer.fake_quant_enabled = False


def _quantizers(module: nn.Module, door: str) -> Iterator[FakeQuantize]:
    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"{door} takes a prepared module, got {kind_of(module)}: module.apply(dqconvert.{door}), or "
            f"dqconvert.{door}(module)."
        )
    return (child for child in module.modules() if isinstance(child, FakeQuantize))
