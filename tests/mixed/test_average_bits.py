"""Average bits: against a count by hand, on every form of a module, in its report and its files."""

import copy

import pytest
import torch
from torch import nn
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCN, GIN, GCNConv

import dqconvert
from dqconvert import ConfigError, QConfig, QSpec, Rule

N, E, IN, HIDDEN, OUT = 6, 9, 5, 4, 3
X = torch.randn(N, IN, generator=torch.Generator().manual_seed(1))
EDGES = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 2, 4], [1, 2, 3, 4, 5, 0, 3, 5, 1]])
BITS = {"weight": 7, "input": 2, "feature": 3, "edge_weight": 4, "message": 5, "aggregate": 6, "update": 8}


def by_role(**last):
    """A config with ``BITS`` by role, and other bits by role in the last layer."""
    rules = [Rule(module=r"convs\.1.*", role=role, spec=QSpec(bits=bits)) for role, bits in last.items()]
    rules += [Rule(role=role, spec=QSpec(bits=bits)) for role, bits in BITS.items()]
    return QConfig(rules=rules)


def gcn(config, **options):
    return dqconvert.prepare(GCN(IN, HIDDEN, 2, OUT), config, (X, EDGES), **options).module


def by_hand(bits_of_last_input=2):
    """Sums of bits and elements: of what is given, of what is computed, of weights."""
    messages = E + N  # and self-loops
    given = (2 * N * IN, N * IN)
    hidden, weights = [(bits_of_last_input * N * HIDDEN, N * HIDDEN)], []
    for inputs, outputs in ((IN, HIDDEN), (HIDDEN, OUT)):
        hidden += [
            (3 * N * outputs, N * outputs),
            (4 * messages, messages),
            (5 * messages * outputs, messages * outputs),
        ]
        hidden += [(6 * N * outputs, N * outputs), (8 * N * outputs, N * outputs)]
        weights.append((7 * inputs * outputs, inputs * outputs))
    return given, tuple(map(sum, zip(*hidden, strict=True))), tuple(map(sum, zip(*weights, strict=True)))


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("last", [2, 8])
def test_a_gcn_by_hand(fuse, last):
    module = gcn(by_role(input=last) if last != 2 else by_role(), fuse=fuse)
    found = dqconvert.average_bits(module, (X, EDGES))
    given, hidden, weights = by_hand(last)
    assert found.activations == pytest.approx((given[0] + hidden[0]) / (given[1] + hidden[1]))
    assert found.hidden == pytest.approx(hidden[0] / hidden[1])
    assert found.weights == weights[0] / weights[1] == 7
    assert found.quantizers == pytest.approx((2 * sum(BITS.values()) - 2 + last) / 14)
    assert sum(found.elements.values()) == given[1] + hidden[1] + weights[1]
    assert found.uncounted == ()


def test_several_calls_count_each_value_once_and_weights_once():
    module = gcn(by_role())
    once, twice = (dqconvert.average_bits(module, [(X, EDGES)] * times) for times in (1, 2))
    assert once[:4] == twice[:4]
    for path, number in once.elements.items():
        assert twice.elements[path] == number * (1 if path.endswith("weight") and "edge" not in path else 2)


def test_nothing_changes_and_calibration_counts_the_same():
    module = gcn(by_role()).train()
    before, modes = copy.deepcopy(module.state_dict()), [child.training for child in module.modules()]
    found = dqconvert.average_bits(module, (X, EDGES))
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    assert [child.training for child in module.modules()] == modes
    assert f"average bits: {found}; on 1 batch" in str(module.report)
    other = gcn(by_role())
    assert "average bits" not in str(other.report)
    dqconvert.calibrate(other, (X, EDGES))
    assert other.report.average_bits == module.report.average_bits
    other(X, EDGES).sum().backward()  # it trains as before


def test_it_is_in_copies_and_files(tmp_path):
    module = gcn(by_role())
    dqconvert.calibrate(module, (X, EDGES))
    dqconvert.save(module, tmp_path / "gcn.dq")
    loaded = dqconvert.load(tmp_path / "gcn.dq", model=GCN(IN, HIDDEN, 2, OUT))
    assert copy.deepcopy(module).report.average_bits == loaded.report.average_bits == module.report.average_bits != ""


def test_messages_that_are_gathered_arguments_are_given():
    module = dqconvert.prepare(GIN(IN, HIDDEN, 1), {"rules": [{"role": "message", "spec": {"bits": 2}}]}).module
    found = dqconvert.average_bits(module, (X, EDGES))
    assert found.hidden == 8
    assert found.activations < 8


def test_graphs_of_a_loader_and_data_sets():
    module = gcn(by_role())
    graphs = [Data(x=X, edge_index=EDGES) for _ in range(5)]
    found = dqconvert.average_bits(module, DataLoader(graphs, batch_size=2))
    assert found[:4] == pytest.approx(dqconvert.average_bits(module, (X, EDGES))[:4])


class Own(nn.Module):
    def forward(self, x, protected):
        return x


def test_what_is_not_counted_is_named():
    config = QConfig(weight=QSpec(), rules=[Rule(role="message", spec=Own)])
    module = dqconvert.prepare(GCNConv(IN, OUT), config, (X, EDGES)).module
    found = dqconvert.average_bits(module, (X, EDGES))
    assert (found.activations, found.hidden, found.weights) == (None, None, 8)
    assert found.uncounted == ("quant.message",)
    assert str(found) == "8.00 weights, 8.00 per quantizer; not counted: quant.message"


def test_wrong_arguments():
    with pytest.raises(ConfigError, match="average_bits takes a prepared module"):
        dqconvert.average_bits(GCNConv(2, 2), (X, EDGES))
    with pytest.raises(ConfigError, match="no data to count on"):
        dqconvert.average_bits(gcn(by_role()), [])
