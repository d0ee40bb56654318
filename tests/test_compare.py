"""`compare`: the ratios of an integer or prepared module against plain definitions, and what belongs together."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from torch import nn
from torch_geometric.data import Data
from torch_geometric.nn import GAT, GCN, GIN, SAGEConv

import dqconvert
from dqconvert.errors import CommandError, ConfigError
from dqconvert.quant import FakeQuantize

MODELS = {
    "GCN": lambda: GCN(8, 16, 2, 4),
    "GIN": lambda: GIN(8, 16, 2, 4, norm="batch_norm"),
    "GAT": lambda: GAT(8, 16, 2, 4, heads=2),
}


def a_graph(seed=0, nodes=120):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(nodes, 8, generator=generator), torch.randint(0, nodes, (2, 4 * nodes), generator=generator)


def calibrated(name="GCN", config="int8-ptq"):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    module = dqconvert.prepare(model, config, a_graph()).module
    dqconvert.calibrate(module, [a_graph(seed) for seed in range(3)])
    return model, module


def ratio(expected, found):
    """The definition: 10 log10 of the energy of the signal over that of the noise."""
    return float(10 * torch.log10(expected.double().square().sum() / (expected - found).double().square().sum()))


@pytest.mark.parametrize("name", MODELS)
def test_the_output_s_ratio_is_the_definition_s(name):
    model, module = calibrated(name)
    integer = dqconvert.convert(module)
    graphs = [a_graph(5), a_graph(6, nodes=30)]
    found = dqconvert.compare(model, integer, graphs)
    with torch.no_grad():
        expected = torch.cat([model(*graph) for graph in graphs])
    got = torch.cat([integer(*graph) for graph in graphs])
    assert found.output.sqnr_db == pytest.approx(ratio(expected, got), abs=1e-6)
    assert found.output.max_error == pytest.approx(float((expected - got).abs().max()), rel=1e-5)
    assert found.predictions == 150
    assert found.agreement == pytest.approx(float((expected.argmax(1) == got.argmax(1)).double().mean()))
    assert (found.batches, found.output.values) == (2, 600)


def test_each_layer_of_a_prepared_module_is_the_definition_s():
    """A hook beside each quantizer sees what goes in without any rounding before it, and what comes out with it."""
    model, module = calibrated()
    graph, paths = a_graph(5), [path for path, _ in module.quantizers()]
    seen = {}
    for rounds in (False, True):
        prepared = dqconvert.prepare(model, "int8-ptq", a_graph(), fuse=False).module.eval()
        prepared.load_state_dict(module.state_dict())
        for path, quantizer in prepared.quantizers():
            assert isinstance(quantizer, FakeQuantize)
            quantizer.fake_quant_enabled = rounds
            hook = lambda _m, given, out, path=path: seen.setdefault(path, []).append(out)  # noqa: E731
            quantizer.register_forward_hook(hook)
        with torch.no_grad():
            prepared(*graph)
    found = {layer.path: layer.sqnr_db for layer in dqconvert.compare(model, module, graph).layers}
    assert sorted(found) == sorted(paths)
    for path, (plain, rounded) in seen.items():
        assert found[path] == pytest.approx(ratio(plain, rounded), abs=1e-3), path


@pytest.mark.parametrize("name", MODELS)
def test_layers_of_an_integer_module_are_the_prepared_one_s(name):
    model, module = calibrated(name)
    of_integer = dqconvert.compare(model, dqconvert.convert(module), a_graph(5)).layers
    of_prepared = {layer.path: layer for layer in dqconvert.compare(model, module, a_graph(5)).layers}
    assert of_integer
    for layer in of_integer:
        assert layer.sqnr_db == pytest.approx(of_prepared[layer.path].sqnr_db, abs=0.2), layer.path
        assert layer.values == of_prepared[layer.path].values


def test_what_only_relus_read_is_compared_as_they_leave_it(tmp_path):
    """Grids of signed="graph" cut what is below zero, which changes nothing behind a ReLU."""
    model, module = calibrated("GIN", {"activation": {"signed": "graph"}, "protect": None})
    cut = {path for path, quantizer in module.quantizers() if quantizer.from_zero}
    integer = dqconvert.convert(module)
    dqconvert.save(integer, tmp_path / "gin.int")
    for other in (module, integer, dqconvert.load(tmp_path / "gin.int")):
        found = {layer.path: layer for layer in dqconvert.compare(model, other, a_graph(5)).layers}
        assert cut & set(found)
        assert all(layer.sqnr_db > 20 for layer in found.values()), found


def test_norms_on_the_nodes_are_compared_with_a_float_model_that_scales_nodes():
    model, module = calibrated("GCN", {"preset": "int8-qat", "norm": "nodes"})
    for other in (module, dqconvert.convert(module)):
        found = dqconvert.compare(model, other, a_graph(5))
        assert found.layers
        assert not found.unmatched
        assert min(layer.sqnr_db for layer in found.layers) > 20, found
    assert {layer.path for layer in dqconvert.compare(model, module, a_graph(5)).layers} == dict(
        module.quantizers()
    ).keys()


def test_an_integer_module_whose_grids_differ_by_group_says_that_nothing_in_between_was_compared():
    model, module = calibrated("GCN", "int8-dq+")
    found = dqconvert.compare(model, dqconvert.convert(module), a_graph(5))
    assert not found.layers
    assert str(found).splitlines()[-1].startswith("no value in between has one grid for all rows: compare the prepared")
    assert len(dqconvert.compare(model, module, a_graph(5)).layers) == len(list(module.quantizers()))


def test_worst_layers_stand_first_and_fewer_bits_are_worse():
    model, module = calibrated()
    found = dqconvert.compare(model, dqconvert.convert(module), a_graph(5))
    ratios = [layer.sqnr_db for layer in found.layers]
    assert ratios == sorted(ratios)
    four = dqconvert.prepare(model, {"preset": "int4-dq"}, a_graph()).module
    dqconvert.calibrate(four, a_graph())
    worse = dqconvert.compare(model, dqconvert.convert(four), a_graph(5))
    assert worse.output.sqnr_db < found.output.sqnr_db - 3


def test_without_rounding_there_is_no_noise():
    model, module = calibrated()
    for _, quantizer in module.quantizers():
        quantizer.fake_quant_enabled = False
    found = dqconvert.compare(model, module, a_graph(5))
    assert found.output.sqnr_db == math.inf
    assert found.agreement == 1
    assert found.to_dict()["output"]["sqnr_db"] is None


def test_predictions_of_single_numbers_are_their_signs():
    model = SAGEConv(8, 1).eval()
    module = dqconvert.prepare(model, "int8-ptq", a_graph()).module
    dqconvert.calibrate(module, a_graph())
    integer, graph = dqconvert.convert(module), a_graph(5)
    with torch.no_grad():
        equal = (model(*graph).sign() == integer(*graph).sign()).double().mean()
    assert dqconvert.compare(model, integer, graph).agreement == pytest.approx(float(equal))


def test_data_may_be_a_data_object_and_the_modules_stay_as_they_are():
    model, module = calibrated()
    integer, (x, edge_index) = dqconvert.convert(module), a_graph(5)
    before = {name: value.clone() for name, value in (*model.state_dict().items(), *module.state_dict().items())}
    model.train()
    found = dqconvert.compare(model, integer, Data(x=x, edge_index=edge_index))
    assert found == dqconvert.compare(model, integer, (x, edge_index))
    after = dict((*model.state_dict().items(), *module.state_dict().items()))
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert model.training


def test_the_table_and_the_plain_data(tmp_path):
    model, module = calibrated()
    found = dqconvert.compare(model, dqconvert.convert(module), a_graph(5))
    lines = str(found).splitlines()
    assert lines[0].split() == ["SQNR,", "dB", "max", "error", "values"]
    assert [line.split()[0] for line in lines[1:-1]] == [layer.path for layer in found.layers] + ["output"]
    assert lines[-1].startswith("as the model without rounding predicts: ")
    assert json.loads(json.dumps(found.to_dict()))["layers"][0]["path"] == found.layers[0].path


def test_the_chart_is_written_or_what_is_missing_is_named(tmp_path):
    pytest.importorskip("matplotlib")
    model, module = calibrated()
    found = dqconvert.compare(model, dqconvert.convert(module), a_graph(5))
    found.plot(tmp_path / "a.svg")
    assert "convs.0" in (tmp_path / "a.svg").read_text()
    with pytest.raises(CommandError, match=r"a\.txt"):
        found.plot(tmp_path / "a.txt")


def test_what_does_not_belong_together_is_refused():
    model, module = calibrated()
    integer = dqconvert.convert(module)
    with pytest.raises(ConfigError, match=r"got a float model \(GCN\): prepare it first"):
        dqconvert.compare(model, model, a_graph())
    with pytest.raises(ConfigError, match="the float model first"):
        dqconvert.compare(integer, model, a_graph())
    with pytest.raises(ConfigError, match="the float model first"):
        dqconvert.compare(integer, module, a_graph())
    with pytest.raises(ConfigError, match="no data to compare on"):
        dqconvert.compare(model, integer, [])
    with pytest.raises(ConfigError, match="it was not made of this model"):
        dqconvert.compare(GCN(8, 16, 2, 5), integer, a_graph())
    with pytest.raises(ConfigError, match="too many positional arguments"):
        dqconvert.compare(nn.Identity(), integer, tuple(a_graph()) * 10)


def test_integers_and_their_prepared_module_predict_the_same():
    """The share of predictions that rounding changes frightens; what integers change beyond it is nothing."""
    _, module = calibrated(config="int4-dq")
    found = dqconvert.compare(module, dqconvert.convert(module), [a_graph(5), a_graph(6)])
    assert found.agreement < 1
    assert found.rounded_agreement == 1
    assert str(found).splitlines()[-1].startswith("as the prepared module predicts in evaluation: 100.00 % of 240")
    assert dqconvert.compare(module, module, a_graph(5)).rounded_agreement is None


def test_the_report_says_what_is_known_of_the_agreement_with_float():
    model, (x, edge_index) = GCN(6, 8, num_layers=2, out_channels=3), (torch.randn(30, 6), torch.randint(30, (2, 90)))
    module, report = dqconvert.prepare(model, "int8-ptq", (x, edge_index))
    assert "agreement" not in str(report)
    dqconvert.calibrate(module, [(x, edge_index)] * 2)
    assert "agreement with float: not known; ranges were calibrated on 2 batches." in str(module.report)
    found = dqconvert.compare(model, module, (x, edge_index))
    expected = (
        f"outputs at {found.output.sqnr_db:.1f} dB signal to noise, {100 * found.agreement:.2f} % of 30 predictions"
    )
    assert expected in " ".join(str(module.report).split())
    assert module.report.agreement == copy.deepcopy(module).report.agreement
