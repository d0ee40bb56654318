"""The names that recorded code sees: those of PyG's modules, looked up once, and one recording at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch_geometric.nn.conv.gat_conv as gat_conv
from torch_geometric.nn import GAT, GCN

from dqconvert.trace import trace
from dqconvert.trace.patching import in_place_of

X, EDGES = torch.randn(6, 8), torch.randint(6, (2, 20))


def targets(model):
    return [str(node.target) for node in trace(model, (X, EDGES)).module.graph.nodes]


def test_models_are_traced_in_several_threads_as_in_one():
    """Another thread's recording changes the names that this one looks for."""
    models = [make(8, 8, 2, 3) for make in (GAT, GCN, GAT, GCN)]
    expected = [targets(model) for model in models]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(targets, models)) == expected


def test_functions_of_a_library_are_found_where_they_are_now(monkeypatch):
    softmax, places = gat_conv.softmax, [vars(gat_conv)]
    functions = {id(softmax): len}
    assert list(in_place_of(places, functions)) == [(vars(gat_conv), "softmax", len)]
    monkeypatch.setattr(gat_conv, "softmax", lambda *args: softmax(*args))
    assert list(in_place_of(places, functions)) == []
    monkeypatch.setattr(gat_conv, "another", softmax, raising=False)
    assert list(in_place_of(places, functions)) == [(vars(gat_conv), "another", len)]


def test_a_function_of_the_user_s_in_a_library_s_module_is_called(monkeypatch):
    calls = []
    softmax = gat_conv.softmax

    def own(*args, **kwargs):
        calls.append(1)
        return softmax(*args, **kwargs)

    monkeypatch.setattr(gat_conv, "softmax", own)
    trace(GAT(8, 8, 1, 3), (X, EDGES))
    assert calls


@pytest.mark.parametrize(
    "names", [{"__name__": "torch_geometric.none", "f": len}, {"f": len}, {"__name__": 3, "f": len}]
)
def test_what_only_looks_like_a_library_s_module_is_looked_at_as_it_is(names):
    assert list(in_place_of([names], {id(len): max})) == [(names, "f", max)]
    names["f"] = min
    assert list(in_place_of([names], {id(len): max})) == []
