"""What configs accept, what they refuse and in which words, and that files hold all of them."""

from __future__ import annotations

import json
import math
import pickle
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dqconvert.errors import ConfigError
from dqconvert.qconfig import (
    KIND_OF_ROLE,
    KINDS,
    ROLES,
    Protect,
    QConfig,
    QSpec,
    Rule,
    RuleLedger,
    as_qconfig,
    presets,
)
from dqconvert.qconfig.specs import LevelName, Range

RANGES = " or ".join(", ".join(map(repr, get_args(Range))).rsplit(", ", 1))


def a_factory() -> Any:
    raise AssertionError("configs never call factories")


def refuses(message: str) -> Any:
    """Expects a ConfigError whose whole message is the one given."""
    return pytest.raises(ConfigError, match=f"^{re.escape(message)}$")


def test_the_module_does_not_import_torch() -> None:
    code = "import dqconvert.qconfig, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestQSpec:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"bits": 1}, "bits=1: must be an integer from 2 to 8"),
            ({"bits": 9}, "bits=9: must be an integer from 2 to 8"),
            ({"bits": True}, "bits=True: must be an integer from 2 to 8"),
            ({"bits": 4.0}, "bits=4.0: must be an integer from 2 to 8"),
            ({"signed": 1}, "signed=1: must be True, False, None, 'input' or 'graph'"),
            ({"signed": "auto"}, "signed='auto': must be True, False, None, 'input' or 'graph'"),
            ({"symmetric": 0}, "symmetric=0: must be True or False"),
            ({"granularity": "row"}, "granularity='row': must be 'tensor', 'channel' or 'degree'"),
            ({"range": "max"}, f"range='max': must be {RANGES}"),
            ({"range": ["ema"]}, f"range=['ema']: must be {RANGES}"),
            ({"grad": None}, "grad=None: must be 'ste' or 'clip'"),
            ({"rounding": "up"}, "rounding='up': must be 'nearest' or 'stochastic'"),
            (
                {"range": "percentile", "percentile": 0.5},
                "percentile=0.5: must be a number between 0 and 0.5, or None",
            ),
            (
                {"range": "percentile", "percentile": math.nan},
                "percentile=nan: must be a number between 0 and 0.5, or None",
            ),
            (
                {"range": "percentile", "percentile": "1%"},
                "percentile='1%': must be a number between 0 and 0.5, or None",
            ),
            ({"range": "ema", "momentum": 0}, "momentum=0: must be a number above 0 and up to 1, or None"),
            (
                {"range": "ema", "momentum": True},
                "momentum=True: must be a number above 0 and up to 1, or None",
            ),
            (
                {"range": "percentile", "sample": 1.1},
                "sample=1.1: must be a number above 0 and up to 1, or None",
            ),
            (
                {"percentile": 0.01},
                "percentile=0.01: needs range='percentile'; with range='minmax' it must be None",
            ),
            (
                {"momentum": 0.1},
                "momentum=0.1: needs range='ema' or 'percentile'; with range='minmax' it must be None",
            ),
            (
                {"range": "ema", "sample": 0.5},
                "sample=0.5: needs range='percentile'; with range='ema' it must be None",
            ),
        ],
    )
    def test_refuses(self, fields: dict[str, Any], message: str) -> None:
        with refuses(message):
            QSpec(**fields)

    def test_the_default_percentile_follows_the_bits(self) -> None:
        by_bits = {bits: QSpec(bits=bits, range="percentile").percentile_value for bits in range(2, 9)}
        assert by_bits == {2: 0.01, 3: 0.01, 4: 0.01, 5: 0.001, 6: 0.001, 7: 0.001, 8: 0.001}
        assert QSpec(bits=4, range="percentile", percentile=0.2).percentile_value == 0.2
        assert QSpec(range="ema").percentile_value is None

    def test_the_default_momentum_follows_the_range(self) -> None:
        assert QSpec(range="ema").momentum_value == 0.01
        assert QSpec(range="ema", momentum=1).momentum_value == 1.0
        assert QSpec(range="percentile").momentum_value is None
        assert QSpec(range="percentile", momentum=0.2).momentum_value == 0.2
        assert QSpec().momentum_value is None

    @pytest.mark.parametrize(
        ("bits", "signed", "codes"),
        [
            (8, True, (-128, 127)),
            (8, False, (0, 255)),
            (4, True, (-8, 7)),
            (4, False, (0, 15)),
            (2, True, (-2, 1)),
        ],
    )
    def test_quant_range(self, bits: int, signed: bool, codes: tuple[int, int]) -> None:
        assert QSpec(bits=bits).quant_range(signed) == codes

    @pytest.mark.parametrize("nonnegative", [True, False])
    @pytest.mark.parametrize("role", ROLES)
    def test_signed_for(self, role: str, nonnegative: bool) -> None:
        assert QSpec(signed=True).signed_for(role=role, nonnegative=nonnegative)
        assert not QSpec(signed=False).signed_for(role=role, nonnegative=nonnegative)
        assert QSpec(signed=None).signed_for(role=role, nonnegative=nonnegative) == (not nonnegative)
        only_input_is_unsigned = not (role == "input" and nonnegative)
        assert QSpec(signed="input").signed_for(role=role, nonnegative=nonnegative) == only_input_is_unsigned

    def test_is_frozen_and_keyword_only(self) -> None:
        with pytest.raises(FrozenInstanceError):
            QSpec().bits = 4  # type: ignore[misc]
        with pytest.raises(TypeError):
            QSpec(8)  # type: ignore[call-arg]


