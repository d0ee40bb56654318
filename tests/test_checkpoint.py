"""save and load: the same module, the same bytes, and nothing believed that a file says."""

import copy
import errno
import os
import pickle
import resource
import textwrap

import pytest
import torch
from torch import nn
from torch_geometric.nn import GCN, GIN, GCNConv, SAGEConv

import dqconvert
import zoo
from dqconvert import CheckpointError, QConfig, QSpec, Rule
from dqconvert.checkpoint import container
from mutations import mutations

ROUND_TRIPS = [
    *("GCN", "GAT_attr", "PNA", "GIN_jk_lstm", "ChebConv", "NNConv", "EdgeConv", "WeightedGCN"),
    *("DataClassifier", "EdgeFeatures_batch", "NoisyInTraining", "Tied", "Siamese"),
]


def prepared(case="GCN", qconfig="int8-dq", steps=1):
    case = zoo.CASES[case]
    module = dqconvert.prepare(case.model(), qconfig, case.inputs()).module
    for step in range(steps):
        zoo.train_step(module, case.inputs(), seed=step)
    return module


@pytest.fixture(scope="module")
def gcn_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("gcn") / "gcn.dq"
    dqconvert.save(prepared(), path)
    return path.read_bytes()


@pytest.fixture
def gcn(tmp_path, gcn_bytes):
    """A trained GCN's file, and the float model that fits it."""
    path = tmp_path / "gcn.dq"
    path.write_bytes(gcn_bytes)
    return path, zoo.CASES["GCN"].model(seed=3)


# -- the round trip ------------------------------------------------------------------------------------------------


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_a_loaded_module_is_the_saved_one(name, tmp_path):
    case = zoo.CASES[name]
    module = prepared(name)
    dqconvert.save(module, tmp_path / "a.dq")
    loaded = dqconvert.load(tmp_path / "a.dq", model=case.model(seed=5))

    zoo.assert_same(zoo.evaluate(loaded, case.inputs(zoo.OTHER)), zoo.evaluate(module, case.inputs(zoo.OTHER)))
    zoo.assert_same(zoo.train_step(loaded, case.inputs()), zoo.train_step(module, case.inputs()))
    assert list(loaded.state_dict()) == list(module.state_dict())
    assert loaded.report == module.report
    assert loaded.qconfig == module.qconfig
    assert loaded.code == module.code


@pytest.mark.study
def test_a_new_process_evaluates_and_trains_on_alike(spare, tmp_path):
    case = zoo.CASES["GIN"]
    module = prepared("GIN", steps=5)
    dqconvert.save(module, tmp_path / "gin.dq")
    expected = {"eval": zoo.evaluate(module, case.inputs()), "losses": losses(module, case.inputs())}
    script = """
        import sys, torch, zoo, dqconvert
        from test_checkpoint import losses
        case = zoo.CASES["GIN"]
        module = dqconvert.load(sys.argv[1], model=case.model(seed=9))
        found = {"eval": zoo.evaluate(module, case.inputs()), "losses": losses(module, case.inputs())}
        torch.save(found, sys.argv[2])
    """
    out = tmp_path / "found.pt"
    done = spare.run(textwrap.dedent(script), tmp_path / "gin.dq", out)
    assert done.returncode == 0, done.stderr
    zoo.assert_same(torch.load(out), expected)


def losses(module, inputs, steps=5):
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = module.train()(*inputs).square().mean()
        loss.backward()
        optimizer.step()
        found.append(loss.detach())
    return torch.stack(found)


def test_the_same_module_gives_the_same_bytes(tmp_path):
    module = prepared("EdgeFeatures")
    dqconvert.save(module, tmp_path / "a.dq")
    dqconvert.save(copy.deepcopy(module), tmp_path / "b.dq")
    dqconvert.save(dqconvert.load(tmp_path / "a.dq", zoo.CASES["EdgeFeatures"].model(seed=1)), tmp_path / "c.dq")
    first = (tmp_path / "a.dq").read_bytes()
    assert first == (tmp_path / "b.dq").read_bytes() == (tmp_path / "c.dq").read_bytes()


