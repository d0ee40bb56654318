"""The fused graph against the graph node by node: same seed, same ranges, outputs, gradients and state."""

from __future__ import annotations

import copy
import io
import json
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch_geometric.nn import GCN, GIN, GCNConv

import dqconvert
import products
import zoo
from dqconvert.errors import ObserverError
from dqconvert.kernels import _buffers
from dqconvert.quant import memo
from dqconvert.quant.memo import EdgeOrders

PRESETS = ["int8-dq", "int4-dq", "int8-qat"]
FUSED = ["GCN", "GCN_batch_norm", "GraphSAGE", "GIN", "GAT", "WeightedGCN", "GraphClassifier", "Tied"]
"""Where something is fused, of every kind; the other cases run with one preset."""


@pytest.fixture
def both(prepared, monkeypatch):
    """``both(name, preset)``: a model of the zoo prepared fused and not, and its inputs by size.

    Both add up in the same order, see :mod:`products`.
    """

    def get(name, preset="int8-dq"):
        fused, _ = prepared(name, preset)
        products.always(monkeypatch)
        return fused, node_by_node(fused), zoo.CASES[name].inputs

    return get


def node_by_node(fused, layer=products.in_our_order):
    """A copy that is not fused. ``layer``: what is called where a linear layer became part of a chain."""
    plain = copy.deepcopy(fused)
    absorbed = {node for fusion in fused.fusions if "linear" in fusion.op for node in fusion.nodes}
    for node in plain.graph.nodes:
        if node.name in absorbed and node.target is products.torchs:
            node.target = layer
    plain.fuse = False
    plain.recompile()
    assert plain.fusions == ()
    return plain


def ranges(module):
    return {path: torch.stack([q.min_val, q.max_val]) for path, q in module.quantizers()}


def assert_same_gradients(got, want):
    assert got.keys() == want.keys()
    largest = max(grad.abs().max() for grad in want.values())
    for name, grad in got.items():
        torch.testing.assert_close(grad, want[name], rtol=0, atol=1e-5 * largest.item(), msg=lambda m, n=name: n + m)


def assert_same_steps(fused, plain, batches, **kwargs):
    for seed, inputs in enumerate(batches):
        out, grads = zoo.train_step(fused, inputs, seed, **kwargs)
        want, want_grads = zoo.train_step(plain, inputs, seed, **kwargs)
        torch.testing.assert_close(out, want, rtol=1e-6, atol=1e-6)
        assert_same_gradients(grads, want_grads)
        torch.testing.assert_close(ranges(fused), ranges(plain), rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        got, want = (zoo.run(module.eval(), batches[0]) for module in (fused, plain))
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


CASES = [(name, preset) for name in zoo.CASES for preset in (PRESETS if name in FUSED else PRESETS[:1])]


@pytest.mark.sample(11)
@pytest.mark.parametrize(("name", "preset"), CASES)
def test_three_steps_and_an_evaluation_are_the_same(both, name, preset):
    fused, plain, inputs = both(name, preset)
    assert list(fused.state_dict()) == list(plain.state_dict())
    assert_same_steps(fused, plain, [inputs(zoo.TRACED), inputs(zoo.OTHER), inputs(zoo.TRACED)])
    assert list(fused.state_dict()) == list(plain.state_dict())


@pytest.mark.sample(3)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", FUSED)
def test_in_double_precision_it_is_also_that_of_torchs_products(prepared, name, preset):
    """There the order of sums moves no code, but for one in about 10^9."""

    def doubled(inputs):
        return tuple(t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in inputs)

    fused = prepared(name, preset)[0].double()
    plain = node_by_node(fused, products.torchs)
    sizes = (zoo.TRACED, zoo.OTHER, zoo.TRACED)
    assert_same_steps(fused, plain, [doubled(zoo.CASES[name].inputs(size)) for size in sizes])


def test_prepare_without_fuse_is_the_same_module():
    case = zoo.CASES["GIN"]
    fused = dqconvert.prepare(case.model(), "int8-dq", case.inputs()).module
    plain = dqconvert.prepare(case.model(), "int8-dq", case.inputs(), fuse=False).module
    assert fused.fusions
    assert plain.fusions == ()
    twin = node_by_node(fused, products.torchs)
    assert plain.code == twin.code
    for seed, size in enumerate((zoo.TRACED, zoo.OTHER)):
        zoo.assert_step_close(*(zoo.train_step(module, case.inputs(size), seed) for module in (plain, twin)))


@pytest.mark.sample(5)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", ["GCN", "GIN", "GAT", "GraphSAGE"])
def test_whoever_is_protected(both, name, share):
    fused, plain, inputs = both(name)
    for module in (fused, plain):
        zoo.train_step(module, inputs())
    protect_prob = torch.full((zoo.TRACED[0],), share)
    assert_same_steps(fused, plain, [inputs(), inputs()], protect_prob=protect_prob)


# -- copies and files ----------------------------------------------------------------------------------------------


def saved(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def state_loaded(module):
    case = zoo.CASES["GIN"]
    with pytest.MonkeyPatch.context() as patch:  # prepared as ever
        patch.setattr(F, "linear", products.torchs)
        fresh = dqconvert.prepare(case.model(seed=7), "int8-dq", case.inputs()).module
    fresh.load_state_dict(module.state_dict(), strict=True)
    return fresh


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module)), saved, state_loaded],
    ids=["deepcopy", "pickle", "torch.save", "state_dict"],
)
def test_copies_of_a_trained_module_go_on_alike(both, copied):
    fused, plain, inputs = both("GIN")
    for module in (fused, plain):
        zoo.train_step(module, inputs())
    twin = copied(fused)
    assert [fusion.op for fusion in twin.fusions] == [fusion.op for fusion in fused.fusions]
    assert_same_steps(twin, plain, [inputs(zoo.OTHER), inputs()])
    assert not torch.equal(ranges(fused)["convs.0.quant.message"], ranges(twin)["convs.0.quant.message"])