class TestProtect:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"p_min": -0.1}, "p_min=-0.1: must be a number from 0 to 1"),
            ({"p_min": None}, "p_min=None: must be a number from 0 to 1"),
            ({"p_max": 1.5}, "p_max=1.5: must be a number from p_min=0.0 to 1"),
            ({"p_max": math.nan}, "p_max=nan: must be a number from p_min=0.0 to 1"),
            ({"p_min": 0.2}, "p_max=0.1: must be a number from p_min=0.2 to 1"),
        ],
    )
    def test_refuses(self, fields: dict[str, Any], message: str) -> None:
        with refuses(message):
            Protect(**fields)

    def test_takes_the_bounds_themselves(self) -> None:
        assert Protect(p_min=0, p_max=1) == Protect(p_min=0.0, p_max=1.0)


class TestRule:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({}, "module=None: at least one of module, role, kind, op and level must be given"),
            ({"module": 3}, "module=3: must be a regular expression or None"),
            (
                {"module": "conv("},
                ("module='conv(': must be a regular expression: missing ), unterminated subpattern at position 4"),
            ),
            (
                {"role": "weights"},
                (
                    "role='weights': must be 'weight', 'input', 'feature', 'edge_weight', 'message', "
                    "'aggregate', 'update' or None"
                ),
            ),
            (
                {"kind": "input"},
                "kind='input': must be 'weight', 'activation', 'message', 'aggregate' or None",
            ),
            (
                {"kind": "weight", "role": "input"},
                "kind='weight': excludes role='input', which is of kind 'activation'",
            ),
            ({"op": ""}, "op='': must be an op's qualified name or None"),
            ({"level": "row"}, "level='row': must be 'node', 'edge', 'graph', 'parameter' or None"),
            (
                {"op": "f", "spec": "float"},
                "spec='float': must be a QSpec, None (float) or a callable that returns an nn.Module",
            ),
        ],
    )
    def test_refuses(self, fields: dict[str, Any], message: str) -> None:
        with refuses(message):
            Rule(**{"spec": None, **fields})

    def test_refuses_a_module_where_a_factory_belongs(self) -> None:
        nn = pytest.importorskip("torch").nn
        message = (
            "spec=Identity(...): is a module; give its class, or a function that returns a new one, as every "
            "matched value needs a quantizer of its own"
        )
        with refuses(message):
            Rule(op="f", spec=nn.Identity())
        assert Rule(op="f", spec=nn.Identity).spec is nn.Identity

    def test_needs_a_spec(self) -> None:
        with pytest.raises(TypeError, match="spec"):
            Rule(module="conv1")  # type: ignore[call-arg]

    @pytest.mark.parametrize(
        ("keys", "matches"),
        [
            ({"module": "convs.0"}, True),
            ({"module": "convs"}, False),
            ({"module": r"convs\..*"}, True),
            ({"module": ""}, False),
            ({"role": "input"}, True),
            ({"role": "update"}, False),
            ({"kind": "activation"}, True),
            ({"kind": "message"}, False),
            ({"op": "torch.relu"}, True),
            ({"op": "torch.rel"}, False),
            ({"level": "graph"}, True),
            ({"level": "node"}, False),
            ({"module": ".*", "role": "input", "kind": "activation", "op": "torch.relu"}, True),
            ({"module": ".*", "level": "edge"}, False),
            ({"module": ".*", "role": "input", "kind": "activation", "op": "torch.add"}, False),
        ],
    )
    def test_matches_if_every_key_given_does(self, keys: dict[str, Any], matches: bool) -> None:
        value = {"module": "convs.0", "role": "input", "op": "torch.relu", "level": "graph"}
        assert Rule(**keys, spec=None).matches(**value) == matches

    def test_prints_the_keys_given(self) -> None:
        assert str(Rule(module="conv1.*", role="input", spec=QSpec())) == "module='conv1.*', role='input'"
        assert str(Rule(level="graph", spec=None)) == "level='graph'"


