"""`graph_memory`: what a prepared or an integer module keeps of its graphs lies in one memory, the module's own."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
from torch_geometric.nn import GCN, GIN

import dqconvert
from dqconvert.kernels.memory import Memory
from dqconvert.quant.memo import Memo


def a_graph(nodes=40, edges=150):
    return torch.randn(nodes, 8), torch.randint(nodes, (2, edges))


def a_module(kind, layer=GCN):
    torch.manual_seed(0)
    x, edge_index = a_graph()
    module, _ = dqconvert.prepare(layer(8, 8, 2, 3), "int8-dq", (x, edge_index))
    dqconvert.calibrate(module, (x, edge_index))
    return module.train() if kind == "training" else dqconvert.convert(module) if kind == "integer" else module.eval()


KINDS = ("training", "evaluation", "integer")


@pytest.mark.sample(2)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [GCN, GIN])
def test_graphs_that_come_back_are_known(kind, layer):
    module = a_module(kind, layer)
    memory = module.graph_memory
    memory.clear()
    graphs = [a_graph(nodes) for nodes in (30, 50, 40)]
    first = [module(*graph) for graph in graphs]
    computed = memory.computed
    assert computed > 0
    again = [module(x, edge_index.clone()) for x, edge_index in graphs]
    assert memory.computed == computed
    assert kind == "training" or all(map(torch.equal, first, again))


@pytest.mark.parametrize("kind", KINDS)
def test_all_parts_share_one_memory(kind):
    module = a_module(kind)
    memories = {part.memory for part in module.modules() if isinstance(part, Memo)}
    assert memories == {module.graph_memory}


@pytest.mark.parametrize("kind", KINDS)
def test_its_bounds_hold(kind):
    module = a_module(kind)
    memory = module.graph_memory
    memory.clear()
    memory.results = 1
    for nodes in (30, 50, 40):
        module(*a_graph(nodes))
    functions, latest = len(memory), memory.nbytes
    module(*a_graph(40))
    assert len(memory) == functions
    assert memory.nbytes < 1.5 * latest
    memory.results, memory.size = 10, 3 * latest
    for _ in range(8):
        module(*a_graph(40))
    assert len(memory) > 2 * functions
    assert memory.nbytes < 5 * latest


@pytest.mark.parametrize("kind", KINDS)
def test_clear_frees_what_was_kept(kind):
    module = a_module(kind)
    memory = module.graph_memory
    memory.clear()
    module(*a_graph())
    kept = [weakref.ref(t) for entries in memory._entries.values() for entry in entries for t in entry.tensors]
    assert kept
    memory.clear()
    gc.collect()
    assert [ref() for ref in kept] == [None] * len(kept)
    assert memory.nbytes == 0


@pytest.mark.sample(2)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_have_an_empty_one_of_their_own(kind, copied):
    module, graph = a_module(kind), a_graph()
    module.graph_memory.clear()
    module.graph_memory.results = 7
    module(*graph)
    assert not any("memory" in name for name in module.state_dict())
    twin = copied(module)
    assert twin.graph_memory is not module.graph_memory
    assert len(twin.graph_memory) == 0
    assert twin.graph_memory.results == 7
    twin(*graph)
    assert len(twin.graph_memory) == len(module.graph_memory) > 0
    assert {part.memory for part in twin.modules() if isinstance(part, Memo)} == {twin.graph_memory}


def test_a_model_without_graphs_has_an_empty_one():
    module, _ = dqconvert.prepare(torch.nn.Sequential(torch.nn.Linear(4, 3)), "int8-qat", (torch.randn(5, 4),))
    assert isinstance(module.graph_memory, Memory)
    assert len(module.graph_memory) == 0


@pytest.mark.parametrize("kind", ["evaluation", "integer"])
def test_threads_run_one_module_on_several_graphs(kind):
    module = a_module(kind)
    module.graph_memory.results = 2
    graphs = [a_graph(nodes) for nodes in range(30, 36)]
    with torch.no_grad():
        want, wrong = [module(*graph) for graph in graphs], []

    def work(start):
        for step in range(40):
            which = (start + step * step) % len(graphs)
            with torch.no_grad():
                if not torch.equal(module(*graphs[which]), want[which]):
                    wrong.append(which)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
