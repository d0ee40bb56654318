"""Models as PyG's documentation and examples write them: unchanged, they convert in one call, and train."""

import copy

import pytest
import torch
from torch import nn

import doc_models
import dqconvert
from checks import assert_same, call, evaluation, step, unfused
from doc_models import LARGE, MODELS, SMALL
from dqconvert import QConfig


def build(name):
    torch.manual_seed(0)
    return MODELS[name].build()


def settled(name, model):
    """The model, lazy layers settled by a first call, as the examples do it."""
    if any(isinstance(p, nn.UninitializedParameter) for p in model.parameters()):
        with torch.no_grad():
            call(model, MODELS[name].inputs(SMALL), MODELS[name].method)
    return model


def test_there_are_at_least_twenty():
    assert len(MODELS) >= 20


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", MODELS)
def test_float_identity(name):
    case = MODELS[name]
    model = settled(name, build(name))
    module, report = dqconvert.prepare(model, QConfig(), case.inputs(SMALL), method=case.method)
    assert not [left for left in report.left_float if left.reason != "by the config"]
    for size in (SMALL, LARGE):
        inputs = case.inputs(size)
        assert_same(step(copy.deepcopy(module), inputs), step(unfused(model), inputs, case.method))
        assert_same(evaluation(copy.deepcopy(module), inputs), evaluation(unfused(model), inputs, case.method))


@pytest.mark.sample(13)
@pytest.mark.parametrize("preset", ["int8-dq", "int4-dq"])
@pytest.mark.parametrize("name", MODELS)
def test_it_converts_in_one_call_and_trains(name, preset):
    case = MODELS[name]
    model = build(name)
    module, report = dqconvert.prepare(model, preset, case.inputs(SMALL), method=case.method)
    assert "weight" in report.totals["role"]
    if case.has_messages:
        assert {"message", "aggregate"} <= set(report.totals["role"])
    assert report.left_float == ()

    _, wanted, _ = step(unfused(settled(name, model)), case.inputs(SMALL), case.method)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for size in (SMALL, LARGE):
        outputs, gradients, _ = step(module, case.inputs(size))
        assert set(wanted) <= set(gradients)
        assert all(gradient.isfinite().all() for gradient in gradients.values())
        assert all(out.isfinite().all() for out in outputs)
        optimizer.step()
    for size in (SMALL, LARGE):
        first, second = evaluation(module, case.inputs(size)), evaluation(module, case.inputs(size))
        assert all(out.isfinite().all() for out in first)
        assert_same(first, second)


def test_link_prediction_as_the_example_does_it():
    """Encoded by the prepared module, decoded by the model's own methods, which it still has."""
    model = doc_models.LinkNet(doc_models.FEATURES, 16, 8)
    x, edge_index = doc_models.graph(SMALL)
    pairs = doc_models.edges((SMALL[0], 19))
    module, _ = dqconvert.prepare(model, "int8-dq", (x, edge_index), method="encode")
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        z = module.train()(x, edge_index)
        out = module.decode(z, pairs)
        loss = nn.functional.binary_cross_entropy_with_logits(out, (torch.arange(19) % 2).float())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    z = module.eval()(x, edge_index)
    assert module.decode(z, pairs).isfinite().all()
    assert module.decode_all(z).size(0) == 2


def test_an_autoencoder_as_the_example_does_it():
    from torch_geometric.nn import VGAE

    model = VGAE(doc_models.VariationalGCNEncoder(doc_models.FEATURES, 8))
    x, edge_index = doc_models.graph(SMALL)
    encoder, _ = dqconvert.prepare(model.encoder, "int8-dq", (x, edge_index))
    model = VGAE(encoder).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        z = model.encode(x, edge_index)
        loss = model.recon_loss(z, edge_index) + model.kl_loss() / len(x)
        loss.backward()
        optimizer.step()
    assert model.eval().encode(x, edge_index).isfinite().all()
