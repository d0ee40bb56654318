"""Hooks that a user registers run where the float model runs them, or there is a warning."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch_geometric.nn import GCNConv

import dqconvert
from dqconvert.errors import CheckpointError, GuardError, LoweringError

X = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
EDGES = torch.randint(40, (2, 160), generator=torch.Generator().manual_seed(0))
FLOAT = {"weight": None, "activation": None, "message": None, "aggregate": None, "protect": None}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = GCNConv(8, 8)
        self.act = nn.ReLU()

    def forward(self, x, edge_index):
        return self.act(self.conv(x, edge_index))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block()
        self.out = nn.Linear(8, 4)

    def forward(self, x, edge_index):
        return self.out(self.block(x, edge_index))


def net():
    torch.manual_seed(0)
    return Net()


def settle(module):
    module.train()
    module(X, EDGES).sum().backward()
    return module.eval()


WHERE = ["block", "block.conv", "block.act", "out"]


@pytest.mark.sample(3)
@pytest.mark.parametrize("path", WHERE)
@pytest.mark.parametrize("fuse", [True, False])
def test_a_hook_that_looks_runs_once_a_forward(path, fuse):
    model, seen = net(), []
    model.get_submodule(path).register_forward_hook(lambda module, args, out: seen.append(("out", out.shape)))
    model.get_submodule(path).register_forward_pre_hook(lambda module, args: seen.append(("in", args[0].shape)))
    module = settle(dqconvert.prepare(model, "int8-dq", (X, EDGES), fuse=fuse).module)
    seen.clear()
    module(X, EDGES)
    assert [kind for kind, _ in seen] == ["in", "out"]
    seen.clear()
    copy.deepcopy(module)(X[:7], EDGES % 7)
    assert [kind for kind, _ in seen] == ["in", "out"]
    assert all(shape[0] == 7 for _, shape in seen)


HOOKS = {
    "a forward hook": lambda m: m.register_forward_hook(lambda module, args, out: out * 2),
    "a forward hook with keywords": lambda m: m.register_forward_hook(
        lambda module, args, kwargs, out: out * 2, with_kwargs=True
    ),
    "a pre-hook": lambda m: m.register_forward_pre_hook(lambda module, args: (args[0] * 2, *args[1:])),
    "a pre-hook with keywords": lambda m: m.register_forward_pre_hook(
        lambda module, args, kwargs: ((args[0] * 2, *args[1:]), kwargs), with_kwargs=True
    ),
    "a backward hook": lambda m: m.register_full_backward_hook(lambda module, into, out: tuple(g * 2 for g in into)),
}


@pytest.mark.sample(7)
@pytest.mark.parametrize("hook", HOOKS.values(), ids=HOOKS.keys())
@pytest.mark.parametrize("path", ["", *WHERE])
def test_a_hook_that_changes_values_does_so(path, hook):
    if path in ("", "block", "block.conv") and hook is HOOKS["a backward hook"]:
        into = X  # without a gradient: the hook of a module that is given no gradient gets none
    into = X.clone().requires_grad_() if hook is HOOKS["a backward hook"] else X
    model = net()
    hook(model.get_submodule(path))
    module = dqconvert.prepare(model, FLOAT, (into, EDGES)).module
    for either in (model, module):
        either.train()
    assert torch.equal(module(into, EDGES), model(into, EDGES))
    grads = []
    for either in (model, module):
        leaf = X.clone().requires_grad_()
        either(leaf, EDGES).sum().backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)


PYG = ["propagate", "message", "aggregate"]


@pytest.mark.parametrize("stage", PYG)
def test_hooks_of_message_passing(stage):
    model, seen = net(), []
    conv = model.block.conv
    getattr(conv, f"register_{stage}_forward_hook")(lambda module, args, out: out * 2)
    getattr(conv, f"register_{stage}_forward_pre_hook")(lambda module, args: seen.append(stage))
    module = dqconvert.prepare(model, FLOAT, (X, EDGES)).module.eval()
    seen.clear()
    assert torch.equal(module(X, EDGES), model.eval()(X, EDGES))
    assert seen == [stage, stage]
    settle(dqconvert.prepare(model, "int8-dq", (X, EDGES)).module)(X, EDGES)


def test_what_a_hook_returns_must_stay_of_its_kind():
    model = net()
    state = {"on": False}
    model.block.register_forward_hook(lambda module, args, out: out * 2 if state["on"] else None)
    module = dqconvert.prepare(model, FLOAT, (X, EDGES)).module
    module(X, EDGES)
    state["on"] = True
    with pytest.raises(GuardError, match="a hook of Block"):
        module(X, EDGES)


def test_a_hook_registered_later_runs_on_what_stays_whole_and_warns_elsewhere():
    module = settle(dqconvert.prepare(net(), "int8-dq", (X, EDGES)).module)
    seen = []
    for path in ("block.act", "out.quant.input", ""):
        module.get_submodule(path).register_forward_hook(lambda *_, path=path: seen.append(path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(X, EDGES)
    assert sorted(seen) == ["", "block.act", "out.quant.input"]
    for path in ("block.conv", "out"):
        handle = module.get_submodule(path).register_forward_hook(lambda *_: seen.append("lost"))
        with pytest.warns(UserWarning, match=f"forward hook of module '{path}' was registered after"):
            module(X, EDGES)
        handle.remove()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(X, EDGES)
    assert "lost" not in seen


@pytest.mark.parametrize("hook", [nn.utils.spectral_norm, lambda lin: prune.random_unstructured(lin, "weight", 0.5)])
@pytest.mark.parametrize("fuse", [True, False])
def test_a_hook_of_torch_that_computes_a_weight_is_refused_once_the_model_is_prepared(hook, fuse):
    module = settle(dqconvert.prepare(net(), "int8-dq", (X, EDGES), fuse=fuse).module)
    hook(module.out)
    for _ in range(2):
        with pytest.raises(GuardError, match=r"'weight' of module out is computed by"):
            module(X, EDGES)
    if prune.is_pruned(module.out):
        prune.remove(module.out, "weight")
        assert (module.out.weight == 0).any()
        module(X, EDGES)


def test_one_on_the_model_itself_runs():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(X.size(1), 4))

        def forward(self, x, edge_index):
            return (x @ self.weight)[edge_index[0]]

    module = dqconvert.prepare(Root(), "int8-dq", (X, EDGES)).module.train()
    nn.utils.spectral_norm(module)
    module(X, EDGES).sum().backward()
    assert module.weight_orig.grad.abs().sum() > 0


def test_hooks_for_all_modules_are_remarked():
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        report = dqconvert.prepare(net(), "int8-dq", (X, EDGES)).report
    finally:
        handle.remove()
    assert any("hooks for all modules" in remark for remark in report.remarks)


def test_integer_modules_and_files_say_that_they_run_no_hooks(tmp_path):
    model = net()
    model.block.register_forward_hook(lambda *_: None)
    module = settle(dqconvert.prepare(model, "int8-dq", (X, EDGES)).module)
    with pytest.warns(UserWarning, match="hooks of module 'block'"):
        integer = dqconvert.convert(module)
    assert any("hooks" in remark for remark in integer.report.remarks)
    with pytest.raises(CheckpointError, match="runs hooks"):
        dqconvert.save(module, tmp_path / "model.dq")
    dqconvert.save(integer, tmp_path / "model.int")
    assert dqconvert.load(tmp_path / "model.int").report.remarks == integer.report.remarks
    changing = net()
    changing.block.register_forward_hook(lambda module, args, out: out * 2)
    with pytest.raises(LoweringError, match="changes values"):
        dqconvert.convert(settle(dqconvert.prepare(changing, "int8-dq", (X, EDGES)).module))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm, nn.utils.parametrizations.weight_norm])
def test_norms_of_weights(norm):
    model = net()
    norm(model.out)
    module = dqconvert.prepare(model, FLOAT, (X, EDGES)).module
    for training in (True, False):
        module.train(training), model.train(training)
        assert torch.equal(module(X, EDGES), model(X, EDGES))


@pytest.mark.parametrize(
    ("path", "register"),
    [
        ("", lambda module: module.register_forward_hook(lambda module, args, out: out - 1)),
        ("", lambda module: module.register_forward_pre_hook(lambda module, args: (2 * args[0], *args[1:]))),
        (
            "",
            lambda module: module.register_forward_hook(
                lambda module, args, kwargs, out: 3 * out, with_kwargs=True, always_call=True
            ),
        ),
        (
            "out",
            lambda module: module.register_forward_pre_hook(
                lambda module, args, kwargs: ((args[0] + 1,), kwargs), with_kwargs=True
            ),
        ),
    ],
    ids=["output of the model", "inputs of the model", "with keywords", "inputs of a layer"],
)
def test_an_integer_module_computes_with_the_hook_and_no_file_leaves_it_out(path, register, tmp_path):
    model = net()
    register(model.get_submodule(path))
    module, _ = dqconvert.prepare(model, "int8-dq", (X, EDGES))
    settle(module)
    integer = dqconvert.convert(module)
    torch.testing.assert_close(integer(X, EDGES), module(X, EDGES), rtol=0, atol=1e-5)
    torch.testing.assert_close(copy.deepcopy(integer)(X, EDGES), integer(X, EDGES), rtol=0, atol=0)
    where = f"module '{path}'" if path else "the module itself"
    with pytest.raises(CheckpointError, match=f"{where} has a hook .*, which a file cannot hold"):
        dqconvert.save(integer, tmp_path / "hooked")
    assert not (tmp_path / "hooked").exists()
