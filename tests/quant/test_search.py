"""Searched ranges: against a plain search over all ranges, over non-zero values, kept by training."""

import copy
import math

import pytest
import torch

import dqconvert
import zoo
from dqconvert import QConfig, QSpec
from dqconvert.kernels import fake_quantize, qparams
from dqconvert.quant import FakeQuantize
from dqconvert.quant.search import SAMPLE, row_weights, searched_range


def error(values, low, high, bits, symmetric=False, weights=1.0):
    """The squared error of rounding to the grid of a range."""
    top = 2**bits - 1
    scale, zero_point = qparams(low, high, 0, top, symmetric)
    return (fake_quantize(values, scale, zero_point, 0, top) - values).double().square().mul(weights).sum().item()


VALUES = {
    "normal": lambda: torch.randn(2000),
    "one-sided": lambda: torch.rand(2000) * 3,
    "heavy tails": lambda: torch.randn(2000) ** 3,
    "an outlier": lambda: torch.cat([torch.randn(2000), torch.tensor([80.0])]),
    "skewed": lambda: torch.cat([-torch.rand(500), 9 * torch.rand(1500)]),
    "small": lambda: 1e-5 * torch.randn(500),
}


@pytest.mark.sample(13)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("name", VALUES)
def test_nearly_as_near_as_the_best_range_of_all(name, bits, symmetric):
    torch.manual_seed(1)
    values = VALUES[name]()
    low, high = (end[0] for end in searched_range(values[None], bits, symmetric))
    found = error(values, low, high, bits, symmetric)
    full = values.min().clamp(max=0), values.max().clamp(min=0)
    shares = torch.linspace(0.02, 1.05, 60)
    tried = ((a * full[0], b * full[1]) for a in shares for b in shares if a == b or not symmetric)
    best = min(error(values, a, b, bits, symmetric) for a, b in tried)
    assert found <= 1.15 * best
    assert found <= 1.0001 * error(values, *full, bits, symmetric)


def hubs(rows=500, columns=4):
    """Rows of ones and, one in a hundred, of tens of thousands."""
    torch.manual_seed(0)
    return torch.randn(rows, columns) * torch.where(torch.arange(rows) % 100 == 0, 2e4, 1.0)[:, None]


def sums():
    """The same, but those of hubs are positive."""
    return torch.where(hubs().abs() > 50, hubs().abs(), hubs())


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("values", [hubs(), sums()], ids=["both sides", "one side"])
def test_of_errors_in_relation_to_their_rows_it_is_nearly_the_least(values, bits, symmetric):
    weights = row_weights(values, 0)[:, None].expand_as(values)
    low, high = (end[0] for end in searched_range(values.view(1, -1), bits, symmetric, weights.reshape(1, -1)))
    found = error(values, low, high, bits, symmetric, weights)
    sizes = torch.linspace(0, math.log(values.abs().max()), 50).exp()
    tried = ((-a, b) for a in sizes for b in sizes if a == b or not symmetric)
    assert found <= 1.15 * min(error(values, a, b, bits, symmetric, weights) for a, b in tried)


def test_rows_of_thousands_do_not_decide_for_all_others():
    values = hubs()
    lost = {}
    for kind in ("mse", "relative"):
        module = quantizer(range=kind)
        lost[kind] = [(module(values) - values)[part].square().mean().item() for part in (slice(1, 100), slice(0, 1))]
    assert lost["mse"][0] > 0.9  # all of them are rounded to zero
    assert lost["relative"][0] < 0.05
    assert lost["relative"][1] > lost["mse"][1]  # hubs pay for it


def test_zeros_say_nothing():
    torch.manual_seed(0)
    dense = torch.rand(1, 400)
    sparse = torch.cat([dense, torch.zeros(1, 40_000)], 1)
    assert searched_range(sparse, 4, False) == searched_range(dense, 4, False)


def test_of_nothing_but_zeros_and_of_nothing():
    assert searched_range(torch.zeros(1, 5), 4, False) == (0.0, 0.0)
    assert searched_range(torch.empty(1, 0), 4, False) == (math.inf, -math.inf)
    assert searched_range(torch.full((1, 3), math.nan), 4, False) == (math.inf, -math.inf)


