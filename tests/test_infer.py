"""`infer`: a whole graph in chunks gives what the module gives on the whole, bit for bit."""

from __future__ import annotations

import functools
import json
import textwrap

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch_geometric.nn import (
    GAT,
    GCN,
    GIN,
    BatchNorm,
    EdgeConv,
    GATConv,
    GATv2Conv,
    GCNConv,
    GraphConv,
    GraphNorm,
    GraphSAGE,
    HeteroConv,
    Linear,
    SAGEConv,
    SGConv,
    TAGConv,
    TransformerConv,
    global_add_pool,
)
from typer.testing import CliRunner

import dqconvert
from dqconvert.cli import app
from dqconvert.errors import ConfigError, InputError, LoweringError
from dqconvert.infer import bytes_of
from dqconvert.lower.staged.run import Run, resident
from dqconvert.lower.staged.stages import Stages
from dqconvert.lower.staged.whole import WholeGraph
from dqconvert.store import Store

NODES, WIDTH = 40, 12


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = GCNConv(WIDTH, 16), GCNConv(16, 16)
        self.norm, self.head = BatchNorm(16), nn.Linear(16, 5)

    def forward(self, x, edge_index):
        h = self.first(x, edge_index).relu()
        return self.head(h + self.norm(self.second(h, edge_index)).relu())


