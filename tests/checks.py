"""What tests of prepared models have in common: running them, and holding them against the float model."""

import copy
import inspect

import torch
from torch.utils import _pytree as pytree
from torch_geometric import seed_everything
from torch_geometric.data.data import BaseData
from torch_geometric.nn import MessagePassing

import dqconvert
from dqconvert import QConfig
from zoo import assert_same


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def call(model, inputs, method="forward", **kwargs):
    """All floating point tensors that the model returns, with the same random numbers every time."""
    seed_everything(1)  # PyG samples negative edges with Python's own generator
    function = model if method == "forward" else getattr(model, method)
    result = function(*(fresh(value) for value in inputs), **kwargs)
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]


def fresh(value):
    """A copy that a forward may change."""
    return copy.copy(value) if isinstance(value, BaseData | dict | list) else value


def step(model, inputs, method="forward", **kwargs):
    """One training step: outputs, gradients by parameter, buffers."""
    model.train()
    model.zero_grad(set_to_none=True)
    outputs = call(model, inputs, method, **kwargs)
    losses = [(out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum() for out in outputs if out.requires_grad]
    torch.stack(losses).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return [out.detach() for out in outputs], gradients, {name: b.clone() for name, b in model.named_buffers()}


@torch.no_grad()
def evaluation(model, inputs, method="forward", **kwargs):
    """The outputs in evaluation."""
    return call(model.eval(), inputs, method, **kwargs)


def unfused(model):
    """A copy whose layers compute messages over a sparse adjacency, too, as a model does whose messages are quantized.

    PyG's product multiplies by the matrix's values, so messages that say nothing of them are multiplied here.
    """
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, MessagePassing):
            names = set(inspect.signature(module.message).parameters)
            if module.fuse and not names & {"edge_weight", "edge_attr", "edge_type"}:
                module.register_propagate_forward_pre_hook(remember_adjacency)
                module.register_message_forward_hook(times_values)
            module.fuse = False
    return model


def remember_adjacency(layer, inputs):
    layer.adjacency = inputs[0]


def times_values(layer, inputs, message):
    if layer.adjacency.layout == torch.strided:
        return message
    return message * layer.adjacency.values().unsqueeze(-1)


def assert_float_identity(model, example, *others, method="forward"):
    """Without quantizers, the graph computes what the model computes: in both modes, on inputs of every size."""
    module, report = dqconvert.prepare(model, QConfig(), example, method=method)
    assert report.entries == ()
    assert not [remark for remark in report.remarks if "no second input" in remark], report.remarks
    for inputs in (example, *others):
        assert_same(step(copy.deepcopy(module), inputs), step(copy.deepcopy(model), inputs, method))
        assert_same(evaluation(module, inputs), evaluation(copy.deepcopy(model), inputs, method))
    return module


def assert_trains(model, example, *others, method="forward", preset="int8-dq"):
    """Converts in one call; every gradient that float has is there and finite; evaluation is finite and quantized."""
    module, report = dqconvert.prepare(model, preset, example, method=method)
    assert report.entries
    for inputs in (example, *others):
        _, wanted, _ = step(unfused(model), inputs, method)
        _, found, _ = step(module, inputs)
        assert set(wanted) <= set(found)
        assert all(found[name].isfinite().all() for name in wanted)
        assert all(out.isfinite().all() for out in evaluation(module, inputs))
    assert any(
        not torch.equal(a, b)
        for a, b in zip(evaluation(module, example), evaluation(model, example, method), strict=True)
    )
    return module, report


def mask_of(watch, path):
    """Which rows a quantizer was told to let pass in the last forward; and these it did let pass, others not.

    Args:
        watch: A ``Watch`` of ``test_prepare_protection``.
        path: The quantizer's.
    """
    told, passed = watch.told[path][-1], watch.passed[path][-1]
    assert told is not None, f"{path} is told nothing"
    assert passed[told].all(), path
    # A row may be on the grid by chance (no in-edges: exactly zero), all of them may not.
    assert told.all() or not passed[~told].all(), path
    return told
