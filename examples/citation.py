"""Node classification on Cora and CiteSeer: train in float, prepare, fine-tune, compare.

    python examples/citation.py --root data --dataset Cora --preset int8-dq --preset int4-dq --seeds 10

Per seed, a float model is trained as the papers do (Planetoid's split, row-normalized features, 200 epochs).
Each preset then prepares a copy of it, and the loop that trained the float model fine-tunes that copy; with --distil
`dqconvert.finetune` does, which learns the float model's predictions beside the labels. Every
model is the one of its best validation epoch; the test nodes are looked at once, in evaluation mode, where
everything is quantized. Then it is converted to an integer module, and that is tested, too.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch_geometric import seed_everything
from torch_geometric.data import Data
from torch_geometric.datasets import Planetoid
from torch_geometric.nn import GATConv, GCNConv, GINConv
from torch_geometric.transforms import NormalizeFeatures

import dqconvert
from dqconvert.qconfig import as_qconfig

DATASETS = ("Cora", "CiteSeer")


class GCN(nn.Module):
    """Kipf and Welling, ICLR 2017: two layers, 16 hidden units. Ordinary PyG code, written for float."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = GCNConv(in_channels, 16)
        self.conv2 = GCNConv(16, out_channels)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = F.dropout(x, p=0.5, training=self.training)
        x = self.conv1(x, edge_index).relu()
        x = F.dropout(x, p=0.5, training=self.training)
        return self.conv2(x, edge_index)


class GAT(nn.Module):
    """Veličković et al., ICLR 2018: two layers, 8 heads of 8 units, dropout on features and attention."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = GATConv(in_channels, 8, heads=8, dropout=0.6)
        self.conv2 = GATConv(8 * 8, out_channels, heads=1, concat=False, dropout=0.6)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = F.dropout(x, p=0.6, training=self.training)
        x = F.elu(self.conv1(x, edge_index))
        x = F.dropout(x, p=0.6, training=self.training)
        return self.conv2(x, edge_index)


class GIN(nn.Module):
    """Xu et al., ICLR 2019, for nodes: two layers whose MLPs have 16 hidden units."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = GINConv(nn.Sequential(nn.Linear(in_channels, 16), nn.ReLU(), nn.Linear(16, 16)))
        self.conv2 = GINConv(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, out_channels)))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = F.dropout(x, p=0.5, training=self.training)
        x = self.conv1(x, edge_index).relu()
        x = F.dropout(x, p=0.5, training=self.training)
        return self.conv2(x, edge_index)


# Each with its learning rate, which serves the fine-tuning too.
MODELS: dict[str, tuple[type[nn.Module], float]] = {
    "GCN": (GCN, 0.01),
    "GAT": (GAT, 0.005),
    "GIN": (GIN, 0.01),
}


@dataclass(frozen=True)
class Run:
    """One trained model: accuracies in percent. `preset` is "float" or a preset's name.

    `integer` is the test accuracy of the integer module that was made of a prepared model.
    """

    dataset: str
    model: str
    preset: str
    seed: int
    val: float
    test: float
    integer: float | None = None


def fit(model: nn.Module, data: Data, epochs: int, lr: float) -> float:
    """Trains `model` in place, float or prepared alike, and returns the best validation accuracy.

    The model ends with the state of its best validation epoch, the latest of equals. The first fifth of the
    epochs does not stand for election: there, a prepared model's ranges still move.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=5e-4)
    best, state = -1.0, model.state_dict()
    for epoch in range(epochs):
        model.train()
        optimizer.zero_grad()
        out = model(data.x, data.edge_index)
        F.cross_entropy(out[data.train_mask], data.y[data.train_mask]).backward()
        optimizer.step()
        if epoch >= epochs // 5 and (val := accuracy(model, data, data.val_mask)) >= best:
            best, state = val, copy.deepcopy(model.state_dict())
    model.load_state_dict(state)
    return best


def distil(model: nn.Module, data: Data, preset: str, epochs: int) -> nn.Module:
    """Returns the prepared module that learns the float model's predictions on all nodes beside the labels."""
    return dqconvert.finetune(
        model.eval(),
        data,
        preset,
        epochs=epochs,
        lr=0.01,
        labels="y",
        mask="train_mask",
        validation="val_mask",
        progress=False,
    ).module


@torch.no_grad()
def accuracy(model: nn.Module, data: Data, mask: Tensor) -> float:
    """Returns the percentage of the nodes in `mask` that `model` labels right in evaluation mode."""
    predicted = model.eval()(data.x, data.edge_index).argmax(dim=-1)
    return 100 * float((predicted == data.y)[mask].float().mean())


def runs_of_seed(dataset: str, data: Data, seed: int, args: argparse.Namespace) -> list[Run]:
    """Trains the float model of this seed, and each preset's."""
    build, lr = MODELS[args.model]
    num_classes = int(data.y.max()) + 1

    def new_model() -> nn.Module:
        seed_everything(seed)
        return build(data.num_features, num_classes).to(data.x.device)

    def run(preset: str, model: nn.Module, epochs: int) -> Run:
        return tested(preset, model, fit(model, data, epochs, lr))

    def tested(preset: str, model: nn.Module, val: float) -> Run:
        test = accuracy(model, data, data.test_mask)
        integer = None if preset == "float" else accuracy(dqconvert.convert(model), data, data.test_mask)
        return Run(dataset, args.model, preset, seed, val, test, integer)

    model = new_model()
    runs = [run("float", model, args.float_epochs)]
    for preset in args.preset:
        if args.distil:
            seed_everything(seed)
            distilled = distil(model, data, preset, args.epochs)
            runs.append(tested(Path(preset).stem, distilled, accuracy(distilled, data, data.val_mask)))
            continue
        start = new_model() if args.from_scratch else model
        prepared, _ = dqconvert.prepare(start, preset, (data.x, data.edge_index))
        seed_everything(seed)
        runs.append(run(Path(preset).stem, prepared, args.epochs))
    return runs