def test_files_do_not_know_whether_it_was_fused(both, tmp_path):
    fused, plain, inputs = both("GCN")
    for module in (fused, plain):
        zoo.train_step(module, inputs())
        module.eval()
    dqconvert.save(fused, tmp_path / "fused.dq")
    loaded = dqconvert.load(tmp_path / "fused.dq", zoo.CASES["GCN"].model())
    zoo.assert_same(zoo.evaluate(loaded, inputs()), zoo.evaluate(plain, inputs()))


# -- switches ------------------------------------------------------------------------------------------------------


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", ["GIN", "GCN", "GAT"])
@pytest.mark.parametrize("which", ["observer", "fake_quant"])
def test_switches_do_the_same(both, name, which):
    fused, plain, inputs = both(name)
    disable, enable = (getattr(dqconvert, f"{verb}_{which}") for verb in ("disable", "enable"))
    for module in (fused, plain):
        zoo.train_step(module, inputs())
        module.apply(disable)
    before = ranges(fused)
    assert_same_steps(fused, plain, [inputs(zoo.OTHER), inputs()])
    assert all(torch.equal(before[path], new) for path, new in ranges(fused).items()) == (which == "observer")
    for module in (fused, plain):
        module.apply(enable)
    assert_same_steps(fused, plain, [inputs(zoo.OTHER), inputs()])


@pytest.mark.parametrize("name", ["GIN", "GCN", "GAT"])
def test_one_quantizer_that_is_switched_off(both, name):
    fused, plain, inputs = both(name)
    for module in (fused, plain):
        zoo.train_step(module, inputs())
    for number, (path, _) in enumerate(fused.quantizers()):
        switch = dqconvert.disable_observer if number % 2 else dqconvert.disable_fake_quant
        for module in (fused, plain):
            module.apply(dqconvert.enable_observer).apply(dqconvert.enable_fake_quant)
            switch(module.get_submodule(path))
        assert_same_steps(fused, plain, [inputs(zoo.OTHER)])


