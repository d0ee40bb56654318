"""Node classification on Cora and CiteSeer: train in float, prepare, fine-tune, compare.

    python examples/citation.py --root data --dataset Cora --preset int8-dq --preset int4-dq --seeds 10
    python examples/citation.py --root data --model all --preset int4-dq+ --distil --seeds 10 --out runs/citation

Per seed, a float model is trained as the papers do (Planetoid's split, row-normalized features, 200 epochs).
Each preset then prepares a copy of it, and the loop that trained the float model fine-tunes that copy; with --distil
`dqconvert.finetune` does, which learns the float model's predictions beside the labels, with --unlabelled these alone,
and with --calibrate nothing is trained. Beside each stands the float model trained on in the same way. Every model is
the one of its best validation epoch (without labels: of most agreement with float); test nodes are looked at once, when
a model is done, in evaluation mode, where everything is quantized. Then it is converted to an integer module, and that
is tested, too.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric import seed_everything
from torch_geometric.data import Data
from torch_geometric.datasets import Planetoid
from torch_geometric.nn import GATConv, GCNConv, GINConv
from torch_geometric.transforms import NormalizeFeatures
from torch_geometric.utils import degree

import dqconvert
from dqconvert import QConfig
from study import Job, Log, Row, add_arguments, carry_out, name_of, parameters_of, parse, show, summary, write_state

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


class Family(NamedTuple):
    """A model and its recipe.

    Attributes:
        build: Of the numbers of features and of classes.
        lr: The learning rate of its float training, which serves fine-tuning in the same loop, too.
        distil_lr: That of --distil and --unlabelled.
        distil_epochs: Their epochs.
    """

    build: type[nn.Module]
    lr: float
    distil_lr: float
    distil_epochs: int


MODELS = {
    "GCN": Family(GCN, 0.01, 0.02, 300),
    "GAT": Family(GAT, 0.005, 0.01, 300),
    "GIN": Family(GIN, 0.01, 0.005, 300),
}


def fit(model: nn.Module, data: Data, epochs: int, lr: float, log: Log) -> None:
    """Trains `model` in place, float or prepared alike.

    The model ends with the state of its best validation epoch, the latest of equals. The first fifth of the
    epochs does not stand for election: there, a prepared model's ranges still move.
    """
    optimizer = torch.optim.Adam(parameters_of(model, 5e-4), lr=lr)
    best, state = -1.0, model.state_dict()
    for epoch in range(epochs):
        model.train()
        optimizer.zero_grad()
        out = model(data.x, data.edge_index)
        loss = F.cross_entropy(out[data.train_mask], data.y[data.train_mask])
        loss.backward()
        optimizer.step()
        if epoch >= epochs // 5 and (val := accuracy(model, data, data.val_mask)) >= best:
            best, state = val, copy.deepcopy(model.state_dict())
            log(epoch + 1, loss=loss.item(), val=val)
    model.load_state_dict(state)


def distil(
    model: nn.Module, data: Data, config: QConfig, epochs: int, lr: float, log: Log, *, labelled: bool = True
) -> nn.Module:
    """Returns the prepared module that learns the float model's predictions on all nodes, beside labels or alone."""
    names = {"labels": "y", "mask": "train_mask", "validation": "val_mask"} if labelled else {}
    return dqconvert.finetune(
        model.eval(),
        data,
        config,
        epochs=epochs,
        lr=lr,
        **names,
        on_epoch=lambda epoch: log(epoch.number, loss=epoch.loss, best=epoch.best),
        progress=False,
    ).module


@torch.no_grad()
def accuracy(model: nn.Module, data: Data, mask: Tensor) -> float:
    """Returns the percentage of the nodes in `mask` that `model` labels right in evaluation mode."""
    predicted = model.eval()(data.x, data.edge_index).argmax(dim=-1)
    return 100 * float((predicted == data.y)[mask].float().mean())


