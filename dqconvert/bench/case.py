"""The subject of a measurement: a workload, or the user's own model, in plain values that another process can take."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dqconvert.bench.workloads import Sample, Workload, find
from dqconvert.errors import CommandError, UsageError
from dqconvert.trace.inputs import Inputs, bind
from dqconvert.user.factory import build_model, parse_kwargs
from dqconvert.user.inputs import read_example

_SMALL = 1_000
"""Edges of the part of a workload's graph that the model is traced on."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A workload of a size, or a model with example inputs.

    Attributes:
        workload: Its name; ``None``: the user's model.
        scale: Of the workload's graph.
        edges: Edges instead of the workload's, where it grows.
        features: Node features and hidden width instead of the workload's, likewise.
        root: Folder of PyG's datasets; ``None``: generated data.
        factory: ``"pkg.mod:name"``, what builds the user's model.
        kwargs: Its arguments as JSON.
        example: File of its inputs.
    """

    workload: str | None = None
    scale: float = 1.0
    edges: int | None = None
    features: int | None = None
    root: str | None = None
    factory: str | None = None
    kwargs: str | None = None
    example: str | None = None


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A case, built.

    Attributes:
        name: The workload's name, or the factory.
        title: What it is.
        origin: Where its inputs come from.
        model: The float model.
        inputs: What it trains on.
        example: What it is traced on.
        target: The class of each row of the output; ``None``: the loss is the mean of the output's squares.
    """

    name: str
    title: str
    origin: str
    model: nn.Module
    inputs: Inputs
    example: dict[str, Any]
    target: Tensor | None

    @property
    def edge_index(self) -> Tensor | None:
        """The connectivity in ``[2, E]`` form, where forward takes one of that name."""
        value = self.inputs.arguments.get("edge_index")
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.dtype != torch.int64:
            return None
        return value if value.dim() == 2 and value.size(0) == 2 else None

    def to_dict(self) -> dict[str, Any]:
        """Names and sizes, for JSON; ``None`` where a model has no such thing."""
        edge_index, given = self.edge_index, self.inputs.arguments.get("x")
        x = given if isinstance(given, Tensor) else None
        return {
            "name": self.name,
            "title": self.title,
            "data": self.origin,
            "nodes": None if x is None else x.size(0),
            "edges": None if edge_index is None else edge_index.size(1),
            "features": None if x is None else x.size(-1),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
        }


def build(case: Case, *, seed: int = 0) -> Subject:
    """Builds the model and its inputs, the same ones each time. The global random state is left alone.

    Raises:
        CommandError: If the case names something that is not there or does not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _users_model(case) if case.workload is None else _workload(find(case.workload), case)


def _users_model(case: Case) -> Subject:
    if case.factory is None or case.example is None:
        raise UsageError("--model and --example go together: say what builds the model, and what it is to train on.")
    model = build_model(case.factory, parse_kwargs(case.kwargs))
    inputs = bind(model, "forward", read_example(case.example))
    return Subject(
        name=case.factory,
        title=type(model).__name__,
        origin=Path(case.example).name,
        model=model,
        inputs=inputs,
        example={name: value for name, value in inputs.arguments.items() if name in inputs.given},
        target=None,
    )


def _workload(workload: Workload, case: Case) -> Subject:
    size = workload.resized(case.scale, case.edges, case.features)
    model = workload.model(size)
    if case.root is not None and case.scale == 1 and workload.read is not None:
        with _reading(case.root):
            sample = workload.read(Path(case.root))
    else:
        sample = workload.generate(size)
    return Subject(
        name=workload.name,
        title=workload.title,
        origin=sample.origin,
        model=model,
        inputs=bind(model, "forward", sample.inputs),
        example=_small_part(sample),
        target=sample.target,
    )


def _small_part(sample: Sample) -> dict[str, Tensor]:
    """Returns the first edges and the nodes at their ends, in their order: tracing a model takes no more of a graph."""
    edges = sample.inputs["edge_index"][:, :_SMALL]
    nodes, renumbered = edges.unique(return_inverse=True)
    rows = {name: value[nodes] for name, value in sample.inputs.items() if name != "edge_index"}
    return {name: rows.get(name, renumbered) for name in sample.inputs}


@contextlib.contextmanager
def _reading(root: str) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyG, about its own files
            yield
    except (OSError, RuntimeError) as error:
        raise CommandError(
            f"--root {root}: the dataset is not there and could not be downloaded or unpacked there: {error}"
        ) from error
