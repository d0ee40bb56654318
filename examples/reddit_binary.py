"""Graph classification on REDDIT-BINARY, the experiment that Degree-Quant is known for, in its authors' setting.

    python examples/reddit_binary.py --root data --preset int8-dq --preset int4-dq --out runs/reddit
    python examples/reddit_binary.py --root data --preset int8-dq --folds 3 --epochs 100 --out runs/reddit

A GIN of 5 layers of 64 units on standardized degrees; 10 stratified folds, of which one tests and the one before it
chooses the epoch by the lowest loss; 200 epochs of batches of 128 graphs, the rate halved every 50. Presets of the
paper train from new weights, with the rates of its runs; all others from the float model's, calibrated, with its
predictions beside the labels, at a rate that falls by a cosine. 2,000 graphs, 860,000 nodes: an epoch takes seconds, a
fold half an hour, so give --out: a run that was killed goes on from its last epoch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric import seed_everything
from torch_geometric.data import Data
from torch_geometric.datasets import TUDataset
from torch_geometric.nn import GINConv, global_mean_pool
from torch_geometric.utils import degree

from dqconvert import Protect, QConfig, Rule
from graph_study import Recipe, Split, classification, jobs
from study import Job, add_arguments, carry_out, parse, show, summary

TASK = classification("x", "edge_index", "batch")

# lr and weight decay of the authors' runs.
OFFICIAL = {
    "float": (0.005, 2e-4),
    "int8-dq": (0.005, 2e-4),
    "int8-qat": (0.005, 2e-4),
    "int4-dq": (0.001, 4e-5),
    "int4-qat": (0.05, 0.0),
}

# What is not here starts from the float model. A float network lives on its hubs, whom percentiles clip.
SCRATCH = {**OFFICIAL, "int4-hubs": (0.005, 4e-5)}


class GIN(nn.Module):
    """Xu et al., ICLR 2019, as in PyG's benchmark: five layers, the mean over a graph's nodes, two linear maps."""

    def __init__(self, classes: int = 2, hidden: int = 64, num_layers: int = 5) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            GINConv(
                nn.Sequential(
                    nn.Linear(before, after), nn.ReLU(), nn.Linear(after, after), nn.ReLU(), nn.BatchNorm1d(after)
                ),
                train_eps=True,
            )
            for before, after in pairwise([1] + [hidden] * num_layers)
        )
        self.lin1 = nn.Linear(hidden, hidden)
        self.lin2 = nn.Linear(hidden, classes)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        for conv in self.convs:
            x = conv(x, edge_index)
        x = F.relu(self.lin1(global_mean_pool(x, batch)))
        return self.lin2(F.dropout(x, p=0.5, training=self.training))


def load(root: str) -> list[Data]:
    """Loads the graphs from `<root>/TUDataset`, each with its nodes' standardized degrees as `x` [num_nodes, 1]."""
    folder = Path(root) / "TUDataset"
    try:
        graphs = list(TUDataset(str(folder), "REDDIT-BINARY"))
    except OSError as error:
        sys.exit(f"REDDIT-BINARY is not in {folder} and could not be downloaded or unpacked there: {error}")
    return with_degrees(graphs)


def with_degrees(graphs: Sequence[Data]) -> list[Data]:
    """Returns the graphs with degrees as features, standardized by the mean and deviation over all nodes of all."""
    degrees = [degree(graph.edge_index[0], graph.num_nodes) for graph in graphs]
    every = torch.cat(degrees)
    mean, std = every.mean(), every.std()
    return [
        Data(x=((found - mean) / std).view(-1, 1), edge_index=graph.edge_index, y=graph.y)
        for graph, found in zip(graphs, degrees, strict=True)
    ]


def split_of(graphs: Sequence[Data], fold: int, folds: int = 10) -> Split:
    """Returns the graphs of a fold: stratified with the authors' seed; the fold before it validates."""
    from sklearn.model_selection import StratifiedKFold

    labels = [int(graph.y) for graph in graphs]
    parts = [part for _, part in StratifiedKFold(folds, shuffle=True, random_state=12345).split(labels, labels)]
    test, validation = parts[fold], parts[fold - 1]
    rest = sorted(set(range(len(graphs))) - set(test) - set(validation))
    return Split(
        train=[graphs[i] for i in rest],
        validation=[graphs[i] for i in validation],
        test=[graphs[i] for i in test],
    )


def recipe_of(preset: str, epochs: int, lr: float | None) -> Recipe:
    """Returns how a preset, or the float model, is trained."""
    name = preset.partition(",")[0]
    if name in SCRATCH:
        rate, decay = SCRATCH[name]
        return Recipe(epochs=epochs, lr=lr or rate, weight_decay=decay, halve=max(epochs // 4, 1), start="scratch")
    return Recipe(epochs=epochs, lr=lr or 0.002, weight_decay=4e-5, distil=1.0)


def official(preset: str, config: QConfig) -> QConfig:
    """Returns a preset as the authors' runs have it.

    The first linear map is in float; protection leaves the MLPs out, and is 0.1 to 0.2 at 4 bits.
    """
    if preset.partition(",")[0] not in OFFICIAL:
        return config
    if config.protect is not None and config.weight is not None:
        p_min, p_max = (0.1, 0.2) if config.weight.bits <= 4 else (0.0, 0.1)
        config = replace(config, protect=Protect(p_min=p_min, p_max=p_max, roles=("message", "aggregate", "update")))
    first = tuple(Rule(module=r"convs\.0\.nn\.0", role=role, spec=None) for role in ("weight", "input", "feature"))
    return replace(config, rules=(*first, *config.rules))


def jobs_of(graphs: Sequence[Data], args: argparse.Namespace) -> Iterator[Job]:
    for fold in args.fold or range(args.folds):

        def new_model(seed: int = fold) -> nn.Module:
            seed_everything(seed)
            return GIN()

        recipes = {"float": recipe_of("float", args.float_epochs or args.epochs, None)}
        recipes |= {name: recipe_of(name, args.epochs, args.lr) for name in args.configs}
        configs = {name: official(name, config) for name, config in args.configs.items()}
        split = split_of(graphs, fold)
        if args.limit:
            split = replace(split, train=split.train[:: max(len(split.train) // args.limit, 1)])
        key = {"data": "REDDIT-BINARY", "fold": fold} | ({"graphs": len(split.train)} if args.limit else {})
        yield from jobs(new_model, split, TASK, recipes, configs, key, seed=fold, out=args.out)


def main(argv: Sequence[str] | None = None) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("reddit_binary.py", description=__doc__, formatter_class=formatter)
    add_arguments(parser, "DIR/TUDataset")
    parser.add_argument("--folds", type=int, default=10, metavar="N", help="folds 0 to N-1 of the ten (default: 10)")
    parser.add_argument("--fold", type=int, action="append", metavar="N", help="this fold; repeatable")
    parser.add_argument("--epochs", type=int, default=200, metavar="N", help="of every training (default: 200)")
    parser.add_argument("--float-epochs", type=int, metavar="N", help="of the float model (default: as --epochs)")
    parser.add_argument("--lr", type=float, help="of the presets (default: the authors', and 0.002 from float)")
    parser.add_argument("--limit", type=int, metavar="N", help="train on about N graphs of each fold")
    args = parse(parser, argv)
    rows = carry_out(jobs_of(load(args.root), args), args)
    lines = summary(rows, ["preset"], ["val", "test"], unit="fold")
    show(rows, lines, args, "REDDIT-BINARY, accuracy in %, mean ± standard deviation over folds")


if __name__ == "__main__":
    main()
