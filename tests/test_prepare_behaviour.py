"""What a prepared module does for its user: training, state, copies, modes, precision, methods, rules."""

import copy
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch_geometric.nn import GCN, BatchNorm, EdgeCNN, GCN2Conv, GCNConv, GraphSAGE, SAGEConv, Sequential
from torch_geometric.nn.conv.gcn_conv import gcn_norm

import dqconvert
import zoo
from dqconvert import QConfig, QSpec, Rule

ALL = list(zoo.CASES)
SOME = ["GCNConv", "GATConv", "GINEConv", "GIN_jk_lstm", "WeightedGCN", "DataClassifier", "NoisyInTraining"]
WEIGHT_IN_FLOAT = dict.fromkeys(["activation", "message", "aggregate"], QSpec(range="percentile", grad="clip"))


def quantizer_keys(report):
    return {f"{entry.path}.{buffer}" for entry in report.entries for buffer in ("min_val", "max_val")}


def entry_of(report, role, module=None):
    return next(e for e in report.entries if e.role == role and module in (None, e.module))


# -- training and evaluation -------------------------------------------------------------------------------------


@pytest.mark.sample(5)
@pytest.mark.parametrize("preset", ["int8-dq", "int4-dq"])
@pytest.mark.parametrize("name", ALL)
def test_a_training_step_and_evaluation(prepared, name, preset):
    case = zoo.CASES[name]
    module, report = prepared(name, preset)
    assert {"weight", "message", "aggregate"} <= set(report.totals["role"])
    assert {entry.bits for entry in report.entries} == {8 if preset == "int8-dq" else 4}

    _, float_grads = zoo.train_step(case.model(), case.inputs())
    for size in (zoo.TRACED, zoo.OTHER) if preset == "int8-dq" else (zoo.OTHER,):
        out, grads = zoo.train_step(module, case.inputs(size))
        assert out.isfinite().all()
        assert set(grads) == set(float_grads)
        assert all(grad.isfinite().all() for grad in grads.values())
    for path, quantizer in module.quantizers():
        assert quantizer.min_val.isfinite().all(), path
        assert quantizer.max_val.isfinite().all(), path

    before = torch.get_rng_state()
    first = zoo.evaluate(module, case.inputs(zoo.OTHER))
    assert first.isfinite().all()
    zoo.assert_same(zoo.evaluate(module, case.inputs(zoo.OTHER)), first)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", SOME)
def test_int8_evaluation_is_close_to_float_and_not_equal(prepared, name):
    """Quantizers do something, and not too much."""
    case = zoo.CASES[name]
    module, _ = prepared(name, "int8-qat")
    model = case.model()
    zoo.train_step(module, case.inputs())
    zoo.train_step(model, case.inputs())  # a norm's running statistics move in both
    expected = zoo.evaluate(model, case.inputs())
    out = zoo.evaluate(module, case.inputs())
    assert not torch.equal(out, expected)
    assert (out - expected).norm() < 0.2 * expected.norm()


