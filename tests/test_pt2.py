"""``.pt2``: the program computes what the module does, bit for bit, on other sizes, in another process."""

from __future__ import annotations

import copy
import functools
import inspect
import json
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch
from torch import nn
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import (
    GAT,
    GCN,
    GIN,
    PNA,
    GATConv,
    GINEConv,
    GraphSAGE,
    HeteroConv,
    LayerNorm,
    SAGEConv,
    global_add_pool,
    to_hetero,
)

import dqconvert
from dqconvert.errors import ExportError
from dqconvert.exported import run_program
from dqconvert.pt2 import METADATA, program_of

SIZES = [(30, 3), (200, 6), (2, 4)]


class Edges(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.lin = GINEConv(nn.Linear(16, 8), edge_dim=4), nn.Linear(8, 3)

    def forward(self, x, edge_index, edge_attr):
        return self.lin(self.conv(x, edge_index, edge_attr).relu())


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.gnn, self.lin = SAGEConv(16, 8), nn.Linear(8, 3)

    def forward(self, x, edge_index, batch):
        return self.lin(global_add_pool(self.gnn(x, edge_index), batch))


class OfData(nn.Module):
    def __init__(self):
        super().__init__()
        self.gnn = SAGEConv(16, 3)

    def forward(self, data):
        return self.gnn(data.x, data.edge_index)


def pna():
    scalers, aggregators = ["identity", "amplification"], ["mean", "max", "min", "std"]
    return PNA(16, 16, 2, 3, aggregators=aggregators, scalers=scalers, deg=torch.tensor([1, 5, 9, 3]))


MODELS = {
    "GCN": lambda: GCN(16, 16, 2, 3),
    "SAGE": lambda: GraphSAGE(16, 16, 2, 3),
    "GIN": lambda: GIN(16, 16, 2, 3),
    "GAT": lambda: GAT(16, 16, 2, 3),
    "PNA": pna,
    "edges": Edges,
    "pooled": Pooled,
    "data": OfData,
}


def graph(name, nodes, degree, seed=0):
    """The tensors that a model takes."""
    g = torch.Generator().manual_seed(seed)
    found = [torch.randn(nodes, 16, generator=g), torch.randint(nodes, (2, degree * nodes), generator=g)]
    found += [torch.randn(degree * nodes, 4, generator=g)] if name == "edges" else []
    found += [torch.arange(nodes) // max(1, nodes // 3)] if name == "pooled" else []
    return tuple(found)


def given(name, tensors):
    """The arguments that a model takes."""
    return (Data(x=tensors[0], edge_index=tensors[1]),) if name == "data" else tensors


@functools.cache
def modules(name, preset="int8-dq"):
    torch.manual_seed(0)
    module, _ = dqconvert.prepare(MODELS[name](), preset, given(name, graph(name, 60, 4)))
    dqconvert.calibrate(module, [given(name, graph(name, 100, 4, seed)) for seed in range(2)])
    return {"prepared": module.eval(), "integer": dqconvert.convert(module)}


def unfused(module):
    """A copy that computes node by node."""
    module = copy.deepcopy(module)
    module.fuse = False
    module.recompile()
    return module


def assert_computes_the_same(program, module, name):
    run = program.module()
    for seed, (nodes, degree) in enumerate(SIZES):
        tensors = graph(name, nodes, degree, seed)
        assert torch.equal(run(*tensors), module(*given(name, tensors))), (nodes, degree)


def operators(program):
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


def test_programs_compute_the_same_on_other_sizes():
    module = modules("pooled")["integer"]
    program = program_of(module)
    assert_computes_the_same(program, module, "pooled")
    assert [operator for operator in operators(program) if operator.startswith("dqconvert")]


@pytest.mark.study
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("form", ["prepared", "integer"])
@pytest.mark.parametrize(("preset", "strict"), [("int8-dq", False), ("int8-dq", True), ("int4-dq+", True)])
def test_every_model_strict_and_not_in_a_fresh_process(name, form, strict, preset, tmp_path, spare):
    module = modules(name, preset)[form]
    if form == "prepared" and preset.endswith("+"):  # ends in float sums, which a fused operator adds in another order
        module = unfused(module)
    program = program_of(module, strict=strict)
    assert_computes_the_same(program, module, name)
    torch.export.save(program, tmp_path / f"{form}.pt2")
    assert_loads(tmp_path, name, {form: module}, spare)


class Whole(nn.Module):
    """Layers that stay whole: a recurrent one, whose weights are rounded, and a norm over graphs that counts them."""

    def __init__(self):
        super().__init__()
        self.gnn, self.norm, self.lin = GraphSAGE(16, 8, 2, jk="lstm"), LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x, edge_index, batch):
        return self.lin(self.norm(self.gnn(x, edge_index), batch))


@pytest.mark.study
def test_layers_that_stay_whole():
    """Their own quantizers are left in place, which the program has as constants."""
    module, _ = dqconvert.prepare(Whole(), "int8-dq", graph("pooled", 60, 4))
    dqconvert.calibrate(module, [graph("pooled", 100, 4, seed) for seed in range(2)])
    before, quantizers = module.eval()(*graph("pooled", 30, 3)), dict(module.quantizers())
    program = program_of(module)
    assert dict(module.quantizers()) == quantizers
    assert torch.equal(module(*graph("pooled", 30, 3)), before)
    assert_computes_the_same(program, module, "pooled")


EDGES = [("paper", "cites", "paper"), ("author", "writes", "paper"), ("paper", "by", "author")]


class Relations(nn.Module):
    """Attention between papers, means over the others."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (HeteroConv(dict(zip(EDGES, self.layers(), strict=True))) for _ in range(2))

    def layers(self):
        return GATConv(16, 16, add_self_loops=False), SAGEConv((16, 16), 16), SAGEConv((16, 16), 16)

    def forward(self, data):
        x = {kind: h.relu() for kind, h in self.first(data.x_dict, data.edge_index_dict).items()}
        return self.second(x, data.edge_index_dict)["paper"]


def of_types(papers, authors, degree, seed=0):
    """A graph of two types of nodes."""
    g = torch.Generator().manual_seed(seed)
    sizes, data = {"paper": papers, "author": authors}, HeteroData()
    for kind, size in sizes.items():
        data[kind].x = torch.randn(size, 16, generator=g)
    for number, (one, name, other) in enumerate(EDGES):
        ends = [torch.randint(sizes[kind], (degree * papers + number,), generator=g) for kind in (one, other)]
        data[one, name, other].edge_index = torch.stack(ends)
    return data


@pytest.mark.study
@pytest.mark.parametrize("form", ["prepared", "integer"])
@pytest.mark.parametrize("takes", ["dicts", "data"])
def test_several_types_of_nodes(takes, form):
    def given(data):
        return (data,) if takes == "data" else (data.x_dict, data.edge_index_dict)

    torch.manual_seed(0)
    model = Relations() if takes == "data" else to_hetero(GraphSAGE(16, 16, 2, 3), (["paper", "author"], EDGES))
    module, _ = dqconvert.prepare(model, "int8-dq", given(of_types(40, 21, 3)))
    dqconvert.calibrate(module, [given(of_types(50, 30, 4, seed)) for seed in range(2)])
    module = module.eval() if form == "prepared" else dqconvert.convert(module)
    program = program_of(module)
    part = "x__paper" if takes == "dicts" else "paper__x"
    assert part in program.graph_signature.user_inputs
    run = run_program(program)
    for size in ((30, 11, 3), (200, 70, 5), (4, 2, 2)):
        arguments = given(of_types(*size))
        expected, found = module(*arguments), run(inspect.signature(module.forward).bind(*arguments))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.study
@pytest.mark.parametrize("name", [name for name in MODELS if name != "data"])
@pytest.mark.parametrize("form", ["prepared", "integer"])
@pytest.mark.parametrize("strict", [False, True], ids=["not strict", "strict"])
def test_export_without_our_help(name, form, strict):
    """What users call themselves; poolings count their graphs in a number that it cannot carry on."""
    module, example = modules(name)[form], graph(name, 61, 5)
    shapes = tuple(
        {1 if value.dtype == torch.int64 and value.dim() == 2 else 0: torch.export.Dim.DYNAMIC} for value in example
    )
    if name == "pooled" and form == "prepared":
        pytest.skip("global_add_pool makes a Python number of the largest index")
    with torch.no_grad():
        program = torch.export.export(module, example, dynamic_shapes=shapes, strict=strict)
    assert_computes_the_same(program, module, name)


def assert_loads(folder, name, modules, spare):
    """In another process; that of a prepared module without dqconvert, as the one of an integer module follows it."""
    cases = [graph(name, nodes, degree, seed) for seed, (nodes, degree) in enumerate(SIZES)]
    code = "import sys, torch"
    for form, module in modules.items():
        torch.save([(tensors, module(*given(name, tensors)).detach()) for tensors in cases], folder / f"{form}.pt")
        code += f"""
{"import dqconvert" if form == "integer" else ""}
run = torch.export.load({str(folder / form)!r} + ".pt2").module()
for tensors, expected in torch.load({str(folder / form)!r} + ".pt"):
    assert torch.equal(run(*tensors), expected)
assert ("dqconvert" in sys.modules) == {form == "integer"}
"""
    done = spare.run(code)
    assert done.returncode == 0, done.stderr


def test_files_load_in_another_process_and_refuse_what_modules_refuse(tmp_path, spare):
    for form, module in modules("data").items():
        file = tmp_path / f"{form}.pt2"
        dqconvert.export(module, file)
        with zipfile.ZipFile(file) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(METADATA))
            about = json.loads(archive.read(name))
        assert (about["model"], about["form"], about["inputs"]) == ("OfData", form, ["x", "edge_index"])
        assert (about["qconfig"] is None) == (form == "integer")
        run = torch.export.load(file).module()
        x, edge_index = graph("data", 30, 3)
        for wrong in (30, -1):
            edge_index[0, 5] = wrong
            with pytest.raises((RuntimeError, IndexError)):
                run(x, edge_index)
    assert_loads(tmp_path, "data", modules("data"), spare)


@pytest.mark.study
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler")
def test_compiled_ahead_of_time(tmp_path):
    """The guide's recipe; sums of floats may be in another order."""
    module = modules("data")["prepared"]
    dqconvert.export(module, tmp_path / "model.pt2")
    program, package = torch.export.load(tmp_path / "model.pt2"), str(tmp_path / "aoti.pt2")
    torch._inductor.aoti_compile_and_package(program, package_path=package)
    run = torch._inductor.aoti_load_package(package)
    for seed, (nodes, degree) in enumerate(SIZES):
        tensors = graph("data", nodes, degree, seed)
        found, expected = run(*tensors), module(*given("data", tensors))
        step = dict(module.quantizers())["gnn.quant.update"].scale
        assert float((found - expected).abs().max()) <= 1.01 * float(step)


@pytest.mark.study
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler")
def test_integer_programs_are_not_compiled_ahead_of_time(tmp_path):
    """They were, and some steps off."""
    dqconvert.export(modules("data")["integer"], tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2")
    with pytest.raises(Exception, match=r"AOTInductor cannot compile dqconvert's operators.*prepared module"):
        torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "aoti.pt2"))
    tensors = graph("data", *SIZES[0], 0)
    assert torch.equal(program.module()(*tensors), modules("data")["integer"](*given("data", tensors)))