class TestQConfig:
    def test_leaves_everything_in_float_by_default(self) -> None:
        specs = [QConfig().spec_for(module="conv", role=role, op="f", level="node") for role in ROLES]
        assert specs == [(None, None)] * len(ROLES)

    def test_every_role_has_a_kind(self) -> None:
        assert tuple(KIND_OF_ROLE) == ROLES
        assert set(KIND_OF_ROLE.values()) == set(KINDS)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"weight": 8}, "weight=8: must be a QSpec or None (float)"),
            ({"protect": 0.1}, "protect=0.1: must be a Protect or None"),
            ({"noise": 0}, "noise=0: must be a number above 0 and up to 1, or None"),
            ({"graph_bits": 9}, "graph_bits=9: must be an integer from 2 to 8, or None"),
            ({"graph_bits": True}, "graph_bits=True: must be an integer from 2 to 8, or None"),
            ({"noise": "some"}, "noise='some': must be a number above 0 and up to 1, or None"),
            ({"rules": "conv1"}, "rules='conv1': must be a sequence of Rule objects"),
            ({"rules": [None]}, "rules[0]=None: must be a Rule"),
        ],
    )
    def test_refuses(self, fields: dict[str, Any], message: str) -> None:
        with refuses(message):
            QConfig(**fields)

    def test_the_first_matching_rule_decides(self) -> None:
        special, general = QSpec(bits=4), QSpec(bits=6)
        rules = (
            Rule(module="conv1", spec=special),
            Rule(role="input", spec=general),
            Rule(op="f", spec=a_factory),
        )
        qconfig = QConfig(weight=QSpec(), rules=rules)

        def found(module: str, role: str, op: str) -> Any:
            return qconfig.spec_for(module=module, role=role, op=op, level="node")

        assert found("conv1", "input", "f") == (special, 0)
        assert found("conv2", "input", "f") == (general, 1)
        assert found("conv2", "weight", "f") == (a_factory, 2)
        assert found("conv2", "weight", "g") == (QSpec(), None)

    def test_graphs_have_bits_of_their_own_where_no_rule_says_otherwise(self) -> None:
        four, three = QSpec(bits=4, range="percentile"), QSpec(bits=3)
        qconfig = QConfig(weight=four, activation=four, graph_bits=8, rules=[Rule(op="g", spec=three)])

        def found(role: str, op: str, level: str) -> Any:
            return qconfig.spec_for(module="", role=role, op=op, level=level)

        assert found("input", "f", "node") == found("weight", "f", "parameter") == (four, None)
        assert found("input", "f", "graph") == found("weight", "f", "graph") == (replace(four, bits=8), None)
        assert found("input", "g", "graph") == (three, 0)
        assert found("message", "f", "graph") == (None, None)

    def test_is_hashable_and_picklable(self) -> None:
        rules = (Rule(module="a", spec=a_factory), Rule(role="input", spec=None))
        qconfig = replace(presets["int4-dq"], rules=rules)
        assert pickle.loads(pickle.dumps(qconfig)) == qconfig
        assert hash(pickle.loads(pickle.dumps(qconfig))) == hash(qconfig)


