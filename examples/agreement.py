"""How often integer modules predict what the prepared modules predict, of which they were made.

    python examples/agreement.py                     # every model, every way to quantize it, three seeds
    python examples/agreement.py GCN "GAT*" --seeds 1
    python examples/agreement.py --json

Each model is prepared in 8 and in 4 bits, with weights rounded by tensor and by channel, and trained some steps or
calibrated without training; then it is converted. Both modules classify the nodes of a graph that neither has seen.
Counted are the nodes whose two highest scores differ by more than one step of the grid of the scores, on which a
rounding that falls on a tie cannot change the order.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import itertools
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.fx import Node
from torch_geometric.nn import conv, models

import dqconvert
from dqconvert.quant import FakeQuantize

NODES, EDGES = 1500, 9000
WIDTH, HIDDEN, CLASSES, EDGE_WIDTH = 32, 32, 7, 4
ENOUGH = 0.999
"""The share of nodes that must agree."""

PNA = {"aggregators": ["mean", "min", "max", "std"], "scalers": ["identity", "amplification", "attenuation"]}


def mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))


def degrees() -> Tensor:
    return torch.bincount(torch.arange(NODES) % 12)


@dataclass(frozen=True)
class Case:
    """A model and what it takes besides features and edges.

    Attributes:
        build: Makes it.
        takes: ``"edge_weight"``, ``"edge_attr"`` or ``""``.
    """

    build: Callable[[], nn.Module]
    takes: str = ""


CASES = {
    "GCNConv": Case(lambda: conv.GCNConv(WIDTH, CLASSES)),
    "GATConv": Case(lambda: conv.GATConv(WIDTH, CLASSES, heads=4, concat=False)),
    "GATv2Conv": Case(lambda: conv.GATv2Conv(WIDTH, CLASSES, heads=4, concat=False)),
    "GINConv": Case(lambda: conv.GINConv(mlp(WIDTH), train_eps=True)),
    "GINEConv": Case(lambda: conv.GINEConv(mlp(WIDTH), edge_dim=EDGE_WIDTH), "edge_attr"),
    "SAGEConv": Case(lambda: conv.SAGEConv(WIDTH, CLASSES)),
    "GraphConv": Case(lambda: conv.GraphConv(WIDTH, CLASSES), "edge_weight"),
    "PNAConv": Case(lambda: conv.PNAConv(WIDTH, CLASSES, deg=degrees(), **PNA)),
    "TransformerConv": Case(lambda: conv.TransformerConv(WIDTH, CLASSES, heads=4, concat=False)),
    "ChebConv": Case(lambda: conv.ChebConv(WIDTH, CLASSES, K=3)),
    "EdgeConv": Case(lambda: conv.EdgeConv(mlp(2 * WIDTH))),
    "NNConv": Case(lambda: conv.NNConv(WIDTH, CLASSES, nn.Linear(EDGE_WIDTH, WIDTH * CLASSES)), "edge_attr"),
    "GCN": Case(lambda: models.GCN(WIDTH, HIDDEN, 2, CLASSES)),
    "GraphSAGE": Case(lambda: models.GraphSAGE(WIDTH, HIDDEN, 2, CLASSES)),
    "GIN": Case(lambda: models.GIN(WIDTH, HIDDEN, 2, CLASSES, norm="batch_norm")),
    "GAT": Case(lambda: models.GAT(WIDTH, HIDDEN, 2, CLASSES, heads=4)),
    "PNA": Case(lambda: models.PNA(WIDTH, HIDDEN, 2, CLASSES, deg=degrees(), **PNA)),
    "EdgeCNN": Case(lambda: models.EdgeCNN(WIDTH, HIDDEN, 2, CLASSES)),
}

WAYS = tuple(itertools.product((8, 4), ("tensor", "channel"), ("trained", "calibrated")))
"""Bits, granularity of weights, how the ranges were found."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The agreement of one model, quantized in one way.

    Attributes:
        model: Its name.
        bits: Of all codes.
        granularity: Of its weights.
        ranges: ``"trained"`` or ``"calibrated"``.
        seed: Of the model and of the graphs.
        clear: How many nodes have two highest scores more than a step apart.
        share: Of these, those of which both modules predict the same.
        of_all: Of all nodes.
        itself: Of the clear ones, those of which the prepared module predicts the same when it computes in float64. A
            range is often a number of steps of the values before it; then exact sums fall on the middle between two
            codes, and the last bits of the float sums decide. In 4 bits one such code changes predictions.
    """

    model: str
    bits: int
    granularity: str
    ranges: str
    seed: int
    clear: int
    share: float
    of_all: float
    itself: float

    @property
    def passed(self) -> bool:
        """True if enough agree: as many as of the prepared module with itself."""
        return self.share >= min(ENOUGH, self.itself)


def graph(seed: int, takes: str) -> dict[str, Tensor]:
    """Nodes of seven kinds, most of whose edges are to nodes of their kind, some of them with very many."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randint(CLASSES, (NODES,), generator=generator)
    centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(0))
    x = centres[kinds] + 0.7 * torch.randn(NODES, WIDTH, generator=generator)
    popular = (NODES * torch.rand(EDGES, generator=generator) ** 3).long()
    alike = kinds[popular].argsort(stable=True)
    receivers = torch.randint(NODES, (EDGES,), generator=generator)
    receivers = torch.where(torch.rand(EDGES, generator=generator) < 0.5, popular[alike], receivers)
    found = {"x": x, "edge_index": torch.stack([popular, receivers])}
    if takes == "edge_weight":
        found[takes] = torch.rand(EDGES, generator=generator) + 0.2
    elif takes == "edge_attr":
        found[takes] = torch.randn(EDGES, EDGE_WIDTH, generator=generator)
    return found | {"y": kinds}


