"""State is exact: files, copies and pickles give the same ``state_dict``, bit for bit, and the same outputs."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm
from torch_geometric.nn import GCNConv

import dqconvert
from dqconvert import CheckpointError
from dqconvert.trace.computed import at_rest

WIDTH = 6


def a_graph():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(20, WIDTH, generator=generator), torch.randint(0, 20, (2, 60), generator=generator)


class Model(nn.Module):
    """A layer of messages, and two that are changed by what is tried."""

    def __init__(self, change):
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.lin, self.out = GCNConv(WIDTH, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.extra = nn.Identity()
        change(self)

    def forward(self, x, edge_index):
        return self.out(self.extra(self.lin(self.conv(x, edge_index).relu())))


class Symmetric(nn.Module):
    def forward(self, weight):
        return weight.triu() + weight.triu(1).t()


class Halved(nn.Module):
    def forward(self, weight):
        return weight * 0.5

    def right_inverse(self, weight):
        return weight * 2


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x):
        return x * self.scale


class Stateful(Scaled):
    """Says more of itself than tensors."""

    steps = 3

    def get_extra_state(self):
        return {
            "steps": self.steps,
            2: [1.5, float("inf"), (None, True), torch.arange(3)],
            "raw": b"\0x",
            "big": 1 << 70,
        }

    def set_extra_state(self, state):
        assert state["big"] == 1 << 70
        assert torch.equal(state[2][3], torch.arange(3))
        self.steps = state["steps"] + (state[2][:3] != [1.5, float("inf"), (None, True)])


class TensorState(Scaled):
    def __init__(self):
        super().__init__()
        self.seen = torch.arange(2)

    def get_extra_state(self):
        return self.seen

    def set_extra_state(self, state):
        self.seen = state.clone()


class Buffers(Scaled):
    """Every dtype and form that a buffer may have."""

    def __init__(self):
        super().__init__()
        for dtype in (torch.complex64, torch.complex128, torch.bfloat16, torch.float16, torch.float64, torch.int8):
            self.register_buffer(f"of_{str(dtype)[6:]}", torch.randn(3, dtype=torch.float64).to(dtype))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("nothing", torch.zeros(0, 4))
        self.register_buffer("number", torch.tensor(-0.0))
        self.register_buffer("nan", torch.tensor([torch.nan, torch.inf]))
        self.register_buffer("absent", None)
        self.register_buffer("beside", torch.randn(4), persistent=False)
        whole = torch.arange(10.0)
        self.register_buffer("whole", whole)
        self.register_buffer("view", whole[2:5])
        self.register_buffer("transposed", torch.randn(3, 4).t())
        self.transposed_too = nn.Parameter(torch.randn(4, 3).t())
        self.numbers = nn.Parameter(torch.arange(3, dtype=torch.int8), requires_grad=False)
        self.register_parameter("none", None)


class Sparse(Scaled):
    def __init__(self):
        super().__init__()
        self.register_buffer("csr", torch.eye(3).to_sparse_csr())
        self.register_buffer("csc", torch.randn(4, 3).relu().to_sparse_csc(), persistent=False)
        twice = torch.sparse_coo_tensor([[0, 0], [1, 1]], [1.0, 2.0], (2, 2), check_invariants=True)
        self.register_buffer("coo", twice)
        self.register_buffer("coalesced", torch.eye(3, dtype=torch.float64).to_sparse_coo())


def at(path, function):
    return lambda model: function(model.get_submodule(path))


def with_extra(build):
    def change(model):
        model.extra = build()

    return change


def tied(model):
    model.extra = nn.Linear(8, 8)
    model.extra.weight = model.lin.weight


def shared(model):
    model.extra = nn.Sequential(model.lin, nn.ReLU(), model.lin)


def lazy(model):
    model.lin = nn.LazyLinear(8)


def frozen(model):
    model.conv.bias.requires_grad_(False)
    model.lin.weight.requires_grad_(False)


def norms(model):
    own = nn.BatchNorm1d(8, track_running_stats=False)
    model.extra = nn.Sequential(nn.BatchNorm1d(8), own, nn.BatchNorm1d(8, momentum=None))


CHANGES = {
    "plain": lambda model: None,
    "spectral norm": at("lin", parametrizations.spectral_norm),
    "weight norm": at("lin", parametrizations.weight_norm),
    "orthogonal": at("lin", parametrizations.orthogonal),
    "orthogonal, cayley": at("lin", lambda lin: parametrizations.orthogonal(lin, orthogonal_map="cayley")),
    "own": at("lin", lambda lin: parametrize.register_parametrization(lin, "weight", Symmetric())),
    "two of own": at(
        "lin",
        lambda lin: [parametrize.register_parametrization(lin, "weight", kind()) for kind in (Halved, Symmetric)],
    ),
    "own, of a layer's bias": at("conv", lambda conv: parametrize.register_parametrization(conv, "bias", Halved())),
    "weight norm, the old one": at("lin", weight_norm),
    "spectral norm, the old one": at("lin", spectral_norm),
    "lazy": lazy,
    "tied": tied,
    "shared": shared,
    "frozen": frozen,
    "norms": norms,
    "extra state": with_extra(Stateful),
    "extra state, a tensor": with_extra(TensorState),
    "buffers": with_extra(Buffers),
    "sparse": with_extra(Sparse),
}
PARAMETRIZED = [name for name in CHANGES if name.startswith(("spectral", "weight", "orth", "own", "two"))]


@pytest.fixture(scope="module", params=CHANGES)
def trained(request):
    """A name, and a module that was trained two steps, with one layer in evaluation mode."""
    x, edge_index = a_graph()
    module = dqconvert.prepare(Model(CHANGES[request.param]), "int8-dq", (x, edge_index)).module.train()
    optimizer = torch.optim.SGD([value for value in module.parameters() if value.requires_grad], 0.05)
    for _ in range(2):
        optimizer.zero_grad()
        module(x, edge_index).square().mean().backward()
        optimizer.step()
    module.out.eval()
    return request.param, module


def bits(value):
    if value.layout in (torch.sparse_csr, torch.sparse_csc):
        return [bits(part) for part in (value.to_sparse_coo()._indices(), value.values())]
    if value.layout == torch.sparse_coo:
        return [value.is_coalesced(), bits(value._indices()), bits(value._values())]
    whole = torch.view_as_real(value) if value.is_complex() else value
    kind = str(value.dtype), str(value.layout), tuple(value.shape), str(value.device)
    return *kind, whole.detach().contiguous().reshape(-1).view(torch.uint8).tolist()


def state_of(module):
    """All that there is to know of a module's state, in order."""
    with at_rest(module):
        tensors = {**module.state_dict(), **dict(module.named_buffers(remove_duplicate=False))}
    plain = {name: bits(value) if isinstance(value, torch.Tensor) else repr(value) for name, value in tensors.items()}
    frozen = [name for name, value in module.named_parameters() if not value.requires_grad]
    return list(plain.items()), frozen, [(path, child.training) for path, child in module.named_modules()]


