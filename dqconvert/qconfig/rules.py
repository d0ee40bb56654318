"""Exceptions to a config: `Rule`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, get_args

from dqconvert.errors import ConfigError
from dqconvert.qconfig.specs import KIND_OF_ROLE, KINDS, ROLES, Kind, LevelName, QSpec, Role
from dqconvert.qconfig.tables import require, require_choice

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class QuantizerSite:
    """Where a quantizer of the user's own is to stand: what a factory with one argument is told.

    Attributes:
        path: The name that it gets in the module: ``"convs.0.quant.message"``.
        module: Path of the module whose value it quantizes.
        role: One of the roles of a :class:`Rule`.
        kind: What a :class:`QConfig` calls it.
        op: Qualified name of the operation that gives the value its role.
        level: What a row of the value belongs to: ``"node"``, ``"edge"``, ``"graph"`` or ``"parameter"``.
        row_dim: The dimension of the rows.
        signed: Whether it matters that values lie below zero: they may, and something else than ReLUs reads them.
        protected: Whether ``protected`` may be a mask, bool ``[x.size(row_dim)]``; else it is ``None``.
        degrees: Whether in-degrees are to be had for the rows, those of nodes, or of the receivers of edges.
        channels: How many channels the value has (outputs of a weight, features of others), and along which dimension.
    """

    path: str
    module: str
    role: Role
    kind: Kind
    op: str
    level: str
    row_dim: int
    signed: bool
    protected: bool
    degrees: bool
    channels: tuple[int, int]


Factory: TypeAlias = Callable[[], "nn.Module"] | Callable[[QuantizerSite], "nn.Module"]
Spec: TypeAlias = QSpec | Factory | None


def required_arguments(factory: Callable[..., object]) -> int:
    """Returns how many arguments must be given to a factory, by position or by name.

    Example:
        >>> required_arguments(lambda site, bits=4: None)
        1
    """
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # of builtins nothing is known
        return 0
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return sum(one.default is inspect.Parameter.empty and one.kind not in several for one in parameters)


@dataclass(frozen=True, kw_only=True)
class Rule:
    r"""An exception to a `QConfig`: `spec` quantizes the values it matches, instead of their kind's field.

    A value matches if it matches every key that is given; at least one must be.

    Attributes:
        module: A regular expression that must match the whole path of the module the value is computed in
            (``re.fullmatch``): ``r"convs\.0(\..*)?"`` is ``convs.0`` and all within it, ``""`` the root.
        role: One of ``weight``, ``input``, ``feature``, ``edge_weight``, ``message``, ``aggregate``, ``update``.
        kind: One of ``weight``, ``activation``, ``message``, ``aggregate``.
        op: The qualified name of the op that computes the value, exactly.
        level: What one row of the value belongs to: ``"node"``, ``"edge"``; ``"graph"``, where rows are neither, as
            behind a pooling; ``"parameter"``, where it is computed from parameters alone. For a weight, a row of what
            is made with it: ``level="graph"`` is a whole head behind a pooling.
        spec: A :class:`QSpec`; ``None``, which leaves the value in float; or a factory, a callable that returns
            an ``nn.Module``, called as ``m(x, protected)``, for the user's own quantizer. It is called once per matched
            value, without arguments or, if it requires one, with the :class:`QuantizerSite`. A module that has a
            ``grid``, or a method of that name, ``(scale, zero_point, low, high)``, becomes integers as ours do.

    Raises:
        ConfigError: If a key is invalid, if none is given, or if ``role`` and ``kind`` exclude each other.

    Example:
        >>> rule = Rule(module=r"convs\.\d+", role="message", spec=QSpec(bits=4))
        >>> rule.matches(module="convs.0", role="message", op="torch.mul", level="edge")
        True
        >>> print(Rule(kind="weight", spec=None))
        kind='weight'
        >>> Rule(role="weights", spec=None)
        Traceback (most recent call last):
        ...
        dqconvert.errors.ConfigError: role='weights': must be 'weight', 'input', 'feature', 'edge_weight',
        'message', 'aggregate', 'update' or None
    """

    module: str | None = None
    role: Role | None = None
    kind: Kind | None = None
    op: str | None = None
    level: LevelName | None = None
    spec: Spec

    def __post_init__(self) -> None:
        if not self.keys_given():
            raise ConfigError("module=None: at least one of module, role, kind, op and level must be given")
        if self.module is not None:
            require("module", self.module, isinstance(self.module, str), "a regular expression or None")
            try:
                re.compile(self.module)
            except (re.error, OverflowError, RecursionError) as error:
                raise ConfigError(f"module={self.module!r}: must be a regular expression: {error}") from error
        if self.role is not None:
            require_choice("role", self.role, ROLES, "None")
        if self.kind is not None:
            require_choice("kind", self.kind, KINDS, "None")
        if self.role is not None and self.kind not in (None, KIND_OF_ROLE[self.role]):
            kind = KIND_OF_ROLE[self.role]
            raise ConfigError(f"kind={self.kind!r}: excludes role={self.role!r}, which is of kind {kind!r}")
        is_name = self.op is None or (isinstance(self.op, str) and self.op != "")
        require("op", self.op, is_name, "an op's qualified name or None")
        if self.level is not None:
            require_choice("level", self.level, get_args(LevelName), "None")
        if hasattr(self.spec, "named_parameters") and not isinstance(self.spec, type):
            raise ConfigError(
                f"spec={type(self.spec).__name__}(...): is a module; give its class, or a function that "
                "returns a new one, as every matched value needs a quantizer of its own"
            )
        is_spec = self.spec is None or isinstance(self.spec, QSpec) or callable(self.spec)
        require("spec", self.spec, is_spec, "a QSpec, None (float) or a callable that returns an nn.Module")
        if callable(self.spec) and (count := required_arguments(self.spec)) > 1:
            raise ConfigError(
                f"spec={self.spec!r}: requires {count} arguments; a factory takes none, or one, the QuantizerSite"
            )
        if isinstance(self.spec, QSpec) and "weight" in (self.role, self.kind) and self.spec.granularity == "degree":
            raise ConfigError("spec.granularity='degree': a weight has no nodes; it must be 'tensor' or 'channel'")

    def matches(self, *, module: str, role: str, op: str, level: str) -> bool:
        """True if a value of this role and level, computed by the op `op` in the module at path `module`, matches."""
        return (
            (self.module is None or re.fullmatch(self.module, module) is not None)
            and self.role in (None, role)
            and self.kind in (None, KIND_OF_ROLE[role])
            and self.op in (None, op)
            and self.level in (None, level)
        )

    def keys_given(self) -> dict[str, str]:
        """Returns the keys that are given, by name."""
        keys = {"module": self.module, "role": self.role, "kind": self.kind, "op": self.op, "level": self.level}
        return {key: value for key, value in keys.items() if value is not None}

    def __str__(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in self.keys_given().items())
