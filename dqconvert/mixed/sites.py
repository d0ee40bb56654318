"""The values of a model whose bits can be chosen, and the config that gives each its bits."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from dqconvert.prepare import prepare
from dqconvert.prepared.base import PreparedBase
from dqconvert.qconfig import QConfig, QSpec, Rule, Spec


class Key(NamedTuple):
    """What a rule can tell quantizers apart by: all of one key have one spec."""

    module: str
    role: Any
    op: str
    level: Any


class BitSite(NamedTuple):
    """Quantizers whose bits are chosen together: those of one key, and of several where layers share one quantizer."""

    name: str
    keys: tuple[Key, ...]


def keys_of(module: PreparedBase) -> dict[str, Key]:
    """Returns the key of each quantizer that a :class:`~dqconvert.QSpec` made, by path."""
    entries = [entry for entry in module.report.entries if entry.bits]
    return {entry.path: Key(entry.module, entry.role, entry.op, entry.rule_level) for entry in entries}


def sites_of(module: PreparedBase) -> tuple[BitSite, ...]:
    """Returns the sites of a prepared module, in the order of its report; the name of each is a quantizer's path.

    Layers that read one value share its quantizer as long as their specs are equal, and the report names the first of
    them. To find the others, modules that let values pass are put in the place of those known, until no new one shows.
    """
    named = keys_of(module)
    known = list(dict.fromkeys(named.values()))
    while True:
        specs = {key: partial(_Through, key) for key in known}  # no two of them are equal: nothing is shared
        probed = prepare(module, _with_rules(module.qconfig, specs, rules_kept(module, known)), fuse=False).module
        new = list(dict.fromkeys(key for key in keys_of(probed).values() if key not in specs))
        if not new:
            break
        known += new
    groups = {key: [key] for key in known}
    for together in _reading_one_value(probed):
        merged = list(dict.fromkeys(key for one in together for key in groups[one]))
        groups |= dict.fromkeys(merged, merged)
    sites: dict[int, BitSite] = {}
    for path, key in named.items():
        sites.setdefault(id(groups[key]), BitSite(path, tuple(groups[key])))
    return tuple(sites.values())


class _Through(nn.Module):
    """Stands in for a quantizer while the model is prepared again."""

    def __init__(self, key: Key) -> None:
        super().__init__()
        self.key = key

    def forward(self, x: Tensor, protected: Tensor | None) -> Tensor:
        return x


def _reading_one_value(probed: PreparedBase) -> list[list[Key]]:
    """Returns the keys of the quantizers of one value, for each value that has several."""
    values: dict[Any, list[Key]] = {}
    for method in probed.all_methods():
        for graph in method.graphs():
            for node in graph.nodes:
                called = probed.get_submodule(str(node.target)) if node.op == "call_module" else None
                if isinstance(called, _Through):
                    values.setdefault(node.args[0], []).append(called.key)
    return [keys for keys in values.values() if len(keys) > 1]


# -- configs -----------------------------------------------------------------------------------------------------


def config_with(base: QConfig, bits: Mapping[Key, int], kept: tuple[Rule, ...]) -> QConfig:
    """Returns a config with a rule for each key that gives its values their bits; all else is as in ``base``.

    Args:
        base: The config.
        bits: By key.
        kept: From :func:`rules_kept`.
    """
    specs: dict[Key, Spec] = {}
    for key, width in bits.items():
        spec, _ = base.spec_for(**key._asdict())
        assert isinstance(spec, QSpec)
        specs[key] = replace(spec, bits=width)
    return _with_rules(base, specs, kept)


def rules_kept(module: PreparedBase, keys: Iterable[Key]) -> tuple[Rule, ...]:
    """Returns the rules of a module's config that say something of values without one of these keys.

    All that leave values in float or to the user's own quantizers, and of the others those that a quantizer is left of.
    """
    base, known = module.qconfig, set(keys)
    left = [key for key in keys_of(module).values() if key not in known]
    used = {base.spec_for(**key._asdict())[1] for key in left}
    rules = enumerate(base.rules)
    return tuple(rule for index, rule in rules if not isinstance(rule.spec, QSpec) or index in used)


def _with_rules(base: QConfig, specs: Mapping[Key, Spec], kept: tuple[Rule, ...]) -> QConfig:
    places = Counter((key.module, key.role) for key in specs)
    by_op = any(rule.op is not None for rule in base.rules)
    ops = Counter(key[:3] for key in specs)
    by_level = any(rule.level is not None for rule in base.rules)
    rules = []
    for key, spec in specs.items():
        op = key.op if by_op or places[key.module, key.role] > 1 else None
        level = key.level if by_level or ops[key[:3]] > 1 else None
        rules.append(Rule(module=re.escape(key.module), role=key.role, op=op, level=level, spec=spec))
    return replace(base, rules=(*rules, *kept))
