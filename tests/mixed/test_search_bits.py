"""search_bits: what it measures, what it keeps to, and that its configs work wherever a config does."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GAT, GCN, GIN, GCNConv, GraphSAGE, global_mean_pool

import dqconvert
from dqconvert import ConfigError, QConfig, QSpec, Rule
from dqconvert.qconfig import as_qconfig, presets

N = 40
X = torch.randn(N, 6, generator=torch.Generator().manual_seed(1))
EDGES = torch.randint(N, (2, 4 * N), generator=torch.Generator().manual_seed(2))
GRAPHS = [Data(x=X[start : start + 8], edge_index=EDGES[:, :20] % 8) for start in range(0, N, 8)]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return GCN(6, 8, 2, 4).eval()


@pytest.fixture(scope="module")
def found(model):
    return dqconvert.bit_sensitivity(model, (X, EDGES), progress=False)


@pytest.fixture(scope="module")
def plain(model):
    """The model, prepared: preparing that again traces nothing."""
    return dqconvert.prepare(model, "int8-ptq", (X, EDGES)).module


def bits_by_path(module):
    return {entry.path: entry.bits for entry in module.report.entries}


# -- what is measured --------------------------------------------------------------------------------------------------


def test_a_loss_is_the_divergence_with_one_value_rounded(model, found):
    spec = replace(presets["int4-dq+"].message, bits=3)
    config = QConfig(norm="nodes", rules=[Rule(module=r"convs\.0", role="message", spec=spec)])
    module, _ = dqconvert.prepare(model, config, (X, EDGES))
    dqconvert.calibrate(module, (X, EDGES))
    with torch.no_grad():
        p, q = (m(X, EDGES).double().log_softmax(-1) for m in (model, module.eval()))
    site = next(site for site in found.sites if site.name == "convs.0.quant.message")
    assert site.loss[3] == pytest.approx(float((p.exp() * (p - q)).sum() / N), rel=1e-5)
    assert (site.elements, site.role, site.quantizers, site.given) == (8 * (4 * N + N - loops()), "message", 1, False)


def loops():
    """Self-loops that are in the graph already, which GCN does not add again."""
    return int((EDGES[0] == EDGES[1]).sum())


def test_numbers_are_compared_by_their_squared_error(model):
    base = replace(presets["int4-dq+"], output=True)
    found = dqconvert.bit_sensitivity(model, (X, EDGES), base, bits=[2], scores=False, progress=False)
    assert found.measure == "error"
    config = found.config({site.name: 2 for site in found.sites})
    spec, _ = config.spec_for(module="convs.1", role="update", op="add", level="node")
    only = [Rule(module=r"convs\.1", role="update", spec=spec)]
    module, _ = dqconvert.prepare(model, QConfig(rules=only), (X, EDGES))
    dqconvert.calibrate(module, (X, EDGES))
    with torch.no_grad():
        wanted, got = model(X, EDGES).double(), module.eval()(X, EDGES)
    last = next(site for site in found.sites if site.name == "convs.1.quant.update")
    assert last.loss[2] == pytest.approx(float((got - wanted).square().sum() / wanted.square().sum()), rel=1e-5)


def test_losses_fall_with_bits(found):
    for site in found.sites:
        assert site.loss[2] > site.loss[4] > site.loss[8]


def test_seeds_repeat_and_nothing_changes(model):
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    loader = DataLoader(GRAPHS, batch_size=2, shuffle=True)
    one, other = (dqconvert.bit_sensitivity(model, loader, bits=[2], seed=3, progress=False) for _ in range(2))
    assert one == other
    assert one.batches == 3
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)


# -- what is chosen ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [2, 2.3, 4, 9])
@pytest.mark.parametrize("count", ["elements", "hidden", "quantizers"])
def test_averages_keep_to_the_budget(plain, found, budget, count):
    chosen = found.choose(budget, count=count)
    module, _ = dqconvert.prepare(plain, found.search(budget, count=count))
    assert bits_by_path(module) == chosen
    averages = dqconvert.average_bits(module, (X, EDGES))
    assert averages == found.average(chosen)
    name = {"elements": "activations"}.get(count, count)
    assert getattr(averages, name) <= budget + 1e-9
    if count != "quantizers":
        assert averages.weights <= budget + 1e-9
    limited = [site.name for site in found.sites if count != "hidden" or not site.given]
    if budget in (2, 9):
        assert {chosen[name] for name in limited} == {min(budget, 8)}


def test_it_loses_less_than_one_width_for_all(found):
    for budget in (3, 4):
        uniform = dict.fromkeys((site.name for site in found.sites), budget)
        assert found.loss(found.choose(budget)) < found.loss(uniform)
    losses = [found.loss(found.choose(budget)) for budget in (2, 3, 4, 6, 8)]
    assert losses == sorted(losses, reverse=True)


def test_weights_may_have_a_budget_of_their_own(found):
    chosen = found.choose(3, weights=8)
    assert {bits for name, bits in chosen.items() if name.endswith(".weight")} == {8}
    assert {name: bits for name, bits in found.choose(3).items() if "weight" not in name}.items() <= chosen.items()


class Branches(nn.Module):
    """Three layers read one value: one quantizer, as long as their specs are equal."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(6, 4) for _ in range(3))
        self.conv = GCNConv(4, 3)

    def forward(self, x, edge_index):
        return self.conv(self.a(x).relu() + self.b(x) * self.c(x), edge_index)


