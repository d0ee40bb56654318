"""A GIN that tells families of graphs apart, trained in 8 bits by Lightning's Trainer. Downloads nothing.

    python examples/lightning_gin.py --epochs 12 --out runs

Needs the extra ``lightning``; with tensorboard installed, ``tensorboard --logdir runs`` shows the ranges, the shares of
clipped values and the histograms of codes that the callback logs. Run it again with ``--resume`` and more epochs: it
goes on from the checkpoint of the last one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GIN, global_mean_pool
from torch_geometric.utils import barabasi_albert_graph, degree, erdos_renyi_graph, grid

import dqconvert
from dqconvert.lightning import QuantizationCallback

DEGREES = 12
"""Degrees that are told apart: a node's features are its degree, one-hot."""


def make_graphs(number: int, seed: int) -> list[Data]:
    """Returns graphs of three families with about four edges a node: random, scale-free and grids."""
    torch.manual_seed(seed)
    found = []
    for index in range(number):
        nodes = int(torch.randint(36, 100, ()))
        if index % 3 == 0:
            edges = erdos_renyi_graph(nodes, 4 / nodes)
        elif index % 3 == 1:
            edges = barabasi_albert_graph(nodes, 2)
        else:
            edges, _ = grid(nodes // 8, 8)
            nodes = nodes // 8 * 8
        hidden = edges[:, torch.rand(edges.size(1)) > 0.2]  # or degrees would say it all
        x = F.one_hot(degree(hidden[1], nodes).long().clamp(max=DEGREES - 1), DEGREES).float()
        found.append(Data(x=x, edge_index=hidden, y=torch.tensor([index % 3])))
    return found


class Classifier(nn.Module):
    """A GIN, the mean over the nodes of each graph, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.gin = GIN(DEGREES, 32, num_layers=3, norm="batch_norm")
        self.out = nn.Linear(32, 3)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor, batch_size: int) -> Tensor:
        return self.out(global_mean_pool(self.gin(x, edge_index), batch, batch_size))


class Lit(LightningModule):
    """The classifier, prepared, and how it is trained."""

    def __init__(self, qconfig: str, example: Data) -> None:
        super().__init__()
        batch = torch.zeros(example.num_nodes, dtype=torch.long)
        self.net, self.report = dqconvert.prepare(Classifier(), qconfig, (example.x, example.edge_index, batch, 1))

    def step(self, data: Data, name: str) -> Tensor:
        scores = self.net(data.x, data.edge_index, data.batch, data.num_graphs)
        loss = F.cross_entropy(scores, data.y)
        accuracy = (scores.argmax(-1) == data.y).float().mean()
        self.log_dict({f"{name}_loss": loss, f"{name}_accuracy": accuracy}, batch_size=data.num_graphs, on_epoch=True)
        return loss

    def training_step(self, data: Data, index: int) -> Tensor:
        return self.step(data, "train")

    def validation_step(self, data: Data, index: int) -> None:
        self.step(data, "val")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(dqconvert.parameter_groups(self.net, weight_decay=1e-4), lr=0.01)


def make_logger(folder: Path) -> Logger:
    """Returns TensorBoard's logger, or one of CSV files where that is not installed."""
    try:
        return TensorBoardLogger(folder, name="gin", version="")
    except ModuleNotFoundError:
        return CSVLogger(folder, name="gin", version="")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12, help="of training (12)")
    parser.add_argument("--graphs", type=int, default=600, help="to train on (600)")
    parser.add_argument("--qconfig", default="int8-dq", help="a preset, or a .toml or .json file (int8-dq)")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="where logs and checkpoints go (runs)")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    given = parser.parse_args()

    training, held_out = make_graphs(given.graphs, seed=0), make_graphs(given.graphs // 3, seed=1)
    train, val = DataLoader(training, 32, shuffle=True), DataLoader(held_out, 64)
    steps = given.epochs * len(train)
    seed_everything(0, verbose=False)
    module = Lit(given.qconfig, training[0])
    callback = QuantizationCallback(
        protect="cosine" if given.qconfig.endswith("-dq") else "constant",
        steps=steps,
        freeze_ranges=int(0.8 * steps),
        freeze_batch_norm=int(0.9 * steps),
        log_every=len(train),
    )
    keep = ModelCheckpoint(given.out, filename="gin", save_last=True)
    trainer = Trainer(
        max_epochs=given.epochs,
        callbacks=[callback, keep],
        logger=make_logger(given.out),
        log_every_n_steps=5,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, train, val, ckpt_path=given.out / "last.ckpt" if given.resume else None)
    print(f"{given.qconfig}: {100 * trainer.callback_metrics['val_accuracy']:.1f} % of the graphs held out")

    integer, right = dqconvert.convert(module.net.eval()), 0
    for data in val:
        right += int((integer(data.x, data.edge_index, data.batch, data.num_graphs).argmax(-1) == data.y).sum())
    print(f"integers: {100 * right / len(held_out):.1f} %")


if __name__ == "__main__":
    main()