class TestRuleLedger:
    VALUES = (("convs.0", "input", "relu"), ("convs.0", "weight", "linear"), ("convs.1", "weight", "linear"))

    def ledger(self, *rules: Rule) -> RuleLedger:
        ledger = RuleLedger(QConfig(rules=rules))
        for module, role, op in self.VALUES:
            ledger.resolve(module=module, role=role, op=op, level="node")
        return ledger

    def test_resolves_as_the_config_does(self) -> None:
        qconfig = QConfig(weight=QSpec(), rules=(Rule(module="convs.0", spec=QSpec(bits=4)),))
        ledger = RuleLedger(qconfig)
        for module, role, op in self.VALUES:
            value = {"module": module, "role": role, "op": op, "level": "node"}
            assert ledger.resolve(**value) == qconfig.spec_for(**value)

    def test_accepts_rules_that_decide_something(self) -> None:
        self.ledger(Rule(module="convs.0", role="input", spec=None), Rule(module=r"convs\..*", spec=None)).check()

    @pytest.mark.parametrize(
        ("rule", "why"),
        [
            (
                Rule(module=r"conv\.0", spec=None),
                (
                    r"rules[0] (module='conv\\.0') matches no value: no module's whole path matches "
                    r"'conv\\.0'; the nearest is 'convs.0'"
                ),
            ),
            (
                Rule(module="encoder", spec=None),
                (
                    "rules[0] (module='encoder') matches no value: no module's whole path matches 'encoder'; "
                    "there are: 'convs.0', 'convs.1'"
                ),
            ),
            (
                Rule(op="linea", spec=None),
                ("rules[0] (op='linea') matches no value: no value comes from op 'linea'; the nearest is 'linear'"),
            ),
            (
                Rule(level="graph", spec=None),
                "rules[0] (level='graph') matches no value: no value is of level 'graph'; there are: 'node'",
            ),
            (
                Rule(module="convs.1", role="input", spec=None),
                (
                    "rules[0] (module='convs.1', role='input') matches no value: no value matches all of its "
                    "keys at once"
                ),
            ),
        ],
    )
    def test_a_rule_that_matches_nothing_is_an_error(self, rule: Rule, why: str) -> None:
        with refuses(why):
            self.ledger(rule).check()

    def test_a_rule_whose_values_earlier_rules_took_is_an_error(self) -> None:
        message = (
            "rules[2] (kind='weight') matches only values that earlier rules took: "
            "rules[0] (module='convs.0'), rules[1] (role='weight'); move it up or remove it"
        )
        with refuses(message):
            self.ledger(
                Rule(module="convs.0", spec=None),
                Rule(role="weight", spec=None),
                Rule(kind="weight", spec=None),
            ).check()

    def test_all_useless_rules_are_named_at_once(self) -> None:
        with pytest.raises(ConfigError) as caught:
            self.ledger(Rule(role="update", spec=None), Rule(kind="message", spec=None)).check()
        assert [line[:8] for line in str(caught.value).splitlines()] == ["rules[0]", "rules[1]"]

    def test_a_model_without_values(self) -> None:
        with refuses("rules[0] (role='input') matches no value: the model has no value that could be quantized"):
            RuleLedger(QConfig(rules=(Rule(role="input", spec=None),))).check()


