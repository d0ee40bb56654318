"""Checkpoints as users have them: wrapped parts, averages, tied and normed weights, several files; or one line."""

import gzip
import json

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn.utils import parametrizations, weight_norm
from torch.optim.swa_utils import AveragedModel

from dqconvert import CheckpointError
from dqconvert.weights import fill, read_weights


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(3, 4)


class Net(nn.Module):
    def __init__(self, tie=False):
        super().__init__()
        self.conv, self.head = Layer(), nn.Linear(4, 4)
        self.convs = nn.ModuleList([Layer(), Layer()])
        if tie:
            self.out = nn.Linear(4, 4)
            self.out.weight = self.head.weight


class Counting(Net):
    steps = 0

    def get_extra_state(self):
        return {"steps": self.steps}

    def set_extra_state(self, state):
        self.steps = state["steps"]


def trained(build=Net):
    torch.manual_seed(3)
    return build()


def filled(state, tmp_path, build=Net, **options):
    torch.save(state, tmp_path / "a.pt")
    weights = read_weights(tmp_path / "a.pt", **options)
    model = build()
    fill(model, weights.state, "a.pt")
    return model, weights


def check_same(model, wanted):
    for name, value in wanted.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(model.state_dict()[name], value), name


def renamed(state, *pairs):
    for old, new in pairs:
        state = {name.replace(old, new): value for name, value in state.items()}
    return state


@pytest.mark.parametrize(
    "pairs",
    [
        [("conv.", "conv._orig_mod.")],
        [("convs.", "convs._orig_mod.")],
        [("convs.1.", "convs.1._orig_mod."), ("head.", "head._orig_mod.")],
        [("conv.lin.", "module.conv.module.lin.")],
        [("conv.", "conv.module._orig_mod.")],
        [("conv.", "_fsdp_wrapped_module.conv._checkpoint_wrapped_module.")],
    ],
)
def test_parts_that_were_wrapped(pairs, tmp_path):
    model, _ = filled(renamed(trained().state_dict(), *pairs), tmp_path)
    check_same(model, trained())


@pytest.mark.parametrize("count", [True, False])
def test_averages_with_and_without_their_count(count, tmp_path):
    state = AveragedModel(trained()).state_dict()
    model, _ = filled(state if count else {k: v for k, v in state.items() if k != "n_averaged"}, tmp_path)
    check_same(model, trained())


def test_tied_weights_are_stored_once(tmp_path):
    tied = trained(lambda: Net(tie=True))
    safetensors.torch.save_model(tied, str(tmp_path / "a.safetensors"))
    model = Net(tie=True)
    fill(model, read_weights(tmp_path / "a.safetensors").state, "a")
    check_same(model, tied)


def normed(kind):
    def build():
        net = Net()
        net.head = kind(net.head)
        return net

    return build


PLAIN, OLD, NEW = Net, normed(weight_norm), normed(parametrizations.weight_norm)


@pytest.mark.parametrize(
    ("saved", "build"), [(OLD, PLAIN), (NEW, PLAIN), (OLD, NEW), (NEW, OLD), (OLD, OLD), (NEW, NEW)]
)
def test_weight_norms_are_read_into_the_form_of_the_model(saved, build, tmp_path):
    wanted = trained(saved)
    model, _ = filled(wanted.state_dict(), tmp_path, build)
    x = torch.randn(5, 4)
    assert torch.equal(model.head(x), wanted.head(x))


def test_a_weight_norm_along_another_dimension(tmp_path):
    wanted = trained(normed(lambda lin: weight_norm(lin, dim=1)))
    model, _ = filled(wanted.state_dict(), tmp_path)
    assert torch.allclose(model.head.weight, wanted.head.weight, rtol=0, atol=1e-6)


def test_what_modules_say_of_themselves_is_read(tmp_path):
    wanted = trained(Counting)
    wanted.steps = 7
    model, _ = filled(wanted.state_dict(), tmp_path, Counting)
    assert model.steps == 7
    check_same(filled(wanted.state_dict(), tmp_path)[0], wanted)  # by a model that does not ask


def test_numbers_between_tensors_are_left_out(tmp_path):
    check_same(filled({**trained().state_dict(), "version": 3, "note": "x"}, tmp_path)[0], trained())


def test_two_states_that_fit_are_told(tmp_path):
    state, other = trained().state_dict(), AveragedModel(trained()).state_dict()
    content = {"model": state, "ema": {"shadow": other}, "optimizer": {"state": {"a": torch.ones(1)}}, "epoch": 3}
    _, weights = filled(content, tmp_path)
    assert (weights.found, weights.others) == ("model", ("ema.shadow",))
    check_same(filled(content, tmp_path, key="ema.shadow")[0], trained())


def test_one_state_is_found_wherever_it_is(tmp_path):
    content = {"trainer": {"best": trained().state_dict()}, "optim": {"state": {"a": torch.ones(1)}}, "loss": 0.5}
    model, weights = filled(content, tmp_path)
    assert weights.found == "trainer.best"
    check_same(model, trained())
    with pytest.raises(CheckpointError, match=r"several sets of weights: choose one, with --key one, --key two"):
        filled({"one": trained().state_dict(), "two": trained().state_dict()}, tmp_path)


def test_several_files_and_their_index(tmp_path):
    state = trained().state_dict()
    parts = {"a.safetensors": dict([*state.items()][:3]), "b.safetensors": dict([*state.items()][3:])}
    for name, part in parts.items():
        safetensors.torch.save_file(part, tmp_path / name)
    places = {tensor: name for name, part in parts.items() for tensor in part}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    model = Net()
    fill(model, read_weights(index).state, "a")
    check_same(model, trained())
    for wrong, words in (
        ({**places, "head.bias": "../b.safetensors"}, "which is not beside it"),
        ({**places, "more": "b.safetensors"}, "its files lack 'more'"),
        ({**places, "head.bias": "c.safetensors"}, "there is no such file"),
    ):
        index.write_text(json.dumps({"weight_map": wrong}))
        with pytest.raises(CheckpointError, match=words):
            read_weights(index)


def torchscript(path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)


def written(content):
    return lambda path: torch.save(content, path)


ONE_LINE = {
    "TorchScript": (torchscript, r"is a TorchScript file.*torch.save\(model.state_dict\(\), path\)"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(b"x" * 100)), "is compressed: unpack it first"),
    "numpy": (lambda path: np.save(path.open("wb"), np.ones(3)), "an array of numpy"),
    "empty": (lambda path: path.write_bytes(b""), "is not a checkpoint"),
    "float8": (
        written({"w": torch.ones(3).to(torch.float8_e4m3fn)}),
        "float8_e4m3fn tensor, which was quantized already",
    ),
    "nested": (written({"w": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])}), r"nested|pickled"),
    "flat parameters": (written({"_flat_param": torch.ones(3)}), "flat parameters of FSDP"),
    "an optimizer": (written({"optimizer": {"state": {}}, "epoch": 1}), "has no weights at its top"),
    "numbers": (written({"a": 1, "b": 2}), "has no weights at its top"),
}


@pytest.mark.parametrize("kind", ONE_LINE)
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_checkpoint_is_told_in_one_line(kind, tmp_path):
    write, words = ONE_LINE[kind]
    write(tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=words) as error:
        read_weights(tmp_path / "a.pt")
    assert "\n" not in str(error.value)
