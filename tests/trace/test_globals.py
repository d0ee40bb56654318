"""Forwards that read global variables of their module: scripts that keep their graph in ``data``."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import GCNConv, GraphUNet, SAGEConv

import dqconvert
from dqconvert import CheckpointError, ExportError, TraceError
from dqconvert.errors import GuardError, InputTypeError
from dqconvert.trace import trace
from dqconvert.trace.globals import read_global


def make_data(nodes: int, seed: int = 0) -> Data:
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randint(nodes, (2, 4 * nodes), generator=generator)
    return Data(x=torch.randn(nodes, 8, generator=generator), edge_index=edges)


data = make_data(40)
TENSORS = {"x": data.x, "parts": [data.edge_index]}
settings = SimpleNamespace(scale=torch.rand(8), other=torch.ones(8))
papers = HeteroData()
papers["paper"].x, papers["author"].x = data.x, data.x[:30].clone()
papers["author", "writes", "paper"].edge_index = data.edge_index[:, (data.edge_index[0] < 30)]
trained = nn.Parameter(torch.ones(8))
written = torch.zeros(8)
twins = data.x


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Every test finds the data as it is above."""
    saved, store = data, dict(data.items())
    yield
    globals()["data"] = saved
    for key, value in store.items():
        saved[key] = value


class ReadsAll(nn.Module):
    """A forward without arguments, as PyG's examples write it."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.conv = nn.Linear(8, 16), GCNConv(16, 5)

    def forward(self) -> Tensor:
        x = F.dropout(F.relu(self.lin(data.x)), training=self.training)
        return self.conv(x, data.edge_index)


class ReadsConnectivity(ReadsAll):
    """One that is given features, and reads the connectivity."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.conv(F.relu(self.lin(x)), data.edge_index)


def features() -> Tensor:
    return TENSORS["x"] * settings.scale  # type: ignore[operator, no-any-return]


class ReadsThroughFunction(ReadsAll):
    """One that reads a dict, a list and a namespace, in a function and in a property."""

    @property
    def edges(self) -> Any:
        return TENSORS["parts"][0]

    def forward(self) -> Tensor:
        return self.conv(F.relu(self.lin(features())), self.edges)


class ReadsTypes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = SAGEConv((8, 8), 5)

    def forward(self) -> Tensor:
        pair = (papers["author"].x, papers.x_dict["paper"])
        return self.conv(pair, papers["author", "writes", "paper"].edge_index)