def test_training_lowers_the_loss():
    model = zoo.CASES["GCN"].model()
    x, edge_index = zoo.graph(zoo.OTHER)
    y = torch.arange(len(x)) % 4
    module, _ = dqconvert.prepare(model, "int8-dq", (x, edge_index))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = F.cross_entropy(module.train()(x, edge_index), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_a_seed_repeats_a_training_step(prepared):
    steps = [zoo.train_step(prepared("GAT", "int8-dq")[0], zoo.x_only(zoo.OTHER)) for _ in range(2)]
    zoo.assert_same(steps[0][0], steps[1][0])
    zoo.assert_same(steps[0][1], steps[1][1])


def test_ranges_do_not_move_in_evaluation(prepared):
    module, report = prepared("GCN")
    zoo.train_step(module, zoo.graph())
    before = {key: module.state_dict()[key].clone() for key in quantizer_keys(report)}
    x, edge_index = zoo.graph(zoo.OTHER)
    zoo.evaluate(module, (100 * x, edge_index))
    zoo.assert_same({key: module.state_dict()[key] for key in before}, before)


# -- inputs made up ----------------------------------------------------------------------------------------------


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", [*zoo.BASIC, "DataClassifier", "DataNodes", "GraphClassifier"])
def test_prepare_makes_inputs_up(name):
    case = zoo.CASES[name]
    module, report = dqconvert.prepare(case.model())
    assert report.entries
    out, _ = zoo.train_step(module, case.inputs() if name not in OPTIONAL_TENSORS else zoo.graph())
    assert out.isfinite().all()


OPTIONAL_TENSORS = ["GCN_jk_cat", "GAT_attr"]  # made-up inputs leave out what forward does not require


def test_made_up_and_given_inputs_prepare_alike():
    case = zoo.CASES["DataClassifier"]
    by_itself = dqconvert.prepare(case.model()).report
    given = dqconvert.prepare(case.model(), None, case.inputs()).report
    assert [e.path for e in by_itself.entries] == [e.path for e in given.entries]
    assert [e.protected for e in by_itself.entries] == [e.protected for e in given.entries]


@pytest.mark.parametrize("form", ["tuple", "list", "dict"])
def test_example_inputs_as_tuple_list_or_dict(form):
    x, edge_index, edge_weight = zoo.with_weight(zoo.TRACED)
    example = {"x": x, "edge_index": edge_index, "edge_weight": edge_weight}
    example = {"tuple": tuple, "list": list}.get(form, lambda values: example)(example.values())
    module, _ = dqconvert.prepare(zoo.WeightedGCN(), QConfig(), example)
    assert module.eval()(*zoo.with_weight(zoo.OTHER)).shape == (zoo.OTHER[0], 4)


def test_example_inputs_as_a_data_object():
    module, _ = dqconvert.prepare(zoo.DataClassifier(), None, zoo.data())
    assert module(zoo.data(zoo.OTHER)).shape == (3, 3)


def test_a_batch_as_example_is_checked_on_a_second_size():
    _, report = dqconvert.prepare(zoo.DataClassifier(), None, zoo.data())
    assert report.remarks == ()


def test_another_method_than_forward():
    model = zoo.WeightedGCN()
    module, _ = dqconvert.prepare(model, QConfig(), zoo.with_weight(zoo.TRACED), method="encode")
    zoo.assert_same(module.eval()(*zoo.with_weight(zoo.OTHER)), model.eval().encode(*zoo.with_weight(zoo.OTHER)))


def test_fuse_does_not_change_names_or_values():
    case = zoo.CASES["GCN"]
    (fused, _), (plain, _) = (dqconvert.prepare(case.model(), None, case.inputs(), fuse=f) for f in (True, False))
    assert list(fused.state_dict()) == list(plain.state_dict())
    out, grads = zoo.train_step(fused, case.inputs())
    expected, expected_grads = zoo.train_step(plain, case.inputs())
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(grads, expected_grads)


# -- the model given stays as it is ------------------------------------------------------------------------------


def fingerprint(model):
    """All that could be seen of a model: modes, attributes, hooks, tensors and their gradients."""
    seen = {}
    for path, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, dict):
                value = {k: id(v) for k, v in value.items()}
            elif not isinstance(value, bool | int | float | str | type(None)):
                value = id(value)
            seen[path, key] = value
        seen[path, "class"] = (type(module), set(vars(type(module))))
    tensors = {name: value.clone() for name, value in model.state_dict(keep_vars=False).items()}
    return seen, tensors, [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def random_states():
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()


def mixed_model():
    """A model in mixed modes, with a gradient, a hook and attributes that its class does not have."""
    model = zoo.CASES["GIN_jk_lstm"].model().train()
    model.norms[0].eval()
    model.note = {"a": [1, 2]}
    model.register_forward_hook(lambda module, inputs, out: None)
    model(*zoo.graph()).sum().backward()
    return model


def test_the_given_model_is_not_changed():
    model = mixed_model()
    before, states = fingerprint(model), random_states()
    modes = {path: module.training for path, module in model.named_modules()}
    module, _ = dqconvert.prepare(model, "int8-dq", zoo.graph())
    assert random_states() == states
    zoo.train_step(module, zoo.graph())
    zoo.evaluate(module, zoo.graph())
    zoo.assert_same(fingerprint(model)[1], before[1])
    assert fingerprint(model)[0] == before[0]
    assert {path: module.training for path, module in model.named_modules()} == modes
    zoo.assert_same([g for g in fingerprint(model)[2] if g is not None], [g for g in before[2] if g is not None])


@pytest.mark.parametrize(
    ("qconfig", "options"),
    [
        ("int8-dq", {"example_inputs": (torch.ones(3, 99), torch.zeros(2, 4, dtype=torch.long))}),
        (QConfig(rules=[Rule(module="nowhere", spec=None)]), {"example_inputs": zoo.graph()}),
        ("int8-dq", {"example_inputs": zoo.graph(), "method": "no_such_method"}),
    ],
    ids=["rejected inputs", "useless rule", "no method"],
)
def test_the_given_model_is_not_changed_by_a_failure(qconfig, options):
    model = mixed_model()
    before, states = fingerprint(model), random_states()
    with pytest.raises(dqconvert.DQConvertError):
        dqconvert.prepare(model, qconfig, **options)
    after = fingerprint(model)
    assert after[0] == before[0]
    zoo.assert_same(after[1], before[1])
    assert random_states() == states


def test_a_layer_cache_is_neither_changed_nor_taken_over():
    conv = GCNConv(zoo.WIDTH, 5, cached=True).eval()
    conv(*zoo.graph())
    cached = conv._cached_edge_index
    module, _ = dqconvert.prepare(conv, QConfig(), zoo.graph(zoo.OTHER))
    assert conv._cached_edge_index is cached
    expected = GCNConv(zoo.WIDTH, 5).eval()
    expected.load_state_dict(conv.state_dict())
    zoo.assert_same(zoo.evaluate(module, zoo.graph(zoo.OTHER)), zoo.evaluate(expected, zoo.graph(zoo.OTHER)))


def test_modes_are_taken_over():
    model = mixed_model()
    module, report = dqconvert.prepare(model, "int8-dq", zoo.graph())
    for path, part in model.named_modules():
        assert module.get_submodule(path).training == part.training, path
    for entry in report.entries:
        owner = module.get_submodule(entry.module)
        assert module.get_submodule(entry.path).training == owner.training, entry.path


def test_example_inputs_are_not_changed():
    for name in ("GCNConv", "DataClassifier"):
        case = zoo.CASES[name]
        inputs, reference = case.inputs(), case.inputs()
        dqconvert.prepare(case.model(), None, inputs)
        if name == "GCNConv":
            zoo.assert_same(inputs, reference)
        else:
            assert inputs[0].keys() == reference[0].keys()
            zoo.assert_same(inputs[0].to_dict(), reference[0].to_dict())


# -- state -------------------------------------------------------------------------------------------------------


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", ALL)
def test_state_has_the_float_models_keys_and_the_quantizers(prepared, name):
    model = zoo.CASES[name].model(seed=5)
    float_state = model.state_dict()
    module, report = prepared(name)
    result = module.load_state_dict(float_state, strict=False)
    assert result.unexpected_keys == []
    missing = set(result.missing_keys)
    assert all(".quant." in f".{key}" for key in missing)
    assert {key for key in missing if key in quantizer_keys(report)} == quantizer_keys(report)
    assert [key for key in module.state_dict() if key in float_state] == list(float_state)
    assert dict(module.named_parameters()).keys() == dict(model.named_parameters()).keys()
    zoo.assert_same({key: module.state_dict()[key] for key in float_state}, dict(float_state))

    back = zoo.CASES[name].model(seed=6)
    back.load_state_dict({key: value for key, value in module.state_dict().items() if key in float_state})
    zoo.assert_same(dict(back.state_dict()), dict(float_state))


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", SOME)
def test_a_prepared_state_loads_into_another_prepared_module(prepared, name):
    case = zoo.CASES[name]
    trained, _ = prepared(name)
    zoo.train_step(trained, case.inputs())
    for value in trained.parameters():
        value.data += 0.01
    fresh, _ = dqconvert.prepare(case.model(seed=7), "int8-dq", case.inputs(zoo.OTHER))
    fresh.load_state_dict(trained.state_dict())
    zoo.assert_same(zoo.evaluate(fresh, case.inputs()), zoo.evaluate(trained, case.inputs()))


def test_unused_parameters_and_buffers_stay(prepared):
    module, _ = prepared("WeightedGCN")
    assert {"unused.weight", "unused.bias", "steps"} <= set(module.state_dict())
    assert "unused.weight" in dict(module.named_parameters())


def test_quantizers_are_named_by_module_and_role(prepared):
    _, report = prepared("WeightedGCN")
    assert [entry.path for entry in report.entries if entry.path.startswith("conv1")] == [
        "conv1.lin.quant.input",
        "conv1.lin.quant.weight",
        "conv1.lin.quant.feature",
        "conv1.quant.edge_weight",
        "conv1.quant.message",
        "conv1.quant.aggregate",
        "conv1.quant.update",
    ]


# -- copies ------------------------------------------------------------------------------------------------------


def pickled(module):
    return pickle.loads(pickle.dumps(module))


@pytest.mark.sample(5)
@pytest.mark.parametrize(
    ("name", "duplicate"), [*((name, pickled) for name in ALL), *((name, copy.deepcopy) for name in SOME)]
)
def test_a_copy_does_the_same(prepared, name, duplicate):
    case = zoo.CASES[name]
    module, report = prepared(name)
    zoo.train_step(module, case.inputs())
    copied = duplicate(module)
    assert isinstance(copied, type(case.model()))
    assert copied.report == report
    inputs = case.inputs(zoo.OTHER)
    expected = zoo.evaluate(module, inputs)
    zoo.assert_same(zoo.evaluate(copied, inputs), expected)
    zoo.assert_same(zoo.train_step(copied, inputs), zoo.train_step(module, inputs))


def test_a_copy_shares_nothing(prepared):
    module, _ = prepared("WeightedGCN")
    copied = copy.deepcopy(module)
    pointers = {value.data_ptr() for value in module.state_dict().values()}
    assert all(value.data_ptr() not in pointers for value in copied.state_dict().values())


@pytest.mark.study
def test_pickle_loads_in_a_new_process(prepared, spare, tmp_path):
    names = ["NoisyInTraining", "WeightedGCN", "DataClassifier", "GAT"]
    modules = [prepared(name)[0] for name in names]
    for name, module in zip(names, modules, strict=True):
        zoo.train_step(module, zoo.CASES[name].inputs())
    inputs = [zoo.CASES[name].inputs(zoo.OTHER) for name in names]
    (tmp_path / "modules.pkl").write_bytes(pickle.dumps((modules, inputs)))
    script = """
import pickle, torch
modules, inputs = pickle.load(open("modules.pkl", "rb"))
with torch.no_grad():
    torch.save([module.eval()(*args) for module, args in zip(modules, inputs)], "out.pt")
"""
    done = spare.run(script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = [zoo.evaluate(module, args) for module, args in zip(modules, inputs, strict=True)]
    zoo.assert_same(torch.load(tmp_path / "out.pt"), expected)


def test_torch_save_of_the_module(prepared, tmp_path):
    module, _ = prepared("GAT")
    zoo.train_step(module, zoo.graph())
    torch.save(module, tmp_path / "module.pt")
    loaded = torch.load(tmp_path / "module.pt", weights_only=False)
    zoo.assert_same(zoo.evaluate(loaded, zoo.graph()), zoo.evaluate(module, zoo.graph()))


# -- devices and precisions --------------------------------------------------------------------------------------


def ranges(module):
    return {key: value for key, value in module.state_dict().items() if key.endswith(("min_val", "max_val"))}


def cast(inputs, dtype):
    return tuple(
        value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value for value in inputs
    )


@pytest.mark.sample(3)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["GCN", "GAT", "GIN_graph_norm", "EdgeFeatures", "WeightedGCN"])
def test_ranges_stay_float32_when_the_module_is_cast(prepared, name, dtype):
    case = zoo.CASES[name]
    module, _ = prepared(name)
    zoo.train_step(module, case.inputs())
    before = {key: value.clone() for key, value in ranges(module).items()}
    module.to(dtype)
    assert {value.dtype for value in module.parameters()} == {dtype}
    zoo.assert_same(ranges(module), before)
    for _ in range(2):
        out, grads = zoo.train_step(module, cast(case.inputs(zoo.OTHER), dtype))
        assert out.dtype == dtype
        assert out.isfinite().all()
        assert {grad.dtype for grad in grads.values()} == {dtype}
        assert {value.dtype for value in ranges(module).values()} == {torch.float32}
    assert zoo.evaluate(module, cast(case.inputs(), dtype)).dtype == dtype


@pytest.mark.sample(3)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["GCN", "GAT_attr", "GIN", "SAGEConv"])
def test_a_model_of_another_precision_is_prepared(name, dtype):
    case = zoo.CASES[name]
    model = case.model().to(dtype)
    inputs = cast(case.inputs(), dtype)
    plain, _ = dqconvert.prepare(model, QConfig(), inputs)
    zoo.assert_same(zoo.train_step(plain, inputs), zoo.train_step(copy.deepcopy(model), inputs))
    module, _ = dqconvert.prepare(model, None, inputs)
    zoo.train_step(module, inputs)
    out = zoo.evaluate(module, inputs)
    assert out.dtype == dtype
    assert out.isfinite().all()
    assert {value.dtype for value in ranges(module).values()} == {torch.float32}


