"""The quantization of a model as plain data: `QSpec`, `Protect`, `Rule`, `QConfig`, and the presets made of them.

A config is plain data that knows nothing of torch. A `QConfig` says for each *kind* of value (weight,
activation, message, aggregate) which `QSpec` quantizes it; each kind is one or more *roles*, the places a
value can have in a layer. `as_qconfig` turns whatever a user may pass as `qconfig` into a `QConfig`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from dqconvert.errors import ConfigError
from dqconvert.qconfig_io import (
    as_number,
    format_toml,
    is_config_path,
    nearest_or_all,
    none_if_spelled,
    override,
    read_table,
    require,
    require_choice,
    require_known_keys,
    spell_none,
)
from dqconvert.words import did_you_mean

if TYPE_CHECKING:
    from torch import nn

Granularity: TypeAlias = Literal["tensor", "channel"]
Range: TypeAlias = Literal["minmax", "ema", "percentile", "mse", "learned"]
Grad: TypeAlias = Literal["ste", "clip"]
Role: TypeAlias = Literal["weight", "input", "feature", "edge_weight", "message", "aggregate", "update"]
Kind: TypeAlias = Literal["weight", "activation", "message", "aggregate"]
Factory: TypeAlias = Callable[[], "nn.Module"]

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

# What a config can name but nothing serves yet. When it arrives, remove its entry: nothing else refuses it.
_NOT_SERVED_YET: Mapping[str, str] = {
    "range='learned'": "it arrives with LSQ; allowed today: 'minmax', 'ema', 'percentile', 'mse'",
    "noise": "it arrives with quantization-noise training; allowed today: None",
    "preset 'int8-nqat'": "it arrives with quantization-noise training; try 'int8-qat'",
    "preset 'int4-nqat'": "it arrives with quantization-noise training; try 'int4-qat'",
    "preset 'int8-lsq'": "it arrives with LSQ; try 'int8-dq'",
    "preset 'int4-lsq'": "it arrives with LSQ; try 'int4-dq'",
}


def _refuse_not_served_yet(what: str) -> None:
    if what in _NOT_SERVED_YET:
        raise ConfigError(f"{what}: not served yet: {_NOT_SERVED_YET[what]}")


def _served(field: str, choices: tuple[str, ...]) -> list[str]:
    return [choice for choice in choices if f"{field}={choice!r}" not in _NOT_SERVED_YET]


@dataclass(frozen=True, kw_only=True)
class QSpec:
    """The quantization of one value: its integer grid, the source of its range, and its gradient.

    Attributes:
        bits: Width of the integer codes, 2 to 8. Default: 8.
        signed: Whether codes reach below zero. ``True`` and ``False`` settle it; ``None`` (the default) decides from
            the graph: unsigned wherever the value cannot be negative. ``"input"`` decides from the graph for the role
            ``input`` only, and every other role is signed: what Degree-Quant's code does, which looks for a ReLU before
            a layer but quantizes everything inside the layer signed.
        symmetric: If true, the range is widened to lie evenly around zero, so that the zero point is fixed; otherwise
            the grid is affine. Default: false.
        granularity: ``"tensor"`` (the default): one range for the whole tensor; ``"channel"``: one per output channel.
        range: Where the range comes from. ``"minmax"`` (the default): running minimum and maximum. ``"ema"``: an
            exponential moving average of each step's minimum and maximum. ``"percentile"``: each step's low and high
            percentiles, kept as running minimum and maximum, or as a moving average where ``momentum`` is given.
            ``"mse"``: the range whose grid is nearest to the non-zero values in squared error, searched in calibration,
            or else in the first training step, and kept from then on.
        percentile: The share of values left out at either end, between 0 and 0.5, with ``range="percentile"`` only.
            ``None``: 0.001, and 0.01 at 4 bits or fewer.
        momentum: The weight of the newest step in a moving average, above 0 and up to 1, with ``range="ema"`` or
            ``"percentile"`` only. ``None``: 0.01 for ``"ema"``, no averaging for ``"percentile"``.
        sample: Estimates percentiles from this random share of the values, above 0 and up to 1, with
            ``range="percentile"`` only. ``None``: from all. Per tensor, on the CPU, all are used either way: that
            costs less there than to draw a sample.
        grad: ``"ste"`` (the default): the gradient passes straight through rounding; ``"clip"``: it is zero where the
            code reaches or passes either end of the grid.

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
    signed: bool | Literal["input"] | None = None
    symmetric: bool = False
    granularity: Granularity = "tensor"
    range: Range = "minmax"
    percentile: float | None = None
    momentum: float | None = None
    sample: float | None = None
    grad: Grad = "ste"

    def __post_init__(self) -> None:
        is_integer = isinstance(self.bits, int) and not isinstance(self.bits, bool)
        require("bits", self.bits, is_integer and 2 <= self.bits <= 8, "an integer from 2 to 8")
        is_signed = self.signed is None or isinstance(self.signed, bool) or self.signed == "input"
        require("signed", self.signed, is_signed, "True, False, None or 'input'")
        require("symmetric", self.symmetric, isinstance(self.symmetric, bool), "True or False")
        require_choice("granularity", self.granularity, get_args(Granularity))
        _refuse_not_served_yet(f"range={self.range!r}")
        require_choice("range", self.range, _served("range", get_args(Range)))
        require_choice("grad", self.grad, get_args(Grad))

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

    def signed_for(self, *, role: str, nonnegative: bool) -> bool:
        """True if the codes of a value of this role are signed, given that it can or cannot be negative.

        Example:
            >>> QSpec(signed="input").signed_for(role="input", nonnegative=True)
            False
            >>> QSpec(signed="input").signed_for(role="message", nonnegative=True)
            True
        """
        if isinstance(self.signed, bool):
            return self.signed
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

    Raises:
        ConfigError: If not 0 <= ``p_min`` <= ``p_max`` <= 1.

    Example:
        >>> Protect(p_max=0.2)
        Protect(p_min=0.0, p_max=0.2)
        >>> Protect(p_min=0.3)
        Traceback (most recent call last):
        ...
        dqconvert.errors.ConfigError: p_max=0.1: must be a number from p_min=0.3 to 1
    """

    p_min: float = 0.0
    p_max: float = 0.1

    def __post_init__(self) -> None:
        p_min, p_max = as_number(self.p_min), as_number(self.p_max)
        require("p_min", self.p_min, 0 <= p_min <= 1, "a number from 0 to 1")
        require("p_max", self.p_max, p_min <= p_max <= 1, f"a number from p_min={self.p_min!r} to 1")
        object.__setattr__(self, "p_min", float(p_min))
        object.__setattr__(self, "p_max", float(p_max))


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

    def matches(self, module: str, role: str, op: str) -> bool:
        """True if a value of this role, computed by the op `op` in the module at path `module`, matches."""
        return (
            (self.module is None or re.fullmatch(self.module, module) is not None)
            and self.role in (None, role)
            and self.kind in (None, KIND_OF_ROLE[role])
            and self.op in (None, op)
        )

    def __str__(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in _keys_given(self).items())


@dataclass(frozen=True, kw_only=True)
class QConfig:
    """The quantization of a whole model. `QConfig()` leaves everything in float.

    Attributes:
        weight: The :class:`QSpec` of parameters that enter a weighted op; ``None`` (the default) leaves them in float,
            and likewise:
        activation: Of the roles ``input``, ``feature``, ``edge_weight`` and ``update``.
        message: Of what ``message()`` returns.
        aggregate: Of what ``aggregate()`` returns.
        protect: A :class:`Protect`, for Degree-Quant's protection in training; ``None`` (the default): every node is
            quantized always.
        noise: Reserved for quantization noise; not served yet.
        rules: Exceptions, each a :class:`Rule`; the first that matches a value decides. Default: none.

    Raises:
        ConfigError: If a field is not of its type.

    Configs compare by value, are hashable, and pickle if the factories in their rules do.
    `dataclasses.replace` makes variants. A preset as the base, and messages of the first layer in float:

    Example:
        >>> from dataclasses import replace
        >>> qconfig = replace(presets["int8-dq"], rules=[Rule(module="conv1", role="message", spec=None)])
        >>> qconfig.spec_for(module="conv1", role="message", op="torch.mul")
        (None, 0)
        >>> spec, rule_index = qconfig.spec_for(module="conv2", role="message", op="torch.mul")
        >>> spec.bits, rule_index
        (8, None)
        >>> as_qconfig(qconfig.to_dict()) == qconfig
        True
    """

    weight: QSpec | None = None
    activation: QSpec | None = None
    message: QSpec | None = None
    aggregate: QSpec | None = None
    protect: Protect | None = None
    noise: None = None
    rules: tuple[Rule, ...] = ()

    @property
    def _fields(self) -> tuple[str, ...]:
        """Refuses ``torch.ao.quantization``, which takes a config of ours for one of its own and asks for this."""
        raise ConfigError(
            "torch.ao.quantization cannot quantize a prepared module, which is quantized already: train or calibrate "
            "it, and make integers of it with dqconvert.convert"
        )

    def __post_init__(self) -> None:
        for kind in KINDS:
            spec = getattr(self, kind)
            require(kind, spec, spec is None or isinstance(spec, QSpec), "a QSpec or None (float)")
        is_protect = self.protect is None or isinstance(self.protect, Protect)
        require("protect", self.protect, is_protect, "a Protect or None")
        if self.noise is not None:
            _refuse_not_served_yet("noise")
        require("rules", self.rules, isinstance(self.rules, list | tuple), "a sequence of Rule objects")
        for index, rule in enumerate(self.rules):
            require(f"rules[{index}]", rule, isinstance(rule, Rule), "a Rule")
        object.__setattr__(self, "rules", tuple(self.rules))

    def spec_for(self, *, module: str, role: str, op: str) -> tuple[Spec, int | None]:
        """Returns what quantizes a value, and the index of the rule that says so (`None`: the field of its kind)."""
        for index, rule in enumerate(self.rules):
            if rule.matches(module, role, op):
                return rule.spec, index
        return getattr(self, KIND_OF_ROLE[role]), None

    def to_dict(self) -> dict[str, Any]:
        """Returns the config as plain dicts, lists, strings and numbers, complete: `from_dict` gives an equal config.

        Raises:
            ConfigError: If a rule holds a factory, which only Python code can name.
        """
        table: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, part in table.items():
            if isinstance(part, QSpec | Protect):
                table[name] = asdict(part)
        table["rules"] = []
        for index, rule in enumerate(self.rules):
            if rule.spec is not None and not isinstance(rule.spec, QSpec):
                raise ConfigError(
                    f"rules[{index}].spec={rule.spec!r}: a factory cannot be written to a file; keep this "
                    "config in Python, or write it without this rule"
                )
            spec = None if rule.spec is None else asdict(rule.spec)
            table["rules"].append({**_keys_given(rule), "spec": spec})
        return table

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> QConfig:
        """Makes a config of nested dicts, whose fields override those of a preset.

        `"preset"` names that preset (default `"int8-dq"`). A kind or `"protect"` is a dict of the fields to
        change, or an object; `None` (in files `"float"` for a kind or a rule's spec, `"none"` for `protect`)
        turns it off. A `None` within a `QSpec` is `"auto"` in files. `"rules"` is a list of dicts; a rule's
        `spec` changes the fields given of the spec of the kind that the rule names by `kind` or `role`, or of
        `activation` where it names neither.

        Raises:
            ConfigError: With the dotted path of the field that is wrong.

        Example:
            >>> qconfig = QConfig.from_dict({"preset": "int8-qat", "message": {"bits": 4}, "aggregate": "float"})
            >>> qconfig.message
            QSpec(bits=4, signed=True, symmetric=False, granularity='tensor', range='ema', ...)
            >>> QConfig.from_dict({"activation": {"bit": 4}})
            Traceback (most recent call last):
            ...
            dqconvert.errors.ConfigError: activation.bit: unknown field; did you mean 'bits'?
        """
        require_known_keys(table, ["preset", *(field.name for field in fields(cls))], "")
        base = presets[table.get("preset", DEFAULT_PRESET)]
        changes: dict[str, Any] = {}
        for kind in KINDS:
            if kind in table:
                changes[kind] = override(getattr(base, kind) or QSpec(), table[kind], kind)
        if "protect" in table:
            changes["protect"] = override(base.protect or Protect(), table["protect"], "protect")
        if "noise" in table:
            changes["noise"] = none_if_spelled("noise", table["noise"])
        base = replace(base, **changes)
        rows = table.get("rules", base.rules)
        require("rules", rows, isinstance(rows, list | tuple), "a list of rules")
        rules = tuple(_rule(row, base, f"rules[{index}]") for index, row in enumerate(rows))
        return replace(base, rules=rules)

    def to_toml(self) -> str:
        """Returns the config as the text of a `.toml` file that `as_qconfig` reads back; raises as `to_dict` does."""
        return format_toml(spell_none(self.to_dict()))

    def to_json(self) -> str:
        """Returns the config as the text of a `.json` file that `as_qconfig` reads back; raises as `to_dict` does."""
        return json.dumps(self.to_dict(), indent=2) + "\n"


class RuleLedger:
    """Resolves a model's values against a `QConfig` and keeps account of which of its rules were of use.

    A rule that silently matches nothing is the commonest mistake in a config, so it is an error.

    Example:
        >>> ledger = RuleLedger(QConfig(rules=[Rule(module="conv1", spec=QSpec(bits=4))]))
        >>> ledger.resolve(module="convs.1", role="weight", op="linear")
        (None, None)
        >>> ledger.check()
        Traceback (most recent call last):
        ...
        dqconvert.errors.ConfigError: rules[0] (module='conv1') matches no value: no module's whole path matches
        'conv1'; the nearest is 'convs.1'
    """

    def __init__(self, qconfig: QConfig) -> None:
        self.qconfig = qconfig
        self._used: set[int] = set()
        self._taken_by: dict[int, set[int]] = {index: set() for index in range(len(qconfig.rules))}
        self._modules: set[str] = set()
        self._ops: set[str] = set()

    def resolve(self, *, module: str, role: str, op: str) -> tuple[Spec, int | None]:
        """Returns what `QConfig.spec_for` returns for a value, remembering which rules matched."""
        self._modules.add(module)
        self._ops.add(op)
        spec, winner = self.qconfig.spec_for(module=module, role=role, op=op)
        if winner is not None:
            self._used.add(winner)
            for index, rule in enumerate(self.qconfig.rules[winner + 1 :], start=winner + 1):
                if rule.matches(module, role, op):
                    self._taken_by[index].add(winner)
        return spec, winner

    def check(self) -> None:
        """Checks that each rule was of use, when every value of the model has been resolved.

        Raises:
            ConfigError: It names each rule that matched no value, or only values that earlier rules took.
        """
        rules = self.qconfig.rules
        faults = []
        for index, rule in enumerate(rules):
            if index in self._used:
                continue
            if takers := sorted(self._taken_by[index]):
                earlier = ", ".join(f"rules[{taker}] ({rules[taker]})" for taker in takers)
                fault = f"matches only values that earlier rules took: {earlier}; move it up or remove it"
            else:
                fault = f"matches no value: {self._why_unmatched(rule)}"
            faults.append(f"rules[{index}] ({rule}) {fault}")
        if faults:
            raise ConfigError("\n".join(faults))

    def _why_unmatched(self, rule: Rule) -> str:
        if not self._modules:
            return "the model has no value that could be quantized"
        if rule.module is not None and not any(re.fullmatch(rule.module, path) for path in self._modules):
            nearest = nearest_or_all(rule.module.replace("\\", ""), self._modules)
            return f"no module's whole path matches {rule.module!r}; {nearest}"
        if rule.op is not None and rule.op not in self._ops:
            return f"no value comes from op {rule.op!r}; {nearest_or_all(rule.op, self._ops)}"
        return "no value matches all of its keys at once"


class UnknownPresetError(ConfigError, KeyError):
    """A `KeyError` too, as `in` and `get` of a mapping expect."""

    __str__ = Exception.__str__  # KeyError's would show the message's repr


class Presets(Mapping[str, QConfig]):
    """The named configs: an immutable mapping from name to `QConfig`.

    All are affine and per tensor; weights, messages and aggregates are signed, activations `signed="input"`.

    - `int8-dq`, `int4-dq`: Degree-Quant as its authors' code does it (Tailor, Fernandez-Marques and Lane,
        ICLR 2021): percentile ranges kept as running minimum and maximum, clipped gradient, protection 0.0 to
        0.1.
    - `int8-qat`, `int4-qat`: plain quantization-aware training: moving averages of minimum and maximum
        (momentum 0.01), straight-through gradient, no protection.
    - `int8-ptq`: for calibration without training: weights, which are known exactly, by their minimum and
        maximum; everything else by percentiles, as a few hubs would stretch the range for all; no protection.

    Raises:
        ConfigError: For a name it does not have; it suggests the nearest.

    Example:
        >>> list(presets)
        ['int8-dq', 'int4-dq', 'int8-qat', 'int4-qat', 'int8-ptq']
        >>> presets["int4-dq"].protect
        Protect(p_min=0.0, p_max=0.1)
        >>> presets["int8-gat"]
        Traceback (most recent call last):
        ...
        dqconvert.qconfig.UnknownPresetError: unknown preset 'int8-gat'; did you mean 'int8-qat'? (there are:
        'int8-dq', 'int4-dq', 'int8-qat', 'int4-qat', 'int8-ptq')
    """

    def __init__(self, qconfigs: Mapping[str, QConfig]) -> None:
        self.qconfigs = dict(qconfigs)

    def __getitem__(self, name: str) -> QConfig:
        if isinstance(name, str) and name in self.qconfigs:
            return self.qconfigs[name]
        if reason := _NOT_SERVED_YET.get(f"preset {name!r}"):
            raise UnknownPresetError(f"preset {name!r}: not served yet: {reason}")
        names = ", ".join(map(repr, self))
        raise UnknownPresetError(f"unknown preset {name!r}{did_you_mean(name, self)} (there are: {names})")

    def __iter__(self) -> Iterator[str]:
        return iter(self.qconfigs)

    def __len__(self) -> int:
        return len(self.qconfigs)

    def __repr__(self) -> str:
        return f"Presets({', '.join(self)})"


def _scheme(spec: QSpec, protect: Protect | None = None) -> QConfig:
    signed = replace(spec, signed=True)
    activation = replace(spec, signed="input")
    return QConfig(weight=signed, activation=activation, message=signed, aggregate=signed, protect=protect)


DEFAULT_PRESET = "int8-dq"
presets = Presets(
    {
        "int8-dq": _scheme(QSpec(bits=8, range="percentile", grad="clip"), Protect(p_min=0.0, p_max=0.1)),
        "int4-dq": _scheme(QSpec(bits=4, range="percentile", grad="clip"), Protect(p_min=0.0, p_max=0.1)),
        "int8-qat": _scheme(QSpec(bits=8, range="ema")),
        "int4-qat": _scheme(QSpec(bits=4, range="ema")),
        "int8-ptq": replace(_scheme(QSpec(bits=8, range="percentile")), weight=QSpec(bits=8, signed=True)),
    }
)


def as_qconfig(value: QConfig | Mapping[str, Any] | str | os.PathLike[str] | None) -> QConfig:
    """Returns the `QConfig` that a user's `qconfig` argument stands for.

    Args:
        value: ``None`` (``"int8-dq"``), a preset's name, a path to a ``.toml`` or ``.json`` file, a dict as
            :meth:`QConfig.from_dict` takes it (files hold the same), or a :class:`QConfig`.

    Raises:
        ConfigError: If it is none of these, or wrong within; the message begins with the file's path if one was read.

    Example:
        >>> as_qconfig(None) == presets["int8-dq"]
        True
        >>> as_qconfig({"activation": {"bits": 4}}).activation.percentile_value
        0.01
    """
    if value is None:
        return presets[DEFAULT_PRESET]
    if isinstance(value, QConfig):
        return value
    if isinstance(value, Mapping):
        return QConfig.from_dict(value)
    if isinstance(value, os.PathLike) or (isinstance(value, str) and is_config_path(value)):
        table = read_table(value)
        try:
            return QConfig.from_dict(table)
        except ConfigError as error:
            raise ConfigError(f"{os.fspath(value)}: {error}") from error
    allowed = "None, a preset's name, a path to a .toml or .json file, a dict or a QConfig"
    require("qconfig", value, isinstance(value, str), allowed)
    return presets[value]


def _rule(row: Any, base: QConfig, path: str) -> Rule:
    if isinstance(row, Rule):
        return row
    require(path, row, isinstance(row, Mapping), "a dict of Rule fields or a Rule")
    require_known_keys(row, [field.name for field in fields(Rule)], f"{path}.")
    if "spec" not in row:
        raise ConfigError(f"{path}.spec: missing; give a dict of QSpec fields, or 'float' to leave the value in float")
    keys = {key: value for key, value in row.items() if key != "spec"}
    try:
        rule = Rule(**keys, spec=row["spec"] if callable(row["spec"]) else None)
    except ConfigError as error:
        raise ConfigError(f"{path}.{error}") from error
    if rule.spec is not None:
        return rule
    kind = rule.kind or (KIND_OF_ROLE[rule.role] if rule.role else "activation")
    return replace(rule, spec=override(getattr(base, kind) or QSpec(), row["spec"], f"{path}.spec"))


def _keys_given(rule: Rule) -> dict[str, str]:
    keys = {"module": rule.module, "role": rule.role, "kind": rule.kind, "op": rule.op}
    return {key: value for key, value in keys.items() if value is not None}