class Weighted(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.first, self.second = kind(WIDTH, 8), kind(8, 5)

    def forward(self, x, edge_index, edge_weight):
        return self.second(self.first(x, edge_index, edge_weight).relu(), edge_index, edge_weight)


class Attentive(nn.Module):
    """Attention with features of edges."""

    def __init__(self):
        super().__init__()
        self.first, self.second = GATConv(WIDTH, 8, heads=2, edge_dim=3), GATConv(16, 5, edge_dim=3)

    def forward(self, x, edge_index, edge_attr):
        return self.second(self.first(x, edge_index, edge_attr).relu(), edge_index, edge_attr)


class Hetero(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = self.layer((WIDTH, 6), 8), self.layer((8, 8), 8)
        self.head = Linear(8, 3)

    @staticmethod
    def layer(widths, out):
        a, b = widths
        return HeteroConv(
            {
                ("a", "to", "b"): SAGEConv((a, b), out),
                ("b", "to", "a"): SAGEConv((b, a), out),
                ("a", "of", "a"): SAGEConv(a, out),
            }
        )

    def forward(self, x_dict, edge_index_dict):
        x_dict = {key: x.relu() for key, x in self.first(x_dict, edge_index_dict).items()}
        return self.head(self.second(x_dict, edge_index_dict)["a"])


MODELS = {
    "GCN": lambda: GCN(WIDTH, 16, 2, 5),
    "GIN": lambda: GIN(WIDTH, 16, 2, 5, train_eps=True, norm="batch_norm"),
    "GraphSAGE": lambda: GraphSAGE(WIDTH, 16, 3, 5),
    "GAT": lambda: GAT(WIDTH, 8, 2, 5, heads=2),
    "GCN, cat": lambda: GCN(WIDTH, 16, 2, 5, jk="cat"),
    "GIN, max": lambda: GIN(WIDTH, 16, 2, 5, jk="max"),
    "residual": Residual,
    "GCN, weights": lambda: Weighted(GCNConv),
    "GraphConv, weights": lambda: Weighted(GraphConv),
    "GraphSAGE, max": lambda: GraphSAGE(WIDTH, 16, 2, 5, aggr="max"),
    "GAT, edges": Attentive,
    "GCN, other way": lambda: Alone(GCNConv(WIDTH, 5, flow="target_to_source")),
    "heterogeneous": Hetero,
    "SGConv": lambda: Alone(SGConv(WIDTH, 5, K=2)),
    "TAGConv": lambda: Alone(TAGConv(WIDTH, 5, K=2)),
    "GATv2Conv": lambda: Alone(GATv2Conv(WIDTH, 5, heads=2)),
    "TransformerConv": lambda: Alone(TransformerConv(WIDTH, 5, heads=2)),
    "EdgeConv": lambda: Alone(EdgeConv(nn.Linear(2 * WIDTH, 5))),
}
PRESETS = ("int8-dq", "int4-dq", "int8-dq+")


class Alone(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x, edge_index):
        return self.conv(x, edge_index).log_softmax(-1)


def a_graph(nodes=NODES, edges=None, width=WIDTH):
    """Features and edges; some of them twice, some from a node to itself, and nodes without any."""
    edges = 3 * nodes if edges is None else edges
    edge_index = torch.randint(max(1, nodes - nodes // 5), (2, edges))
    if edges > 4:
        edge_index[:, 0] = edge_index[:, 1]
        edge_index[0, 2:4] = edge_index[1, 2:4]
    return torch.randn(nodes, width), edge_index


def inputs(name, nodes=NODES, edges=None):
    x, edge_index = a_graph(nodes, edges)
    if name == "heterogeneous":
        between = torch.stack([torch.randint(nodes, (2 * nodes,)), torch.randint(nodes // 2, (2 * nodes,))])
        edges = {("a", "to", "b"): between, ("b", "to", "a"): between[:, ::3].flip(0), ("a", "of", "a"): edge_index}
        return {"a": x, "b": torch.randn(nodes // 2, 6)}, edges
    if name.endswith("weights"):
        return x, edge_index, torch.rand(edge_index.size(1))
    return (x, edge_index, torch.randn(edge_index.size(1), 3)) if name.endswith("edges") else (x, edge_index)


@functools.cache
def converted(name, preset="int8-dq"):
    torch.manual_seed(len(name))
    example = inputs(name)
    module = dqconvert.prepare(MODELS[name](), preset, example).module
    dqconvert.calibrate(module, example)
    return dqconvert.convert(module)


def infer(integer, data, folder, **options):
    return dqconvert.infer(integer, data, **{"memory": "1TiB", "progress": False, **options}, store=folder)


@pytest.mark.sample(15, keep=("GAT-int8-dq+", "heterogeneous-int8-dq"))
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", MODELS)
def test_chunks_give_what_the_whole_gives(name, preset, tmp_path):
    integer, data = converted(name, preset), inputs(name)
    assert torch.equal(infer(integer, data, tmp_path, chunk=7), integer(*data))


@pytest.mark.parametrize(("nodes", "edges"), [(0, 0), (1, 0), (NODES, 0)])
def test_graphs_without_edges_or_nodes(nodes, edges, tmp_path):
    for name in ("GCN", "GAT, edges"):
        integer, data = converted(name), inputs(name, nodes, edges)
        assert torch.equal(infer(integer, data, tmp_path / name), integer(*data))


@pytest.mark.parametrize("chunk", [1, 64])
def test_chunks_of_any_size(chunk, tmp_path):
    integer, data = converted("GAT, edges"), inputs("GAT, edges", 12)
    assert torch.equal(infer(integer, data, tmp_path, chunk=chunk), integer(*data))


def work(integer, data, folder, room):
    """Returns the work on a graph, with as many bytes of memory."""
    stages = Stages(integer.graph, integer)
    names = [str(node.target) for node in stages.graph.find_nodes(op="placeholder")]
    whole = WholeGraph(stages.rows, integer, dict(zip(names, data, strict=False)))
    return Run(stages, whole, integer, Store(folder, ""), lambda: room)


@pytest.mark.parametrize("name", ["GCN", "GAT, edges"])
def test_little_memory(name, tmp_path):
    """Edges are sorted in several ranges of receivers, and the rows of senders copied, a part of a file at a time."""
    integer, data = converted(name), inputs(name, 1500)
    run = work(integer, data, tmp_path, 60_000)
    done = [rows for what, rows in run.work() if what.startswith("stage")]
    assert len(done) > 20
    assert torch.equal(run.result(), integer(*data))


def test_features_and_edges_in_files(tmp_path):
    integer, (x, edge_index) = converted("GCN"), inputs("GCN")
    np.save(tmp_path / "x.npy", x.numpy())
    torch.from_file(str(tmp_path / "edges"), shared=True, size=edge_index.numel(), dtype=torch.int64).copy_(
        edge_index.flatten()
    )
    mapped = torch.from_file(str(tmp_path / "edges"), shared=True, size=edge_index.numel(), dtype=torch.int64)
    data = np.load(tmp_path / "x.npy", mmap_mode="r"), mapped.view(2, -1)
    assert torch.equal(infer(integer, data, tmp_path / "store", chunk=7), integer(x, edge_index))
    assert torch.equal(infer(integer, (x, edge_index.int()), tmp_path / "other", chunk=7), integer(x, edge_index))


def test_a_file_gives_the_same(tmp_path):
    integer, data = converted("GCN"), inputs("GCN")
    dqconvert.save(integer, tmp_path / "gcn.int")
    loaded = dqconvert.load(tmp_path / "gcn.int")
    assert torch.equal(infer(loaded, data, tmp_path / "store", chunk=7), integer(*data))
    arguments = dict(zip(("x", "edge_index"), data, strict=True))
    safetensors.torch.save_file(arguments, tmp_path / "graph.safetensors")
    words = ["run", tmp_path / "gcn.int", "--data", tmp_path / "graph.safetensors", "--memory", "1TiB"]
    runner = CliRunner()
    assert runner.invoke(app, [str(word) for word in words]).exit_code == 2
    wrong = [*words[:-1], "2 Gigs", "--store", tmp_path / "of run"]
    assert runner.invoke(app, [str(word) for word in wrong]).stderr.startswith("dqconvert: memory is a number of bytes")
    words += ["--store", tmp_path / "of run", "-o", tmp_path / "out.safetensors"]
    done = runner.invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    assert torch.equal(safetensors.torch.load_file(tmp_path / "out.safetensors")["graph"], integer(*data))


def test_what_stopped_goes_on(tmp_path):
    """What is done is not done again, and what was cut off in the middle of a stage is the same in the end."""
    integer, data = converted("GCN"), inputs("GCN", 1500)
    run = work(integer, data, tmp_path, 60_000)
    steps = run.work()
    done = next(rows for what, rows in steps if what.startswith("stage 2"))
    assert 1500 < done < 3000
    steps.close()
    run.store.close()
    again = work(integer, data, tmp_path, 60_000)
    rest = [step for step in again.work() if step[0].startswith("stage")]
    assert rest[0][0].startswith("stage 2")
    assert rest[0][1] > done
    assert torch.equal(again.result(), integer(*data))


@pytest.mark.study
def test_what_was_killed_goes_on(tmp_path, spare):
    """The process is killed when some chunks are done; the next one computes the others alone."""
    integer, data = converted("GCN"), inputs("GCN", 400)
    dqconvert.save(integer, tmp_path / "gcn.int")
    torch.save(data, tmp_path / "data.pt")
    code = """
        import json, os, signal, sys, threading, time
        from pathlib import Path
        import torch, dqconvert
        folder = Path(sys.argv[1])
        def watch():
            while True:
                time.sleep(0.001)
                try:
                    done = json.loads((folder / "store" / "state.json").read_text())["done"]
                except (OSError, ValueError):
                    continue
                if 0 < done.get("stage_2", 0):
                    os.kill(os.getpid(), signal.SIGKILL)
        threading.Thread(target=watch, daemon=True).start()
        integer, data = dqconvert.load(folder / "gcn.int"), torch.load(folder / "data.pt")
        dqconvert.infer(integer, data, memory="1TiB", store=folder / "store", chunk=50, progress=False)
    """
    killed = spare.run(textwrap.dedent(code), tmp_path)
    assert killed.returncode == -9, killed.stderr
    state = json.loads((tmp_path / "store" / "state.json").read_text())
    assert 0 < state["done"]["stage_2"] < 400
    assert torch.equal(infer(integer, data, tmp_path / "store", chunk=70), integer(*data))
    with pytest.raises(ConfigError, match="another module, graph or features"):
        infer(integer, (data[0] + 1, data[1]), tmp_path / "store")


class Pools(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = GCNConv(WIDTH, 8)

    def forward(self, x, edge_index):
        return global_add_pool(self.conv(x, edge_index), torch.zeros(x.size(0), dtype=torch.int64), 1)


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.last = GCNConv(WIDTH, 8), GraphNorm(8), GCNConv(8, 3)

    def forward(self, x, edge_index):
        return self.last(self.norm(self.conv(x, edge_index)), edge_index)


@pytest.mark.parametrize(("model", "words"), [(Pools, "global_add_pool"), (Normed, "norm")])
def test_what_mixes_rows_is_refused_by_name(model, words, tmp_path):
    data = inputs("GCN")
    module = dqconvert.prepare(model(), "int8-dq", data).module
    dqconvert.calibrate(module, data)
    with pytest.raises(LoweringError, match=f"infer cannot cut .*{words}"):
        infer(dqconvert.convert(module), data, tmp_path)


def test_errors_say_what_to_do(tmp_path):
    integer, (x, edge_index) = converted("GCN"), inputs("GCN")
    with pytest.raises(ConfigError, match="2GiB"):
        infer(integer, (x, edge_index), tmp_path, memory="2 Gigs")
    with pytest.raises(ConfigError, match="memory"):
        infer(integer, (x, edge_index), tmp_path / "small", memory="1MiB")
    with pytest.raises(InputError, match="node 40"):
        infer(integer, (x, torch.full((2, 3), NODES)), tmp_path / "edges")
    with pytest.raises(InputError, match="NaN"):
        infer(integer, (torch.full_like(x, torch.nan), edge_index), tmp_path / "nan")
    with pytest.raises(InputError, match="columns"):
        infer(integer, (x[:, 1:], edge_index), tmp_path / "narrow")
    with pytest.raises(ConfigError, match="convert it first"):
        infer(MODELS["GCN"](), (x, edge_index), tmp_path / "float")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    with pytest.raises(ConfigError, match="something else"):
        infer(integer, (x, edge_index), tmp_path / "other")


def test_what_is_made_of_all_edges_fits_or_is_refused(tmp_path):
    """The norm of a GCN whose edges have weights is made whole: 841 MiB were held of 650 that were asked for."""
    x, edge_index, weight = inputs("GCN, weights")
    integer, times = converted("GCN, weights"), 2_000_000 // weight.numel()
    data = x, edge_index.repeat(1, times), weight.repeat(times)
    with pytest.raises(ConfigError, match=r"gcn_norm \(.*gcn_conv.*\) is made of all edges at once, which takes 79,"):
        infer(integer, data, tmp_path, memory=resident(release=True) + 20_000_000)


def test_amounts_of_memory():
    assert [bytes_of(size) for size in ("2GiB", "1.5 MB", 12, "1B")] == [2 << 30, 1_500_000, 12, 1]
    for wrong in ("", "GiB", "2", "-1GiB", 0, True, None, "2gib", 1.5):
        with pytest.raises(ConfigError, match="memory is"):
            bytes_of(wrong)


LARGE = """
import json, os, signal, sys, threading, time
from pathlib import Path
import torch, dqconvert
from dqconvert.store import release
from torch_geometric.nn import GCN

folder, nodes, edges, memory = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]

def status(field):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) << 10

def filled(name, dtype, shape, make):
    size, there = shape[0] * shape[1], (folder / name).exists()
    values = torch.from_file(str(folder / name), shared=True, size=size, dtype=dtype)
    for start in range(0, 0 if there else size, 1 << 24):
        values[start : start + (1 << 24)] = make(min(1 << 24, size - start))
    release(values)
    return values.view(shape)

def kill_half_way():
    while True:
        time.sleep(0.01)
        try:
            done = json.loads((folder / "store" / "state.json").read_text())["done"]
        except (OSError, ValueError):
            continue
        if done.get("stage_2", 0) > nodes // 2:
            os.kill(os.getpid(), signal.SIGKILL)

torch.manual_seed(0)
module, _ = dqconvert.prepare(GCN(128, 128, 3, 40), "int8-dq")
dqconvert.calibrate(module, (torch.randn(2000, 128), torch.randint(2000, (2, 20000))))
integer = dqconvert.convert(module)
x = filled("x", torch.float32, (nodes, 128), torch.randn)
edge_index = filled("edges", torch.int64, (2, edges), lambda size: (torch.rand(size) ** 2 * nodes).long())
if len(sys.argv) == 7:
    threading.Thread(target=kill_half_way, daemon=True).start()
start = time.perf_counter()
found = dqconvert.infer(integer, (x, edge_index), memory=memory, store=folder / "store", progress=False)
seconds, peak = time.perf_counter() - start, status("VmHWM")
start = time.perf_counter()
whole = integer(x, edge_index)
of_whole = f"{status('VmHWM') >> 20} MiB, {time.perf_counter() - start:.1f} s"
print(f"in chunks {peak >> 20} MiB, {seconds:.1f} s; as a whole {of_whole}")
assert torch.equal(found, whole)
assert peak <= int(sys.argv[5])
"""


SIZES = [(200_000, 2_000_000, "700MiB"), (2_000_000, 20_000_000, "2GiB")]


@pytest.mark.study
@pytest.mark.parametrize(("nodes", "edges", "memory"), SIZES)
def test_memory_is_what_was_asked_for(nodes, edges, memory, tmp_path, spare):
    done = spare.run(LARGE, tmp_path, nodes, edges, memory, bytes_of(memory))
    print(done.stdout)
    assert done.returncode == 0, done.stderr


@pytest.mark.study
@pytest.mark.parametrize(("nodes", "edges", "memory"), SIZES)
def test_a_large_one_that_was_killed_half_way_goes_on(nodes, edges, memory, tmp_path, spare):
    """The second process does the rest, within the memory, and has the bytes of the whole graph's forward."""
    killed = spare.run(LARGE, tmp_path, nodes, edges, memory, bytes_of(memory), "killed")
    assert killed.returncode == -9, killed.stderr
    done = json.loads((tmp_path / "store" / "state.json").read_text())["done"]
    assert nodes // 2 < done["stage_2"] < nodes
    print(f"killed when {done} was done")
    rest = spare.run(LARGE, tmp_path, nodes, edges, memory, bytes_of(memory))
    print(rest.stdout)
    assert rest.returncode == 0, rest.stderr
