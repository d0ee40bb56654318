"""Float checkpoints in every form that users have them, and every way in which they can be wrong."""

import os
import pickle
import random
import resource
import zipfile

import pytest
import safetensors.torch
import torch
from torch import nn
from torch_geometric.nn import GCN

from dqconvert import CheckpointError
from dqconvert.weights import fill, read_weights
from mutations import mutations


def model(hidden=8, layers=2, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GCN(6, hidden, layers, 4)


STATE = model().state_dict()


def load(path, target=None, **options):
    """What the checkpoint's tensors make of a fresh model, and how they were found."""
    target = target or model(seed=1)
    weights = read_weights(path, **options)
    prefix = fill(target, weights.state, path)
    return target.state_dict(), weights.found, prefix


def same(state):
    return list(state) == list(STATE) and all(torch.equal(state[name], STATE[name]) for name in STATE)


def renamed(prefix):
    return {prefix + name: value for name, value in STATE.items()}


# -- every form ----------------------------------------------------------------------------------------------------


def lightning():
    return {
        "pytorch-lightning_version": "2.4.0",
        "epoch": 3,
        "global_step": 120,
        "state_dict": renamed("net."),
        "optimizer_states": [{"state": {}, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}],
        "hyper_parameters": {"lr": 0.1},
    }


FORMS = {
    "state_dict": (STATE, {}, "", ""),
    "state_dict key": ({"state_dict": STATE, "epoch": 1}, {}, "state_dict", ""),
    "model_state_dict key": ({"model_state_dict": STATE, "loss": 0.5}, {}, "model_state_dict", ""),
    "model key": ({"model": STATE, "optimizer": {"state": {}}}, {}, "model", ""),
    "Lightning": (lightning(), {}, "state_dict", "net."),
    "a key of the user's": ({"ema": {"weights": STATE}, "n": 1}, {"key": "ema.weights"}, "ema.weights", ""),
    "DistributedDataParallel": (renamed("module."), {}, "", "module."),
    "torch.compile": (renamed("_orig_mod."), {}, "", "_orig_mod."),
    "compiled, then distributed": (renamed("module._orig_mod."), {}, "", "module._orig_mod."),
    "one common prefix": (renamed("encoder.gnn."), {}, "", "encoder.gnn."),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_every_form_that_torch_saves(name, zipped, tmp_path):
    content, options, found, prefix = FORMS[name]
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    state, *how = load(tmp_path / "a.pt", **options)
    assert same(state)
    assert how == [found, prefix]


@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_safetensors_by_any_name(name, prefix, tmp_path):
    safetensors.torch.save_file(renamed(prefix), tmp_path / name, {"format": "pt"})
    state, _, taken_off = load(tmp_path / name)
    assert same(state)
    assert taken_off == prefix


def test_a_prefix_of_the_models_own_stays(tmp_path):
    wrapped = nn.Sequential()
    wrapped.add_module("module", nn.Linear(2, 1))
    torch.save(wrapped.state_dict(), tmp_path / "a.pt")
    _, _, prefix = load(tmp_path / "a.pt", wrapped)
    assert prefix == ""


@pytest.mark.parametrize("content", ["module", "in a dict", "data parallel"])
def test_a_pickled_module_under_trust(content, tmp_path):
    saved = {"module": model(), "in a dict": {"model": model()}, "data parallel": nn.DataParallel(model())}[content]
    torch.save(saved, tmp_path / "a.pt")
    weights = read_weights(tmp_path / "a.pt", trust_pickle=True)
    assert type(weights.module) is GCN
    assert same(weights.state)


# -- every error ---------------------------------------------------------------------------------------------------


def save(content, path):
    torch.save(content, path)
    return path


def test_a_pickled_module_without_trust_says_why(tmp_path):
    path = save(model(), tmp_path / "a.pt")
    with pytest.raises(CheckpointError) as info:
        read_weights(path)
    assert "holds pickled Python objects" in str(info.value)
    assert "runs code from the file, which can do anything that you can" in str(info.value)
    assert "pass --trust-pickle" in str(info.value)


class Bomb:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_code_in_a_file_does_not_run(zipped, tmp_path):
    content = {**STATE, "z": Bomb(tmp_path / "mark")}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"pickled Python objects \(posix.mkdir\)"):
        read_weights(tmp_path / "a.pt")
    assert not (tmp_path / "mark").exists()


def test_unpickling_fails_in_one_line(tmp_path):
    path = save({"model": Bomb("/no/such/folder/mark")}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="cannot be unpickled here: FileNotFoundError"):
        read_weights(path, trust_pickle=True)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ([1, 2], {}, "has a list at its top, not the weights"),
        ({"epoch": 3, "lr": 0.1}, {}, "has no weights at its top, where there is: 'epoch', 'lr'. Name the place with"),
        ({}, {}, "has no weights at its top, where there is: nothing"),
        ({"model": {"a": 1}}, {}, "has no weights under 'model'"),
        ({"a": STATE}, {"key": "b"}, "has no 'b' of --key b; there is: 'a'"),
        ({"a": STATE}, {"key": "a.x.y"}, r"has no 'x' of --key a.x.y; there is: 'convs.0.bias'"),
        ({"w": torch.ones(2, 2).to_sparse()}, {}, "'w' is a sparse_coo tensor, not plain numbers"),
        ({"w": torch.ones(2, device="meta")}, {}, "'w' is a meta tensor"),
    ],
)
def test_files_without_weights(content, options, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        read_weights(save(content, tmp_path / "a.pt"), **options)


def test_files_that_are_no_checkpoints(tmp_path):
    path = tmp_path / "a.pt"
    with pytest.raises(CheckpointError, match="there is no such file"):
        read_weights(path)
    with pytest.raises(CheckpointError, match="is a folder"):
        read_weights(tmp_path)
    for content in [b"", b"hello", pickle.dumps(1), b"\x89PNG" * 100]:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="is not a checkpoint: neither a safetensors file nor one that torch"):
            read_weights(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match=r"is a zip archive, but not one that torch\.save wrote"):
        read_weights(path)


