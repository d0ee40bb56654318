"""The model that a plan is for, on a generated graph."""

from __future__ import annotations

import torch

from dqconvert.bench.case import Subject
from dqconvert.bench.graphs import zipf_edges
from dqconvert.bench.plan import Wanted
from dqconvert.bench.sweep import LAYERS
from dqconvert.trace.inputs import bind


def subject_of(wanted: Wanted, nodes: int, edges: int) -> Subject:
    """Returns the model on a generated graph with hubs, of that many nodes and edges."""
    size = wanted.size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LAYERS[wanted.layer](size.features, size.hidden, wanted.layers, size.classes)
        inputs = {"x": torch.randn(nodes, size.features), "edge_index": zipf_edges(nodes, edges)}
        target = torch.randint(size.classes, (nodes,))
    few = min(nodes, 64)
    return Subject(
        name=wanted.layer,
        title=f"{wanted.layer}, {wanted.layers} layers",
        origin="generated",
        model=model,
        inputs=bind(model, "forward", inputs),
        example={"x": inputs["x"][:few], "edge_index": inputs["edge_index"][:, :256] % few},
        target=target,
    )