def test_to_cpu_changes_nothing(prepared):
    module, _ = prepared("GCN")
    zoo.train_step(module, zoo.graph())
    expected = zoo.evaluate(module, zoo.graph())
    zoo.assert_same(zoo.evaluate(module.to("cpu"), zoo.graph()), expected)


def test_to_a_device_takes_all_along(prepared):
    module, _ = prepared("GCN")
    module.to("meta")
    assert {value.device.type for value in module.state_dict().values()} == {"meta"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["GCN", "GAT", "GIN", "EdgeFeatures", "PNA"])
def test_autocast(prepared, name, dtype):
    case = zoo.CASES[name]
    module, _ = prepared(name)
    with torch.autocast("cpu", dtype=dtype):
        out, grads = zoo.train_step(module, case.inputs())
        assert zoo.evaluate(module, case.inputs()).isfinite().all()
    assert out.isfinite().all()
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in grads.values())
    assert {value.dtype for value in ranges(module).values()} == {torch.float32}


def test_autocast_without_quantizers_is_the_float_model():
    case = zoo.CASES["GCN"]
    model = case.model()
    module, _ = dqconvert.prepare(model, QConfig(), case.inputs())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        zoo.assert_same(zoo.train_step(module, case.inputs()), zoo.train_step(model, case.inputs()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_grad_scaler(prepared, dtype):
    module, _ = prepared("GCN")
    x, edge_index = zoo.graph(zoo.OTHER)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before = copy.deepcopy(module.state_dict())
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            loss = module.train()(x, edge_index).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    after = module.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(after[name], before[name]) for name, _ in module.named_parameters())
    assert scaler.get_scale() == 2.0**10


# -- train() and eval() ------------------------------------------------------------------------------------------


def test_functional_dropout_follows_the_mode():
    class Dropped(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = GCNConv(zoo.WIDTH, 4)

        def forward(self, x, edge_index):
            return F.dropout(self.conv(x, edge_index), p=0.5, training=self.training)

    module, _ = dqconvert.prepare(Dropped(), QConfig(), zoo.graph())
    for _ in range(2):
        assert (module.train()(*zoo.graph()) == 0).float().mean() > 0.2
        assert not (module.eval()(*zoo.graph()) == 0).any()


def test_dropout_inside_attention_follows_the_mode(prepared):
    module, _ = prepared("GATConv", QConfig())
    assert not torch.equal(module.train()(*zoo.graph()), module(*zoo.graph()))
    zoo.assert_same(module.eval()(*zoo.graph()), module(*zoo.graph()))


def test_a_norm_can_be_frozen(prepared):
    case = zoo.CASES["GCN_batch_norm"]
    model = case.model().train()
    module, _ = prepared("GCN_batch_norm", QConfig())
    module.train()
    for candidate in (model, module):
        candidate.norms[0].eval()
        zoo.run(candidate, case.inputs())
    zoo.assert_same(zoo.run(module, case.inputs()), zoo.run(model, case.inputs()))
    assert int(module.norms[0].module.num_batches_tracked) == 0
    assert int(module.norms[1].module.num_batches_tracked) == 2


@pytest.mark.parametrize("quiet", ["", "conv1"])
def test_only_a_submodule_in_evaluation(quiet):
    """Dropout in a submodule follows the submodule, that of the root follows the root."""

    class Part(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.conv = SAGEConv(width, 8)

        def forward(self, x, edge_index):
            return F.dropout(self.conv(x, edge_index), 0.5, self.training)

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = Part(zoo.WIDTH), Part(8)

        def forward(self, x, edge_index):
            h = F.dropout(self.conv1(x, edge_index), 0.3, training=self.training)
            return self.conv2(h, edge_index)

    model = Whole()
    module, _ = dqconvert.prepare(model, QConfig(), zoo.graph())
    for candidate in (model, module):
        candidate.train()
        candidate.get_submodule(quiet).training = False
    zoo.assert_same(zoo.run(module, zoo.graph()), zoo.run(model, zoo.graph()))


@pytest.mark.parametrize("duplicate", [lambda module: module, copy.deepcopy, pickled])
def test_noise_in_training_only(prepared, duplicate):
    module = duplicate(prepared("NoisyInTraining", QConfig())[0])
    first, second = (zoo.run(module.train(), zoo.graph(), seed) for seed in (1, 2))
    assert not torch.equal(first, second)
    first, second = (zoo.run(module.eval(), zoo.graph(), seed) for seed in (1, 2))
    zoo.assert_same(first, second)
    zoo.assert_same(first, zoo.evaluate(zoo.CASES["NoisyInTraining"].model(), zoo.graph()))


def test_a_frozen_quantizer_keeps_its_range(prepared):
    module, report = prepared("GCN")
    zoo.train_step(module, zoo.graph())
    frozen = module.get_submodule(entry_of(report, "message").path)
    module.train()
    frozen.eval()
    before = frozen.max_val.clone()
    x, edge_index = zoo.graph(zoo.OTHER)
    module(10 * x, edge_index)
    assert torch.equal(frozen.max_val, before)
    assert module.get_submodule(entry_of(report, "input").path).max_val > 2 * x.max()


def test_observers_and_rounding_can_be_switched(prepared):
    module, _ = prepared("WeightedGCN", "int8-qat")
    inputs = zoo.with_weight(zoo.TRACED)
    module.apply(dqconvert.disable_fake_quant)
    zoo.assert_same(zoo.train_step(module, inputs), zoo.train_step(zoo.CASES["WeightedGCN"].model(), inputs))
    before = copy.deepcopy(ranges(module))
    assert all(value.isfinite().all() for value in before.values())
    module.apply(dqconvert.enable_fake_quant).apply(dqconvert.disable_observer)
    zoo.train_step(module, inputs)
    zoo.assert_same(ranges(module), before)


# -- the user's methods and attributes ---------------------------------------------------------------------------


def test_methods_and_attributes_of_the_root_stay(prepared):
    module, _ = prepared("WeightedGCN", QConfig())
    model = zoo.CASES["WeightedGCN"].model()
    assert isinstance(module, zoo.WeightedGCN)
    assert isinstance(module, torch.fx.GraphModule)
    assert module.num_classes == 4
    inputs = zoo.with_weight(zoo.TRACED)
    zoo.assert_same(module.encode(*inputs), model.encode(*inputs))
    assert module.conv1.in_channels == zoo.WIDTH
    module.num_classes = 5
    assert module.num_classes == 5


def test_reset_parameters_resets_weights_and_ranges(prepared):
    module, _ = prepared("WeightedGCN")
    zoo.train_step(module, zoo.with_weight(zoo.TRACED))
    before = module.conv1.lin.weight.detach().clone()
    module.reset_parameters()
    assert not torch.equal(module.conv1.lin.weight, before)
    assert all(value.isinf().all() for value in ranges(module).values())
    zoo.train_step(module, zoo.with_weight(zoo.TRACED))
    assert zoo.evaluate(module, zoo.with_weight(zoo.TRACED)).isfinite().all()


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", zoo.LAYERS)
def test_a_layer_itself_can_be_the_root(prepared, name):
    module, report = prepared(name)
    layer = zoo.CASES[name].model()
    assert isinstance(module, type(layer))
    assert repr(layer).partition("(")[0] in str(report)
    if hasattr(layer, "reset_parameters"):
        zoo.train_step(module, zoo.CASES[name].inputs())
        module.reset_parameters()
        assert all(value.isinf().all() for value in ranges(module).values())


def test_users_own_attribute_named_quant_is_left_alone():
    model = GCNConv(zoo.WIDTH, 4)
    model.quant = "mine"
    module, report = dqconvert.prepare(model, None, zoo.graph())
    assert module.quant == "mine"
    zoo.train_step(module, zoo.graph())
    assert zoo.evaluate(module, zoo.graph()).isfinite().all()
    assert "message" in {entry.role for entry in report.entries}


def test_graph_and_code_can_be_looked_at(prepared):
    module, _ = prepared("GCN")
    assert "quant_message" in module.code
    module.graph.lint()


def test_a_hook_on_a_submodule_still_runs():
    model = GCN(zoo.WIDTH, 8, 2, 4, norm="batch_norm")
    seen = []
    model.norms[0].register_forward_hook(lambda module, inputs, out: seen.append(1))
    module, _ = dqconvert.prepare(model, None, zoo.graph())
    seen.clear()
    zoo.train_step(module, zoo.graph())
    assert seen == [1]


def test_one_tensor_for_two_arguments():
    """The first of several GCN2Conv layers gets x twice."""
    x, edge_index = zoo.graph()
    model = GCN2Conv(zoo.WIDTH, alpha=0.1)
    module, _ = dqconvert.prepare(model, QConfig(), (x, x, edge_index))
    first, other = torch.randn(2, zoo.OTHER[0], zoo.WIDTH)
    inputs = first, other, zoo.graph(zoo.OTHER)[1]
    zoo.assert_same(zoo.train_step(module, inputs), zoo.train_step(model, inputs))


def test_a_parametrized_layer_is_quantized_or_reported():
    model = zoo.CASES["GCN"].model()
    nn.utils.parametrizations.weight_norm(model.convs[0].lin)
    module, report = dqconvert.prepare(model, None, zoo.graph())
    quantized = [e for e in report.entries if e.role == "weight" and e.module.startswith("convs.0")]
    assert quantized or any(left.what.startswith("convs.0.lin") for left in report.left_float)
    zoo.train_step(module, zoo.graph())
    assert zoo.evaluate(module, zoo.graph()).isfinite().all()


# -- graphs at the edge ------------------------------------------------------------------------------------------


def loops(nodes):
    return torch.arange(nodes).repeat(2, 1)


ODD_GRAPHS = {
    "no edges": (7, torch.empty(2, 0, dtype=torch.long)),
    "isolated nodes": (9, torch.tensor([[0, 1], [1, 0]])),
    "self-loops": (5, torch.cat([loops(5), torch.tensor([[0, 1], [2, 2]])], dim=1)),
    "duplicate edges": (5, torch.tensor([[0, 0, 0, 1, 1, 4], [1, 1, 1, 2, 2, 0]])),
    "one node": (1, torch.tensor([[0], [0]])),
    "one node alone": (1, torch.empty(2, 0, dtype=torch.long)),
    "as many edges as nodes": (8, torch.stack([torch.arange(8), (torch.arange(8) + 1) % 8])),
}


def odd_inputs(case, nodes, edge_index):
    x = torch.randn(nodes, zoo.WIDTH)
    attr = {zoo.with_attr: zoo.edge_attr, zoo.with_weight: zoo.edge_weight}.get(case.make_inputs)
    return (x, edge_index) if attr is None else (x, edge_index, attr((nodes, edge_index.size(1))))


def accepts(model, inputs):
    try:
        zoo.train_step(model, inputs)
    except Exception:
        return False
    return True


# A layer with a cache answers for the graph that it saw first.
ODD_CASES = [*(name for name in zoo.LAYERS if name != "GCNConv_cached"), *zoo.BASIC, "WeightedGCN", "EdgeFeatures"]


@pytest.mark.sample(11)
@pytest.mark.parametrize("name", ODD_CASES)
def test_odd_graphs(prepared, name):
    """Whatever the float model accepts, the prepared one accepts, and gives the same without quantizers."""
    case = zoo.CASES[name]
    model, (plain, _), (module, _) = case.model(), prepared(name, QConfig()), prepared(name)
    zoo.train_step(module, case.inputs())
    state, used = copy.deepcopy(model.state_dict()), 0
    for label, (nodes, edge_index) in ODD_GRAPHS.items():
        inputs = odd_inputs(case, nodes, edge_index)
        if not accepts(case.model(), inputs):
            continue
        used += 1
        for candidate in (model, plain):
            candidate.load_state_dict(state)  # running statistics of the graph before
        zoo.assert_same(zoo.train_step(plain, inputs), zoo.train_step(model, inputs))
        zoo.assert_same(zoo.evaluate(plain, inputs), zoo.evaluate(model, inputs))
        out, grads = zoo.train_step(module, inputs)
        expected = zoo.evaluate(model, inputs).isfinite()
        assert (out.isfinite() | ~expected).all(), label
        assert all(value.isfinite().all() for value in grads.values()), label
        assert (zoo.evaluate(module, inputs).isfinite() | ~expected).all(), label
    assert used >= 4


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", ["GCN", "GATConv", "SAGEConv", "GIN", "EdgeConv", "EdgeFeatures", "GCN_jk_cat"])
def test_traced_on_an_odd_graph(name):
    """The example need not be a nice one: as many edges as nodes, one edge, no second size to be had."""
    case = zoo.CASES[name]
    for label in ("as many edges as nodes", "isolated nodes"):
        model = case.model()
        inputs = odd_inputs(case, *ODD_GRAPHS[label])
        plain, _ = dqconvert.prepare(model, QConfig(), inputs)
        zoo.assert_same(zoo.evaluate(plain, case.inputs()), zoo.evaluate(model, case.inputs()))
        module, _ = dqconvert.prepare(model, None, inputs)
        for size in (zoo.TRACED, zoo.OTHER):
            assert zoo.train_step(module, case.inputs(size))[0].isfinite().all()


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", ["GCN", "GAT", "GIN", "PNA", "WeightedGCN"])
def test_non_contiguous_inputs(prepared, name):
    case = zoo.CASES[name]
    x, edge_index, *others = case.inputs()
    strided = x.t().contiguous().t()
    doubled = edge_index.repeat_interleave(2, dim=1)[:, ::2]
    transposed = edge_index.t().contiguous().t()
    assert not any(value.is_contiguous() for value in (strided, doubled, transposed))
    plain, _ = prepared(name, QConfig())
    quantized, _ = prepared(name)
    for inputs in ((strided, doubled, *others), (strided, transposed, *others)):
        zoo.assert_same(zoo.train_step(plain, inputs), zoo.train_step(case.model(), inputs))
        expected = zoo.train_step(prepared(name)[0], case.inputs())
        torch.testing.assert_close(zoo.train_step(prepared(name)[0], inputs), expected)
        zoo.train_step(quantized, inputs)
        assert zoo.evaluate(quantized, inputs).isfinite().all()


# -- configs and rules -------------------------------------------------------------------------------------------


class Recorded(nn.Module):
    """A user's own quantizer: halves what is not protected and keeps what it was called with."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.5))
        self.calls = []

    def forward(self, x, protected):
        self.calls.append((x.shape, protected))
        return x * self.gain


def test_a_factory_plugs_in_the_users_quantizer():
    config = QConfig(
        protect=dqconvert.Protect(p_max=0.5), rules=[Rule(role="message", module="convs.0", spec=Recorded)]
    )
    model = zoo.CASES["GCN"].model()
    module, report = dqconvert.prepare(model, config, zoo.graph())
    assert [(e.path, e.bits, e.signed) for e in report.entries] == [("convs.0.quant.message", None, None)]
    own = module.convs[0].quant.message
    assert isinstance(own, Recorded)
    assert "convs.0.quant.message.gain" in module.state_dict()

    own.calls.clear()
    _, grads = zoo.train_step(module, zoo.graph())
    (shape, protected), *more = own.calls
    assert not more
    edge_index, _ = gcn_norm(zoo.graph()[1], num_nodes=zoo.TRACED[0])  # with the self-loops that GCN adds
    assert shape == (edge_index.size(1), 8)
    assert protected.dtype == torch.bool
    assert protected.shape == shape[:1]
    assert "convs.0.quant.message.gain" in grads

    own.calls.clear()
    zoo.evaluate(module, zoo.graph())
    assert own.calls[0][1] is None


def test_a_factory_gets_none_where_nothing_is_protected():
    config = QConfig(rules=[Rule(role="weight", spec=Recorded), Rule(role="message", spec=Recorded)])
    module, report = dqconvert.prepare(GCNConv(zoo.WIDTH, 4), config, zoo.graph())
    zoo.train_step(module, zoo.graph())
    for entry in report.entries:
        assert [protected for _, protected in module.get_submodule(entry.path).calls] == [None]


def test_rules_choose_by_module_role_kind_and_op():
    config = QConfig(
        **WEIGHT_IN_FLOAT,
        weight=QSpec(),
        rules=[
            Rule(module=r"convs\.0(\..*)?", spec=QSpec(bits=2)),
            Rule(role="message", spec=QSpec(bits=3)),
            Rule(op="torch.nn.functional.linear", kind="weight", spec=QSpec(bits=5)),
            Rule(kind="aggregate", spec=None),
        ],
    )
    _, report = dqconvert.prepare(zoo.CASES["GCN"].model(), config, zoo.graph())
    bits = {entry.path: entry.bits for entry in report.entries}
    assert {value for path, value in bits.items() if path.startswith("convs.0")} == {2}
    assert bits["convs.1.quant.message"] == 3
    assert bits["convs.1.lin.quant.weight"] == 5
    assert bits["convs.1.lin.quant.input"] == 8
    assert "convs.1.quant.aggregate" not in bits
    left = [left for left in report.left_float if left.what == "convs.1: aggregate"]
    assert [one.reason for one in left] == ["by rules[3]"]


def test_the_first_matching_rule_wins():
    rules = [Rule(role="weight", module=r"convs\.0\.lin", spec=QSpec(bits=3)), Rule(role="weight", spec=None)]
    _, report = dqconvert.prepare(zoo.CASES["GCN"].model(), QConfig(rules=rules), zoo.graph())
    assert [(e.path, e.bits) for e in report.entries] == [("convs.0.lin.quant.weight", 3)]


def test_rules_in_a_dict_override_a_preset():
    qconfig = {
        "preset": "int8-qat",
        "message": {"bits": 4},
        "aggregate": None,
        "rules": [{"module": r"convs\.0\.lin", "role": "weight", "spec": {"bits": 3}}],
    }
    module, report = dqconvert.prepare(zoo.CASES["GCN"].model(), qconfig, zoo.graph())
    bits = {entry.path: entry.bits for entry in report.entries}
    assert bits["convs.0.quant.message"] == 4
    assert bits["convs.0.lin.quant.weight"] == 3
    assert bits["convs.1.lin.quant.weight"] == 8
    assert "aggregate" not in report.totals["role"]
    assert report.protection == ()
    assert module.qconfig.message.range == "ema"


@pytest.mark.parametrize("as_path", [str, Path])
def test_qconfig_from_a_toml_file(tmp_path, as_path):
    file = tmp_path / "config.toml"
    file.write_text(
        'preset = "int4-dq"\naggregate = "float"\n[message]\nbits = 6\n'
        '[[rules]]\nmodule = "convs\\\\.1"\nrole = "update"\nspec = "float"\n'
    )
    _, report = dqconvert.prepare(zoo.CASES["GCN"].model(), as_path(file), zoo.graph())
    bits = {entry.path: entry.bits for entry in report.entries}
    assert bits["convs.0.quant.message"] == 6
    assert bits["convs.0.quant.update"] == 4
    assert "convs.1.quant.update" not in bits
    assert "aggregate" not in report.totals["role"]


def test_per_channel_ranges():
    spec = QSpec(granularity="channel", symmetric=True)
    module, report = dqconvert.prepare(GCNConv(zoo.WIDTH, 5), QConfig(weight=spec, message=spec), zoo.graph())
    zoo.train_step(module, zoo.graph())
    weight = module.get_submodule(entry_of(report, "weight").path)
    zoo.assert_same(weight.max_val, module.lin.weight.detach().amax(dim=1))
    assert module.get_submodule(entry_of(report, "message").path).max_val.shape == (5,)
    assert zoo.evaluate(module, zoo.graph(zoo.OTHER)).isfinite().all()


def test_input_is_unsigned_after_a_relu_only(prepared):
    _, report = prepared("WeightedGCN", "int8-dq")
    signed = {entry.path: entry.signed for entry in report.entries}
    assert signed.pop("conv2.lin.quant.input") is False
    assert set(signed.values()) == {True}


def test_signs_are_found_in_the_graph():
    _, report = dqconvert.prepare(zoo.CASES["GCN"].model(), QConfig(activation=QSpec()), zoo.graph())
    signed = {entry.path: entry.signed for entry in report.entries}
    assert signed["convs.1.lin.quant.input"] is False
    assert signed["convs.0.lin.quant.input"] is True
    assert signed["convs.0.quant.update"] is True


def test_a_rule_leaves_a_value_in_float():
    model = zoo.CASES["GCN"].model()
    config = QConfig(weight=QSpec(), rules=[Rule(module=r"convs\..*", spec=None)])
    module, report = dqconvert.prepare(model, config, zoo.graph())
    assert report.entries == ()
    zoo.assert_same(zoo.train_step(module, zoo.graph()), zoo.train_step(model, zoo.graph()))


def test_report_is_readable_and_plain(prepared):
    _, report = prepared("WeightedGCN")
    data = report.to_dict()
    assert data["totals"]["role"]["message"] == 2
    assert {"path", "module", "role", "kind", "bits", "protected"} <= set(data["entries"][0])
    assert "conv1.quant.message" in str(report)
    assert sum(report.totals["kind"].values()) == len(report.entries)


# -- preparing again ---------------------------------------------------------------------------------------------


def test_preparing_again_keeps_the_ranges_of_quantizers_that_stay(prepared):
    module, _ = prepared("WeightedGCN", "int8-dq")
    inputs = zoo.with_weight(zoo.TRACED)
    zoo.train_step(module, inputs)
    for value in module.parameters():
        value.data += 0.01
    before = copy.deepcopy(dict(module.state_dict()))
    again, report = dqconvert.prepare(module, {"preset": "int4-dq", "aggregate": None})
    zoo.assert_same(dict(module.state_dict()), before)

    after = again.state_dict()
    dropped = {key for key in before if ".aggregate." in key}
    assert set(after) == set(before) - dropped
    zoo.assert_same(dict(after), {key: before[key] for key in after})
    assert {entry.bits for entry in report.entries} == {4}
    assert zoo.evaluate(again, inputs).isfinite().all()
    assert zoo.train_step(again, inputs)[0].isfinite().all()


def test_preparing_again_with_more_quantizers():
    inputs = zoo.with_weight(zoo.TRACED)
    module, _ = dqconvert.prepare(zoo.WeightedGCN(), {"activation": None}, inputs)
    zoo.train_step(module, inputs)
    known = copy.deepcopy(ranges(module))
    again, _ = dqconvert.prepare(module, "int8-dq")
    zoo.assert_same({key: ranges(again)[key] for key in known}, known)
    assert all(value.isinf().all() for key, value in ranges(again).items() if key not in known)


def test_preparing_again_forgets_ranges_of_other_values_and_groups():
    """A norm on the nodes multiplies the rows that are sent; as many groups as channels are no channels."""
    inputs = zoo.graph()
    module, _ = dqconvert.prepare(zoo.WeightedGCN(), "int8-dq", inputs)
    zoo.train_step(module, inputs)
    again, _ = dqconvert.prepare(module, {"norm": "nodes"})
    observed = {path: quantizer.is_observed() for path, quantizer in again.quantizers()}
    assert {path.rpartition(".")[2] for path, seen in observed.items() if not seen} == {"feature", "message"}

    spec = QSpec(granularity="channel")
    module, _ = dqconvert.prepare(zoo.WeightedGCN(), {"aggregate": spec}, inputs)
    zoo.train_step(module, inputs)
    again, _ = dqconvert.prepare(module, {"aggregate": {"granularity": "degree", "groups": 8}})
    same = dict(module.quantizers())["conv1.quant.aggregate"], dict(again.quantizers())["conv1.quant.aggregate"]
    assert same[0].min_val.shape == same[1].min_val.shape
    assert [quantizer.is_observed() for quantizer in same] == [True, False]


def test_preparing_again_in_fewer_bits_begins_at_the_range_that_was_learned():
    inputs = zoo.graph()
    module, _ = dqconvert.prepare(zoo.WeightedGCN(), "int8-lsq", inputs)
    zoo.train_step(module, inputs)
    learned = dict(module.quantizers())["conv1.quant.update"]
    learned.offset.data.fill_(20.0)
    again, _ = dqconvert.prepare(module, "int4-lsq")
    found = dict(again.quantizers())["conv1.quant.update"]
    step = found.scale.item()
    assert found.offset.item() == 0
    for old, new in zip(learned.range, found.range, strict=True):
        assert abs(old.item() - new.item()) <= step


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", SOME)
def test_preparing_again_without_quantizers_is_the_float_model(prepared, name):
    case = zoo.CASES[name]
    module, _ = prepared(name)
    plain, report = dqconvert.prepare(module, QConfig())
    assert report.entries == ()
    assert set(plain.state_dict()) == set(case.model().state_dict())
    zoo.assert_same(zoo.train_step(plain, case.inputs()), zoo.train_step(case.model(), case.inputs()))
    zoo.assert_same(zoo.evaluate(plain, case.inputs()), zoo.evaluate(plain, case.inputs()))


def test_preparing_again_repeats_itself(prepared):
    """The same config again: the same module, also after a copy."""
    module, report = prepared("NoisyInTraining")
    zoo.train_step(module, zoo.graph())
    again, second = dqconvert.prepare(pickled(module), "int8-dq")
    assert [entry.path for entry in second.entries] == [entry.path for entry in report.entries]
    zoo.assert_same(zoo.evaluate(again, zoo.graph()), zoo.evaluate(module, zoo.graph()))
    zoo.assert_same(zoo.train_step(again, zoo.graph()), zoo.train_step(module, zoo.graph()))


# -- sharing -----------------------------------------------------------------------------------------------------


def test_a_layer_called_twice_has_one_weight_quantizer_and_activations_of_their_own(prepared):
    module, report = prepared("Tied")
    roles = report.totals["role"]
    assert roles["weight"] == 1
    assert roles["message"] == roles["aggregate"] == 2
    zoo.train_step(module, zoo.graph())
    first, second = (module.get_submodule(e.path) for e in report.entries if e.role == "aggregate")
    assert first.max_val != second.max_val


def test_a_shared_submodule_has_one_quantizer_per_weight(prepared):
    module, report = prepared("Siamese")
    assert report.totals["role"]["weight"] == 2
    assert module.left is module.right
    module = copy.deepcopy(module)
    assert module.left is module.right


def test_shared_parameters_stay_shared():
    model = zoo.CASES["GCN_batch_norm"].model()
    model.convs[1].lin.weight = nn.Parameter(torch.randn(8, 8))
    model.convs[0] = GCNConv(8, 8)
    model.convs[0].lin.weight = model.convs[1].lin.weight
    x, edge_index = zoo.graph(width=8)
    module, _ = dqconvert.prepare(model, None, (x, edge_index))
    for same in (module, copy.deepcopy(module), pickled(module)):
        assert same.convs[0].lin.weight is same.convs[1].lin.weight
        zoo.train_step(same, (x, edge_index))
        assert zoo.evaluate(same, (x, edge_index)).isfinite().all()


def test_one_tensor_read_by_two_layers_is_quantized_once():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = GCNConv(zoo.WIDTH, 4), GCNConv(zoo.WIDTH, 4)

        def forward(self, x, edge_index):
            return self.left(x, edge_index) + self.right(x, edge_index)

    _, report = dqconvert.prepare(Fork(), None, zoo.graph())
    assert report.totals["role"]["input"] == 1
    assert report.totals["role"]["message"] == 2


def test_a_residual_sum_is_quantized_where_it_enters_the_next_layer():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = GCNConv(zoo.WIDTH, zoo.WIDTH), GCNConv(zoo.WIDTH, 4)

        def forward(self, x, edge_index):
            return self.conv2(F.relu(self.conv1(x, edge_index)) + x, edge_index)

    module, report = dqconvert.prepare(Residual(), None, zoo.graph())
    assert entry_of(report, "input", "conv2.lin").signed is True
    assert zoo.train_step(module, zoo.graph())[0].isfinite().all()


def test_two_models_prepared_from_one_are_independent():
    model = zoo.CASES["GCN"].model()
    first, _ = dqconvert.prepare(model, None, zoo.graph())
    second, _ = dqconvert.prepare(model, None, zoo.graph())
    zoo.train_step(first, zoo.graph())
    assert all(value.isinf().all() for value in ranges(second).values())
    first.convs[0].bias.data += 1
    assert not torch.equal(first.convs[0].bias, second.convs[0].bias)


@pytest.mark.parametrize("draws", [lambda: random.seed(0), lambda: random.getstate()], ids=["a fixed seed", "any"])
def test_a_sequential_keeps_its_generated_code(draws):
    """PyG names a Sequential's code by a random number, takes equal names for one code, and copies draw numbers too."""
    draws()
    short = Sequential("x, edge_index", [(GCNConv(zoo.WIDTH, 8), "x, edge_index -> x")])
    before = random.getstate()
    first, _ = dqconvert.prepare(short, None, zoo.graph())
    assert random.getstate() == before
    copied = copy.deepcopy(first)
    long = Sequential("x, edge_index", [(GCNConv(zoo.WIDTH, 8), "x, edge_index -> x"), nn.Linear(8, 2)])
    second, _ = dqconvert.prepare(long, None, zoo.graph())
    assert [m(*zoo.graph()).size(1) for m in (long, second, copy.deepcopy(second))] == [2, 2, 2]
    assert [m(*zoo.graph()).size(1) for m in (short, first, copied, copy.deepcopy(first))] == [8, 8, 8, 8]


def test_two_models_sharing_a_submodule():
    encoder = GraphSAGE(zoo.WIDTH, 8, 2, 4)
    left, right = (
        Sequential("x, edge_index", [(encoder, "x, edge_index -> x"), BatchNorm(4), nn.Linear(4, n)]) for n in (2, 3)
    )
    (first, _), (second, _) = (dqconvert.prepare(m, None, zoo.graph()) for m in (left, right))
    assert zoo.train_step(first, zoo.graph())[0].shape == (zoo.TRACED[0], 2)
    assert zoo.train_step(second, zoo.graph())[0].shape == (zoo.TRACED[0], 3)
    assert set(EdgeCNN(2, 2, 1).state_dict()).isdisjoint(first.state_dict())
