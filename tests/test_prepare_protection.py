"""Protection as a prepared model shows it: who is protected, how often, and what that does to the values."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GCN, GATConv, GCNConv, GINConv, SAGEConv, TopKPooling, global_mean_pool
from torch_geometric.nn.conv.gcn_conv import gcn_norm

import dqconvert
import zoo
from dqconvert import Protect, QConfig, QSpec, Rule, presets

SPEC = QSpec()


def protecting(p_min, p_max, **kinds):
    """All activations quantized; no whole row is on the grid by chance, so what passes unchanged was protected."""
    kinds = dict.fromkeys(["activation", "message", "aggregate"], SPEC) | kinds
    return QConfig(protect=Protect(p_min=p_min, p_max=p_max), **kinds)


def draws_only(p_min, p_max):
    """As little as possible besides the draw, for tests of frequencies."""
    return QConfig(message=SPEC, protect=Protect(p_min=p_min, p_max=p_max))


def expected_probability(targets, num_nodes, p_min, p_max, batch=None):
    """p_min + (p_max - p_min) * share of nodes of the same graph with at most this in-degree."""
    degree = [sum(int(target) == node for target in targets) for node in range(num_nodes)]
    batch = [0] * num_nodes if batch is None else batch.tolist()
    shares = []
    for node in range(num_nodes):
        graph = [other for other in range(num_nodes) if batch[other] == batch[node]]
        shares.append(sum(degree[other] <= degree[node] for other in graph) / len(graph))
    return torch.tensor([p_min + (p_max - p_min) * share for share in shares])


class Watch:
    """Records, per forward, what each quantizer is told, the rows that it passes unchanged, and the draws.

    From then on the module runs node by node: fused operators call no quantizers.
    """

    def __init__(self, module, report):
        module.fuse = False
        module.recompile()
        self.passed, self.told, self.draws = {}, {}, []
        for entry in report.entries:
            quantizer = module.get_submodule(entry.path)
            quantizer.register_forward_hook(self._watch(entry.path, getattr(quantizer, "row_dim", 0)))
        for path in report.protection:
            module.get_submodule(path).register_forward_hook(lambda m, a, drawn: self.draws.append(drawn))

    def _watch(self, path, row_dim):
        def hook(module, arguments, out):
            self.told.setdefault(path, []).append(arguments[1] if len(arguments) > 1 else None)
            others = [dim for dim in range(out.dim()) if dim != row_dim]
            same = out == arguments[0]
            self.passed.setdefault(path, []).append(same.all(dim=others) if others else same)

        return hook

    def last(self, path):
        return self.passed[path][-1]

    @property
    def draw(self):
        return self.draws[-1]


def watched(model, config, example):
    module, report = dqconvert.prepare(model, config, example)
    return module.train(), Watch(module, report)


def assert_frequencies(draws, expected):
    """Within four standard errors, and exact where the probability is 0 or 1."""
    frequency = torch.stack(draws).float().mean(dim=0)
    error = (expected * (1 - expected) / len(draws)).sqrt()
    assert ((frequency - expected).abs() <= 4 * error + 1e-6).all()


# -- all and nothing ---------------------------------------------------------------------------------------------

NODE_LAYERS = [
    *("GCNConv", "GATv2Conv", "GINConv", "SAGEConv", "SAGEConv_max", "GraphConv", "PNAConv"),
    *("ChebConv", "EdgeConv", "GCN", "GraphSAGE_layer_norm", "GIN_graph_norm", "GIN_jk_lstm", "EdgeCNN", "Tied"),
]
WITH_NORM = ["GCNConv", "ChebConv", "GCN", "Tied"]


def without_dropout(model):
    for module in model.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.sample(3)
@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "not fused"])
@pytest.mark.parametrize("name", NODE_LAYERS)
def test_all_protected_is_float(name, fuse):
    """But for weights and what comes from the graph alone (a GCN norm), which are never protected."""
    case = zoo.CASES[name]
    model = without_dropout(case.model())
    rules = [Rule(role="edge_weight", spec=None)] if name in WITH_NORM else []
    config = replace(presets["int4-dq"], weight=None, rules=rules)
    module, report = dqconvert.prepare(model, config, case.inputs(), fuse=fuse)
    assert {"message", "aggregate", "feature"} <= set(report.totals["role"])
    for size in (zoo.TRACED, zoo.OTHER):
        inputs = case.inputs(size)
        expected = zoo.train_step(copy.deepcopy(model), inputs)
        step = zoo.train_step(module, inputs, protect_prob=torch.ones(size[0]))
        zoo.assert_step_close(step, expected, exact=not fuse)


@pytest.mark.sample(3)
@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "not fused"])
@pytest.mark.parametrize("name", ["GCN", "GATv2Conv", "GINConv", "SAGEConv", "PNAConv", "EdgeConv"])
def test_all_protected_leaves_weights_quantized(name, fuse):
    case = zoo.CASES[name]
    model = without_dropout(case.model())
    protect_prob = torch.ones(zoo.TRACED[0])
    config = presets["int4-dq"]
    rules = [Rule(role="edge_weight", spec=config.activation)] if name in WITH_NORM else []
    unprotected = replace(config, activation=None, message=None, aggregate=None, rules=rules)
    whole, weights = (dqconvert.prepare(model, c, case.inputs(), fuse=fuse).module for c in (config, unprotected))
    out = zoo.train_step(whole, case.inputs(), protect_prob=protect_prob)
    expected = zoo.train_step(weights, case.inputs(), protect_prob=protect_prob)
    zoo.assert_step_close(out, expected, exact=not fuse)
    assert not torch.equal(out[0], zoo.train_step(model, case.inputs())[0])


def test_all_protected_leaves_ranges_unset():
    """Ranges are observed on unprotected values only."""
    module, report = dqconvert.prepare(SAGEConv(zoo.WIDTH, 4), "int8-dq", zoo.graph())
    zoo.train_step(module, zoo.graph(), protect_prob=torch.ones(zoo.TRACED[0]))
    for entry in report.entries:
        quantizer = module.get_submodule(entry.path)
        assert quantizer.is_observed() == (entry.role == "weight"), entry.path


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", [*NODE_LAYERS, "TransformerConv_attr", "WeightedGCN", "GraphClassifier"])
def test_none_protected_is_plain_quantization(name):
    case = zoo.CASES[name]
    model = without_dropout(case.model())
    config = presets["int8-dq"]
    protected, _ = dqconvert.prepare(model, config, case.inputs())
    plain, report = dqconvert.prepare(model, replace(config, protect=None), case.inputs())
    assert report.protection == ()
    inputs = case.inputs(zoo.OTHER)
    if name == "WeightedGCN":
        protected.eval(), plain.eval()
        for module in (protected, plain):
            for quantizer in [q for _, q in module.quantizers()]:
                quantizer.train()
        out = protected(*inputs, protect_prob=torch.zeros(zoo.OTHER[0])), plain(*inputs)
        zoo.assert_same(out[0], out[1])
    else:
        zoo.assert_same(
            zoo.train_step(protected, inputs, protect_prob=torch.zeros(zoo.OTHER[0])),
            zoo.train_step(plain, inputs),
        )
    zoo.assert_same(dict(protected.state_dict()), dict(plain.state_dict()))


# -- how often ---------------------------------------------------------------------------------------------------


def test_frequencies_follow_the_in_degree():
    x, edge_index = zoo.graph(zoo.OTHER)
    config = QConfig(protect=Protect(p_min=0.1, p_max=0.8), rules=[Rule(role="input", spec=SPEC)])
    module, watch = watched(GCNConv(zoo.WIDTH, 4), config, zoo.graph())
    with torch.no_grad():
        for _ in range(2000):
            module(x, edge_index)
    expected = expected_probability(edge_index[1], zoo.OTHER[0], 0.1, 0.8)
    assert expected.unique().numel() > 4
    assert_frequencies(watch.draws, expected)
    assert_frequencies(watch.passed["lin.quant.input"], expected)


def test_in_degrees_compare_within_each_graph_of_a_batch():
    inputs = zoo.with_batch(zoo.OTHER)
    module, watch = watched(zoo.GraphClassifier(), draws_only(0.0, 1.0), zoo.with_batch(zoo.TRACED))
    with torch.no_grad():
        for _ in range(1000):
            module(*inputs)
    expected = expected_probability(inputs[1][1], zoo.OTHER[0], 0.0, 1.0, inputs[2])
    for graph in range(3):
        assert expected[inputs[2] == graph].max() == 1
    assert_frequencies(watch.draws, expected)


def test_in_degrees_compare_within_each_graph_of_a_batch_object():
    batch = zoo.data(zoo.OTHER)
    module, watch = watched(zoo.DataClassifier(), draws_only(0.0, 1.0), zoo.data())
    with torch.no_grad():
        for _ in range(300):
            module(batch)
    assert_frequencies(watch.draws, expected_probability(batch.edge_index[1], batch.num_nodes, 0.0, 1.0, batch.batch))


def test_given_probabilities_are_used_instead():
    x, edge_index = zoo.graph(zoo.OTHER)
    module, watch = watched(SAGEConv(zoo.WIDTH, 4), protecting(0.0, 0.1), zoo.graph())
    given = torch.linspace(0, 1, zoo.OTHER[0])
    with torch.no_grad():
        for _ in range(500):
            module(x, edge_index, protect_prob=given)
    assert_frequencies(watch.draws, given)


def test_probabilities_on_the_data_are_used():
    model = zoo.DataNodes()
    data = zoo.data(zoo.OTHER, batched=False)
    data.protect_prob = (torch.arange(zoo.OTHER[0]) % 3 == 0).float()
    module, watch = watched(model, protecting(0.0, 0.1), zoo.data(batched=False))
    module(data)
    assert torch.equal(watch.draw, data.protect_prob.bool())


def test_the_transform_gives_what_the_model_computes():
    data = zoo.data(zoo.OTHER)
    transformed = dqconvert.DegreeProtection(0.0, 0.5)(zoo.data(zoo.OTHER))
    module, watch = watched(zoo.DataClassifier(), protecting(0.0, 0.5), zoo.data())
    draws = []
    for inputs in (data, transformed):
        zoo.run(module, (inputs,))
        draws.append(watch.draw)
    assert torch.equal(draws[0], draws[1])
    assert draws[0].any()


def test_zero_and_one_are_never_and_always():
    x, edge_index = zoo.graph(zoo.OTHER)
    module, watch = watched(SAGEConv(zoo.WIDTH, 4), protecting(1.0, 1.0), zoo.graph())
    module(x, edge_index)
    assert watch.draw.all()
    module, watch = watched(SAGEConv(zoo.WIDTH, 4), protecting(0.0, 0.0), zoo.graph())
    module(x, edge_index)
    assert not watch.draw.any()


# -- who ---------------------------------------------------------------------------------------------------------


def some(nodes):
    """Probabilities of 0 and 1: a draw without chance."""
    return (torch.arange(nodes) * 7 % 5 < 2).float()


def test_node_values_are_protected_row_by_row():
    module, watch = watched(SAGEConv(zoo.WIDTH, 4), protecting(0.0, 0.1, weight=SPEC), zoo.graph())
    given = some(zoo.OTHER[0])
    module(*zoo.graph(zoo.OTHER), protect_prob=given)
    degree = zoo.graph(zoo.OTHER)[1][1].bincount(minlength=zoo.OTHER[0])
    for path in ("lin_l.quant.feature", "lin_r.quant.feature", "quant.update"):
        assert torch.equal(watch.last(path), given.bool()), path
    # A node without in-edges aggregates to exactly zero, which every grid holds.
    assert torch.equal(watch.last("quant.aggregate"), given.bool() | (degree == 0))
    assert not watch.last("lin_l.quant.weight").all()


@pytest.mark.parametrize("flow", ["source_to_target", "target_to_source"])
def test_an_edge_is_protected_iff_its_sender_is(flow):
    x, edge_index = zoo.graph(zoo.OTHER)
    module, watch = watched(SAGEConv(zoo.WIDTH, 4, flow=flow), protecting(0.0, 0.1), zoo.graph())
    given = some(zoo.OTHER[0])
    module(x, edge_index, protect_prob=given)
    sender = edge_index[0 if flow == "source_to_target" else 1]
    assert torch.equal(watch.last("quant.message"), given.bool()[sender])


def test_in_degrees_are_those_of_receivers_under_reversed_flow():
    x, edge_index = zoo.graph(zoo.OTHER)
    conv = SAGEConv(zoo.WIDTH, 4, flow="target_to_source")
    module, watch = watched(conv, draws_only(0.0, 1.0), zoo.graph())
    with torch.no_grad():
        for _ in range(500):
            module(x, edge_index)
    assert_frequencies(watch.draws, expected_probability(edge_index[0], zoo.OTHER[0], 0.0, 1.0))


def test_added_self_loops_are_protected_as_their_node_and_not_counted():
    x, edge_index = zoo.graph(zoo.OTHER)
    module, watch = watched(GCNConv(zoo.WIDTH, 4), protecting(0.0, 0.1), zoo.graph())
    given = some(zoo.OTHER[0])
    module(x, edge_index, protect_prob=given)
    with_loops, _ = gcn_norm(edge_index, num_nodes=zoo.OTHER[0])
    assert with_loops.size(1) > edge_index.size(1)
    assert torch.equal(watch.last("quant.message"), given.bool()[with_loops[0]])


def test_what_comes_from_the_graph_alone_is_never_protected(prepared):
    expected = {
        "GCNConv": {"weight": False, "edge_weight": False, "message": True, "aggregate": True},
        "GATConv": {"weight": False, "edge_weight": True, "message": True, "aggregate": True},
        "TransformerConv": {"weight": False, "edge_weight": True, "message": True, "aggregate": True},
        "GraphConv_weight": {"weight": False, "edge_weight": False, "message": True, "aggregate": True},
    }
    for name, roles in expected.items():
        _, report = prepared(name)
        for role, protected in roles.items():
            assert {e.protected for e in report.entries if e.role == role} == {protected}, (name, role)


def test_an_mlp_of_edge_features_is_not_protected(prepared):
    _, report = prepared("NNConv")
    inside = [e for e in report.entries if e.module.startswith("nn") and e.role != "weight"]
    assert {e.level for e in inside} == {"edge"}
    assert not any(e.protected for e in inside)


def test_pooled_values_are_not_protected(prepared):
    _, report = prepared("GraphClassifier")
    head = [e for e in report.entries if e.module == "head" and e.role != "weight"]
    assert [e.level for e in head] == ["graph", "graph"]
    assert not any(e.protected for e in head)


def test_attention_is_protected_by_the_sender():
    x, edge_index = zoo.graph(zoo.OTHER)
    conv = GATConv(zoo.WIDTH, 4, heads=2, add_self_loops=False)
    given = some(zoo.OTHER[0])
    sender = given.bool()[edge_index[0]]
    for role, path in (("edge_weight", "quant.edge_weight"), ("message", "quant.message")):
        config = QConfig(protect=Protect(), rules=[Rule(role=role, spec=SPEC)])
        module, watch = watched(conv, config, zoo.graph())
        module(x, edge_index, protect_prob=given)
        # A lone in-edge has a coefficient of 1, which is on the grid.
        alone = edge_index[1].bincount()[edge_index[1]] == 1
        passed = watch.last(path)
        assert passed[sender].all()
        assert not passed[~sender & ~alone].any()
        assert torch.equal(passed, sender) or role == "edge_weight"


def test_rows_may_lie_along_another_dimension():
    """Features [time, nodes, width]: protection belongs to the nodes."""
    _, edge_index = zoo.graph()
    x = torch.randn(2, zoo.TRACED[0], zoo.WIDTH)
    conv = GCNConv(zoo.WIDTH, 4)
    nn.init.normal_(conv.bias)  # with a bias of zero, an update is an aggregate and on its grid
    module, watch = watched(conv, protecting(0.0, 0.1), (x, edge_index))
    given = some(zoo.TRACED[0])
    module(x, edge_index, protect_prob=given)
    assert torch.equal(watch.last("lin.quant.input"), given.bool())
    assert torch.equal(watch.last("quant.update"), given.bool())


def test_bipartite_graphs_draw_per_side():
    """Senders have no in-edges: they are protected with p_min; receivers by their in-degree."""
    x = torch.randn(9, zoo.WIDTH), torch.randn(4, zoo.WIDTH)
    edge_index = torch.stack([torch.arange(12) % 9, torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3])])
    module, report = dqconvert.prepare(SAGEConv((zoo.WIDTH, zoo.WIDTH), 5), protecting(0.0, 1.0), (x, edge_index))
    watch = Watch(module.train(), report)
    module(x, edge_index)
    assert not watch.last("quant.message").any()
    drawn = {len(draw): draw for draw in watch.draws}
    assert not drawn.get(9, torch.zeros(9)).any()
    assert drawn[4][0]


# -- sizes that coincide -----------------------------------------------------------------------------------------


def ring(nodes, width=zoo.WIDTH):
    """As many edges as nodes, the senders in another order than the nodes."""
    order = torch.randperm(nodes, generator=torch.Generator().manual_seed(5))
    return torch.randn(nodes, width), torch.stack([order, order.roll(1)])


@pytest.mark.sample(3)
@pytest.mark.parametrize("nodes", [8, zoo.WIDTH])
@pytest.mark.parametrize("example", ["ring", "other"])
@pytest.mark.parametrize("form", ["tensors", "Data", "Batch"])
def test_as_many_edges_as_nodes(nodes, example, form):
    class OnData(SAGEConv):
        def forward(self, data):
            return super().forward(data.x, data.edge_index)

    def shaped(x, edge_index):
        if form == "tensors":
            return x, edge_index
        parts = Data(x=x, edge_index=edge_index)
        return (parts if form == "Data" else Batch.from_data_list([parts]),)

    conv = (SAGEConv if form == "tensors" else OnData)(zoo.WIDTH, 4)
    x, edge_index = ring(nodes)
    traced = shaped(x, edge_index) if example == "ring" else shaped(*zoo.graph())
    module, watch = watched(conv, protecting(0.0, 0.1), traced)
    given = some(nodes)
    module(*shaped(x, edge_index), protect_prob=given)
    assert torch.equal(watch.last("lin_l.quant.feature"), given.bool())
    assert torch.equal(watch.last("quant.message"), given.bool()[edge_index[0]])
    assert not torch.equal(watch.last("quant.message"), given.bool())


@pytest.mark.parametrize("name", ["GCN", "GAT", "GIN"])
def test_width_equal_to_the_number_of_nodes(name):
    case = zoo.CASES[name]
    x, edge_index = ring(8)
    module, report = dqconvert.prepare(without_dropout(case.model()), protecting(0.0, 0.1), (x, edge_index))
    other, report_other = dqconvert.prepare(without_dropout(case.model()), protecting(0.0, 0.1), zoo.graph(zoo.OTHER))
    assert [(e.path, e.level, e.protected) for e in report.entries] == [
        (e.path, e.level, e.protected) for e in report_other.entries
    ]
    given = some(8)
    zoo.assert_same(
        zoo.train_step(module, (x, edge_index), protect_prob=given),
        zoo.train_step(other, (x, edge_index), protect_prob=given),
    )


# -- one draw ----------------------------------------------------------------------------------------------------


def test_one_draw_is_shared_by_all_layers():
    module, watch = watched(GCN(zoo.WIDTH, 8, 3, 4, act=None), protecting(0.3, 0.7), zoo.graph())
    torch.manual_seed(4)
    module(*zoo.graph(zoo.OTHER))
    after = torch.get_rng_state()
    assert len(watch.draws) == 1
    for layer in range(3):
        for path in ("lin.quant.feature", "quant.aggregate"):
            assert torch.equal(watch.told[f"convs.{layer}.{path}"][0], watch.draw), (layer, path)
    torch.manual_seed(4)
    torch.rand(zoo.OTHER[0])
    assert torch.equal(torch.get_rng_state(), after)


def test_each_forward_draws_anew():
    module, watch = watched(SAGEConv(zoo.WIDTH, 4), protecting(0.5, 0.5), zoo.graph())
    for _ in range(2):
        module(*zoo.graph(zoo.OTHER))
    assert len(watch.draws) == 2
    assert not torch.equal(*watch.draws)


def test_protected_values_leave_the_range_alone():
    x, edge_index = zoo.graph()
    x[0] = 1e6
    module, _ = dqconvert.prepare(GINConv(zoo.mlp(zoo.WIDTH, 4)), draws_only(0.0, 0.1), (x, edge_index))
    module.train()(x, edge_index, protect_prob=torch.eye(len(x))[0])
    assert module.quant.message.max_val == x[edge_index[0][edge_index[0] != 0]].max()


# -- evaluation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["GCN", "GAT", "NoisyInTraining"])
def test_nothing_is_protected_in_evaluation(name):
    case = zoo.CASES[name]
    module, report = dqconvert.prepare(case.model(), protecting(0.5, 1.0), case.inputs())
    for _ in range(3):  # until every range has seen something
        zoo.train_step(module, case.inputs(), protect_prob=torch.zeros(zoo.TRACED[0]))
    expected = zoo.evaluate(module, case.inputs())
    zoo.assert_same(zoo.evaluate(module, case.inputs(), protect_prob=torch.ones(zoo.TRACED[0])), expected)
    watch = Watch(module, report)
    zoo.evaluate(module, case.inputs())
    assert all(drawn is None for drawn in watch.draws)
    assert not watch.last(next(e.path for e in report.entries if e.role == "feature")).any()


def test_protection_follows_train_and_eval():
    module, watch = watched(SAGEConv(zoo.WIDTH, 4), protecting(0.5, 1.0), zoo.graph())
    module.train()(*zoo.graph())
    module.eval()(*zoo.graph())
    module.train()(*zoo.graph())
    assert [draw is None for draw in watch.draws] == [False, True, False]


def test_protection_survives_copies():
    module, report = dqconvert.prepare(SAGEConv(zoo.WIDTH, 4), protecting(1.0, 1.0), zoo.graph())
    copied = copy.deepcopy(module).train()
    watch = Watch(copied, report)
    copied(*zoo.graph())
    assert watch.draw.all()


# -- pooling -----------------------------------------------------------------------------------------------------


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = SAGEConv(zoo.WIDTH, 8)
        self.pool = TopKPooling(8, ratio=0.5)
        self.conv2 = SAGEConv(8, 4)

    def forward(self, x, edge_index, batch):
        h = self.conv1(x, edge_index)
        h, edge_index, _, batch, _, _ = self.pool(h, edge_index, None, batch)
        return global_mean_pool(self.conv2(h, edge_index), batch)


@pytest.mark.parametrize("protected", [False, True])
def test_pooled_rows_keep_their_protection(protected):
    inputs = zoo.with_batch(zoo.OTHER)
    module, watch = watched(Pooled(), protecting(0.0, 0.1), zoo.with_batch(zoo.TRACED))
    zoo.train_step(module, inputs, protect_prob=torch.full((zoo.OTHER[0],), float(protected)))
    before = watch.told["conv1.lin_l.quant.feature"][-1]
    after = watch.told["conv2.lin_l.quant.feature"][-1]
    assert before.tolist() == [protected] * zoo.OTHER[0]
    assert set(after.tolist()) == {protected}
    assert len(after) < len(before)
    zoo.train_step(module, inputs, protect_prob=torch.zeros(zoo.OTHER[0]))
    assert zoo.evaluate(module, inputs).isfinite().all()


def test_pooling_trains_with_protection_by_degree():
    module, _ = dqconvert.prepare(Pooled(), None, zoo.with_batch(zoo.TRACED))
    for size in (zoo.TRACED, zoo.OTHER):
        out, grads = zoo.train_step(module, zoo.with_batch(size))
        assert out.isfinite().all()
        assert all(grad.isfinite().all() for grad in grads.values())
