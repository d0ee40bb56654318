"""``dqconvert bench plan``: what a model needs on a graph that is not here, by what it needs here on small ones.

Laws (:mod:`dqconvert.bench.laws`) are fitted to measurements (:mod:`dqconvert.bench.probes`); here is what follows from
them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from dqconvert.bench.environment import Environment
from dqconvert.bench.laws import FLOAT_BYTES, Law, Machine
from dqconvert.bench.workloads import Size
from dqconvert.errors import UsageError

TRAINING = "training, "
"""How the names of training steps begin; others are of inferences."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to plan for.

    Attributes:
        size: The graph and the widths; ``graphs`` is 1.
        layer: A name of :data:`dqconvert.bench.sweep.LAYERS`.
        layers: How many.
        qconfig: Preset, or path to a config.
        ranks: Processes that train together, each on a part of the nodes, or on batches of its own.
        batch: Nodes that a rank trains on in a step, with sampled neighbourhoods; ``None``: on its whole part.
        fanout: In-edges sampled per node, by hop; one for each layer.
        train_nodes: Nodes that an epoch trains on, where it is sampled; ``None``: all.
        threads: Of each process.
    """

    size: Size
    layer: str = "GCN"
    layers: int = 2
    qconfig: str = "int8-dq"
    ranks: int = 1
    batch: int | None = None
    fanout: tuple[int, ...] = ()
    train_nodes: int | None = None
    threads: int = 2

    def __post_init__(self) -> None:
        if self.size.nodes < 1 or not 0 < self.size.edges <= self.size.nodes**2:
            raise UsageError(f"--nodes {self.size.nodes} --edges {self.size.edges}: no such graph has so many.")
        if (self.batch is None) != (not self.fanout):
            raise UsageError("--batch and --fanout go together: nodes of a step, and neighbours sampled per hop.")
        if self.fanout and len(self.fanout) != self.layers:
            raise UsageError(f"--fanout takes a number for each of the {self.layers} layers, got {len(self.fanout)}.")
        if self.train_nodes is not None and self.batch is None:
            raise UsageError("--train-nodes is for sampled training: without --batch every step has the whole graph.")

    @property
    def steps(self) -> int:
        """Training steps of an epoch."""
        if self.batch is None:
            return 1
        return math.ceil((self.train_nodes or self.size.nodes) / (self.batch * self.ranks))

    @property
    def step_size(self) -> tuple[int, int]:
        """Nodes and edges of a rank's step."""
        nodes, edges = self.size.nodes, self.size.edges
        if self.batch is None:
            return math.ceil(nodes / self.ranks), math.ceil(edges / self.ranks)
        return sampled_size(nodes, edges, min(self.batch, self.train_nodes or nodes), self.fanout)

    @property
    def data_bytes(self) -> int:
        """Of the whole graph."""
        return data_bytes(self.size.nodes, self.size.edges, self.size.features)


def sampled_size(nodes: int, edges: int, seeds: int, fanout: Sequence[int]) -> tuple[int, int]:
    """Returns how many nodes and edges a sampled batch has, if all nodes have as many edges and any neighbour.

    Hubs, which many batches meet more than once, make it fewer.

    Example:
        >>> sampled_size(1_000_000, 10_000_000, 100, [5, 5])
        (3094, 2999)
    """
    degree, seen, new, drawn = edges / nodes, float(seeds), float(seeds), 0.0
    for number in fanout:
        found = new * (min(number, degree) if number >= 0 else degree)
        new = (nodes - seen) * -math.expm1(-found / nodes)
        seen, drawn = seen + new, drawn + found
    return min(nodes, round(seen)), min(edges, max(1, round(drawn)))


@dataclass(frozen=True, kw_only=True)
class Laws:
    """What a training step, or a forward, costs.

    Attributes:
        time: Seconds.
        memory: Bytes above those of model and data, at the highest point; ``None``: this system does not tell.
        traffic: Bytes, each tensor that an operation takes or makes counted once.
    """

    time: Law
    memory: Law | None
    traffic: Law