def test_layers_that_share_a_quantizer_share_its_bits():
    model, _ = dqconvert.prepare(Branches(), "int8-ptq", (X, EDGES))
    found = dqconvert.bit_sensitivity(model, (X, EDGES), bits=(2, 3, 8), progress=False)
    shared = next(site for site in found.sites if site.name == "a.quant.input")
    assert [key.module for key in shared.keys] == ["a", "b", "c"]
    for budget in (2.5, 3, 4.5):
        module, _ = dqconvert.prepare(model, found.search(budget))
        assert bits_by_path(module) == found.choose(budget)
        assert dqconvert.average_bits(module, (X, EDGES)).activations <= budget


def test_rules_of_the_config_stay():
    class Own(nn.Module):
        def forward(self, x, protected):
            return x

    rules = [
        Rule(module=r"convs\.0.*", role="input", spec=None),
        Rule(role="edge_weight", spec=Own),
        Rule(module=r"convs\.1", role="message", spec=QSpec(bits=8, symmetric=True)),
        Rule(op="dqconvert.trace.runtime.stage_output", spec=QSpec(bits=5, grad="clip")),
    ]
    base = QConfig(weight=QSpec(), activation=QSpec(), message=QSpec(), rules=rules)
    model = GCN(6, 8, 2, 4)
    plain, _ = dqconvert.prepare(model, base, (X, EDGES))
    found = dqconvert.bit_sensitivity(plain, (X, EDGES), bits=(3, 6), progress=False)
    module, report = dqconvert.prepare(plain, found.search(4))
    assert [(e.path, e.scheme) for e in report.entries] == [(e.path, e.scheme) for e in plain.report.entries]
    assert set(bits_by_path(module).values()) == {3, 6, None}
    assert report.left_float[0].what == "convs.0.lin: input"


# -- configs that come out ---------------------------------------------------------------------------------------------


@pytest.mark.sample(3)
@pytest.mark.parametrize("kind", [GCN, GIN, GAT, GraphSAGE])
def test_configs_go_through_files_training_and_integers(kind, tmp_path):
    torch.manual_seed(0)
    model = kind(6, 8, 2, 4)
    config = dqconvert.search_bits(model, (X, EDGES), 3.5, bits=(2, 4, 5), progress=False)
    for text, name in ((config.to_toml(), "bits.toml"), (config.to_json(), "bits.json")):
        (tmp_path / name).write_text(text)
        assert as_qconfig(tmp_path / name) == config
    module, report = dqconvert.finetune(model, (X, EDGES), tmp_path / "bits.toml", epochs=2, progress=False)
    assert len({entry.bits for entry in report.entries}) == 3
    integer = dqconvert.convert(module)
    dqconvert.save(integer, tmp_path / "integer")
    loaded = dqconvert.load(tmp_path / "integer")(X, EDGES)
    assert torch.equal(loaded, integer(X, EDGES))
    step = dict(module.quantizers())[report.entries[-1].path].scale.max()
    assert ((loaded - module(X, EDGES)).abs() <= 1.01 * step).all()
    assert float((loaded.argmax(1) == module(X, EDGES).argmax(1)).float().mean()) > 0.9
    dqconvert.save(module, tmp_path / "module")
    again = dqconvert.load(tmp_path / "module", model=kind(6, 8, 2, 4))
    assert bits_by_path(again) == bits_by_path(module)


@pytest.mark.parametrize(
    "spec",
    [QSpec(range="learned"), QSpec(range="mse", granularity="degree"), QSpec(range="percentile")],
    ids=["learned", "degree", "percentile"],
)
def test_any_scheme(plain, spec):
    weight = QSpec(range=spec.range, granularity="channel")
    base = QConfig(weight=weight, activation=spec, message=spec, aggregate=spec)
    found = dqconvert.bit_sensitivity(plain, (X, EDGES), base, bits=(2, 8), progress=False)
    assert all(site.loss[2] > site.loss[8] for site in found.sites)
    mixed, _ = dqconvert.prepare(plain, found.search(4))
    assert bits_by_path(mixed) == found.choose(4)
    assert {quantizer.spec.range for _, quantizer in mixed.quantizers()} == {spec.range}


class Pooled(nn.Module):
    """A graph classifier."""

    def __init__(self, out):
        super().__init__()
        self.gin, self.lin = GIN(6, 8, 2), nn.Linear(8, out)

    def forward(self, x, edge_index, batch):
        return self.lin(global_mean_pool(self.gin(x, edge_index), batch))


@pytest.mark.parametrize(("out", "measure"), [(3, "KL"), (1, "error")])
def test_graph_tasks_over_loaders_and_generators(out, measure):
    loader = DataLoader(GRAPHS, batch_size=2)
    module, _ = dqconvert.prepare(Pooled(out), "int8-ptq", GRAPHS[0])
    found = dqconvert.bit_sensitivity(module, (batch for batch in loader), bits=(2, 8), batches=2, progress=False)
    assert (found.measure, found.batches) == (measure, 2)
    mixed, _ = dqconvert.prepare(module, found.search(4))
    assert dqconvert.average_bits(mixed, GRAPHS[:4]).activations <= 4


def test_a_prepared_module_gives_its_weights_and_config(model, found):
    module, _ = dqconvert.prepare(model, found.qconfig, (X, EDGES))
    dqconvert.calibrate(module, (X, EDGES))
    before = copy.deepcopy(module.state_dict())
    assert dqconvert.bit_sensitivity(module, (X, EDGES), progress=False) == found
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)


class Switched(nn.Module):
    """Its second layer is for those who ask."""

    def __init__(self):
        super().__init__()
        self.one, self.two = GCNConv(6, 4), GCNConv(4, 4)

    def forward(self, x, edge_index):
        return self.one(x, edge_index)

    def deep(self, x, edge_index):
        return self.two(self.one(x, edge_index), edge_index)


def test_what_the_data_does_not_reach_keeps_its_bits_and_is_named():
    inputs = {"forward": (X, EDGES), "deep": (X, EDGES)}
    module, _ = dqconvert.prepare(Switched(), "int8-ptq", method=inputs)
    found = dqconvert.bit_sensitivity(module, (X, EDGES), bits=(2, 4), progress=False)
    assert found.unreached
    assert all(path.startswith("two.") for path in found.unreached)
    again, _ = dqconvert.prepare(module, found.search(3))
    bits = bits_by_path(again)
    assert {bits[path] for path in found.unreached} == {8}
    assert "not reached by the data: two." in str(found)


def test_the_table(found):
    text = str(found)
    assert "divergence of the outputs with one value rounded, on 1 batch" in text
    assert "convs.0.lin.quant.input" in text
    assert found.to_dict()["sites"][0]["keys"][0]["role"] == found.sites[0].role
    assert "<table>" in found._repr_html_()


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 1.5}, "budget=1.5: no average can be below the fewest bits, 2"),
        ({"budget": 3, "bits": (4, 8)}, "budget=3: no average can be below the fewest bits, 4"),
        ({"budget": 4, "weights": 1}, "weights=1: no average"),
        ({"budget": "4"}, "budget='4': must be a number of bits"),
        ({"budget": float("nan")}, "budget=nan: must be a number"),
        ({"budget": 4, "bits": ()}, r"bits=\(\): must be whole numbers from 2 to 8"),
        ({"budget": 4, "bits": (1, 4)}, r"bits=\(1, 4\): must be"),
        ({"budget": 4, "bits": 4}, "bits=4: must be"),
        ({"budget": 4, "count": "element"}, "count='element'; did you mean 'elements'"),
        ({"budget": 4, "batches": 0}, "batches=0: must be a whole number from 1 on, or None"),
        ({"budget": 4, "seed": -1}, "seed=-1: must be a whole number from 0"),
        ({"budget": 4, "data": []}, "search_bits: there is no data"),
        ({"budget": 4, "data": None}, "search_bits takes as data"),
        ({"budget": 4, "qconfig": "int4"}, "unknown preset"),
        ({"budget": 4, "data": (X * torch.nan, EDGES)}, "returns NaN or infinite values in float"),
    ],
)
def test_mistakes(model, options, message):
    options = {"data": (X, EDGES), "progress": False, **options}
    with pytest.raises(ConfigError, match=message):
        dqconvert.search_bits(model, **options)


def test_models_that_are_none(model):
    module, _ = dqconvert.prepare(model, "int8-ptq", (X, EDGES))
    dqconvert.calibrate(module, (X, EDGES))
    for wrong in (dqconvert.convert(module), GCN, None):
        with pytest.raises(ConfigError, match="search_bits takes a float model"):
            dqconvert.search_bits(wrong, (X, EDGES), 4)
    own = QConfig(rules=[Rule(role="weight", spec=nn.Identity)])
    with pytest.raises(ConfigError, match="nothing whose bits could be chosen"):
        dqconvert.search_bits(model, (X, EDGES), 4, own, progress=False)