def test_a_truncated_file_says_so(tmp_path):
    for name, write in [("a.pt", torch.save), ("a.safetensors", safetensors.torch.save_file)]:
        write(STATE, tmp_path / name)
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(CheckpointError, match="is truncated or damaged"):
            read_weights(tmp_path / name)


def refusal(state, target=None):
    target = target or model(seed=1)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(CheckpointError) as info:
        fill(target, state, "a.pt")
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
    return str(info.value)


def test_other_shapes_are_listed_with_a_guess():
    message = refusal(model(hidden=9).state_dict())
    assert "'convs.0.lin.weight' is [9, 6] in the file and [8, 6] in the model" in message
    assert "other arguments (widths, heads)" in message


def test_missing_and_unexpected_names_are_listed_with_a_guess():
    message = refusal({**model(layers=3).state_dict()})
    assert "'convs.2.lin.weight' [4, 8] is in the file only" in message
    assert "other arguments (depth, bias, norm)" in message
    message = refusal({name: value for name, value in STATE.items() if "bias" not in name})
    assert "'convs.0.bias' [8] is missing in the file" in message


def test_ten_differences_are_listed_at_most():
    message = refusal({f"layer{i}.w": torch.ones(1) for i in range(20)})
    assert message.count("[") == 10
    assert "and 14 more" in message
    assert "a model of another class" in message


def test_a_prefix_that_is_not_common_is_guessed():
    message = refusal({**renamed("model."), "criterion.weight": torch.ones(3)})
    assert "the names in the file differ by the prefix 'model.'" in message


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "NaN"), (float("inf"), "infinite")])
def test_weights_that_are_not_finite_are_named(value, word):
    broken = {**STATE, "convs.1.bias": torch.full((4,), value)}
    assert f"values that are not finite in 'convs.1.bias' ({word})" in refusal(broken)


def test_integers_do_not_become_weights():
    message = refusal({name: value.long() for name, value in STATE.items()})
    assert "'convs.0.bias' holds int64 in the file and float32 in the model" in message


# -- damaged files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_damaged_files_are_refused_or_still_load(form, tmp_path):
    path = tmp_path / "a"
    if form == "safetensors":
        safetensors.torch.save_file(STATE, path)
    else:
        torch.save({"state_dict": STATE, "epoch": 3}, path, _use_new_zipfile_serialization=form == "zip")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loaded = 0
    for damaged in mutations(path.read_bytes(), 340, seed=random.Random(form).random()):
        path.write_bytes(damaged)
        try:
            state, _, _ = load(path)
        except CheckpointError:
            continue
        assert {name: value.shape for name, value in state.items()} == {n: v.shape for n, v in STATE.items()}
        assert all(value.isfinite().all() for value in state.values())
        loaded += 1
    assert loaded < 150  # bits flipped in tensors that carry no checksum
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB
