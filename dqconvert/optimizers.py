"""Notices an optimizer that was built of a float model's parameters and is to train a prepared module: it trains
nothing, as the module has copies of them."""

from __future__ import annotations

import warnings
import weakref
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.weak import WeakIdKeyDictionary

_COPIED: Any = WeakIdKeyDictionary()
"""Parameters of models that were prepared, and the modules that have copies of them. It keeps neither alive."""

_FINE: weakref.WeakSet[Optimizer] = weakref.WeakSet()
"""Optimizers that hold no such parameter, or of which was warned."""

_HOOKS: list[Any] = []


def watch_optimizers(model: nn.Module, module: nn.Module) -> None:
    """From now on, the first step of an optimizer that holds parameters of ``model``, while only those of ``module``
    have gradients, warns.

    Args:
        model: What ``module`` was made of; it keeps its own parameters.
    """
    for parameter in nn.Module.parameters(model):
        _COPIED.setdefault(parameter, weakref.WeakSet()).add(module)
    _FINE.clear()
    if not _HOOKS:
        _HOOKS.append(register_optimizer_step_pre_hook(_before_step))


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if torch.compiler.is_compiling() or optimizer in _FINE:
        return
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    strays = [parameter for parameter in held if parameter in _COPIED]
    if not strays:
        _FINE.add(optimizer)
        return
    if any(parameter.grad is not None for parameter in strays):
        return  # the float model itself is trained
    own = {id(parameter) for parameter in held}
    for module in {id(m): m for parameter in strays for m in _COPIED[parameter]}.values():
        if any(parameter.grad is not None and id(parameter) not in own for parameter in module.parameters()):
            _FINE.add(optimizer)
            warnings.warn(
                f"this {type(optimizer).__name__} holds {len(strays)} parameters of the model that was prepared, which "
                f"have no gradients, and none of the prepared module's, which have: it trains nothing. The prepared "
                f"module has copies: build the optimizer of them, with module.parameters().",
                stacklevel=4,
            )
            return