def test_many_values_are_sampled_alike_each_time_and_near_the_whole():
    torch.manual_seed(0)
    values = torch.randn(1, 4 * SAMPLE)
    before = torch.get_rng_state()
    found = searched_range(values, 4, False)
    assert found == searched_range(values, 4, False)
    assert torch.equal(torch.get_rng_state(), before)
    some = searched_range(values[:, :SAMPLE], 4, False)
    assert error(values[0], found[0][0], found[1][0], 4) < 1.02 * error(values[0], some[0][0], some[1][0], 4)


def test_each_channel_is_searched_alone():
    values = torch.stack([torch.randn(300), 10 * torch.randn(300)])
    low, high = searched_range(values, 4, False)
    for channel in range(2):
        assert searched_range(values[channel : channel + 1], 4, False) == (low[channel], high[channel])


def quantizer(**options):
    return FakeQuantize(QSpec(**{"bits": 4, "range": "mse"} | options), name="test", signed=True)


def test_training_keeps_the_first_range():
    module = quantizer()
    x = torch.randn(50, 4)
    module(x)
    held = module.min_val.clone(), module.max_val.clone()
    module(5 * x)
    assert (module.min_val, module.max_val) == held
    assert torch.equal(module(5 * x), module.eval()(5 * x))


def test_calibration_goes_on_and_covers_every_batch():
    module = quantizer().eval()
    module.calibrating, module.fake_quant_enabled = True, False
    for scale in (1.0, 3.0, 2.0):
        torch.manual_seed(0)
        module(scale * torch.randn(500))
    torch.manual_seed(0)
    low, high = searched_range(3 * torch.randn(1, 500), 4, False)
    assert (module.min_val, module.max_val) == (low, high)


def test_protected_rows_are_not_searched():
    x, protected = torch.randn(50, 4), torch.zeros(50, dtype=torch.bool)
    wide = torch.cat([x, torch.full((3, 4), 900.0)])
    one, other = quantizer(), quantizer()
    one(x, protected)
    other(wide, torch.cat([protected, torch.ones(3, dtype=torch.bool)]))
    assert (one.min_val, one.max_val) == (other.min_val, other.max_val)


SEARCHED = QConfig(
    weight=QSpec(bits=4, range="mse", signed=True),
    activation=QSpec(bits=4, range="mse"),
    message=QSpec(bits=4, range="mse"),
    aggregate=QSpec(bits=4, range="mse"),
    protect=dqconvert.Protect(p_max=0.3),
)


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", ["GCN", "GIN", "GAT", "GraphSAGE", "GraphClassifier"])
def test_fused_it_is_the_same(name):
    case = zoo.CASES[name]
    model, inputs = case.model(), case.inputs()
    fused, _ = dqconvert.prepare(copy.deepcopy(model), SEARCHED, inputs)
    plain, _ = dqconvert.prepare(copy.deepcopy(model), SEARCHED, inputs, fuse=False)
    for step in range(3):
        zoo.assert_step_close(zoo.train_step(fused, inputs, step), zoo.train_step(plain, inputs, step), exact=False)
    ranges = {key: value for key, value in fused.state_dict().items() if key.endswith("_val")}
    assert len(ranges) > 10
    torch.testing.assert_close(ranges, {key: plain.state_dict()[key] for key in ranges}, rtol=1e-4, atol=1e-6)


def test_through_a_file_and_to_integers(tmp_path):
    case = zoo.CASES["GCN"]
    model, inputs = case.model(), case.inputs()
    module, _ = dqconvert.prepare(model, SEARCHED, inputs)
    dqconvert.calibrate(module, inputs)
    dqconvert.save(module, tmp_path / "searched")
    loaded = dqconvert.load(tmp_path / "searched", case.model())
    assert torch.equal(loaded.eval()(*inputs), module.eval()(*inputs))
    zoo.train_step(loaded, inputs)
    name = "convs.0.lin.quant.input.max_val"
    assert torch.equal(loaded.state_dict()[name], module.state_dict()[name])
    integer = dqconvert.convert(module)
    torch.testing.assert_close(integer(*inputs), module.eval()(*inputs), rtol=0, atol=1e-4)
