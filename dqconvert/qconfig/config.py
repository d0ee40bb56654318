"""The quantization of a whole model, `QConfig`, and what a `qconfig` argument stands for."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, get_args

from dqconvert.errors import ConfigError
from dqconvert.qconfig.named import DEFAULT_PRESET, FIELDS, Presets
from dqconvert.qconfig.rules import Rule, Spec
from dqconvert.qconfig.specs import KIND_OF_ROLE, KINDS, Norm, Placement, Protect, QSpec, require_bits
from dqconvert.qconfig.tables import (
    as_number,
    format_toml,
    is_config_path,
    none_if_spelled,
    override,
    read_table,
    require,
    require_choice,
    require_known_keys,
    spell_none,
)


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
        placement: ``"paper"`` (the default): as Degree-Quant's code places quantizers, behind dropouts.
            ``"before_dropout"``: an input of a layer is rounded before its dropout, and a message before its attention
            coefficient is dropped; where a quantizer has to stay behind a dropout, on a message that is a dropped row,
            its grid in training is as many times wider as the dropout makes what it keeps. In evaluation both compute
            the same.
        output: Whether results are rounded, too. ``False`` leaves the last ``feature`` and ``update`` in float: values
            of the graph's outputs behind which nothing else is quantized. Scores that differ by less than a step are
            then no ties. Default: true.
        norm: ``"edges"`` (the default): as PyG's layers compute it, a GCN norm multiplies messages. ``"nodes"``: it
            scales the rows that are sent, before their quantizer, and their sums, where edges have no weights
            (:func:`dqconvert.rewrite.norms.fold_norms`); integer sums then are sums of codes. The report says where
            not.
        graph_bits: The width of values of level ``"graph"``, as a :class:`Rule` calls it, and of the weights that make
            them, if no rule says otherwise: behind a pooling one number per feature stands for a whole graph, and few
            rows cost little. ``None`` (the default): that of their kind.
        noise: The share of values, above 0 and up to 1, that are quantized in each step of training, drawn anew each
            time; the others pass in float (Fan et al., *Training with Quantization Noise for Extreme Model
            Compression*, ICLR 2021). Evaluation quantizes all. ``None`` (the default): so does training.
        rules: Exceptions, each a :class:`Rule`; the first that matches a value decides. Default: none.

    Raises:
        ConfigError: If a field is not of its type.

    Configs compare by value, are hashable, and pickle if the factories in their rules do.
    `dataclasses.replace` makes variants. A preset as the base, and messages of the first layer in float:

    Example:
        >>> from dataclasses import replace
        >>> qconfig = replace(presets["int8-dq"], rules=[Rule(module="conv1", role="message", spec=None)])
        >>> qconfig.spec_for(module="conv1", role="message", op="torch.mul", level="edge")
        (None, 0)
        >>> spec, rule_index = qconfig.spec_for(module="conv2", role="message", op="torch.mul", level="edge")
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
    placement: Placement = "paper"
    output: bool = True
    norm: Norm = "edges"
    graph_bits: int | None = None
    noise: float | None = None
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
        if self.weight is not None and self.weight.granularity == "degree":
            raise ConfigError("weight.granularity='degree': a weight has no nodes; it must be 'tensor' or 'channel'")
        is_protect = self.protect is None or isinstance(self.protect, Protect)
        require("protect", self.protect, is_protect, "a Protect or None")
        require_choice("placement", self.placement, get_args(Placement))
        require("output", self.output, isinstance(self.output, bool), "True or False")
        require_choice("norm", self.norm, get_args(Norm))
        if self.graph_bits is not None:
            require_bits("graph_bits", self.graph_bits, "an integer from 2 to 8, or None")
        if self.noise is not None:
            is_share = 0 < as_number(self.noise) <= 1
            require("noise", self.noise, is_share, "a number above 0 and up to 1, or None")
            object.__setattr__(self, "noise", float(self.noise))
        require("rules", self.rules, isinstance(self.rules, list | tuple), "a sequence of Rule objects")
        for index, rule in enumerate(self.rules):
            require(f"rules[{index}]", rule, isinstance(rule, Rule), "a Rule")
        object.__setattr__(self, "rules", tuple(self.rules))

    def spec_for(self, *, module: str, role: str, op: str, level: str) -> tuple[Spec, int | None]:
        """Returns what quantizes a value, and the index of the rule that says so (`None`: the field of its kind)."""
        for index, rule in enumerate(self.rules):
            if rule.matches(module=module, role=role, op=op, level=level):
                return rule.spec, index
        spec: QSpec | None = getattr(self, KIND_OF_ROLE[role])
        if spec is not None and level == "graph" and self.graph_bits is not None:
            spec = replace(spec, bits=self.graph_bits)
        return spec, None

    def to_dict(self) -> dict[str, Any]:
        """Returns the config as plain dicts, lists, strings and numbers, complete: `from_dict` gives an equal config.

        Raises:
            ConfigError: If a rule holds a factory, which only Python code can name.
        """
        table: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, part in table.items():
            if isinstance(part, QSpec | Protect):
                table[name] = {
                    key: list(value) if isinstance(value, tuple) else value for key, value in asdict(part).items()
                }
        table["rules"] = []
        for index, rule in enumerate(self.rules):
            if rule.spec is not None and not isinstance(rule.spec, QSpec):
                raise ConfigError(
                    f"rules[{index}].spec={rule.spec!r}: a factory cannot be written to a file; keep this "
                    "config in Python, or write it without this rule"
                )
            spec = None if rule.spec is None else asdict(rule.spec)
            table["rules"].append({**rule.keys_given(), "spec": spec})
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
            QSpec(bits=4, signed=True, symmetric=False, granularity='tensor', groups=None, range='ema', ...)
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
        changes |= {name: table[name] for name in ("placement", "norm", "output") if name in table}
        changes |= {name: none_if_spelled(name, table[name]) for name in ("graph_bits", "noise") if name in table}
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


presets = Presets({name: QConfig(**given) for name, given in FIELDS.items()})


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