@dataclass(frozen=True, kw_only=True)
class Between:
    """What ranks say to each other, measured between two processes of this machine.

    Attributes:
        calls: Collectives of a settled training step, by its name.
        parameters: Bytes of the gradients that they average.
        latency: Seconds of a small all-reduce.
        bandwidth: Bytes per second of a large one.
    """

    calls: Mapping[str, int]
    parameters: int
    latency: float
    bandwidth: float

    def seconds(self, name: str, ranks: int) -> float:
        """Returns what a step waits for them: each call waits, and gradients go around a ring.

        Example:
            >>> Between(calls={"step": 3}, parameters=100, latency=2.0, bandwidth=10.0).seconds("step", 4)
            21.0
        """
        return self.calls[name] * self.latency + self.sent(ranks) / self.bandwidth

    def sent(self, ranks: int) -> float:
        """Returns the bytes that a rank sends in a step."""
        return 2 * (ranks - 1) / ranks * self.parameters


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """What is planned of one way to train or to infer: of one rank, as all do the same.

    Attributes:
        name: Of a training step or a forward.
        nodes, edges: What it computes on.
        seconds: Its time, without what ranks wait for each other.
        between_seconds: That.
        epoch_seconds: Of all steps of an epoch, that included; ``None`` for an inference.
        data_bytes: Of features, edges and labels that have to be in memory.
        memory_bytes: Above that, at the highest point; ``None``: this system does not tell.
        traffic_bytes: Each tensor that an operation takes or makes counted once.
        floor_seconds: How long a copy of as many bytes takes.
        sent_bytes: To other ranks, in a step.
    """

    name: str
    nodes: int
    edges: int
    seconds: float
    between_seconds: float
    epoch_seconds: float | None
    data_bytes: int
    memory_bytes: float | None
    traffic_bytes: float
    floor_seconds: float
    sent_bytes: float


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What was planned for a graph of some size, and what was then measured: pairs, in seconds and bytes."""

    name: str
    nodes: int
    edges: int
    seconds: tuple[float, float]
    memory: tuple[float, float] | None
    traffic: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that was planned, by what, and how it compares with measurements, if any were wanted."""

    wanted: Wanted
    environment: Environment
    machine: Machine
    laws: Mapping[str, Laws]
    between: Between | None
    rows: tuple[PlanRow, ...]
    checked: tuple[Checked, ...]
    seconds: float = field(compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON, with stable keys."""
        return {
            "environment": asdict(self.environment),
            "wanted": {
                **asdict(self.wanted),
                "steps_per_epoch": self.wanted.steps,
                "data_bytes": self.wanted.data_bytes,
            },
            "machine": asdict(self.machine),
            "between": None if self.between is None else {**asdict(self.between), "calls": dict(self.between.calls)},
            "laws": {name: asdict(laws) for name, laws in self.laws.items()},
            "rows": [asdict(row) for row in self.rows],
            "checked": [asdict(one) for one in self.checked],
            "seconds": self.seconds,
        }


def rows_of(
    wanted: Wanted, machine: Machine, laws: Mapping[str, Laws], between: Between | None = None
) -> tuple[PlanRow, ...]:
    """Returns the plan of each training step and each inference that there is a law of.

    Ranks share the nodes of a training, not those of an inference.
    """
    return tuple(_row(wanted, machine, name, law, between) for name, law in laws.items())


def _row(wanted: Wanted, machine: Machine, name: str, laws: Laws, between: Between | None) -> PlanRow:
    trains = name.startswith(TRAINING)
    size = wanted.size
    nodes, edges = wanted.step_size if trains else (size.nodes, size.edges)
    seconds = laws.time.at(nodes, edges, machine)
    waits = between.seconds(name, wanted.ranks) if trains and between is not None else 0.0
    traffic = laws.traffic.at(nodes, edges, machine)
    return PlanRow(
        name=name,
        nodes=nodes,
        edges=edges,
        seconds=seconds,
        between_seconds=waits,
        epoch_seconds=wanted.steps * (seconds + waits) if trains else None,
        data_bytes=data_bytes(nodes, edges, size.features),
        memory_bytes=None if laws.memory is None else laws.memory.at(nodes, edges, machine),
        traffic_bytes=traffic,
        floor_seconds=traffic / machine.bandwidth,
        sent_bytes=between.sent(wanted.ranks) if trains and between is not None else 0.0,
    )


def data_bytes(nodes: int, edges: int, features: int) -> int:
    """Returns the bytes of float32 features, int64 edges and labels."""
    return nodes * (FLOAT_BYTES * features + 8) + 16 * edges