def test_a_loaded_module_can_do_all_that_a_prepared_one_can(gcn):
    path, model = gcn
    case = zoo.CASES["GCN"]
    loaded = dqconvert.load(path, model)
    expected = zoo.evaluate(loaded, case.inputs())
    zoo.assert_same(zoo.evaluate(copy.deepcopy(loaded), case.inputs()), expected)
    zoo.assert_same(zoo.evaluate(pickle.loads(pickle.dumps(loaded)), case.inputs()), expected)
    again = dqconvert.prepare(loaded, "int4-dq").module
    zoo.train_step(again, case.inputs())
    assert {entry.bits for entry in again.report.entries} == {4}
    model.load_state_dict({k: v for k, v in loaded.state_dict().items() if k in model.state_dict()})


def test_the_given_model_is_not_changed(gcn):
    path, model = gcn
    before = copy.deepcopy(model.state_dict())
    dqconvert.load(path, model)
    zoo.assert_same(model.state_dict(), before)


def test_modes_flags_frozen_and_types_are_kept(tmp_path):
    module = prepared("GCN_batch_norm").bfloat16().train()
    module.norms[0].eval()
    module.convs[0].bias.requires_grad_(False)
    next(iter(module.quantizers()))[1].observer_enabled = False
    dqconvert.save(module, tmp_path / "a.dq")
    loaded = dqconvert.load(tmp_path / "a.dq", zoo.CASES["GCN_batch_norm"].model())
    assert (loaded.training, loaded.norms[0].training, loaded.norms[1].training) == (True, False, True)
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in module.parameters()]
    assert not next(iter(loaded.quantizers()))[1].observer_enabled
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert {q.min_val.dtype for _, q in loaded.quantizers()} == {torch.float32}


class Odd(nn.Module):
    """A transposed weight, two layers that share one, and a buffer that no state_dict has."""

    def __init__(self, tied=True):
        super().__init__()
        self.conv1 = GCNConv(6, 6)
        self.conv2 = GCNConv(6, 6)
        self.conv1.lin.weight = nn.Parameter(torch.arange(36.0).view(6, 6).div(36).t())
        if tied:
            self.conv2.lin.weight = self.conv1.lin.weight
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)

    def forward(self, x, edge_index):
        return self.conv2(self.conv1(x, edge_index).relu(), edge_index) * self.scale


def test_tied_non_contiguous_and_unsaved_tensors(tmp_path):
    model, inputs = Odd(), zoo.graph()
    model.scale.fill_(3.0)
    module = dqconvert.prepare(model, "int8-dq", inputs).module
    zoo.train_step(module, inputs)
    dqconvert.save(module, tmp_path / "odd.dq")
    tensors, document = container.read(tmp_path / "odd.dq")
    assert "conv2.lin.weight" not in tensors
    assert document["state"]["aliases"]["conv2.lin.weight"] == "conv1.lin.weight"

    loaded = dqconvert.load(tmp_path / "odd.dq", Odd())
    assert loaded.conv1.lin.weight is loaded.conv2.lin.weight
    zoo.assert_same(zoo.evaluate(loaded, inputs), zoo.evaluate(module, inputs))
    with pytest.raises(CheckpointError, match=r"'conv2.lin.weight' and 'conv1.lin.weight' are one tensor in the file"):
        dqconvert.load(tmp_path / "odd.dq", Odd(tied=False))


def test_a_lazy_model_takes_its_shapes_from_the_file(tmp_path):
    inputs = zoo.graph()
    module = dqconvert.prepare(SAGEConv(-1, 4), "int8-dq", inputs).module
    zoo.train_step(module, inputs)
    dqconvert.save(module, tmp_path / "lazy.dq")
    loaded = dqconvert.load(tmp_path / "lazy.dq", SAGEConv(-1, 4))
    zoo.assert_same(zoo.evaluate(loaded, inputs), zoo.evaluate(module, inputs))