@torch.no_grad()
def errors_by_degree(module: nn.Module, data: Data) -> list[float | None]:
    """Returns what rounding changes in a prepared module's results, in %, for each group of in-degrees.

    A node's error is the distance from its scores to those of the same module without any rounding, over their length;
    it is averaged over the nodes of 0 or 1 in-edges, of 2 or 3, of 4 to 7, and so on; ``None`` where there is none.
    """
    smooth = copy.deepcopy(module)
    dqconvert.disable_fake_quant(smooth)
    rounded, exact = (m.eval()(data.x, data.edge_index) for m in (module, smooth))
    errors = 100 * (rounded - exact).norm(dim=-1) / exact.norm(dim=-1)
    group = degree(data.edge_index[1], data.num_nodes).clamp(min=1).log2().floor()
    found = [errors[group == number] for number in range(int(group.max()) + 1)]
    return [float(own.mean()) if len(own) else None for own in found]


def jobs_of_seed(dataset: str, name: str, data: Data, seed: int, args: argparse.Namespace) -> Iterator[Job]:
    """Yields a job for the float model of this seed, for that trained on, and for each preset.

    The test nodes leave the data first: nothing that trains or chooses can look at them.
    """
    family = MODELS[name]
    distilled = args.distil or args.unlabelled
    lr = args.lr or (family.distil_lr if distilled else family.lr)
    epochs = args.epochs
    if epochs is None:
        epochs = args.float_epochs if args.from_scratch else family.distil_epochs if distilled else 100
    num_classes, test_mask = int(data.y.max()) + 1, data.test_mask
    data = copy.copy(data)
    del data.test_mask
    floats: list[nn.Module] = []

    def new_model() -> nn.Module:
        seed_everything(seed)
        return family.build(data.num_features, num_classes).to(data.x.device)

    key: Row = {"dataset": dataset, "model": name, "seed": seed}
    in_float = f"{args.float_epochs} epochs from {family.lr}"
    float_key = {**key, "preset": "float", "recipe": in_float}
    state = args.out and args.out / "states" / f"{name_of(float_key)}.pt"

    def float_model(log: Log = _silent) -> nn.Module:
        if not floats:
            floats.append(new_model())
            if state is not None and state.exists():
                floats[0].load_state_dict(torch.load(state, weights_only=True))
            else:
                fit(floats[0], data, args.float_epochs, family.lr, log)
                if state is not None:
                    write_state(state, floats[0].state_dict())
        return copy.deepcopy(floats[0])

    def tested(model: nn.Module, *, integer: bool) -> Row:
        row: Row = {"val": accuracy(model, data, data.val_mask), "test": accuracy(model, data, test_mask)}
        if integer:
            row["integer"] = accuracy(dqconvert.convert(model), data, test_mask)
            row["errors"] = errors_by_degree(model, data)
        return row

    def trained(config: QConfig, budget: float | None, log: Log) -> nn.Module:
        start = new_model() if args.from_scratch else float_model()
        if budget is not None:
            config = dqconvert.search_bits(
                start.eval(), data, budget, config, count=args.count, seed=seed, progress=False
            )
        seed_everything(seed)
        if distilled:
            return distil(start, data, config, epochs, lr, log, labelled=args.distil)
        module = start
        if config != QConfig():
            module = dqconvert.prepare(start, config, (data.x, data.edge_index)).module
        if args.calibrate:
            dqconvert.calibrate(module, data)
        seed_everything(seed)
        fit(module, data, epochs, lr, log)
        return module

    hows = ("calibrate", "distil", "unlabelled", "from_scratch")
    how = next((how for how in hows if getattr(args, how)), "loop").removeprefix("from_")
    recipe = f"{how}, {epochs} epochs from {lr}, float {in_float}"

    def job(preset: str, run: Callable[[Log], Row], config: str = "") -> Job:
        return Job({**key, "preset": preset, "recipe": recipe, "config": config}, run, epochs)

    yield Job(float_key, lambda log: tested(float_model(log), integer=False), args.float_epochs)
    if epochs and not (args.from_scratch or args.unlabelled):
        yield job(f"float + {epochs} epochs", lambda log: tested(trained(QConfig(), None, log), integer=False))
    for preset, config in args.configs.items():
        for budget in args.budget or [None]:
            run = partial(
                lambda config, budget, log: tested(trained(config, budget, log), integer=True), config, budget
            )
            of = "" if args.count == "elements" else f" of {args.count}"
            yield job(preset if budget is None else f"{preset}, {budget} bits on average{of}", run, str(config))