class TestPresets:
    @pytest.mark.parametrize(("name", "bits", "percentile"), [("int8-dq", 8, 0.001), ("int4-dq", 4, 0.01)])
    def test_degree_quant(self, name: str, bits: int, percentile: float) -> None:
        qconfig = presets[name]
        spec = QSpec(bits=bits, signed=True, range="percentile", grad="clip")
        assert (spec.percentile_value, spec.momentum_value) == (percentile, None)
        assert qconfig.weight == qconfig.message == qconfig.aggregate == spec
        assert qconfig.activation == replace(spec, signed="input")
        assert qconfig.protect == Protect(p_min=0.0, p_max=0.1)

    @pytest.mark.parametrize(("name", "bits"), [("int8-qat", 8), ("int4-qat", 4)])
    def test_quantization_aware_training(self, name: str, bits: int) -> None:
        qconfig = presets[name]
        spec = QSpec(bits=bits, signed=True, range="ema", grad="ste")
        assert spec.momentum_value == 0.01
        assert qconfig.weight == qconfig.message == qconfig.aggregate == spec
        assert qconfig.activation == replace(spec, signed="input")
        assert qconfig.protect is None

    def test_post_training(self) -> None:
        qconfig = presets["int8-ptq"]
        assert qconfig.weight == QSpec(signed=True, range="minmax")
        assert qconfig.message == qconfig.aggregate == QSpec(signed=True, range="percentile")
        assert qconfig.activation == QSpec(signed="input", range="percentile")
        assert qconfig.protect is None

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            (
                "int8_dq",
                f"unknown preset 'int8_dq'; did you mean 'int8-dq'? (there are: {', '.join(map(repr, presets))})",
            ),
            (
                "best",
                f"unknown preset 'best' (there are: {', '.join(map(repr, presets))})",
            ),
        ],
    )
    def test_refuses(self, name: str, message: str) -> None:
        for ask in (presets.__getitem__, as_qconfig):
            with refuses(message):
                ask(name)
        assert name not in presets
        assert presets.get(name) is None

    def test_is_immutable(self) -> None:
        with pytest.raises(TypeError):
            presets["mine"] = QConfig()  # type: ignore[index]


class TestAsQConfig:
    def test_default_name_and_object(self) -> None:
        assert as_qconfig(None) is as_qconfig("int8-dq") is presets["int8-dq"]
        qconfig = QConfig(weight=QSpec())
        assert as_qconfig(qconfig) is qconfig

    @pytest.mark.parametrize("value", [3, b"int8-dq", ["int8-dq"]])
    def test_refuses_other_types(self, value: Any) -> None:
        allowed = "None, a preset's name, a path to a .toml or .json file, a dict or a QConfig"
        with refuses(f"qconfig={value!r}: must be {allowed}"):
            as_qconfig(value)

    def test_a_dict_overrides_the_default_preset(self) -> None:
        qconfig = as_qconfig({"activation": {"bits": 4}, "protect": {"p_max": 0.3}, "message": QSpec()})
        base = presets["int8-dq"]
        assert base.activation is not None
        assert qconfig == replace(
            base, activation=replace(base.activation, bits=4), protect=Protect(p_max=0.3), message=QSpec()
        )
        assert qconfig.activation is not None
        assert qconfig.activation.percentile_value == 0.01

    def test_a_dict_may_name_its_base(self) -> None:
        assert as_qconfig({"preset": "int4-qat"}) == presets["int4-qat"]
        assert as_qconfig({"preset": "int4-qat", "protect": {}}).protect == Protect()

    @pytest.mark.parametrize("nothing", [None, "float"])
    def test_a_kind_can_stay_float(self, nothing: str | None) -> None:
        assert as_qconfig({"aggregate": nothing}) == replace(presets["int8-dq"], aggregate=None)

    @pytest.mark.parametrize("nothing", [None, "none"])
    def test_protection_can_be_turned_off(self, nothing: str | None) -> None:
        assert as_qconfig({"protect": nothing}) == replace(presets["int8-dq"], protect=None)

    @pytest.mark.parametrize("nothing", [None, "auto"])
    def test_a_field_can_go_back_to_automatic(self, nothing: str | None) -> None:
        plain = as_qconfig({"preset": "int4-dq+", "graph_bits": nothing})
        assert plain == replace(presets["int4-dq+"], graph_bits=None)
        weight = as_qconfig({"weight": {"signed": nothing}}).weight
        assert weight is not None
        assert weight.signed is None

    def test_a_rules_spec_overrides_the_spec_of_its_kind(self) -> None:
        table = {
            "weight": {"granularity": "channel"},
            "rules": [
                {"kind": "weight", "module": "conv1", "spec": {"bits": 4}},
                {"role": "message", "spec": {"grad": "ste"}},
                {"module": "conv1", "spec": {"bits": 4}},
                {"module": "conv2", "spec": "float"},
                {"op": "f", "spec": a_factory},
                Rule(op="g", spec=QSpec()),
            ],
        }
        qconfig = as_qconfig(table)
        dq = QSpec(range="percentile", grad="clip")
        assert [rule.spec for rule in qconfig.rules] == [
            replace(dq, bits=4, signed=True, granularity="channel"),
            replace(dq, signed=True, grad="ste"),
            replace(dq, bits=4, signed="input"),
            None,
            a_factory,
            QSpec(),
        ]

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            ({"activation": {"bit": 4}}, "activation.bit: unknown field; did you mean 'bits'?"),
            ({"activations": {"bits": 4}}, "activations: unknown field; did you mean 'activation'?"),
            (
                {"protect": {"roles": []}},
                (
                    "protect.roles=[]: must be one or more of 'input', 'feature', 'edge_weight', 'message', "
                    "'aggregate', 'update', or None"
                ),
            ),
            ({"protect": {"q": 1}}, "protect.q: unknown field; there are: 'p_min', 'p_max', 'roles'"),
            ({"weight": {"bits": 16}}, "weight.bits=16: must be an integer from 2 to 8"),
            ({"weight": 4}, "weight=4: must be a dict of QSpec fields, a QSpec, None or 'float'"),
            ({"weight": "none"}, "weight='none': must be a dict of QSpec fields, a QSpec, None or 'float'"),
            (
                {"protect": False},
                "protect=False: must be a dict of Protect fields, a Protect, None or 'none'",
            ),
            ({"protect": {"p_max": 7}}, "protect.p_max=7: must be a number from p_min=0.0 to 1"),
            ({"rules": {"role": "input"}}, "rules={'role': 'input'}: must be a list of rules"),
            ({"rules": ["conv1"]}, "rules[0]='conv1': must be a dict of Rule fields or a Rule"),
            (
                {"rules": [{"module": "conv1"}]},
                "rules[0].spec: missing; give a dict of QSpec fields, or 'float' to leave the value in float",
            ),
            (
                {"rules": [{"spec": "float"}]},
                "rules[0].module=None: at least one of module, role, kind, op and level must be given",
            ),
            (
                {"rules": [{"modul": "a", "spec": None}]},
                "rules[0].modul: unknown field; did you mean 'module'?",
            ),
            (
                {"rules": [{"op": "f", "spec": {"range": "min"}}]},
                f"rules[0].spec.range='min': must be {RANGES}",
            ),
            (
                {"rules": [{"op": "f", "spec": {"bit": 2}}]},
                "rules[0].spec.bit: unknown field; did you mean 'bits'?",
            ),
            ({"noise": 1.5}, "noise=1.5: must be a number above 0 and up to 1, or None"),
            (
                {"preset": None},
                f"unknown preset None (there are: {', '.join(map(repr, presets))})",
            ),
        ],
    )
    def test_refuses_naming_the_dotted_path(self, table: dict[str, Any], message: str) -> None:
        with refuses(message):
            as_qconfig(table)


