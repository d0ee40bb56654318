"""With nothing to quantize, a prepared module is the float model, bit for bit."""

import copy

import pytest
import torch

import dqconvert
import zoo
from dqconvert import QConfig


@pytest.fixture(params=zoo.CASES)
def pair(request, prepared):
    """A model of the zoo, its prepared counterpart without quantizers, and the case."""
    case = zoo.CASES[request.param]
    return case.model(), prepared(request.param, QConfig())[0], case


@pytest.mark.sample(3)
def test_outputs_and_gradients_are_the_float_models(pair):
    model, module, case = pair
    for size in (zoo.TRACED, zoo.OTHER):
        inputs = case.inputs(size)
        # Copies: a layer with cached=True answers for the graph that it saw first.
        reference, ours = copy.deepcopy(model), copy.deepcopy(module)
        expected, expected_grads = zoo.train_step(reference, inputs)
        out, grads = zoo.train_step(ours, inputs)
        zoo.assert_same(out, expected)
        zoo.assert_same(grads, expected_grads)
        reference, ours = copy.deepcopy(model), copy.deepcopy(module)
        zoo.assert_same(zoo.evaluate(ours, inputs), zoo.evaluate(reference, inputs))


@pytest.mark.sample(7)
def test_gradients_of_the_inputs_and_running_statistics_are_the_float_models(pair):
    model, module, case = pair
    grads = []
    for candidate in (model, module):
        inputs = case.inputs()
        x = inputs[0] if isinstance(inputs[0], torch.Tensor) else inputs[0].x
        x.requires_grad_()
        zoo.train_step(candidate, inputs)
        grads.append(x.grad)
    zoo.assert_same(grads[1], grads[0])
    zoo.assert_same(dict(module.named_buffers()), dict(model.named_buffers()))
    assert module.report.entries == module.report.protection == ()


def test_losses_of_a_training_run_are_the_float_models():
    """Optimizer steps in between: nothing of the weights is frozen into the graph."""
    case = zoo.CASES["GCN_batch_norm"]
    model = case.model()
    module, _ = dqconvert.prepare(model, QConfig(), case.inputs())
    curves = []
    for candidate in (model, module):
        optimizer = torch.optim.Adam(candidate.parameters(), lr=0.01)
        losses = []
        for step in range(5):
            out, _ = zoo.train_step(candidate, case.inputs(), seed=step)
            optimizer.step()
            losses.append(out.square().sum().item())
        curves.append(losses)
    assert curves[0] == curves[1]
    assert len(set(curves[0])) == 5


def test_keyword_arguments_and_their_order_do_not_matter(prepared):
    module, _ = prepared("WeightedGCN", QConfig())
    x, edge_index, edge_weight = zoo.with_weight(zoo.OTHER)
    module.eval()
    by_keyword = module(edge_weight=edge_weight, x=x, edge_index=edge_index)
    zoo.assert_same(by_keyword, module(x, edge_index, edge_weight))
