"""Regression on molecules: solubility (ESOL), and penalized logP of 20,000 molecules of ZINC; GINE and PNA.

    python examples/molecules.py --root data --dataset ESOL --preset int8-dq+ --preset int4-dq+ --out runs/molecules
    python examples/molecules.py --root data --dataset ZINC --model PNA --limit 2000 --epochs 20 --preset int8-dq

Atoms and bonds are embedded by each of their properties. Tenths of the molecules, drawn with the seed, validate and
test. The float model is trained from new weights; each preset, and the float model once more, from its weights, by the
float model's predictions beside the labels. Reported is the mean absolute error. Needs rdkit
(`pip install 'dqconvert[examples]'`).
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch_geometric import seed_everything
from torch_geometric.data import Data
from torch_geometric.datasets import MoleculeNet
from torch_geometric.nn import GINEConv, PNAConv, global_add_pool
from torch_geometric.utils import degree
from torch_geometric.utils.smiles import e_map, from_smiles, x_map

from graph_study import Recipe, Split, jobs, regression
from study import Job, add_arguments, carry_out, parse, show, summary

TASK = regression("x", "edge_index", "edge_attr", "batch")
MODELS = ("GINE", "PNA")
ZINC = "20k_rndm_zinc_drugs_clean_3.csv"


class Embedding(nn.Module):
    """The sum of an embedding of each property, which are columns of whole numbers."""

    def __init__(self, sizes: Sequence[int], width: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, width) for size in sizes)

    def forward(self, properties: Tensor) -> Tensor:
        return sum(table(properties[:, column]) for column, table in enumerate(self.tables))  # type: ignore[return-value]


class Net(nn.Module):
    """Four GINE layers (Hu et al., ICLR 2020) or PNA layers (Corso et al., NeurIPS 2020), summed over the molecule.

    Args:
        layer: ``"GINE"`` or ``"PNA"``.
        degrees: How many atoms of the training molecules have each number of bonds, int64; for PNA.
        hidden: Width.
        num_layers: Layers.
    """

    def __init__(self, layer: str, degrees: Tensor, hidden: int = 64, num_layers: int = 4) -> None:
        super().__init__()
        self.atoms = Embedding([len(values) for values in x_map.values()], hidden)
        self.bonds = Embedding([len(values) for values in e_map.values()], hidden)
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for _ in range(num_layers):
            if layer == "GINE":
                conv: nn.Module = GINEConv(
                    nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden)), train_eps=True
                )
            else:
                aggregators, scalers = ["mean", "min", "max", "std"], ["identity", "amplification", "attenuation"]
                conv = PNAConv(hidden, hidden, aggregators, scalers, deg=degrees, edge_dim=hidden, towers=4)
            self.convs.append(conv)
            self.norms.append(nn.BatchNorm1d(hidden))
        self.head = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor, batch: Tensor) -> Tensor:
        x, bonds = self.atoms(x), self.bonds(edge_attr)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = x + norm(conv(x, edge_index, bonds)).relu()
        return self.head(global_add_pool(x, batch))


def load(root: str, name: str, limit: int | None) -> list[Data]:
    """Loads the molecules, ESOL from `<root>/MoleculeNet`, ZINC from `<root>/zinc20k/raw`; `y` is standardized."""
    try:
        if name == "ESOL":
            molecules = list(MoleculeNet(str(Path(root) / "MoleculeNet"), "ESOL"))[:limit]
        else:
            with (Path(root) / "zinc20k" / "raw" / ZINC).open(encoding="utf-8", newline="") as file:
                rows = [row for _, row in zip(range(limit or sys.maxsize), csv.DictReader(file), strict=False)]
            molecules = [penalized(row["smiles"], float(row["logP"]) - float(row["SAS"])) for row in rows]
    except ImportError:
        sys.exit("molecules are read by rdkit, which is not installed: pip install 'dqconvert[examples]'")
    except OSError as error:
        sys.exit(f"{name} is not in {root} and could not be downloaded or unpacked there: {error}")
    return standardized([molecule for molecule in molecules if molecule.num_edges])


def penalized(smiles: str, value: float) -> Data:
    """Returns a molecule with logP less synthetic accessibility, without ZINC's term of long rings."""
    molecule = from_smiles(smiles)
    molecule.y = torch.tensor([[value]])
    return molecule


def standardized(molecules: Sequence[Data]) -> list[Data]:
    """Returns what the models read of the molecules, with the mean and deviation over all taken out of ``y``."""
    every = torch.cat([molecule.y.view(-1) for molecule in molecules])
    return [
        Data(x=m.x, edge_index=m.edge_index, edge_attr=m.edge_attr, y=(m.y.view(1) - every.mean()) / every.std())
        for m in molecules
    ]


def split_of(molecules: Sequence[Data], seed: int) -> Split:
    """Returns a random split: a tenth tests, a tenth validates."""
    order = torch.randperm(len(molecules), generator=torch.Generator().manual_seed(seed)).tolist()
    tenth = len(molecules) // 10
    parts = [[molecules[i] for i in part] for part in (order[2 * tenth :], order[tenth : 2 * tenth], order[:tenth])]
    return Split(train=parts[0], validation=parts[1], test=parts[2])


def bonds_of(molecules: Sequence[Data]) -> Tensor:
    """Returns how many atoms have each number of bonds, int64."""
    every = torch.cat([degree(m.edge_index[1], m.num_nodes, torch.int64) for m in molecules])
    return every.bincount()


def jobs_of(args: argparse.Namespace) -> Iterator[Job]:
    for name in ("ESOL", "ZINC") if args.dataset == "all" else [args.dataset]:
        molecules = load(args.root, name, args.limit)
        for layer in MODELS if args.model == "all" else [args.model]:
            for seed in range(args.seeds):
                split = split_of(molecules, seed)
                degrees = bonds_of(split.train)

                def new_model(layer: str = layer, degrees: Tensor = degrees, seed: int = seed) -> nn.Module:
                    seed_everything(seed)
                    return Net(layer, degrees)

                scratch = Recipe(epochs=args.float_epochs, lr=0.002, start="scratch")
                further = replace(scratch, epochs=args.epochs, lr=args.lr, distil=1.0, start="float", batch_size=32)
                recipes = {"float": scratch} | dict.fromkeys(args.configs, further)
                key = {"dataset": name, "graphs": len(molecules), "model": layer, "seed": seed}
                yield from jobs(new_model, split, TASK, recipes, args.configs, key, seed=seed, out=args.out)


def main(argv: Sequence[str] | None = None) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("molecules.py", description=__doc__, formatter_class=formatter)
    add_arguments(parser, "DIR/MoleculeNet and DIR/zinc20k")
    parser.add_argument("--dataset", default="ESOL", choices=["ESOL", "ZINC", "all"])
    parser.add_argument("--model", default="GINE", choices=[*MODELS, "all"])
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N-1 (default: 3)")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N molecules (default: all)")
    parser.add_argument("--float-epochs", type=int, default=100, metavar="N", help="default: 100")
    parser.add_argument("--epochs", type=int, default=50, metavar="N", help="of each preset (default: 50)")
    parser.add_argument("--lr", type=float, default=0.002, help="of each preset (default: 0.002)")
    args = parse(parser, argv)
    rows = carry_out(jobs_of(args), args)
    lines = summary(rows, ["dataset", "model", "preset"], ["val", "test"])
    show(rows, lines, args, "Mean absolute error of the standardized value, mean ± standard deviation over seeds", 3)


if __name__ == "__main__":
    main()
