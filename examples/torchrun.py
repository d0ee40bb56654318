"""A GraphSAGE trained in 8 bits by several processes, on sampled neighbourhoods. Downloads nothing.

    torchrun --nproc-per-node 2 examples/torchrun.py --epochs 5 --checkpoint run.pt
    torchrun --nproc-per-node 2 examples/torchrun.py --epochs 5 --checkpoint run.pt --resume

All processes train one model on batches of their own, and round to the same ranges, those of all values. Nodes are
protected by their in-degrees in the whole graph, which samples cut short. Each epoch ends with a checkpoint; a run that
was killed goes on from the last one with ``--resume``, and ends where it would have ended, bit for bit. The graph is
made up: groups of nodes that mostly link to their own kind, a few of them to many.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed
from torch.distributed.elastic.multiprocessing.errors import record
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile
from torch_geometric.data import Data
from torch_geometric.nn import GraphSAGE

import dqconvert
from sampling import loader_of

CLASSES, FEATURES = 8, 32


def make_graph(nodes: int, seed: int, degree: int = 12) -> Data:
    """Returns a graph of `nodes * degree` edges; half of the nodes train (``train_mask``), the others test."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(CLASSES, (nodes,), generator=draw)
    order, counts = y.argsort(stable=True), torch.bincount(y, minlength=CLASSES)
    begins = counts.cumsum(0) - counts
    sender = torch.randint(nodes, (nodes * degree,), generator=draw)
    skewed = torch.rand(len(sender), generator=draw) ** 3  # some receive many edges
    kind = torch.where(torch.rand(len(sender), generator=draw) < 0.6, y[sender], y[sender.flip(0)])
    receiver = order[begins[kind] + (skewed * counts[kind]).long()]
    x = torch.randn(CLASSES, FEATURES, generator=draw)[y] + 4 * torch.randn(nodes, FEATURES, generator=draw)
    train_mask = torch.rand(nodes, generator=draw) < 0.5
    return Data(x=x, edge_index=torch.stack([sender, receiver]), y=y, train_mask=train_mask)


def seeds_of(data: Data, epoch: int, rank: int, ranks: int, seed: int) -> Tensor:
    """Returns the nodes that a rank trains on in an epoch: of all ranks as many, so that each has as many batches."""
    nodes = data.train_mask.nonzero()[:, 0]
    nodes = nodes[torch.randperm(len(nodes), generator=torch.Generator().manual_seed(seed + epoch))]
    return torch.cat([nodes, nodes[: -len(nodes) % ranks]])[rank::ranks]


def save(path: Path, contents: dict[str, Any]) -> None:
    """Writes a file beside, then moves it: who is killed meanwhile leaves the one before."""
    beside = path.with_name(path.name + ".part")
    torch.save(contents, beside)
    os.replace(beside, path)


def accuracy(module: torch.nn.Module, data: Data) -> float:
    """Returns the share of test nodes that are told right, in percent, by the whole graph."""
    with torch.no_grad():
        right = module.eval()(data.x, data.edge_index).argmax(dim=1) == data.y
    return 100 * right[~data.train_mask].float().mean().item()


def train(options: argparse.Namespace, rank: int, ranks: int) -> None:
    data = dqconvert.DegreeProtection(p_min=0.0, p_max=0.1)(make_graph(options.nodes, options.seed))
    torch.manual_seed(options.seed)  # the same weights on every rank
    module, _ = dqconvert.prepare(GraphSAGE(FEATURES, 64, num_layers=2, out_channels=CLASSES), options.preset)
    ddp = DistributedDataParallel(module)
    optimizer = torch.optim.Adam(ddp.parameters(), lr=options.lr)

    settings = {name: getattr(options, name) for name in ("nodes", "seed", "preset", "lr", "batch_size", "neighbors")}
    settings["ranks"] = ranks
    begin = 0
    if options.resume and options.checkpoint.exists():
        kept = torch.load(options.checkpoint, weights_only=True)
        if kept["settings"] != settings:
            sys.exit(f"{options.checkpoint} is of a run with {kept['settings']}, and this one has {settings}")
        module.load_state_dict(kept["module"])
        optimizer.load_state_dict(kept["optimizer"])
        begin = kept["epochs"]
    if rank == 0:
        print(f"epochs {begin + 1} to {options.epochs}", flush=True)

    for epoch in range(begin, options.epochs):
        # Neighbours and protected nodes are drawn by each rank for itself, and in each epoch anew.
        torch.manual_seed(1_000_003 * options.seed + 1009 * epoch + rank)
        nodes = seeds_of(data, epoch, rank, ranks, options.seed)
        loader, how = loader_of(data, options.neighbors, nodes, options.batch_size)
        if rank == 0 and epoch == begin:
            print(how, flush=True)
        ddp.train()
        for step, batch in enumerate(loader, 1):
            last = rank == 0 and (epoch + 1, step) == (options.epochs, len(loader))
            with profile(activities=[ProfilerActivity.CPU]) if last else nullcontext() as seen:
                out = ddp(batch.x, batch.edge_index, protect_prob=batch.protect_prob)
                loss = F.cross_entropy(out[: batch.batch_size], batch.y[: batch.batch_size])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            if seen is not None:
                calls = sum(event.count for event in seen.key_averages() if event.key.startswith("c10d::"))
                print(
                    f"collectives of the last step: {calls}, those of gradients and of ranges that moved too",
                    flush=True,
                )
            if rank == 0 and (step % options.log_every == 0 or step == len(loader)):
                print(f"epoch {epoch + 1}/{options.epochs} step {step}/{len(loader)} loss {loss:.4f}", flush=True)
        if rank == 0:
            contents = {"module": module.state_dict(), "optimizer": optimizer.state_dict()}
            save(options.checkpoint, {**contents, "epochs": epoch + 1, "settings": settings})

    if rank == 0:  # alone: evaluations are each rank's own
        found = accuracy(module, data)
        integers = accuracy(dqconvert.convert(module), data)
        print(f"{options.preset}: {found:.2f} % of test nodes, integers: {integers:.2f} %", flush=True)


@record
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="file, written after each epoch")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint, if there is one")
    parser.add_argument("--nodes", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=512, help="nodes that each process trains on in a step")
    parser.add_argument("--neighbors", type=int, nargs=2, default=[10, 5], help="sampled per node, by hop")
    parser.add_argument("--preset", default="int8-dq")
    parser.add_argument("--lr", type=float, default=0.005)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=5, metavar="STEPS")
    options = parser.parse_args()
    if "RANK" not in os.environ:
        sys.exit("start it by torchrun: torchrun --nproc-per-node 2 examples/torchrun.py --checkpoint run.pt")
    if options.checkpoint.exists() and not options.resume:
        sys.exit(f"{options.checkpoint} exists: go on from it with --resume, or remove it")
    distributed.init_process_group("gloo")
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    print(f"rank {rank} of {ranks} is process {os.getpid()}", flush=True)
    try:
        train(options, rank, ranks)
    except RuntimeError as error:
        if "gloo" in str(error):
            print(f"rank {rank}: another process is gone; start again with --resume", file=sys.stderr, flush=True)
        raise
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
