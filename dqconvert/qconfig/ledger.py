"""Which rules of a config were of use to a model: `RuleLedger`."""

from __future__ import annotations

import re

from dqconvert.errors import ConfigError
from dqconvert.qconfig.config import QConfig
from dqconvert.qconfig.rules import Rule, Spec
from dqconvert.qconfig.tables import nearest_or_all


class RuleLedger:
    """Resolves a model's values against a `QConfig` and keeps account of which of its rules were of use.

    A rule that silently matches nothing is the commonest mistake in a config, so it is an error.

    Example:
        >>> from dqconvert import QSpec
        >>> ledger = RuleLedger(QConfig(rules=[Rule(module="conv1", spec=QSpec(bits=4))]))
        >>> ledger.resolve(module="convs.1", role="weight", op="linear", level="node")
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
        self._levels: set[str] = set()

    def resolve(self, *, module: str, role: str, op: str, level: str) -> tuple[Spec, int | None]:
        """Returns what `QConfig.spec_for` returns for a value, remembering which rules matched."""
        self._modules.add(module)
        self._ops.add(op)
        self._levels.add(level)
        spec, winner = self.qconfig.spec_for(module=module, role=role, op=op, level=level)
        if winner is not None:
            self._used.add(winner)
            for index, rule in enumerate(self.qconfig.rules[winner + 1 :], start=winner + 1):
                if rule.matches(module=module, role=role, op=op, level=level):
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
        if rule.level is not None and rule.level not in self._levels:
            return f"no value is of level {rule.level!r}; there are: {', '.join(map(repr, sorted(self._levels)))}"
        return "no value matches all of its keys at once"