@pytest.mark.parametrize("name", ["GIN", "GCN", "GAT", "GraphSAGE"])
def test_a_part_that_is_frozen(both, name):
    """Its quantizers neither observe nor protect; those behind it do."""
    fused, plain, inputs = both(name)
    for module in (fused, plain):
        zoo.train_step(module, inputs())
    protect_prob = torch.full((zoo.TRACED[0],), 0.5)
    for part in (0, 1):
        outs = []
        for module in (fused, plain):
            module.train()
            module.convs[part].eval()
            outs.append(zoo.run(module, inputs(), protect_prob=protect_prob))
        torch.testing.assert_close(*outs, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(ranges(fused), ranges(plain), rtol=1e-6, atol=1e-6)


def test_calibration_is_the_same(both):
    fused, plain, inputs = both("GIN")
    for module in (fused, plain):
        dqconvert.calibrate(module, [inputs(), inputs(zoo.OTHER)])
    torch.testing.assert_close(ranges(fused), ranges(plain), rtol=1e-6, atol=1e-6)
    zoo.assert_same(zoo.evaluate(fused, inputs()), zoo.evaluate(plain, inputs()))


def test_what_was_never_observed_is_an_error_too(both):
    fused, _, inputs = both("GIN")
    with pytest.raises(ObserverError, match="never observed a value"):
        fused.eval()(*inputs())


# -- hooks ---------------------------------------------------------------------------------------------------------


class Activated(nn.Module):
    """A ReLU and a dropout that are modules."""

    def __init__(self):
        super().__init__()
        self.conv1 = GCNConv(zoo.WIDTH, 8)
        self.act = nn.ReLU()
        self.drop = nn.Dropout(0.5)
        self.conv2 = GCNConv(8, 4)

    def forward(self, x, edge_index):
        return self.conv2(self.drop(self.act(self.conv1(x, edge_index))), edge_index)


HOOKS = [
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
]


@pytest.mark.sample(5)
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("name", ["act", "drop", "conv2.lin"])
def test_hooks_of_the_float_model_are_called(name, hook):
    model, calls = Activated(), []
    getattr(model.get_submodule(name), hook)(lambda *args: calls.append(1))
    module = dqconvert.prepare(model, "int8-dq", zoo.graph()).module
    calls.clear()
    zoo.train_step(module, zoo.graph())
    assert calls == [1]


def test_hooks_of_quantizers_are_called_once_the_code_is_made_again():
    module, calls = dqconvert.prepare(Activated(), "int8-dq", zoo.graph()).module, []
    for path, quantizer in module.quantizers():
        quantizer.register_forward_hook(lambda *args, path=path: calls.append(path))
    module.recompile()
    zoo.train_step(module, zoo.graph())
    assert sorted(calls) == sorted(path for path, _ in module.quantizers())


def test_hooks_change_nothing():
    model = Activated()
    plain = node_by_node(dqconvert.prepare(model, "int8-dq", zoo.graph()).module)
    model.act.register_forward_hook(lambda *args: None)
    hooked = dqconvert.prepare(model, "int8-dq", zoo.graph()).module
    assert_same_steps(hooked, plain, [zoo.graph(), zoo.graph(zoo.OTHER)])


# -- graphs that change --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["GCN", "GIN", "GAT", "GraphSAGE"])
def test_a_graph_changed_in_place_is_noticed(both, name):
    fused, plain, inputs = both(name)
    x, edge_index = inputs()
    for step in range(3):
        assert_same_steps(fused, plain, [(x, edge_index)])
        edge_index[:, step] = edge_index.flip(0)[:, step + 4]
        edge_index[1, -1 - step] = step


def test_one_graph_is_ordered_once(both, monkeypatch):
    fused, _, inputs = both("GIN")
    assert sum(isinstance(module, EdgeOrders) for module in fused.modules()) == 2, "shared by the layers"
    count = []
    edge_order = memo.edge_order
    monkeypatch.setattr(memo, "edge_order", lambda *args: count.append(1) or edge_order(*args))
    x, edge_index = inputs()
    for _ in range(3):
        zoo.train_step(fused, (x, edge_index.clone()))
    assert len(count) == 2, "made once for the three steps"


def test_evaluation_in_inference_mode_leaves_no_trace(both):
    fused, plain, inputs = both("GCN")
    for module in (fused, plain):
        zoo.train_step(module, inputs())
        module.eval()
        with torch.inference_mode():
            for _ in range(2):
                module(*inputs())
    assert_same_steps(fused, plain, [inputs(), inputs(zoo.OTHER)])


def test_second_derivatives_are_the_same(both):
    """What a penalty on gradients, or forces from an energy, ask for."""
    fused, plain, (x, edge_index) = (*both("GIN", "int8-qat")[:2], zoo.graph())
    results = []
    for module in (fused, plain):
        inputs = x.clone().requires_grad_()
        zoo.run(module, (inputs, edge_index))  # ranges settle
        (slope,) = torch.autograd.grad(zoo.run(module, (inputs, edge_index)).square().sum(), inputs, create_graph=True)
        slope.square().sum().backward()
        results.append({name: p.grad for name, p in module.named_parameters() if p.grad is not None})
    assert_same_gradients(*results)


# -- types and compilers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["GCN", "GIN", "GAT", "GraphSAGE"])
def test_autocast(both, name):
    fused, plain, inputs = both(name)
    for seed in range(2):
        results = []
        for module in (fused, plain):
            module.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                out = zoo.run(module.train(), inputs(), seed)
            out.float().square().sum().backward()
            results.append((out, {name: p.grad for name, p in module.named_parameters()}))
        (out, grads), (want, want_grads) = results
        assert out.dtype == want.dtype
        torch.testing.assert_close(out, want, rtol=0, atol=0)
        largest = max(grad.abs().max() for grad in want_grads.values()).item()
        torch.testing.assert_close(grads, want_grads, rtol=0.01, atol=0.01 * largest)
        torch.testing.assert_close(ranges(fused), ranges(plain), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types(both, dtype):
    fused, plain, inputs = both("GIN")
    x, edge_index = inputs()
    outs = [zoo.run(module.to(dtype), (x.to(dtype), edge_index)) for module in (fused, plain)]
    assert outs[0].dtype == dtype
    torch.testing.assert_close(*outs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ranges(fused), ranges(plain), rtol=1e-6, atol=1e-6)


@pytest.mark.study
@pytest.mark.parametrize("name", ["GCNConv", "GINConv", "SAGEConv", "GATConv"])
def test_compiled_as_one_graph_it_trains_the_same(prepared, name):
    torch._dynamo.reset()
    eager, _ = prepared(name)
    compiled = copy.deepcopy(eager)
    run = torch.compile(compiled, fullgraph=True, dynamic=True, backend="aot_eager")
    case = zoo.CASES[name]
    for seed, size in enumerate((zoo.TRACED, zoo.OTHER)):
        want, want_grads = zoo.train_step(eager, case.inputs(size), seed)
        compiled.train().zero_grad()
        torch.manual_seed(seed)
        out = run(*case.inputs(size))
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)
        assert_same_gradients({name: p.grad for name, p in compiled.named_parameters()}, want_grads)
        torch.testing.assert_close(ranges(compiled), ranges(eager), rtol=1e-6, atol=1e-6)


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", FUSED)
def test_a_profiler_sees_the_operators_and_changes_nothing(prepared, name):
    """Registered operators run where somebody looks, and functions of the same content where nobody does."""
    unseen, _ = prepared(name)
    seen = copy.deepcopy(unseen)
    for seed, size in enumerate((zoo.TRACED, zoo.OTHER)):
        inputs = zoo.CASES[name].inputs(size)
        want = zoo.train_step(unseen, inputs, seed)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            got = zoo.train_step(seen, inputs, seed)
        zoo.assert_same(got[0], want[0])
        assert got[1].keys() == want[1].keys()
        assert_same_gradients(got[1], want[1])
        zoo.assert_same(ranges(seen), ranges(unseen))
    names = {event.name for event in profiler.events()}
    assert "dqconvert::propagate" in names
    if any(fusion.op == "linear, chain" for fusion in seen.fusions):
        assert {"dqconvert::quantize_linear", "dqconvert::quantize_linear_grad"} <= names


# -- golden vectors ------------------------------------------------------------------------------------------------

GOLDEN = json.loads((Path(__file__).parent / "golden" / "gcn_layer.json").read_text())


@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "node by node"])
@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"int{case['bits']}")
def test_golden_vectors(case, fuse):
    x, edge_index = torch.tensor(case["x"], requires_grad=True), torch.tensor(case["edge_index"])
    conv = GCNConv(len(case["weight"]), len(case["bias"]))
    with torch.no_grad():
        conv.lin.weight.copy_(torch.tensor(case["weight"]).t())  # [in, out] in the file
        conv.bias.copy_(torch.tensor(case["bias"]))
    module, _ = dqconvert.prepare(conv, f"int{case['bits']}-dq", (x.detach(), edge_index), fuse=fuse)
    assert bool(module.fusions) is fuse

    def assert_close(value, expected):
        torch.testing.assert_close(value, torch.tensor(expected), rtol=1e-5, atol=1e-6)

    out = module.train()(x, edge_index, protect_prob=torch.tensor(case["mask"]).float())
    out.backward(torch.tensor(case["grad_output"]))
    assert_close(out, case["train_output"])
    assert_close(x.grad, case["grad_x"])
    assert_close(module.lin.weight.grad.t(), case["grad_weight"])
    assert_close(module.bias.grad, case["grad_bias"])
    message = module.quant.message
    assert_close(torch.stack([message.min_val, message.max_val]), case["ranges"]["mp_quantizers.message_low"])
    with torch.no_grad():
        assert_close(module.eval()(x, edge_index), case["eval_output"])


