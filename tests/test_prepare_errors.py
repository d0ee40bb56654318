"""What prepare() and prepared modules refuse, and that the message says where and what to do."""

import inspect
import re

import pytest
import torch
from torch import nn
from torch_geometric.nn import GCN, GCNConv, SAGEConv, Set2Set, aggr, global_mean_pool

import dqconvert
import zoo
from dqconvert import ConfigError, DQConvertError, GuardError, ObserverError, QConfig, QSpec, Rule, TraceError
from dqconvert.errors import ArgumentError
from dqconvert.trace.guards import pinned


def line_of(function, text):
    """``file:line`` of the first line with ``text`` in a function's source."""
    lines, first = inspect.getsourcelines(function)
    number = next(first + offset for offset, line in enumerate(lines) if text in line)
    return f"{inspect.getsourcefile(function).rpartition('/')[2]}:{number}"


def message_of(error_info):
    return str(error_info.value)


# -- branches on values ------------------------------------------------------------------------------------------


def test_a_branch_on_values_at_the_root_is_an_error():
    with pytest.raises(TraceError) as info:
        dqconvert.prepare(zoo.GatedRoot(), None, zoo.graph())
    assert line_of(zoo.GatedRoot.forward, "if h.sum()") in message_of(info)
    assert "root module" in message_of(info)
    assert "torch.where" in message_of(info)


def test_a_branch_on_values_leaves_its_submodule_in_float():
    module, report = dqconvert.prepare(zoo.HasGated(), None, zoo.graph())
    (left,) = [left for left in report.left_float if left.what == "gate"]
    assert line_of(zoo.Gated.forward, "if x.mean()").rpartition(":")[2] in left.source
    assert "zoo.py" in left.source
    assert left.reason
    assert "gate" in str(report)
    assert isinstance(module.gate, zoo.Gated)
    # What the submodule branches on still decides, and its surroundings are quantized.
    plain, _ = dqconvert.prepare(zoo.HasGated(), QConfig(), zoo.graph())
    model = zoo.HasGated()
    model.load_state_dict(plain.state_dict())
    x, edge_index = zoo.graph()
    for inputs in ((x, edge_index), (-x, edge_index)):
        zoo.assert_same(zoo.train_step(plain, inputs), zoo.train_step(model, inputs))
    assert report.totals["role"]["message"] == 2


def test_strict_refuses_to_leave_a_submodule_in_float():
    with pytest.raises(TraceError) as info:
        dqconvert.prepare(zoo.HasGated(), None, zoo.graph(), strict=True)
    assert line_of(zoo.Gated.forward, "if x.mean()") in message_of(info)
    assert "'gate'" in message_of(info)


def test_strict_accepts_what_can_be_traced():
    assert dqconvert.prepare(zoo.WeightedGCN(), None, zoo.graph(), strict=True).report.entries


