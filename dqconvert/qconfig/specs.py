"""How one value is quantized, `QSpec`, and how nodes are protected, `Protect`; the words a config is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias, get_args

from dqconvert.errors import ConfigError
from dqconvert.qconfig.tables import as_number, require, require_choice

Granularity: TypeAlias = Literal["tensor", "channel", "degree"]
Range: TypeAlias = Literal["minmax", "ema", "percentile", "mse", "relative", "learned"]
Norm: TypeAlias = Literal["edges", "nodes"]
Placement: TypeAlias = Literal["paper", "before_dropout"]
Grad: TypeAlias = Literal["ste", "clip"]
Rounding: TypeAlias = Literal["nearest", "stochastic"]
Role: TypeAlias = Literal["weight", "input", "feature", "edge_weight", "message", "aggregate", "update"]
Kind: TypeAlias = Literal["weight", "activation", "message", "aggregate"]
LevelName: TypeAlias = Literal["node", "edge", "graph", "parameter"]

ROLES: tuple[Role, ...] = get_args(Role)
KINDS: tuple[Kind, ...] = get_args(Kind)
KIND_OF_ROLE: Mapping[str, Kind] = MappingProxyType(
    {
        "weight": "weight",
        "input": "activation",
        "feature": "activation",
        "edge_weight": "activation",
        "message": "message",
        "aggregate": "aggregate",
        "update": "activation",
    }
)


def require_bits(field: str, value: object, allowed: str) -> None:
    """Raises `ConfigError` unless a width is an integer from 2 to 8."""
    require(field, value, isinstance(value, int) and not isinstance(value, bool) and 2 <= value <= 8, allowed)


@dataclass(frozen=True, kw_only=True)
class QSpec:
    """The quantization of one value: its integer grid, the source of its range, and its gradient.

    Attributes:
        bits: Width of the integer codes, 2 to 8. Default: 8.
        signed: Whether codes reach below zero. ``True`` and ``False`` settle it; ``None`` (the default) decides from
            the graph: unsigned wherever the value cannot be negative. ``"input"`` decides from the graph for the role
            ``input`` only, and every other role is signed: what Degree-Quant's code does, which looks for a ReLU before
            a layer but quantizes everything inside the layer signed. ``"graph"`` is ``None``, and unsigned also
            wherever the value feeds only ReLUs, directly or through what commutes with them (dropout, views, gathers,
            maxima): what lies below zero is cut there anyway. Its unsigned grids reach from zero, symmetric or not.
        symmetric: If true, the range is widened to lie evenly around zero, so that the zero point is fixed; otherwise
            the grid is affine. Default: false.
        granularity: ``"tensor"`` (the default): one range for the whole tensor; ``"channel"``: one per output channel;
            ``"degree"``: one per group of nodes of like in-degree, as sums grow with it. In-degrees are counted on the
            edges given to forward, before any self-loops are added, in a batch within each graph, and in a
            heterogeneous graph over all edge types that reach a node. The row of an edge takes the group of the node
            that receives it, so that a sum has one scale. Per tensor stay what rows of nodes or edges do not make up
            (graphs behind a pooling) and messages of plain sums (``x_j``), whose receivers differ: the report says
            which and why. A group of which calibration and training saw no node takes the range of the nearest group,
            of two equally near the lower one. While ranges of groups are observed, their quantizers run one by
            one, slower than fused; those of ``"mse"`` and ``"relative"``, once they are found, run fused.
        groups: How many groups, 2 to 32, with ``granularity="degree"`` only: floor(log2(in-degree)); 0 belongs to the
            first, all above to the last. ``None``: 8.
        range: Where the range comes from. ``"minmax"`` (the default): running minimum and maximum. ``"ema"``: an
            exponential moving average of each step's minimum and maximum. ``"percentile"``: each step's low and high
            percentiles, kept as running minimum and maximum, or as a moving average where ``momentum`` is given.
            ``"mse"``: the range whose grid is nearest to the non-zero values in squared error, searched in calibration,
            or else in the first training step, and kept from then on. ``"relative"``: so, too, but each row's squared
            errors are divided by the mean square of the row (and a tenth of that of the median row): where hubs sum and
            send thousands, they don't decide for all other nodes. ``"learned"``: begins where ``"mse"`` ends, and then
            its step is a parameter of the module, trained by the gradient of LSQ (Esser et al., ICLR 2020), and so is,
            where the grid is affine, an offset (LSQ+, Bhalgat et al., 2020).
        percentile: The share of values left out at either end, between 0 and 0.5, with ``range="percentile"`` only.
            ``None``: 0.001, and 0.01 at 4 bits or fewer.
        momentum: The weight of the newest step in a moving average, above 0 and up to 1, with ``range="ema"`` or
            ``"percentile"`` only. ``None``: 0.01 for ``"ema"``, no averaging for ``"percentile"``.
        sample: Estimates percentiles from this random share of the values, above 0 and up to 1, with
            ``range="percentile"`` only. ``None``: from all. Per tensor, on the CPU, all are used either way: that
            costs less there than to draw a sample.
        grad: ``"ste"`` (the default): the gradient passes straight through rounding; ``"clip"``: it is zero where the
            code reaches or passes either end of the grid. With ``range="learned"`` it is ``"clip"``, whatever is given,
            and zero where the value reaches or passes an end before it is rounded, as LSQ defines it.
        rounding: ``"nearest"`` (the default), halves to even; ``"stochastic"``: in training up or down at random, with
            the probabilities that make it right on average (Gupta et al., *Deep Learning with Limited Numerical
            Precision*, ICML 2015, section 3), from torch's generator. Evaluation and integers round to the nearest.

    Raises:
        ConfigError: If a field is out of bounds or would have no effect; it names the field and what is allowed.

    The scheme of Tailor, Fernandez-Marques and Lane, *Degree-Quant*, ICLR 2021, for signed 4-bit values:

    Example:
        >>> spec = QSpec(bits=4, signed=True, range="percentile", grad="clip")
        >>> spec.percentile_value
        0.01
        >>> spec.quant_range(signed=True)
        (-8, 7)
        >>> QSpec(bits=16)
        Traceback (most recent call last):
        ...
        dqconvert.errors.ConfigError: bits=16: must be an integer from 2 to 8
    """

    bits: int = 8
    signed: bool | Literal["input", "graph"] | None = None
    symmetric: bool = False
    granularity: Granularity = "tensor"
    groups: int | None = None
    range: Range = "minmax"
    percentile: float | None = None
    momentum: float | None = None
    sample: float | None = None
    grad: Grad = "ste"
    rounding: Rounding = "nearest"

    def __post_init__(self) -> None:
        require_bits("bits", self.bits, "an integer from 2 to 8")
        is_signed = self.signed is None or isinstance(self.signed, bool) or self.signed in ("input", "graph")
        require("signed", self.signed, is_signed, "True, False, None, 'input' or 'graph'")
        require("symmetric", self.symmetric, isinstance(self.symmetric, bool), "True or False")
        require_choice("granularity", self.granularity, get_args(Granularity))
        if self.groups is not None:
            is_count = isinstance(self.groups, int) and not isinstance(self.groups, bool) and 2 <= self.groups <= 32
            require("groups", self.groups, is_count, "an integer from 2 to 32, or None")
            if self.granularity != "degree":
                raise ConfigError(
                    f"groups={self.groups!r}: needs granularity='degree'; with granularity={self.granularity!r} it "
                    f"must be None"
                )
        require_choice("range", self.range, get_args(Range))
        require_choice("grad", self.grad, get_args(Grad))
        require_choice("rounding", self.rounding, get_args(Rounding))
        if self.range == "learned":
            object.__setattr__(self, "grad", "clip")

        is_share = 0 < as_number(self.percentile) < 0.5
        self._check_option("percentile", is_share, "a number between 0 and 0.5, or None", ["percentile"])
        is_share = 0 < as_number(self.momentum) <= 1
        self._check_option("momentum", is_share, "a number above 0 and up to 1, or None", ["ema", "percentile"])
        is_share = 0 < as_number(self.sample) <= 1
        self._check_option("sample", is_share, "a number above 0 and up to 1, or None", ["percentile"])

    def _check_option(self, field: str, is_share: bool, allowed: str, ranges: list[str]) -> None:
        value = getattr(self, field)
        if value is None:
            return
        require(field, value, is_share, allowed)
        if self.range not in ranges:
            used_by = " or ".join(map(repr, ranges))
            raise ConfigError(f"{field}={value!r}: needs range={used_by}; with range={self.range!r} it must be None")
        object.__setattr__(self, field, float(value))

    @property
    def groups_value(self) -> int | None:
        """The number of groups of in-degrees with a range of their own; `None` unless the granularity is `"degree"`."""
        if self.granularity != "degree":
            return None
        return 8 if self.groups is None else self.groups

    @property
    def percentile_value(self) -> float | None:
        """The share of values left out at either end; `None` unless the range is `"percentile"`."""
        if self.range != "percentile":
            return None
        if self.percentile is not None:
            return self.percentile
        return 0.001 if self.bits > 4 else 0.01

    @property
    def momentum_value(self) -> float | None:
        """The weight of the newest step in the moving average; `None` where the range is a running one."""
        return 0.01 if self.range == "ema" and self.momentum is None else self.momentum

    def signed_for(self, *, role: str, nonnegative: bool, cut: bool = False) -> bool:
        """True if the codes of a value of this role are signed.

        Args:
            role: The role.
            nonnegative: Whether the value cannot be negative.
            cut: Whether it feeds only ReLUs.

        Example:
            >>> QSpec(signed="input").signed_for(role="input", nonnegative=True)
            False
            >>> QSpec(signed="input").signed_for(role="message", nonnegative=True)
            True
        """
        if isinstance(self.signed, bool):
            return self.signed
        if self.signed == "graph":
            return not (nonnegative or cut)
        return not nonnegative or (self.signed == "input" and role != "input")

    def quant_range(self, signed: bool) -> tuple[int, int]:
        """Returns `(quant_min, quant_max)`, the smallest and largest code."""
        quant_min = -(2 ** (self.bits - 1)) if signed else 0
        return quant_min, quant_min + 2**self.bits - 1


@dataclass(frozen=True, kw_only=True)
class Protect:
    """Degree-Quant's stochastic protection: in training, nodes pass in full precision at random.

    A node's probability grows with its in-degree from `p_min` towards `p_max`, which the node with most
    in-edges has (Tailor, Fernandez-Marques and Lane, *Degree-Quant*, ICLR 2021).

    Attributes:
        p_min: The probability at the lowest in-degrees, 0 to ``p_max``. Default: 0.0.
        p_max: The probability at the highest in-degree, ``p_min`` to 1. Default: 0.1.
        roles: The roles whose values pass in full precision where a node is protected; those of others are always
            quantized. ``None`` (the default; ``"all"`` in files): all that rows of nodes and of their messages have.
            The official code leaves the MLP of a GIN out: ``("message", "aggregate", "update")``.

    Raises:
        ConfigError: If not 0 <= ``p_min`` <= ``p_max`` <= 1, for a role that there is not, and for none.

    Example:
        >>> Protect(p_max=0.2)
        Protect(p_min=0.0, p_max=0.2, roles=None)
        >>> Protect(roles=["message"]).covers("input")
        False
        >>> Protect(p_min=0.3)
        Traceback (most recent call last):
        ...
        dqconvert.errors.ConfigError: p_max=0.1: must be a number from p_min=0.3 to 1
    """

    p_min: float = 0.0
    p_max: float = 0.1
    roles: tuple[Role, ...] | None = None

    def __post_init__(self) -> None:
        p_min, p_max = as_number(self.p_min), as_number(self.p_max)
        require("p_min", self.p_min, 0 <= p_min <= 1, "a number from 0 to 1")
        require("p_max", self.p_max, p_min <= p_max <= 1, f"a number from p_min={self.p_min!r} to 1")
        object.__setattr__(self, "p_min", float(p_min))
        object.__setattr__(self, "p_max", float(p_max))
        if self.roles is not None:
            allowed = [role for role in ROLES if role != "weight"]  # which has no rows of nodes
            several = isinstance(self.roles, list | tuple) and all(role in allowed for role in self.roles)
            some = several and bool(self.roles)
            require("roles", self.roles, some, f"one or more of {', '.join(map(repr, allowed))}, or None")
            object.__setattr__(self, "roles", tuple(role for role in ROLES if role in self.roles))

    def covers(self, role: str) -> bool:
        """True if values of a role pass in full precision where a node is protected."""
        return self.roles is None or role in self.roles