# -- many steps ----------------------------------------------------------------------------------------------------


def losses(module, x, edge_index, y, steps=50):
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    torch.manual_seed(0)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(module(x, edge_index), y)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return torch.tensor(found)


@pytest.mark.study
def test_fifty_steps_stay_within_the_spread_of_edge_orders():
    """Sums of floats in another order move a code here and there; fusing may move no more than that."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(300, 16, generator=generator), torch.randint(4, (300,), generator=generator)
    x = x + F.one_hot(y, 16)
    edge_index = (torch.rand(2, 1500, generator=generator) ** 2 * 300).long()
    for model in (GCN(16, 32, 2, 4, dropout=0.2), GIN(16, 32, 2, 4, norm="batch_norm")):
        plain = dqconvert.prepare(model, "int8-dq", (x, edge_index), fuse=False).module
        fused = dqconvert.prepare(model, "int8-dq", (x, edge_index)).module
        assert fused.fusions
        orders = [torch.randperm(1500, generator=generator) for _ in range(10)]
        runs = torch.stack([losses(copy.deepcopy(plain), x, edge_index[:, order], y) for order in orders])
        got = losses(fused, x, edge_index, y)
        centre, spread = runs.mean(0), (runs.amax(0) - runs.amin(0)).max()
        print(f"{type(model).__name__}: spread {spread:.2e}, fused {(got - centre).abs().max():.2e} off the mean")
        assert got[-1] < 0.9 * got[0], "it learns"
        assert ((got - centre).abs() <= spread + 1e-6).all()


def test_memory_stays_bounded_with_batches_of_changing_sizes():
    buffers = _buffers.empty.__self__
    model = GIN(64, 64, 2, 8)
    x, edge_index = torch.randn(6000, 64), torch.randint(6000, (2, 9000))
    module = dqconvert.prepare(model, "int8-dq", (x[:50], edge_index[:, :20] % 50)).module
    held = []
    for step in range(40):
        rows = 4100 + 1900 * (step % 7) // 6
        module(x[:rows], edge_index % rows).sum().backward()
        held.append(sum(len(raw) for kept in buffers._free.values() for raw in kept))
    assert 0 < max(held) <= 1.25 * buffers._most_bytes
    assert max(held[20:]) <= 1.3 * max(held[:20]), "it does not grow"