# -- models that do not fit ----------------------------------------------------------------------------------------


def test_other_shapes_list_the_first_ten_and_guess(gcn):
    path, _ = gcn
    with pytest.raises(CheckpointError) as info:
        dqconvert.load(path, GCN(zoo.WIDTH, 9, 2, 4))
    message = str(info.value)
    assert "'convs.0.lin.weight' is [8, 6] in the file and [9, 6] in the model" in message
    assert "made with other arguments (widths, heads)" in message


def test_a_deeper_model_does_not_fit(gcn):
    path, _ = gcn
    with pytest.raises(CheckpointError, match=r"'convs.2.\w+' .* is missing in the file.*other arguments \(depth"):
        dqconvert.load(path, GCN(zoo.WIDTH, 8, 3, 4))


def test_another_class_does_not_fit(gcn):
    path, _ = gcn
    with pytest.raises(CheckpointError, match=r"does not fit Sequential: .* and \d+ more\. .*another class") as info:
        dqconvert.load(path, nn.Sequential(*[nn.Linear(2, 2) for _ in range(5)]))
    assert str(info.value).count(" is missing in the file") == 10


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (None, "is a prepared file of a GCN: pass model="),
        ("GCN", r"load, as model=, takes a float model, .* got a str"),
        ("prepared", "got a prepared module: pass the float model"),
    ],
)
def test_model_must_be_a_float_instance(gcn, model, message):
    path, float_model = gcn
    model = dqconvert.load(path, float_model) if model == "prepared" else model
    with pytest.raises(CheckpointError, match=message):
        dqconvert.load(path, model)


def test_a_model_that_cannot_be_copied(gcn):
    path, float_model = gcn
    float_model.lines = (line for line in "ab")
    with pytest.raises(CheckpointError, match=r"GCN cannot be deep-copied .*load\(\) works on a copy"):
        dqconvert.load(path, float_model)


# -- what cannot be saved ------------------------------------------------------------------------------------------


class OwnQuantizer(nn.Module):
    def forward(self, x, protected):
        return x


def test_a_quantizer_of_the_users_own_cannot_be_saved(tmp_path):
    qconfig = QConfig(weight=QSpec(), rules=[Rule(role="message", spec=OwnQuantizer)])
    module = dqconvert.prepare(GCNConv(6, 4), qconfig).module
    with pytest.raises(CheckpointError, match=r"quant.message is an OwnQuantizer, a quantizer of your own"):
        dqconvert.save(module, tmp_path / "a.dq")
    assert not list(tmp_path.iterdir())


def test_only_prepared_modules_are_saved(tmp_path):
    with pytest.raises(CheckpointError, match=r"save takes a prepared or an .* got a float model \(GCNConv\)"):
        dqconvert.save(GCNConv(6, 4), tmp_path / "a.dq")


# -- writing whole or not at all -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=["full", "ctrl-c"]
)
def test_a_failure_leaves_the_old_file_and_no_other(gcn, tmp_path, monkeypatch, failure):
    path, _ = gcn
    before = path.read_bytes()

    def fail(descriptor):
        raise failure

    monkeypatch.setattr(os, "fsync", fail)
    expected = (CheckpointError, "No space left on device; the file that was there is as before")
    kind, message = expected if isinstance(failure, OSError) else (KeyboardInterrupt, None)
    with pytest.raises(kind, match=message):
        dqconvert.save(prepared("GIN"), path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


def test_the_folder_must_be_there_and_writable(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match=r"the folder .*missing does not exist"):
        dqconvert.save(prepared(), tmp_path / "missing" / "a.dq")
    with pytest.raises(CheckpointError, match="is a folder"):
        dqconvert.save(prepared(), tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(CheckpointError, match="cannot be written to"):
        dqconvert.save(prepared(), tmp_path / "a.dq")


# -- what a file says ----------------------------------------------------------------------------------------------


def rewritten(path, change):
    """The file with its description changed, and a checksum that fits."""
    tensors, document = container.read(path)
    for key in ("checksum", "format"):
        del document[key]
    change(document)
    container.write(path, tensors, document)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (99, "in file format 99, and this version reads 2: update dqconvert"),
        (1, "in file format 1, and this version reads 2: save the module again with this version"),
    ],
)
def test_another_format_says_what_to_do(gcn, monkeypatch, written, message):
    path, model = gcn
    with monkeypatch.context() as patch:
        patch.setattr(container, "FORMAT", written)
        dqconvert.save(prepared(), path)
    with pytest.raises(CheckpointError, match=message):
        dqconvert.load(path, model)