class TestFiles:
    def test_toml(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.toml"
        path.write_text(
            """
            preset = "int4-dq"
            aggregate = "float"
            protect = "none"

            [activation]
            bits = 8
            signed = "auto"

            [[rules]]
            module = 'convs\\.0'
            kind = "weight"
            spec = { bits = 8 }
            """
        )
        base = presets["int4-dq"]
        assert base.weight is not None
        assert base.activation is not None
        expected = replace(
            base,
            aggregate=None,
            protect=None,
            activation=replace(base.activation, bits=8, signed=None),
            rules=(Rule(module=r"convs\.0", kind="weight", spec=replace(base.weight, bits=8)),),
        )
        assert as_qconfig(path) == as_qconfig(str(path)) == expected

    def test_json(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.JSON"
        path.write_text(json.dumps({"message": None, "weight": {"signed": None}}))
        assert as_qconfig(path) == as_qconfig({"message": None, "weight": {"signed": None}})

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("a.toml", "bits = = 4", "malformed: Invalid value (at line 1, column 8)"),
            ("a.json", '{"weight": }', "malformed: Expecting value: line 1 column 12 (char 11)"),
            ("a.json", "[1]", "must hold an object with a config's fields, not [1]"),
            ("a.yaml", "bits: 4", "a config file's name must end in .toml or .json"),
            ("a.toml", "[weight]\nbit = 4", "weight.bit: unknown field; did you mean 'bits'?"),
            ("missing.toml", None, "there is no such file."),
        ],
    )
    def test_refuses_naming_the_file(self, tmp_path: Path, name: str, text: str | None, message: str) -> None:
        path = tmp_path / name
        if text is not None:
            path.write_text(text)
        for value in (path, str(path)):
            with refuses(f"{path}: {message}"):
                as_qconfig(value)

    def test_refuses_what_is_not_text(self, tmp_path: Path) -> None:
        path = tmp_path / "a.toml"
        path.write_bytes(b"\xff\xfe")
        with pytest.raises(ConfigError, match=r"a\.toml: malformed: 'utf-8' codec can't decode"):
            as_qconfig(path)

    def test_a_factory_cannot_be_written(self) -> None:
        qconfig = QConfig(rules=(Rule(op="g", spec=None), Rule(op="f", spec=a_factory)))
        for write in (qconfig.to_dict, qconfig.to_toml, qconfig.to_json):
            with pytest.raises(ConfigError, match=r"^rules\[1\]\.spec=<function a_factory.*cannot be written"):
                write()

    @pytest.mark.parametrize("name", presets)
    def test_presets_come_back(self, name: str, tmp_path: Path) -> None:
        toml, jsn = tmp_path / "q.toml", tmp_path / "q.json"
        toml.write_text(presets[name].to_toml())
        jsn.write_text(presets[name].to_json())
        assert as_qconfig(toml) == as_qconfig(jsn) == presets[name]


def shares(upto: float, *, exclude_max: bool = False) -> st.SearchStrategy[float | None]:
    return st.none() | st.floats(0, upto, exclude_min=True, exclude_max=exclude_max)


@st.composite
def specs(draw: st.DrawFn) -> QSpec:
    chosen = draw(st.sampled_from(["minmax", "ema", "percentile"]))
    fields: dict[str, Any] = {}
    if chosen != "minmax":
        fields["momentum"] = draw(shares(1))
    if chosen == "percentile":
        fields |= {"percentile": draw(shares(0.5, exclude_max=True)), "sample": draw(shares(1))}
    return QSpec(
        bits=draw(st.integers(2, 8)),
        signed=draw(st.sampled_from([None, True, False, "input"])),
        symmetric=draw(st.booleans()),
        granularity=draw(st.sampled_from(["tensor", "channel"])),
        range=chosen,  # type: ignore[arg-type]
        grad=draw(st.sampled_from(["ste", "clip"])),
        **fields,
    )


# What file formats must escape, and some that they need not.
names = st.text(st.sampled_from("aZ0._-*\"'\\#=[]{} \n\r\t\x00\x1f\x7f\x85\u2028é\U0001f600"), min_size=1)


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    role = draw(st.none() | st.sampled_from(ROLES))
    kinds = [None, KIND_OF_ROLE[role]] if role else [None, *KINDS]
    patterns = names.map(re.escape) | st.sampled_from([r"convs\.\d+", r".*(?:\"|')", ""])
    op = draw(st.none() | names)
    kind = draw(st.sampled_from(kinds))
    level = draw(st.none() | st.sampled_from(get_args(LevelName)))
    module = draw(st.none() | patterns if role or kind or op or level else patterns)
    return Rule(module=module, role=role, kind=kind, op=op, level=level, spec=draw(st.none() | specs()))


@st.composite
def protects(draw: st.DrawFn) -> Protect:
    p_min, p_max = sorted(draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
    return Protect(p_min=p_min, p_max=p_max)


qconfigs = st.builds(
    QConfig,
    **dict.fromkeys(KINDS, st.none() | specs()),
    protect=st.none() | protects(),
    noise=st.none() | st.sampled_from([0.1, 0.5, 1.0]),
    graph_bits=st.none() | st.integers(2, 8),
    rules=st.lists(rules(), max_size=3),
)


@settings(max_examples=40)
@given(qconfig=qconfigs)
def test_every_config_comes_back_from_a_dict_and_from_files(
    qconfig: QConfig, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert as_qconfig(qconfig.to_dict()) == qconfig
    folder = tmp_path_factory.getbasetemp()
    for name, text in (("q.toml", qconfig.to_toml()), ("q.json", qconfig.to_json())):
        (folder / name).write_text(text)
        assert as_qconfig(folder / name) == qconfig