def load(root: str, name: str) -> Data:
    """Loads Planetoid's graph with its standard split from `<root>/Planetoid`; PyG downloads it if missing."""
    folder = Path(root) / "Planetoid"
    try:
        return Planetoid(str(folder), name, transform=NormalizeFeatures())[0]
    except OSError as error:
        sys.exit(f"{name} is not in {folder} and could not be downloaded or unpacked there: {error}")


def summary(runs: list[Run]) -> list[dict[str, str | int | float]]:
    """Returns mean and standard deviation over seeds by dataset, model and preset, in the order of the runs.

    `integer_gap` is the largest difference, in any seed, between a prepared model and its integer module.
    """
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.dataset, run.model, run.preset), []).append(run)
    rows: list[dict[str, str | int | float]] = []
    for (dataset, model, preset), group in groups.items():
        row: dict[str, str | int | float] = {
            "dataset": dataset,
            "model": model,
            "preset": preset,
            "seeds": len(group),
        }
        for split, values in (("val", [run.val for run in group]), ("test", [run.test for run in group])):
            row[f"{split}_mean"] = statistics.fmean(values)
            row[f"{split}_std"] = statistics.stdev(values) if len(values) > 1 else 0.0
        gaps = [abs(run.test - run.integer) for run in group if run.integer is not None]
        if gaps:
            row["integer_mean"] = statistics.fmean(run.integer for run in group if run.integer is not None)
            row["integer_gap"] = max(gaps)
        rows.append(row)
    return rows


def arguments(argv: list[str] | None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    where = "folder of the data, which lies in DIR/Planetoid (default: $DQCONVERT_DATA)"
    parser.add_argument("--root", default=os.environ.get("DQCONVERT_DATA"), metavar="DIR", help=where)
    parser.add_argument("--dataset", default="all", choices=[*DATASETS, "all"])
    parser.add_argument("--model", default="GCN", choices=list(MODELS))
    presets = "a preset's name or a .toml or .json file; repeatable (default: int8-dq)"
    parser.add_argument("--preset", action="append", metavar="NAME|FILE", help=presets)
    parser.add_argument("--seeds", type=int, default=10, metavar="N", help="seeds 0 to N-1 (default: 10)")
    parser.add_argument("--float-epochs", type=int, default=200, metavar="N", help="default: 200")
    epochs = "of a prepared model (default: 100; from scratch as many as in float)"
    parser.add_argument("--epochs", type=int, metavar="N", help=epochs)
    scratch = "train the prepared models from new weights, not from the float model's"
    parser.add_argument("--from-scratch", action="store_true", help=scratch)
    distilled = "fine-tune with dqconvert.finetune: learn the float model's predictions on all nodes, too"
    parser.add_argument("--distil", action="store_true", help=distilled)
    parser.add_argument("--device", default="cpu", help="default: cpu")
    parser.add_argument("--json", action="store_true", help="print every run and the summary as JSON")
    args = parser.parse_args(argv)
    if args.root is None:
        parser.error("say where the data is, or is to be downloaded to: --root DIR, or set DQCONVERT_DATA")
    args.preset = args.preset or ["int8-dq"]
    for preset in args.preset:
        try:
            as_qconfig(preset)
        except dqconvert.ConfigError as error:
            parser.error(f"--preset {preset}: {error}")
    args.epochs = args.epochs or (args.float_epochs if args.from_scratch else 100)
    return args


_INTEGERS = (("integer_mean", 1), ("integer_gap", 2))


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    runs: list[Run] = []
    progress = Console(stderr=True)
    silent = args.json or not progress.is_terminal
    for dataset in DATASETS if args.dataset == "all" else [args.dataset]:
        data = load(args.root, dataset).to(args.device)
        for seed in track(range(args.seeds), dataset, console=progress, disable=silent):
            runs += runs_of_seed(dataset, data, seed, args)
    rows = summary(runs)
    if args.json:
        print(json.dumps({"runs": [asdict(run) for run in runs], "summary": rows}, indent=2))
        return
    table = Table(title=f"Accuracy in %, mean ± standard deviation, seeds: {args.seeds}", title_justify="left")
    for name in ("dataset", "model", "preset", "validation", "test", "integer", "largest gap"):
        table.add_column(name)
    for row in rows:
        splits = [f"{row[f'{split}_mean']:.1f} ± {row[f'{split}_std']:.1f}" for split in ("val", "test")]
        integers = [f"{row[name]:.{places}f}" if name in row else "" for name, places in _INTEGERS]
        table.add_row(str(row["dataset"]), str(row["model"]), str(row["preset"]), *splits, *integers)
    Console().print(table)


if __name__ == "__main__":
    main()
