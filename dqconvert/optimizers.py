"""What optimizers hold: :func:`parameter_groups`, and a warning of one that was built of a float model's parameters and
is to train a prepared module: it trains nothing, as the module has copies of them."""

from __future__ import annotations

import math
import warnings
import weakref
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.weak import WeakIdKeyDictionary

from dqconvert.errors import ConfigError
from dqconvert.expect import expect_prepared
from dqconvert.quant import FakeQuantize
from dqconvert.words import shortened


def parameter_groups(
    module: nn.Module, *, weight_decay: float = 0.0, lr: float | None = None, step_lr: float | None = None
) -> list[dict[str, Any]]:
    """Returns the parameters of a prepared module in groups, as optimizers take them: learned steps apart.

    Weight decay would pull steps and offsets that are learned (``range="learned"``) back to where they began, and says
    nothing of them: they get none.

    Args:
        module: A prepared module.
        weight_decay: Of all other parameters.
        lr: The rate of both groups; ``None``: the optimizer's own.
        step_lr: The rate of the steps; ``None``: ``lr``.

    Returns:
        One group with the model's parameters, and one with the steps and offsets, if there are any; together every
        parameter of ``module.parameters()``, once.

    Raises:
        ConfigError: If ``module`` is no prepared module, or a number is no number from 0 on.

    Example:
        >>> import dqconvert
        >>> from torch_geometric.nn import GCN
        >>> module, _ = dqconvert.prepare(GCN(8, 16, num_layers=2, out_channels=4), "int4-lsq")
        >>> groups = dqconvert.parameter_groups(module, weight_decay=5e-4, lr=0.01)
        >>> [(len(group["params"]), group["weight_decay"]) for group in groups]
        [(4, 0.0005), (26, 0.0)]
        >>> optimizer = torch.optim.Adam(groups)
    """
    expect_prepared(module, "parameter_groups")
    for name, value in {"weight_decay": weight_decay, "lr": lr, "step_lr": step_lr}.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (is_number and 0 <= value < math.inf):
            raise ConfigError(f"parameter_groups takes as {name} a number from 0 on, got {shortened(value)}.")
    learned = {id(p) for part in module.modules() if isinstance(part, FakeQuantize) for p in part.parameters()}
    groups: list[dict[str, Any]] = []
    for own, decay, rate in ((False, weight_decay, lr), (True, 0.0, lr if step_lr is None else step_lr)):
        params = [parameter for parameter in module.parameters() if (id(parameter) in learned) is own]
        if params:
            groups.append({"params": params, "weight_decay": decay} | ({} if rate is None else {"lr": rate}))
    return groups


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