def _silent(epoch: int, **values: float) -> None:
    """Logs nothing."""


def load(root: str, name: str) -> Data:
    """Loads Planetoid's graph with its standard split from `<root>/Planetoid`; PyG downloads it if missing."""
    folder = Path(root) / "Planetoid"
    try:
        return Planetoid(str(folder), name, transform=NormalizeFeatures())[0]
    except OSError as error:
        sys.exit(f"{name} is not in {folder} and could not be downloaded or unpacked there: {error}")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("citation.py", description=__doc__, formatter_class=formatter)
    add_arguments(parser, "DIR/Planetoid")
    parser.add_argument("--dataset", default="all", choices=[*DATASETS, "all"])
    parser.add_argument("--model", default="GCN", choices=[*MODELS, "all"])
    parser.add_argument("--seeds", type=int, default=10, metavar="N", help="seeds 0 to N-1 (default: 10)")
    parser.add_argument("--float-epochs", type=int, default=200, metavar="N", help="default: 200")
    epochs = "of a prepared model (default: 100; distilled that of its recipe; from scratch as many as in float)"
    parser.add_argument("--epochs", type=int, metavar="N", help=epochs)
    rate = "of a prepared model (default: that of the float model; distilled that of its recipe)"
    parser.add_argument("--lr", type=float, help=rate)
    how = parser.add_mutually_exclusive_group()
    scratch = "train the prepared models from new weights, not from the float model's"
    how.add_argument("--from-scratch", action="store_true", help=scratch)
    distilled = "fine-tune with dqconvert.finetune: learn the float model's predictions on all nodes, too"
    how.add_argument("--distil", action="store_true", help=distilled)
    alone = "the same without any label: learn the float model's predictions alone"
    how.add_argument("--unlabelled", action="store_true", help=alone)
    how.add_argument("--calibrate", action="store_true", help="train nothing: calibrate, and test that")
    budget = "choose widths by dqconvert.search_bits, so many bits on average; repeatable: a curve"
    parser.add_argument("--budget", action="append", type=float, metavar="BITS", help=budget)
    count = "what the average counts: all elements, those computed by the model, or quantizers (default: elements)"
    parser.add_argument("--count", default="elements", choices=["elements", "hidden", "quantizers"], help=count)
    parser.add_argument("--by-degree", action="store_true", help="print what rounding changes, by in-degree, too")
    parser.add_argument("--device", default="cpu", help="default: cpu")
    args = parse(parser, argv)
    if args.budget and args.from_scratch:
        parser.error("--budget measures on the float model: leave --from-scratch out")
    if args.calibrate:
        args.epochs = 0
    return args


def by_degree(rows: Sequence[Row]) -> str:
    """Returns a Markdown table of the errors of presets by in-degree, each the mean over seeds."""
    found: dict[tuple[str, str, str], list[list[float | None]]] = {}
    for row in rows:
        if "errors" in row:
            found.setdefault((row["dataset"], row["model"], row["preset"]), []).append(row["errors"])
    number = max((len(errors) for every in found.values() for errors in every), default=0)
    header = ["error in %, by in-degree", *(f"{2**i if i else 0}–{2 ** (i + 1) - 1}" for i in range(number))]
    lines = [header, ["---"] * len(header)]
    for key, every in found.items():
        columns = [[e[i] for e in every if i < len(e) and e[i] is not None] for i in range(number)]
        lines.append([" ".join(key), *(f"{statistics.fmean(c):.1f}" if c else "" for c in columns)])  # type: ignore[type-var]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)

    def jobs() -> Iterator[Job]:
        for dataset in DATASETS if args.dataset == "all" else [args.dataset]:
            data = load(args.root, dataset).to(args.device)
            for name in MODELS if args.model == "all" else [args.model]:
                for seed in range(args.seeds):
                    yield from jobs_of_seed(dataset, name, data, seed, args)

    rows = carry_out(jobs(), args)
    lines = summary(rows, ["dataset", "model", "preset"], ["val", "test"])
    show(rows, lines, args, "Accuracy in %, mean ± standard deviation over seeds")
    if args.by_degree and not args.json:
        print(by_degree(rows))


if __name__ == "__main__":
    main()