def outputs(module):
    """In the mode that it is in, then in evaluation."""
    x, edge_index = a_graph()
    torch.manual_seed(3)
    return [run(x, edge_index).detach() for run in (copy.deepcopy(module), copy.deepcopy(module).eval())]


def check_same(one, other):
    assert state_of(one) == state_of(other)
    for found, wanted in zip(outputs(one), outputs(other), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.sample(2)
def test_a_file_holds_the_state(trained, tmp_path):
    name, module = trained
    before = state_of(module)
    dqconvert.save(module, tmp_path / "a.dq")
    loaded = dqconvert.load(tmp_path / "a.dq", model=Model(CHANGES[name]))
    assert state_of(module) == before
    check_same(loaded, module)
    dqconvert.save(loaded, tmp_path / "b.dq")
    assert (tmp_path / "a.dq").read_bytes() == (tmp_path / "b.dq").read_bytes()


@pytest.mark.sample(2)
def test_copies_hold_the_state(trained):
    _, module = trained
    before = state_of(module)
    check_same(copy.deepcopy(module), module)
    check_same(copy.copy(module), module)
    assert state_of(module) == before


@pytest.mark.sample(2)
def test_pickles_hold_the_state(trained):
    _, module = trained
    if "parametrizations" in str([*module.state_dict()]):
        with pytest.raises(RuntimeError, match="only supported through state_dict"):  # torch's own word on any of them
            pickle.dumps(module)
        return
    check_same(pickle.loads(pickle.dumps(module)), module)


@pytest.mark.sample(2)
def test_a_state_dict_holds_the_state(trained):
    name, module = trained
    again = dqconvert.prepare(Model(CHANGES[name]), "int8-dq", a_graph()).module
    if name == "sparse":
        for path, value in module.named_buffers():  # torch loads no sparse matrix into another
            if value.layout != torch.strided:
                again.get_submodule("extra")._buffers[path.rpartition(".")[2]] = value.clone()
        state = {key: value for key, value in module.state_dict().items() if value.layout == torch.strided}
        again.load_state_dict(state, strict=False)
    else:
        again.load_state_dict(module.state_dict())
    assert state_of(again)[0] == state_of(module)[0] or name == "buffers"  # one of them is no part of it


@pytest.mark.sample(4)
def test_integer_modules_hold_the_state(trained, tmp_path):
    name, module = trained
    integer = dqconvert.convert(copy.deepcopy(module).eval())
    ways = [copy.deepcopy, copy.copy, lambda made: pickle.loads(pickle.dumps(made))]
    if not name.endswith("the old one"):  # its layer stays whole
        dqconvert.save(integer, tmp_path / "a.int")
        ways.append(lambda made: dqconvert.load(tmp_path / "a.int"))
    for way in ways:
        check_same(way(integer), integer)


def test_a_buffer_that_came_while_training_and_one_that_went(tmp_path):
    """None in the model that is given, and the other way round."""

    class Counted(Scaled):
        def __init__(self, seen=None, start=None):
            super().__init__()
            self.register_buffer("seen", seen)
            self.register_buffer("start", start)

    model = Model(with_extra(lambda: Counted(torch.arange(3), None)))
    module = dqconvert.prepare(model, "int8-dq", a_graph()).module.train()
    module(*a_graph())
    dqconvert.save(module, tmp_path / "a.dq")
    other = Model(with_extra(lambda: Counted(None, torch.ones(2))))
    check_same(dqconvert.load(tmp_path / "a.dq", model=other), module)


def test_what_a_module_says_of_itself_must_be_plain(tmp_path):
    class Odd(Stateful):
        def get_extra_state(self):
            return {"path": tmp_path}

    module = dqconvert.prepare(Model(with_extra(Odd)), "int8-dq", a_graph()).module
    with pytest.raises(CheckpointError, match=r"'extra._extra_state'\] holds a PosixPath: a file holds tensors"):
        dqconvert.save(module, tmp_path / "a.dq")


def test_other_weights_without_their_ranges_warn():
    model, others = Model(lambda model: None), Model(lambda model: None)
    nn.init.constant_(others.lin.weight, 5.0)
    module, _ = dqconvert.prepare(model, "int8-dq", a_graph())
    with warnings.catch_warnings(action="error"):
        module.load_state_dict(others.state_dict(), strict=False)  # there are no ranges yet
        dqconvert.calibrate(module, a_graph())
        module.load_state_dict(others.state_dict(), strict=False)  # the weights that they are of
        nn.Sequential(module).load_state_dict(nn.Sequential(copy.deepcopy(module)).state_dict())
    whole = {f"0.{name}": value for name, value in model.state_dict().items()}
    for one, state in ((module, model.state_dict()), (nn.Sequential(copy.deepcopy(module)), whole)):
        with pytest.warns(UserWarning, match="other weights than this Model, and no ranges of conv.lin.quant.input, "):
            one.load_state_dict(state, strict=False)