class Pools(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unet = GraphUNet(8, 16, 5, depth=2, pool_ratios=0.5)

    def forward(self) -> Tensor:
        return self.unet(data.x, data.edge_index)


class ReadsTrained(ReadsAll):
    def forward(self) -> Tensor:
        return self.conv(self.lin(data.x * trained), data.edge_index)


class Writes(ReadsAll):
    def forward(self) -> Tensor:
        written.add_(1)
        return self.conv(self.lin(data.x * written), data.edge_index)


class ReadsTwins(ReadsAll):
    def forward(self) -> Tensor:
        return self.conv(self.lin(data.x), data.edge_index) + twins.mean()


def local_model() -> nn.Module:
    held = make_data(20)

    class Closure(ReadsAll):
        def forward(self) -> Tensor:
            return self.conv(self.lin(held.x), held.edge_index)

    return Closure()


@pytest.mark.parametrize("kind", [ReadsAll, ReadsThroughFunction, ReadsTypes, Pools])
def test_it_is_traced_and_said(kind: type[nn.Module]) -> None:
    found = trace(kind())
    assert any(node.target is read_global for node in found.module.graph.nodes)
    assert any("global" in remark and __name__ in remark for remark in found.remarks)


@pytest.mark.parametrize("kind", [ReadsAll, Pools])
def test_the_graph_follows_the_global(kind: type[nn.Module]) -> None:
    model = kind().eval()
    graph = trace(model).module.eval()
    for now in (make_data(40, seed=1), make_data(70)):
        data.x, data.edge_index = now.x, now.edge_index  # its parts are replaced
        torch.testing.assert_close(graph(), model(), rtol=0, atol=0)
    globals()["data"] = make_data(55)  # or it is
    torch.testing.assert_close(graph(), model(), rtol=0, atol=0)


@pytest.fixture(scope="module")
def prepared() -> Any:
    torch.manual_seed(0)
    module, _ = dqconvert.prepare(ReadsAll(), "int8-dq")
    for _ in range(3):
        module.train()().sum().backward()
    return module.eval()


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("given", [(), (data.x,)], ids=["no arguments", "features"])
def test_protection_counts_the_edges_of_the_global(given: tuple[Any, ...], fuse: bool) -> None:
    torch.manual_seed(0)
    model = ReadsConnectivity() if given else ReadsAll()
    module, _ = dqconvert.prepare(model, "int8-dq", given or None, fuse=fuse)
    hub = torch.zeros(2, 60, dtype=torch.long)
    hub[0] = torch.arange(60) % 40
    data.edge_index = hub
    degrees: list[Tensor] = []
    module.quant.protect.register_forward_pre_hook(lambda _, args: degrees.append(args[0][0]))
    module.train()(*given)
    assert torch.equal(degrees[0], hub[1])


def test_the_prepared_module_computes_what_one_with_arguments_does(prepared: Any) -> None:
    class Given(ReadsAll):
        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:  # type: ignore[override]
            x = F.dropout(F.relu(self.lin(x)), training=self.training)
            return self.conv(x, edge_index)

    other, _ = dqconvert.prepare(Given(), "int8-dq")
    other.load_state_dict(prepared.state_dict())
    for now in (data, make_data(64)):
        globals()["data"] = now
        torch.testing.assert_close(prepared(), other.eval()(now.x, now.edge_index))
        integer = dqconvert.convert(prepared)
        torch.testing.assert_close(integer(), dqconvert.convert(other)(now.x, now.edge_index))


def test_copies_and_pickles_read_it_too(prepared: Any) -> None:
    integer = dqconvert.convert(prepared)
    for module in (prepared, integer):
        expected = module()
        assert torch.equal(copy.deepcopy(module)(), expected)
        assert torch.equal(pickle.loads(pickle.dumps(module))(), expected)


@pytest.fixture(scope="module", params=[ReadsAll, ReadsThroughFunction, ReadsTypes, Pools])
def trained_one(request: Any) -> Any:
    module, _ = dqconvert.prepare(request.param(), "int8-dq")
    module().sum().backward()
    return module.eval()


@pytest.mark.sample(2)
def test_a_prepared_file_reads_it_off_the_models_code(trained_one: Any, tmp_path: Any) -> None:
    dqconvert.save(trained_one, tmp_path / "file.dq")
    loaded = dqconvert.load(tmp_path / "file.dq", model=trained_one._user_class())
    assert torch.equal(loaded(), trained_one())
    if not isinstance(trained_one._user_class(), ReadsThroughFunction):  # there it is one tensor under two names
        globals()["data"] = make_data(64)
        assert torch.equal(loaded(), trained_one())
    dqconvert.save(loaded, tmp_path / "again.dq")
    assert (tmp_path / "again.dq").read_bytes() == (tmp_path / "file.dq").read_bytes()


def test_an_integer_file_holds_it_as_it_was_and_says_so(trained_one: Any, tmp_path: Any) -> None:
    integer = dqconvert.convert(trained_one)
    with pytest.warns(UserWarning, match="the file holds the global .* as it is when saved"):
        dqconvert.save(integer, tmp_path / "file.int")
    expected = integer()
    globals()["data"] = make_data(64)
    loaded = dqconvert.load(tmp_path / "file.int")
    assert torch.equal(loaded(), expected)
    assert any("the file holds the global" in remark for remark in loaded.report.remarks)
    assert not any("the file holds" in remark for remark in integer.report.remarks)


def without_globals() -> nn.Module:
    """Returns a model of the same parts, whose code reads no global."""
    bare, model = nn.Module(), ReadsAll()
    bare.lin, bare.conv = model.lin, model.conv
    return bare


@pytest.mark.parametrize("other", [ReadsAll, without_globals], ids=["no tensor", "no code"])
def test_a_file_reads_no_global_that_the_given_model_does_not(prepared: Any, other: Any, tmp_path: Any) -> None:
    dqconvert.save(prepared, tmp_path / "file.dq")
    data.x = None
    with pytest.raises(CheckpointError, match=r"global data\.x of module .*code finds no tensor there: set it"):
        dqconvert.load(tmp_path / "file.dq", model=other())


def test_the_models_module_may_have_another_name(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that saves is ``__main__``; what loads the file imports it."""
    for name in ("their_script", "their_script_imported"):
        (tmp_path / f"{name}.py").write_text(
            "import torch\nfrom torch_geometric.nn import GCNConv\nEDGES = torch.tensor([[0, 1, 2], [1, 2, 0]])\n"
            "class Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
            "        self.conv = GCNConv(8, 4)\n"
            "    def forward(self, x):\n        return self.conv(x, EDGES)\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    import their_script  # type: ignore[import-not-found]
    import their_script_imported as again  # type: ignore[import-not-found]

    x = torch.randn(4, 8)
    module, _ = dqconvert.prepare(their_script.Net(), "int8-dq", (x,))
    module(x).sum().backward()
    dqconvert.save(module.eval(), tmp_path / "file.dq")
    loaded = dqconvert.load(tmp_path / "file.dq", model=again.Net())
    for one in (their_script, again):
        one.EDGES = torch.tensor([[0, 3, 2], [1, 2, 0]])
        expected = module(x)
    del sys.modules["their_script"]
    assert torch.equal(loaded(x), expected)


def test_an_exported_program_cannot_hold_it(prepared: Any) -> None:
    with pytest.raises(ExportError, match=r"reads the global data\.x of module .*pass it as an argument"):
        torch.export.export(prepared, ())


def test_what_is_there_must_do(prepared: Any) -> None:
    data.x = data.x.double()
    with pytest.raises(InputTypeError, match=r"data\.x is torch\.float64"):
        prepared()
    data.x = None
    with pytest.raises(GuardError, match=r"reads the global data\.x of module .* no tensor now"):
        prepared()


def test_the_same_tensor_under_two_names_must_stay_one() -> None:
    graph = trace(ReadsTwins()).module.eval()
    graph()
    data.x = data.x.clone()
    with pytest.raises(GuardError, match=r"data\.x .* and twins .* now they are two"):
        graph()


@pytest.mark.parametrize("kind", [ReadsTrained, local_model], ids=["trained", "closure"])
def test_others_are_an_error(kind: Any) -> None:
    with pytest.raises(TraceError, match="no recorded call made"):
        trace(kind())


def test_a_global_that_is_written_is_an_error() -> None:
    with pytest.raises(TraceError, match="writes into the global written"):
        trace(Writes())


def test_a_model_in_a_module_of_its_own(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_data.py").write_text("import torch\nEDGES = torch.tensor([[0, 1, 2], [1, 2, 0]])\n")
    (tmp_path / "their_model.py").write_text(
        "import torch, their_data\nfrom torch_geometric.nn import GCNConv\n"
        "class Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.conv = GCNConv(8, 4)\n"
        "    def forward(self, x):\n        return self.conv(x, their_data.EDGES)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import their_model  # type: ignore[import-not-found]

    model = their_model.Net().eval()
    graph = trace(model, (torch.randn(3, 8),)).module.eval()
    sys.modules["their_data"].EDGES = torch.tensor([[0, 3, 2], [1, 2, 0]])
    x = torch.randn(4, 8)
    assert torch.equal(graph(x), model(x))
