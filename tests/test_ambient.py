"""What is set around a call, the default dtype or inference mode, changes nothing of what is prepared or converted."""

import copy
from contextlib import contextmanager

import pytest
import torch

import dqconvert
import zoo

NAMES = ["GCN", "GIN", "GAT", "GraphSAGE", "PNA", "ChebConv", "TransformerConv_attr", "GraphClassifier", "EdgeFeatures"]


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def made(model, inputs, preset, folder):
    """All that comes of a model: prepared, trained a step, evaluated, converted, and loaded again."""
    torch.manual_seed(1)
    module, _ = dqconvert.prepare(copy.deepcopy(model), preset, inputs)
    loss, _ = zoo.train_step(module, inputs)
    module.eval()
    integer = dqconvert.convert(module)
    file = folder / "integer"
    dqconvert.save(integer, file)
    outputs = [m(*inputs) for m in (module, integer, dqconvert.load(file))]
    return [loss.detach(), *outputs], module.state_dict(), integer.state_dict()


@pytest.mark.sample(5)
@pytest.mark.parametrize("preset", ["int8-dq", "int4-dq"])
@pytest.mark.parametrize("name", NAMES)
def test_another_default_dtype_changes_nothing(name, preset, tmp_path):
    case = zoo.CASES[name]
    model, inputs = case.model(), case.inputs()
    expected = made(model, inputs, preset, tmp_path)
    with default_dtype(torch.float64):
        found = made(model, inputs, preset, tmp_path)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_prepared_in_inference_mode_can_be_trained(name):
    case = zoo.CASES[name]
    model, inputs = case.model(), case.inputs()
    with torch.inference_mode():
        module, _ = dqconvert.prepare(copy.deepcopy(model), "int8-dq", inputs)
    expected, _ = dqconvert.prepare(model, "int8-dq", inputs)
    torch.manual_seed(1)
    wanted = zoo.train_step(expected, inputs)
    torch.manual_seed(1)
    torch.testing.assert_close(zoo.train_step(module, inputs), wanted, rtol=0, atol=0)


def test_inputs_made_in_inference_mode_are_taken():
    with torch.inference_mode():
        inputs = zoo.graph()
        module, _ = dqconvert.prepare(zoo.CASES["GCN"].model(), "int8-dq", inputs)
    zoo.train_step(module, zoo.graph())