def inputs(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in found.items() if name != "y"}


def config(bits: int, granularity: str, ranges: str) -> dict[str, Any]:
    weight: dict[str, Any] = {"bits": bits}
    if granularity == "channel":
        weight |= {"granularity": "channel", "symmetric": True}
    preset = "int8-ptq" if ranges == "calibrated" else "int8-dq"
    return {
        "preset": preset,
        "weight": weight,
        **{kind: {"bits": bits} for kind in ("activation", "message", "aggregate")},
    }


def prepared(name: str, seed: int) -> nn.Module:
    """Returns the model, prepared once for all ways."""
    case = CASES[name]
    torch.manual_seed(seed)
    model = case.build()
    return dqconvert.prepare(model, "int8-dq", inputs(graph(seed, case.takes))).module


def examine(name: str, seed: int, way: tuple[int, str, str], start: nn.Module | None = None) -> Agreement:
    """Prepares, trains or calibrates, converts, and counts.

    Args:
        name: Of the model.
        seed: Of the model and of the graphs.
        way: One of :data:`WAYS`.
        start: What :func:`prepared` returned, to be prepared again; ``None``: call it.
    """
    bits, granularity, ranges = way
    torch.manual_seed(seed)
    start = start or prepared(name, seed)
    module = dqconvert.prepare(start, config(bits, granularity, ranges)).module
    seen = [graph(100 * seed + k, CASES[name].takes) for k in range(3)]
    if ranges == "calibrated":
        dqconvert.calibrate(module, [inputs(found) for found in seen])
    else:
        train(module, seen)
    integer = dqconvert.convert(module)
    new = inputs(graph(100 * seed + 50, CASES[name].takes))
    with torch.no_grad():
        wanted = module.eval()(**new)
    found = integer(**new)
    double = {name: value.double() if value.is_floating_point() else value for name, value in new.items()}
    with torch.no_grad():
        exact = copy.deepcopy(module).double()(**double)
    first, second = wanted.topk(2, dim=1).values.unbind(1)
    clear = first - second > step_of(module)
    equal = wanted.argmax(1) == found.argmax(1)
    return Agreement(
        model=name,
        bits=bits,
        granularity=granularity,
        ranges=ranges,
        seed=seed,
        clear=int(clear.sum()),
        share=_share(equal[clear]),
        of_all=float(equal.double().mean()),
        itself=_share((wanted.argmax(1) == exact.argmax(1))[clear]),
    )


def _share(equal: Tensor) -> float:
    return float(equal.double().mean()) if equal.numel() else 1.0


def train(module: nn.Module, graphs: list[dict[str, Tensor]], epochs: int = 8) -> None:
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _, found in itertools.product(range(epochs), graphs):
        optimizer.zero_grad()
        F.cross_entropy(module.train()(**inputs(found)), found["y"]).backward()
        optimizer.step()


def step_of(module: Any) -> float:
    """Returns the largest step of the grids that scores come from, without another rounding in between."""
    steps, modules = [], dict(module.named_modules())
    graph = module.eval_graph or module.graph
    pending: list[Node] = list(graph.output_node().all_input_nodes)
    seen = set(pending)
    while pending:
        node = pending.pop()
        called = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(called, FakeQuantize):
            steps.append(float(called.scale.max()))
            continue
        new = [n for n in node.all_input_nodes if n not in seen]
        seen.update(new)
        pending += new
    return max(steps)


def rows(names: list[str], seeds: int) -> Iterator[tuple[str, int]]:
    """Yields model and seed of each run."""
    for name in CASES:
        if not names or any(fnmatch.fnmatch(name, pattern) for pattern in names):
            yield from ((name, seed) for seed in range(seeds))


def study(names: list[str], seeds: int, progress: Console) -> Iterator[Agreement]:
    wanted = list(rows(names, seeds))
    for name, seed in track(wanted, "converting", console=progress, disable=not progress.is_terminal):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            start = prepared(name, seed)
            for way in WAYS:
                yield examine(name, seed, way, start)


def show(found: list[Agreement], console: Console) -> None:
    table = Table("model", *(f"{bits} bits, {granularity}, {ranges}" for bits, granularity, ranges in WAYS))
    for name in dict.fromkeys(one.model for one in found):
        cells = []
        for bits, granularity, ranges in WAYS:
            seeds = [
                o for o in found if (o.model, o.bits, o.granularity, o.ranges) == (name, bits, granularity, ranges)
            ]
            cells.append(" ".join(_cell(one) for one in seeds))
        table.add_row(name, *cells)
    console.print(table)
    enough = sum(one.share >= ENOUGH for one in found)
    line = f"{enough} of {len(found)} agree on {100 * ENOUGH:.1f} % of the clear nodes"
    if enough < len(found):
        rest = sum(one.passed for one in found) - enough
        line += f"; {rest} of the others at least as often as the prepared module agrees with itself in float64"
    console.print(line)


def _cell(one: Agreement) -> str:
    mark = "" if one.passed else "!"
    return f"{100 * one.share:.2f}{mark}" + ("" if one.share >= ENOUGH else f" ({100 * one.itself:.2f})")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="models to run, with wildcards (default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="how many (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print all that was found as JSON")
    args = parser.parse_args(argv)
    if not any(rows(args.names, 1)):
        parser.error(f"no model is named {' or '.join(args.names)}")
    found = list(study(args.names, args.seeds, Console(stderr=True)))
    if args.json:
        print(json.dumps([{**asdict(one), "passed": one.passed} for one in found], indent=2))
    else:
        show(found, Console())
    return 0 if all(one.passed for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
