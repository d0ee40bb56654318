"""Exceptions to a config: `Rule`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from dqconvert.errors import ConfigError
from dqconvert.qconfig.specs import KIND_OF_ROLE, KINDS, ROLES, Kind, QSpec, Role
from dqconvert.qconfig.tables import require, require_choice

if TYPE_CHECKING:
    from torch import nn

Factory: TypeAlias = Callable[[], "nn.Module"]
Spec: TypeAlias = QSpec | Factory | None


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
        spec: A :class:`QSpec`; ``None``, which leaves the value in float; or a factory, a callable without arguments
            that returns an ``nn.Module``, called as ``m(x, protected)``, for the user's own quantizer. It is called
            once per matched value.

    Raises:
        ConfigError: If a key is invalid, if none is given, or if ``role`` and ``kind`` exclude each other.

    Example:
        >>> rule = Rule(module=r"convs\.\d+", role="message", spec=QSpec(bits=4))
        >>> rule.matches(module="convs.0", role="message", op="torch.mul")
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
    spec: Spec

    def __post_init__(self) -> None:
        if self.module is None and self.role is None and self.kind is None and self.op is None:
            raise ConfigError("module=None: at least one of module, role, kind and op must be given")
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
        if hasattr(self.spec, "named_parameters") and not isinstance(self.spec, type):
            raise ConfigError(
                f"spec={type(self.spec).__name__}(...): is a module; give its class, or a function that "
                "returns a new one, as every matched value needs a quantizer of its own"
            )
        is_spec = self.spec is None or isinstance(self.spec, QSpec) or callable(self.spec)
        require("spec", self.spec, is_spec, "a QSpec, None (float) or a callable that returns an nn.Module")
        if isinstance(self.spec, QSpec) and "weight" in (self.role, self.kind) and self.spec.granularity == "degree":
            raise ConfigError("spec.granularity='degree': a weight has no nodes; it must be 'tensor' or 'channel'")

    def matches(self, module: str, role: str, op: str) -> bool:
        """True if a value of this role, computed by the op `op` in the module at path `module`, matches."""
        return (
            (self.module is None or re.fullmatch(self.module, module) is not None)
            and self.role in (None, role)
            and self.kind in (None, KIND_OF_ROLE[role])
            and self.op in (None, op)
        )

    def keys_given(self) -> dict[str, str]:
        """Returns the keys that are given, by name."""
        keys = {"module": self.module, "role": self.role, "kind": self.kind, "op": self.op}
        return {key: value for key, value in keys.items() if value is not None}

    def __str__(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in self.keys_given().items())