@pytest.mark.study
@pytest.mark.parametrize("imports", ["dqconvert, torch", "torch, dqconvert"])
def test_operators_register_on_demand_whichever_import_comes_first(imports):
    """In a process of its own: here, torch is there already."""
    code = f"""
import sys, {imports}
assert "dqconvert.kernels" not in sys.modules
assert not hasattr(torch.ops.dqconvert, "no_such_operator")
assert torch.ops.dqconvert.integer_linear.default
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_flag_and_an_absent_argument():
    class Flagged(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = SAGEConv(16, 3)

        def forward(self, x, edge_index, edge_weight=None, scaled=False):
            out = self.conv(x, edge_index)
            return out * 2 if scaled else out

    x, edge_index = graph("SAGE", 40, 3)
    module, _ = dqconvert.prepare(Flagged(), "int8-ptq", {"x": x, "edge_index": edge_index, "scaled": True})
    dqconvert.calibrate(module, {"x": x, "edge_index": edge_index, "scaled": True})
    program = program_of(module)
    assert torch.equal(program.module()(x, edge_index), module.eval()(x, edge_index, scaled=True))


class Sized(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = SAGEConv(16, 3)

    def forward(self, x, edge_index):
        out = self.conv(x, edge_index)
        return out * 2 if x.size(0) > 100 else out


def test_a_size_for_which_the_forward_takes_another_branch_is_refused():
    module, _ = dqconvert.prepare(Sized(), "int8-ptq", graph("SAGE", 40, 3))
    dqconvert.calibrate(module, graph("SAGE", 40, 3))
    run = program_of(module).module()
    assert torch.equal(run(*graph("SAGE", 30, 3)), module.eval()(*graph("SAGE", 30, 3)))
    with pytest.raises(AssertionError, match="100"):
        run(*graph("SAGE", 200, 3))


@pytest.mark.study
def test_compiled_code_refuses_it_too():
    module, _ = dqconvert.prepare(Sized(), "int8-ptq", graph("SAGE", 40, 3))
    dqconvert.calibrate(module, graph("SAGE", 40, 3))
    compiled = torch.compile(module, backend="eager", dynamic=True)
    compiled(*graph("SAGE", 30, 3))
    with pytest.raises(Exception, match="100"):
        compiled(*graph("SAGE", 200, 3))


@pytest.mark.parametrize("arguments", [{"exact": True}, {"target": "openvino"}])
def test_options_of_onnx(arguments, tmp_path):
    with pytest.raises(ExportError, match="ONNX"):
        dqconvert.export(modules("data")["integer"], tmp_path / "model.pt2", **arguments)
    assert not (tmp_path / "model.pt2").exists()


def test_without_ranges(tmp_path):
    module, _ = dqconvert.prepare(SAGEConv(16, 3))
    with pytest.raises(ExportError, match="no range"):
        dqconvert.export(module, tmp_path / "model.pt2")


def test_what_cannot_be_followed_is_named(tmp_path):
    class Branching(nn.Module):
        def forward(self, x):
            return x * 2 if bool(x.sum() > 0) else x

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.branch = SAGEConv(16, 3), Branching()

        def forward(self, x, edge_index):
            return self.branch(self.conv(x, edge_index))

    module, _ = dqconvert.prepare(Model(), "int8-ptq", graph("SAGE", 40, 3))
    dqconvert.calibrate(module, graph("SAGE", 40, 3))
    with pytest.raises(ExportError, match=r"test_pt2.py:\d+, branch"):
        dqconvert.export(module, tmp_path / "model.pt2")
    assert not (tmp_path / "model.pt2").exists()
