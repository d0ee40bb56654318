"""``dqconvert.schedule``: what changes in the course of training, as a function of how far it has come."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from torch.nn.modules.batchnorm import _BatchNorm

from dqconvert.errors import ConfigError
from dqconvert.expect import expect_prepared
from dqconvert.prepared.module import PreparedModule
from dqconvert.qconfig.tables import as_number, require, require_choice
from dqconvert.quant import Protection

Annealing: TypeAlias = Literal["constant", "linear", "cosine"]


class Scheduled(NamedTuple):
    """What :func:`schedule` has set.

    Attributes:
        p_min: The probability of protection at the lowest in-degrees; 0 without protection.
        p_max: That at the highest.
        ranges_frozen: Whether ranges stay as they are.
        batch_norm_frozen: Whether batch norms use and keep their running averages.
    """

    p_min: float
    p_max: float
    ranges_frozen: bool
    batch_norm_frozen: bool


def schedule(
    module: PreparedModule,
    epoch: float,
    epochs: float,
    *,
    protect: Annealing = "constant",
    freeze_ranges: float | None = None,
    freeze_batch_norm: float | None = None,
) -> Scheduled:
    """Sets what an epoch asks for: annealed protection, frozen ranges, frozen batch norms.

    It keeps no state: the same arguments set the same, so a training that goes on from a checkpoint needs nothing but
    the number of its epoch. Call it in each epoch after ``module.train()``, which thaws batch norms. Numbers may be
    steps as well, or fractions of epochs. Compiled code goes on, but where something is frozen or thawed, or annealed
    for the first time, it is compiled anew.

    Args:
        module: The prepared module.
        epoch: How far the training has come, from 0 on.
        epochs: When it ends, above 0.
        protect: What protection's probabilities (of the config, and ``protect_prob``) are multiplied by: 1
            (``"constant"``, the default), or what falls from 1 at the beginning to 0 at the end: with ``t = epoch /
            epochs``, ``1 - t`` (``"linear"``) or ``(1 + cos(pi t)) / 2`` (``"cosine"``).
        freeze_ranges: From this epoch on, quantizers observe nothing more in training. ``None``: nothing is set.
        freeze_batch_norm: From this epoch on, batch norms compute as in evaluation; their gains and biases still learn.
            ``None``: nothing is set.

    Returns:
        What is set now.

    Raises:
        ConfigError: For numbers out of bounds, and if protection is to be annealed where the config has none.

    Source:
        Frozen ranges and batch norms: Jacob et al., *Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference*, CVPR 2018, section 3.1; Krishnamoorthi, *Quantizing Deep Convolutional
        Networks for Efficient Inference*, 2018, section 3.2.4.

    Example:
        >>> import dqconvert
        >>> from torch_geometric.nn import GCN
        >>> module, _ = dqconvert.prepare(GCN(16, 8, 2), {"protect": {"p_max": 0.2}})
        >>> for epoch in (0, 5, 9):
        ...     now = schedule(module.train(), epoch, 10, protect="linear", freeze_ranges=8)
        ...     print(round(now.p_max, 3), now.ranges_frozen)
        0.2 False
        0.1 False
        0.02 True
    """
    expect_prepared(module, "schedule")
    done, end = as_number(epoch), as_number(epochs)
    require("epochs", epochs, 0 < end < math.inf, "a number above 0")
    require("epoch", epoch, 0 <= done < math.inf, "a number from 0 on")
    require_choice("protect", protect, get_args(Annealing))
    for name, value in {"freeze_ranges": freeze_ranges, "freeze_batch_norm": freeze_batch_norm}.items():
        require(name, value, value is None or as_number(value) >= 0, "a number from 0 on, or None")
    t = min(done / end, 1.0)
    share = {"constant": 1.0, "linear": 1 - t, "cosine": (1 + math.cos(math.pi * t)) / 2}[protect]
    drawing = [child for child in module.modules() if isinstance(child, Protection)]
    if protect != "constant" and not drawing:
        raise ConfigError(
            f"schedule, protect={protect!r}: the module has no protection to anneal (protect of its config)"
        )
    for protection in drawing:
        protection.scale(share)
    if freeze_ranges is not None:
        for _, quantizer in module.quantizers():
            quantizer.observer_enabled = done < freeze_ranges
            if not quantizer.observer_enabled:
                quantizer.is_observed()  # looked up once, as compiled code cannot
    norms: list[Any] = [child for child in module.modules() if isinstance(child, _BatchNorm)]
    if freeze_batch_norm is not None:
        for norm in norms:
            norm.train(module.training and done < freeze_batch_norm)
    bounds = [child.protect for child in drawing]
    return Scheduled(
        share * max((bound.p_min for bound in bounds), default=0.0),
        share * max((bound.p_max for bound in bounds), default=0.0),
        freeze_ranges is not None and done >= freeze_ranges,
        freeze_batch_norm is not None and done >= freeze_batch_norm,
    )
