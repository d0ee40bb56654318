"""Handwritten digits as graphs of their pixels, classified by an edge-conditioned and by a Gaussian mixture layer.

    python examples/digits.py --preset int8-dq+ --preset int4-dq+ --out runs/digits
    python examples/digits.py --model GMM --limit 500 --epochs 10 --preset int8-dq

scikit-learn's 1,797 images of 8 x 8 pixels stand in for MNIST's superpixels: a node for each inked pixel, edges from
its six nearest, the way from one to the other on the edge. NNConv makes each edge's weights of it by an MLP (Gilmer et
al., ICML 2017), GMMConv weighs by Gaussians (Monti et al., CVPR 2017). Tenths of the images, drawn with the seed,
validate and test. The float model is trained from new weights; each preset, and the float model once more, from its
weights, by the float model's predictions beside the labels. Needs scikit-learn (`pip install 'dqconvert[examples]'`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch_geometric import seed_everything
from torch_geometric.data import Data
from torch_geometric.nn import GMMConv, NNConv, global_mean_pool

from graph_study import Recipe, classification, jobs
from molecules import split_of
from study import Job, add_arguments, carry_out, parse, show, summary

TASK = classification("x", "edge_index", "edge_attr", "batch")
MODELS = ("NN", "GMM")


class Net(nn.Module):
    """Two layers, the mean over the pixels, and a linear map; ``layer``: ``"NN"`` or ``"GMM"``."""

    def __init__(self, layer: str, hidden: int = 32, classes: int = 10) -> None:
        super().__init__()

        def conv(before: int, after: int) -> nn.Module:
            if layer == "GMM":
                return GMMConv(before, after, dim=2, kernel_size=8)
            return NNConv(before, after, nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, before * after)))

        self.conv1, self.conv2 = conv(3, hidden), conv(hidden, hidden)
        self.lin = nn.Linear(hidden, classes)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor, batch: Tensor) -> Tensor:
        x = self.conv1(x, edge_index, edge_attr).relu()
        x = self.conv2(x, edge_index, edge_attr).relu()
        return self.lin(global_mean_pool(x, batch))


def graph_of(image: Tensor, label: int, neighbours: int = 6) -> Data:
    """Returns the graph of an image, float ``[height, width]`` from 0 to 1.

    ``x`` ``[num_nodes, 3]``: brightness, and the place from 0 to 1; ``edge_attr`` ``[num_edges, 2]``: from sender to
    receiver, 0.5 for no way at all.
    """
    place = image.nonzero()
    position = place / (torch.tensor(image.shape) - 1)
    apart = torch.cdist(position, position).fill_diagonal_(torch.inf)
    nearest = apart.topk(min(neighbours, len(place) - 1), largest=False).indices
    receiver = torch.arange(len(place)).repeat_interleave(nearest.size(1))
    edge_index = torch.stack([nearest.flatten(), receiver])
    x = torch.cat([image[image > 0].view(-1, 1), position], 1)
    way = 0.5 + 0.5 * (position[edge_index[1]] - position[edge_index[0]])
    return Data(x=x, edge_index=edge_index, edge_attr=way, y=torch.tensor([label]))


def load(limit: int | None) -> list[Data]:
    """Loads the images that come with scikit-learn, as graphs."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        sys.exit("the images come with scikit-learn, which is not installed: pip install 'dqconvert[examples]'")
    found = load_digits()
    images = torch.from_numpy(found.images).float() / 16
    return [graph_of(image, int(label)) for image, label in zip(images[:limit], found.target[:limit], strict=True)]


def jobs_of(args: argparse.Namespace) -> Iterator[Job]:
    graphs = load(args.limit)
    for layer in MODELS if args.model == "all" else [args.model]:
        for seed in range(args.seeds):

            def new_model(layer: str = layer, seed: int = seed) -> nn.Module:
                seed_everything(seed)
                return Net(layer)

            scratch = Recipe(epochs=args.float_epochs, lr=0.005, start="scratch", batch_size=64)
            further = replace(scratch, epochs=args.epochs, lr=args.lr, distil=1.0, start="float")
            recipes = {"float": scratch} | dict.fromkeys(args.configs, further)
            key = {"graphs": len(graphs), "model": layer, "seed": seed}
            yield from jobs(
                new_model, split_of(graphs, seed), TASK, recipes, args.configs, key, seed=seed, out=args.out
            )


def main(argv: Sequence[str] | None = None) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("digits.py", description=__doc__, formatter_class=formatter)
    add_arguments(parser)
    parser.add_argument("--model", default="all", choices=[*MODELS, "all"])
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N-1 (default: 3)")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N images (default: all)")
    parser.add_argument("--float-epochs", type=int, default=60, metavar="N", help="default: 60")
    parser.add_argument("--epochs", type=int, default=30, metavar="N", help="of each preset (default: 30)")
    parser.add_argument("--lr", type=float, default=0.005, help="of each preset (default: 0.005)")
    args = parse(parser, argv)
    rows = carry_out(jobs_of(args), args)
    lines = summary(rows, ["model", "preset"], ["val", "test"])
    show(rows, lines, args, "Digits, accuracy in %, mean ± standard deviation over seeds")


if __name__ == "__main__":
    main()