def first(document, op):
    return next(node for node in document["graphs"]["train"] if node["op"] == op)


def hostile(key, value, op="call_function"):
    def change(document):
        node = first(document, op)
        node[key] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (hostile("target", "builtins.exec"), "calls 'builtins.exec', which is not allowed"),
        (hostile("target", "os.system"), "calls 'os.system', which is not allowed"),
        (hostile("target", "torch.load"), "calls 'torch.load', which is not allowed"),
        (hostile("target", "apply_", op="call_method"), "calls the method 'apply_', which is not allowed"),
        (hostile("target", "x=print(1)", op="placeholder"), "'x=print\\(1\\)', which is not a name"),
        (hostile("target", "lambda", op="placeholder"), "'lambda', which is not a name"),
        (hostile("kwargs", {"a=print(1), b": 1}), "which is not a name"),
        (hostile("name", 'x"); print(1'), "which is not a name"),
        (hostile("target", "convs.9", op="call_module"), "uses 'convs.9', which the given model does not have"),
        (hostile("target", "forward", op="get_attr"), "uses 'forward', which is a method"),
        (hostile("args", [{"node": "no_such_node"}]), "is malformed"),
        (hostile("args", [{"dtype": "__class__"}]), "is malformed"),
        (hostile("op", "exec"), "unknown kind 'exec'"),
        (lambda d: d["graphs"].update(train=[]), "has no output"),
        (lambda d: d["graphs"].pop("train"), "is malformed"),
        (
            lambda d: d["protections"][0].update(path="convs.0.aggr_module.a"),
            "where the model has something of its own",
        ),
        (lambda d: d["quantizers"][0]["spec"].update(bits=99), "bits=99"),
        (lambda d: d["state"]["aliases"].update(a="b"), "is malformed"),
        (lambda d: d["state"].update(beside=["convs.0.lin.weight"]), "missing in the file"),
        (lambda d: d.update(kind="other"), "of the kind 'other'"),
        (lambda d: d.clear(), "of the kind None"),
    ],
)
def test_a_file_cannot_name_what_to_run(gcn, change, message, capsys):
    path, model = gcn
    rewritten(path, change)
    with pytest.raises(dqconvert.DQConvertError, match=message):
        dqconvert.load(path, model)
    assert capsys.readouterr().out == ""


def test_attributes_with_two_underscores_are_not_read(gcn):
    path, model = gcn

    def change(document):
        node = first(document, "call_function")
        node.update(target="builtins.getattr", args=[{"node": "x"}, "__class__"], kwargs={})

    rewritten(path, change)
    with pytest.raises(CheckpointError, match=r"reads the attribute .*__class__.*, which is not allowed"):
        dqconvert.load(path, model)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        (b"", "is not a file that dqconvert wrote"),
        (b"hello" * 99, "is not a file that"),
    ],
)
def test_files_that_are_not_ours(tmp_path, content, message):
    path = tmp_path / "a.dq"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        dqconvert.load(path, GIN(4, 4, 1))
    with pytest.raises(CheckpointError, match="is a folder"):
        dqconvert.load(tmp_path, GIN(4, 4, 1))


def test_a_thousand_damaged_files_are_all_refused(gcn, tmp_path):
    path, model = gcn
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for damaged in mutations(path.read_bytes(), 1000):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"\S"):
            dqconvert.load(path, model)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB
