"""Every public door on every kind of model: a door that breaks on one kind is seen.

The doors of one model are gone through in one test, on one prepared module, as a user would: what fails says at which.
"""

import copy
import pickle
from contextlib import contextmanager

import pytest
import torch
from door_models import KINDS
from torch import nn
from torch.utils import _pytree as pytree
from torch_geometric import seed_everything
from typer.testing import CliRunner

import dqconvert
from checks import fresh
from coverage_table import TIES
from dqconvert.cli import app

pytestmark = pytest.mark.filterwarnings("ignore")


NOT_IN_INTEGER_FILES = {
    "pooling: EdgePooling",
    "pooling: ClusterPooling",
    "models: GroupAddRev",
    "structure: branch on values inside",
    "structure: autograd function inside",
}
"""Models with a module that is computed as it is and that only its own code can rebuild."""

NOT_IN_FILES = {"pooling: EquilibriumAggregation"}
"""Models that take gradients in their forward: a function that no file may name."""


@contextmanager
def door(name):
    """What goes wrong inside went wrong at this door."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"at the door: {name}")
        raise


def outputs(module, inputs, method="forward"):
    """All tensors that a call returns, with the same random numbers every time."""
    seed_everything(1)
    function = module if method == "forward" else getattr(module, method)
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    result = function(*map(fresh, args), **{name: fresh(value) for name, value in kwargs.items()})
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]


def evaluated(module, inputs):
    with torch.no_grad():
        return outputs(module.eval(), inputs)


def assert_equal(found, wanted):
    assert len(found) == len(wanted)
    for one, two in zip(found, wanted, strict=True):
        assert torch.equal(one, two) or (one.isnan() == two.isnan()).all(), (one - two).abs().max()


def relative_error(found, wanted):
    pairs = [(one.double(), two.double()) for one, two in zip(found, wanted, strict=True) if two.is_floating_point()]
    return max((float((one - two).norm() / two.norm().clamp(min=1e-9)) for one, two in pairs), default=0.0)


def assert_same_state(found, wanted):
    found, wanted = found.state_dict(), wanted.state_dict()
    assert sorted(found) == sorted(wanted)
    for name, value in wanted.items():
        same = torch.equal(found[name], value) if isinstance(value, torch.Tensor) else found[name] == value
        assert same, name


def dq(*args):
    result = CliRunner().invoke(app, [str(arg) for arg in args], prog_name="dqconvert")
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.sample(60)
@pytest.mark.parametrize("name", KINDS)
def test_every_door(name, tmp_path):
    kind = KINDS[name]
    small, large = kind.inputs(0), kind.inputs(1)
    model = kind.build()
    with door("float"), torch.no_grad():
        outputs(copy.deepcopy(model).eval(), small, kind.method)  # lazy layers settle
    with door("prepare"):
        module, report = dqconvert.prepare(model, "int8-dq", small, method=kind.method)
        assert report.entries
        assert str(report)
        assert repr(module)
    with door("train"):
        for inputs in (small, large):
            losses = [out.sum() for out in outputs(module.train(), inputs) if out.requires_grad]
            if losses:
                torch.stack([loss.real for loss in losses]).sum().backward()
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert gradients or not list(module.parameters())
        module.zero_grad(set_to_none=True)
    with door("calibrate"):
        dqconvert.calibrate(module, [small, large])
    with door("evaluate"):
        wanted = evaluated(module, large)
        assert_equal(evaluated(module, large), wanted)
    with door("a method of the float model"):
        if kind.method != "forward":
            with torch.no_grad():
                assert_equal(outputs(module, large, kind.method), wanted)
    with door("copy"):
        assert_equal(evaluated(copy.deepcopy(module), large), wanted)
    with door("pickle"):
        if picklable(model):
            again = pickle.loads(pickle.dumps(module))
            assert_same_state(again, module)
            assert_equal(evaluated(again, large), wanted)
    with door("state_dict, both ways"):
        float_state = {key: value for key, value in module.state_dict().items() if key in model.state_dict()}
        if not lazy(model):
            copy.deepcopy(model).load_state_dict(float_state)
        assert not module.load_state_dict(float_state, strict=False).unexpected_keys
    with door("save and load, prepared"):
        if name in NOT_IN_FILES:
            with pytest.raises(dqconvert.CheckpointError, match=r"equilibrium.py:\d+: .* which a file cannot name"):
                dqconvert.save(module, tmp_path / "prepared.dq")
        else:
            dqconvert.save(module, tmp_path / "prepared.dq")
            loaded = dqconvert.load(tmp_path / "prepared.dq", model=kind.build())
            assert_same_state(loaded, module)
            assert_equal(evaluated(loaded, large), wanted)
    with door("convert"):
        integer = dqconvert.convert(module)
        found = evaluated(integer, large)
        assert [out.shape for out in found] == [out.shape for out in wanted]
        assert [out.dtype for out in found] == [out.dtype for out in wanted]
        assert relative_error(found, wanted) < TIES["int8-dq"]
        assert str(integer.report)
    with door("compare"):
        compared = dqconvert.compare(module, integer, [small])
        assert compared.batches == 1
        assert str(compared)
    with door("save and load, integer"):
        if name in NOT_IN_INTEGER_FILES | NOT_IN_FILES:
            with pytest.raises(dqconvert.CheckpointError, match="which a file cannot"):
                dqconvert.save(integer, tmp_path / "integer.dq")
        else:
            dqconvert.save(integer, tmp_path / "integer.dq")
            loaded = dqconvert.load(tmp_path / "integer.dq")
            assert_same_state(loaded, integer)
            assert_equal(evaluated(loaded, large), found)
    with door("inspect"):
        for file in tmp_path.glob("*.dq"):
            for form in ("--graph", "--code", "--report", "--json"):
                assert dq("inspect", file, form).stdout
    with door("run"):
        if (plain := as_plain(large)) is not None and (tmp_path / "integer.dq").exists():
            torch.save(plain, tmp_path / "inputs.pt")
            dq("run", tmp_path / "integer.dq", "--data", tmp_path / "inputs.pt", "--json")


def picklable(model):
    try:
        pickle.dumps(model)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False
    return True


def lazy(model):
    return any(isinstance(p, nn.UninitializedParameter) for p in [*model.parameters(), *model.buffers()])


def as_plain(inputs):
    """Inputs as a file may hold them: tensors, numbers, and containers of those; ``None`` where there is more."""
    leaves = pytree.tree_leaves(inputs)
    plain = all(type(leaf) in (torch.Tensor, int, float, bool, type(None)) for leaf in leaves)
    return inputs if plain else None