@pytest.mark.parametrize("expression", ["float(h.sum())", "h.max().item()", "h.tolist()", "bool((h > 0).any())"])
def test_a_value_turned_into_a_python_number_is_an_error(expression):
    class Leaky(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = GCNConv(zoo.WIDTH, 4)

        def forward(self, x, edge_index):
            h = self.conv(x, edge_index)
            value = eval(expression)
            while isinstance(value, list):
                value = value[0]
            return h * 2 if value > 0 else h * 3

    with pytest.raises(TraceError) as info:
        dqconvert.prepare(Leaky(), None, zoo.graph())
    assert re.search(r"\.py:\d+|<string>:\d+", message_of(info))


# -- inputs ------------------------------------------------------------------------------------------------------


def test_inputs_that_cannot_be_made_up():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = GCNConv(zoo.WIDTH, 4)

        def forward(self, molecules, edge_index):
            return self.conv(molecules, edge_index)

    with pytest.raises(TraceError) as info:
        dqconvert.prepare(Odd())
    assert "'molecules'" in message_of(info)
    assert "example_inputs=(molecules, edge_index,)" in message_of(info)
    assert dqconvert.prepare(Odd(), None, zoo.graph()).report.entries


def test_made_up_inputs_that_the_model_rejects():
    class Picky(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = GCNConv(zoo.WIDTH, 4)

        def forward(self, x, edge_index):
            if x.size(0) != 100:
                raise ValueError("exactly 100 nodes")
            return self.conv(x, edge_index)

    with pytest.raises(TraceError, match=r"rejected every guess.*exactly 100 nodes") as info:
        dqconvert.prepare(Picky())
    assert "Pass example_inputs" in message_of(info)


def test_example_inputs_that_the_model_rejects():
    x, edge_index = zoo.graph(width=9)
    with pytest.raises(TraceError, match=r"GCN\.forward rejects the example_inputs") as info:
        dqconvert.prepare(GCN(zoo.WIDTH, 8, 2), None, (x, edge_index))
    assert "x: float32 [11, 9]" in message_of(info)
    assert "edge_index: int64 [2, 30]" in message_of(info)


@pytest.mark.parametrize("example", [(), {"x": torch.ones(2, zoo.WIDTH)}, (1, 2, 3, 4, 5, 6, 7, 8, 9)])
def test_example_inputs_that_do_not_fit_the_signature(example):
    with pytest.raises(TraceError, match=r"example_inputs do not fit GCN\.forward"):
        dqconvert.prepare(GCN(zoo.WIDTH, 8, 2), None, example)


def test_a_method_that_is_not_there():
    with pytest.raises(TraceError, match="GCN has no method 'embed'"):
        dqconvert.prepare(GCN(zoo.WIDTH, 8, 2), method="embed")


def lazy_models():
    return {"conv": SAGEConv(-1, 4), "basic": GCN(-1, 8, 2, 4)}


@pytest.mark.parametrize("name", lazy_models())
def test_a_lazy_module_needs_example_inputs(name):
    model = lazy_models()[name]
    with pytest.raises(TraceError, match="lazy parameters") as info:
        dqconvert.prepare(model)
    assert "pass example_inputs to prepare()" in message_of(info)
    assert "weight" in message_of(info)

    module, _ = dqconvert.prepare(model, None, zoo.graph())
    assert any(isinstance(p, nn.UninitializedParameter) for p in model.parameters())
    assert not any(isinstance(p, nn.UninitializedParameter) for p in module.parameters())
    zoo.train_step(module, zoo.graph(zoo.OTHER))
    assert zoo.evaluate(module, zoo.graph()).shape == (zoo.TRACED[0], 4)


def test_nothing_to_quantize():
    class Sum(nn.Module):
        def forward(self, x):
            return x.relu().sum(dim=0)

    with pytest.raises(TraceError, match=r"no weighted operation .* and no message passing"):
        dqconvert.prepare(Sum(), None, (torch.randn(5, 3),))


def test_a_model_that_cannot_be_copied():
    model = zoo.WeightedGCN()
    model.lines = (line for line in "ab")
    with pytest.raises(TraceError, match=r"WeightedGCN cannot be deep-copied .*prepare\(\) works on a copy"):
        dqconvert.prepare(model, None, zoo.graph())


# -- configs -----------------------------------------------------------------------------------------------------


def test_a_rule_that_matches_no_module():
    config = QConfig(weight=QSpec(), rules=[Rule(module=r"convs\.7", spec=None)])
    with pytest.raises(ConfigError, match=re.escape(r"rules[0] (module='convs\\.7') matches no value")) as info:
        dqconvert.prepare(GCN(zoo.WIDTH, 8, 2), config)
    assert "convs.1" in message_of(info)


def test_a_rule_that_matches_no_op():
    config = QConfig(weight=QSpec(), rules=[Rule(op="torch.nn.functional.lineer", spec=None)])
    with pytest.raises(ConfigError, match=r"no value comes from op 'torch\.nn\.functional\.lineer'") as info:
        dqconvert.prepare(GCN(zoo.WIDTH, 8, 2), config)
    assert "torch.nn.functional.linear'" in message_of(info)


def test_a_rule_whose_values_earlier_rules_took():
    config = QConfig(rules=[Rule(kind="weight", spec=QSpec()), Rule(role="weight", spec=None)])
    with pytest.raises(ConfigError, match=r"rules\[1\] .* only values that earlier rules took: rules\[0\]"):
        dqconvert.prepare(GCN(zoo.WIDTH, 8, 2), config)


def test_an_unknown_preset():
    with pytest.raises(ConfigError, match="unknown preset 'int8-gq'; did you mean 'int8-dq'") as info:
        dqconvert.prepare(GCN(zoo.WIDTH, 8, 2), "int8-gq")
    assert "'int4-qat'" in message_of(info)


@pytest.mark.parametrize("bits", [1, 9, 16, 0, -4])
def test_bits_out_of_bounds(bits):
    with pytest.raises(ConfigError, match=f"bits={bits}: must be an integer from 2 to 8"):
        dqconvert.prepare(GCN(zoo.WIDTH, 8, 2), {"message": {"bits": bits}})


@pytest.mark.parametrize("bits", range(2, 9))
def test_bits_within_bounds(bits):
    module, report = dqconvert.prepare(GCNConv(zoo.WIDTH, 4), QConfig(weight=QSpec(bits=bits)))
    zoo.train_step(module, zoo.graph())
    assert report.entries[0].bits == bits
    assert module.lin.quant.weight(module.lin.weight).unique().numel() <= 2**bits


def test_an_unknown_field():
    with pytest.raises(ConfigError, match="mesage: unknown field; did you mean 'message'"):
        dqconvert.prepare(GCN(zoo.WIDTH, 8, 2), {"mesage": None})


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises((ConfigError, FileNotFoundError), match=r"missing\.toml"):
        dqconvert.prepare(GCN(zoo.WIDTH, 8, 2), tmp_path / "missing.toml")


def test_a_factory_that_returns_no_module():
    with pytest.raises(ConfigError, match=r"convs\.0\.quant\.message returned an int, not a module"):
        dqconvert.prepare(GCN(zoo.WIDTH, 8, 2), QConfig(rules=[Rule(role="message", spec=lambda: 3)]))


# -- calls of the prepared module --------------------------------------------------------------------------------


def test_what_a_graph_refuses_says_what_to_do():
    with pytest.raises(ArgumentError, match="argument 'edge_weight' was absent") as info:
        pinned(torch.ones(2), None, "edge_weight")
    assert "prepare the model again" in message_of(info)
    assert isinstance(info.value, GuardError)
    assert isinstance(info.value, DQConvertError)


@pytest.mark.parametrize("name", ["GCN", "GATConv", "WeightedGCN"])
def test_evaluation_before_any_training_step(name, prepared):
    module, report = prepared(name)
    module.eval()
    with pytest.raises(ObserverError, match="never observed a value") as info:
        module(*zoo.CASES[name].inputs())
    first = re.search("quantizer '([^']*)'", message_of(info)).group(1)
    assert first in {entry.path for entry in report.entries}
    assert "dqconvert.calibrate" in message_of(info)


def test_evaluation_after_calibration():
    module, _ = dqconvert.prepare(zoo.CASES["GCN"].model(), "int8-ptq", zoo.graph())
    dqconvert.calibrate(module, zoo.graph())
    assert zoo.evaluate(module, zoo.graph(zoo.OTHER)).isfinite().all()


@pytest.mark.parametrize("length", [0, 5, zoo.TRACED[0] + 1])
def test_protect_prob_of_another_length(prepared, length):
    module, _ = prepared("GCN")
    module.train()
    with pytest.raises(ConfigError, match="protect_prob must have one probability per node") as info:
        module(*zoo.graph(), protect_prob=torch.zeros(length))
    assert f"({length},) for {zoo.TRACED[0]} nodes" in message_of(info)


def test_protect_prob_of_another_type(prepared):
    module, _ = prepared("GCN")
    with pytest.raises(ConfigError, match="floating-point probabilities"):
        module.train()(*zoo.graph(), protect_prob=torch.zeros(zoo.TRACED[0], dtype=torch.bool))


def test_a_branch_on_a_size_is_checked_when_it_runs():
    class SmallOrLarge(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = GCNConv(zoo.WIDTH, 4)

        def forward(self, x, edge_index):
            h = self.conv(x, edge_index)
            if x.size(0) > 20:
                return h * 2
            return h

    model = SmallOrLarge()
    module, _ = dqconvert.prepare(model, QConfig(), zoo.graph())
    zoo.assert_same(zoo.evaluate(module, zoo.graph()), zoo.evaluate(model, zoo.graph()))
    with pytest.raises(GuardError) as info:
        module(*zoo.graph(zoo.OTHER))
    assert "branches on a size" in message_of(info)
    assert line_of(SmallOrLarge.forward, "if x.size(0)") in message_of(info)


@pytest.mark.parametrize(("given", "words"), [(GCN, "the class GCN: make an instance of it"), ("gcn.pt", "a str")])
def test_what_is_no_model_is_named(given, words):
    with pytest.raises(ConfigError, match=words):
        dqconvert.prepare(given)


@pytest.mark.parametrize("fuse", [True, False])
def test_an_edge_index_of_floats_is_refused(fuse):
    x, edge_index = zoo.graph()
    module = dqconvert.prepare(SAGEConv(6, 4), "int8-qat", (x, edge_index), fuse=fuse).module
    module(x, edge_index)
    for _ in range(2):
        with pytest.raises((TypeError, ValueError, IndexError, RuntimeError), match=r"integer|int64|index"):
            module.eval()(x, edge_index.float())


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = GCNConv(8, 4)

    def forward(self, x, edge_index, batch):
        return global_mean_pool(self.conv(x, edge_index), batch, 3)


@pytest.mark.parametrize("integer", [False, True])
def test_a_graph_too_many_for_a_pooling_of_fixed_size_is_named(integer):
    x, edge_index, batch = torch.randn(12, 8), torch.randint(12, (2, 30)), torch.arange(12) // 4
    module = dqconvert.prepare(Pooled(), "int8-dq", (x, edge_index, batch)).module
    module(x, edge_index, batch)
    module = dqconvert.convert(module) if integer else module
    with pytest.raises(IndexError, match="batch names group 3, and there are 3 groups"):
        module(x, edge_index, torch.arange(12) // 3)


SETS = (Set2Set(8, 2), aggr.AttentionalAggregation(nn.Linear(8, 1)), aggr.DeepSetsAggregation(nn.Linear(8, 8)))


@pytest.mark.parametrize("layer", SETS, ids=lambda layer: type(layer).__name__)
def test_inputs_of_aggregations_are_made_up(layer):
    x, index = torch.randn(9, 8), torch.arange(9) // 4
    assert len(dqconvert.prepare(layer, "int8-dq").module(x, index)) == 3


@pytest.mark.parametrize("name", ["graph", "code", "fusions", "report"])
@pytest.mark.parametrize("part", [True, False], ids=["part", "attribute"])
def test_names_that_prepared_modules_have(name, part):
    """They were hidden: "is gone now", or an error of torch's that asks to be reported."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = GCNConv(4, 2)
            setattr(self, name, GCNConv(4, 2) if part else "mean")

        def forward(self, x, edge_index):
            return self.conv(x, edge_index)

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def forward(self, x, edge_index):
            return self.net(x, edge_index)

    with pytest.raises(TraceError, match=f"^Net has {name}, which in prepared modules means something else: name it"):
        dqconvert.prepare(Net())
    x, edge_index = torch.randn(5, 4), torch.randint(5, (2, 9))
    module, _ = dqconvert.prepare(Around(), "int8-dq", (x, edge_index))
    module(x, edge_index).sum().backward()
    assert getattr(module.net, name) == "mean" or part


@pytest.mark.parametrize("name", ["method", "source", "run"])
def test_names_that_models_often_have_are_theirs(name):
    """PyG's MaskLabel keeps its way of joining under "method"."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = GCNConv(4, 2)
            setattr(self, name, "mean")

        def forward(self, x, edge_index):
            return self.conv(x, edge_index) * (2.0 if getattr(self, name) == "mean" else 1.0)

    model, x, edge_index = Net(), torch.randn(5, 4), torch.randint(5, (2, 9))
    module, _ = dqconvert.prepare(model, QConfig(), (x, edge_index))
    assert getattr(module, name) == "mean"
    assert torch.equal(module(x, edge_index), model(x, edge_index))
    calibrated, _ = dqconvert.prepare(model, "int8-dq", (x, edge_index))
    calibrated(x, edge_index)
    integer = dqconvert.convert(calibrated.eval())
    assert getattr(integer, name) == "mean"


def test_a_method_that_prepared_modules_have_is_told():
    class Net(GCNConv):
        def fusions(self, x, edge_index):
            return self(x, edge_index)

    _, report = dqconvert.prepare(Net(4, 2))
    assert "fusions() is that of prepared modules: the model's own has the same name" in report.remarks
