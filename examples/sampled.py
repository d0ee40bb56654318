"""A GraphSAGE trained in 8 bits on sampled neighbourhoods of a graph that stays on disk. Downloads nothing.

    python examples/sampled.py                                          # 20,000 nodes, in a folder that goes away
    python examples/sampled.py --data DIR --nodes 2000000 --edges 20000000 --checkpoint run.pt --measure 30
    python examples/sampled.py --data DIR --nodes 2000000 --edges 20000000 --checkpoint run.pt --resume

Features and edges are numpy files, mapped into memory, of which a step reads what its batch needs. Nodes are protected
by their in-degrees in the whole graph, which samples cut short, and each layer computes the rows that later ones need
(``trim_to_layer``). A run that was killed goes on from its checkpoint with ``--resume``, and ends where it would have
ended, bit for bit. ``--measure`` takes steps of the float model and of the prepared one in turns, and says what they
took. ``--infer`` classifies all nodes in the end, by all their neighbours, in bounded memory. The graph is made up:
groups of nodes that mostly link to their own kind, a few of them to many.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GraphSAGE

import dqconvert
from sampling import loader_of
from torchrun import save

CLASSES = 8
CHUNK = 1 << 20
"""Values, or edges, that are drawn at a time."""


def make_graph(folder: Path, nodes: int, edges: int, features: int, seed: int) -> None:
    """Writes a graph into numpy files, part by part; one of these sizes that is there already stays."""
    sizes = {"nodes": nodes, "edges": edges, "features": features, "seed": seed}
    note = folder / "graph.json"
    if note.exists() and json.loads(note.read_text()) == sizes:
        return
    note.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(CLASSES, (nodes,), generator=draw)
    order, counts = y.argsort(stable=True), torch.bincount(y, minlength=CLASSES)
    begins, centers = counts.cumsum(0) - counts, torch.randn(CLASSES, features, generator=draw)
    np.save(folder / "y.npy", y.numpy())
    np.save(folder / "train_mask.npy", (torch.rand(nodes, generator=draw) < 0.5).numpy())

    x = np.lib.format.open_memmap(folder / "x.npy", "w+", np.float32, (nodes, features))
    for part in torch.arange(nodes).split(max(1, CHUNK // features)):
        noise = torch.randn(len(part), features, generator=draw)
        x[part[0] : part[-1] + 1] = (centers[y[part]] + 4 * noise).numpy()
    edge_index = np.lib.format.open_memmap(folder / "edge_index.npy", "w+", np.int64, (2, edges))
    for begin in range(0, edges, CHUNK):
        number = min(CHUNK, edges - begin)
        sender = torch.randint(nodes, (number,), generator=draw)
        other = torch.randint(CLASSES, (number,), generator=draw)
        kind = torch.where(torch.rand(number, generator=draw) < 0.6, y[sender], other)
        skewed = torch.rand(number, generator=draw) ** 3  # some receive many edges
        receiver = order[begins[kind] + (skewed * counts[kind]).long()]
        edge_index[:, begin : begin + number] = torch.stack([sender, receiver]).numpy()
    x.flush()
    edge_index.flush()
    note.write_text(json.dumps(sizes))


def open_graph(folder: Path) -> Data:
    """Returns the graph with its files mapped into memory: nothing is read before it is used."""
    names = ("x", "edge_index", "y", "train_mask")
    # "c": copied where written to, which nobody does; torch warns of arrays that cannot be written to.
    return Data(**{name: torch.from_numpy(np.load(folder / f"{name}.npy", mmap_mode="c")) for name in names})


def inputs_of(batch: Data) -> dict[str, Any]:
    """Returns what forward takes of a batch."""
    sampled = {
        "num_sampled_nodes_per_hop": [*batch.num_sampled_nodes],
        "num_sampled_edges_per_hop": [*batch.num_sampled_edges],
    }
    return {"x": batch.x, "edge_index": batch.edge_index, **sampled}


def stepper(module: nn.Module, lr: float) -> tuple[Callable[[Data], Tensor], torch.optim.Optimizer]:
    """Returns a training step, which returns its loss, and its optimizer."""
    optimizer = torch.optim.Adam(module.parameters(), lr=lr)
    quantizes = isinstance(module, torch.fx.GraphModule)

    def step(batch: Data) -> Tensor:
        protection = {"protect_prob": batch.protect_prob} if quantizes else {}
        out = module(**inputs_of(batch), **protection)
        loss = F.cross_entropy(out[: batch.batch_size], batch.y[: batch.batch_size])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step, optimizer


def accuracy(module: nn.Module, sample: Callable[[Tensor], Data], nodes: Tensor, batch_size: int) -> float:
    """Returns the share of these nodes that are told right by their sampled neighbourhoods, in percent."""
    right = 0
    with torch.no_grad():
        for some in nodes.split(batch_size):
            batch = sample(some)
            out = module(**inputs_of(batch))[: batch.batch_size]
            right += int((out.argmax(dim=1) == batch.y[: batch.batch_size]).sum())
    return 100 * right / len(nodes)


def measure(
    model: nn.Module, module: nn.Module, sample: Callable[[Tensor], Data], nodes: Tensor, options: argparse.Namespace
) -> str:
    """Returns, in words, what a step of the float model and one of the prepared take, in turns on the same batches."""
    steps = {"float": stepper(model, options.lr)[0], options.preset: stepper(module, options.lr)[0]}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(10 + options.measure):  # ranges settle in the first ones
        batch = sample(nodes[torch.randperm(len(nodes))[: options.batch_size]])
        for name, step in steps.items():
            start = time.perf_counter()
            step(batch)
            if number >= 10:
                seconds[name].append(time.perf_counter() - start)
    plain, ours = (statistics.median(found) for found in seconds.values())
    return f"step: float {1e3 * plain:.1f} ms, {options.preset} {1e3 * ours:.1f} ms, ratio {ours / plain:.2f}"


def of_all_nodes(model: nn.Module, module: nn.Module, batch: Data, data: Data, options: argparse.Namespace) -> Tensor:
    """Returns the classes of all nodes by all their neighbours, in integers and in bounded memory."""
    whole, _ = dqconvert.prepare(model, options.preset, (batch.x, batch.edge_index))  # no layer leaves rows out
    whole.load_state_dict(module.state_dict())
    integer = dqconvert.convert(whole.eval())
    out = dqconvert.infer(integer, (data.x, data.edge_index), memory=options.memory, store=options.infer)
    return torch.cat([rows.argmax(dim=1) for rows in out.split(CHUNK)])


def peak_memory() -> str:
    """Returns the highest memory of this process so far, mapped files included."""
    unit = 1 if sys.platform == "darwin" else 1024
    return f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.2f} GiB"


def run(options: argparse.Namespace, folder: Path) -> None:
    edges = 10 * options.nodes if options.edges is None else options.edges
    names = ("nodes", "features", "hidden", "seed", "preset", "lr", "batch_size", "neighbors")
    settings, kept = {name: getattr(options, name) for name in names} | {"edges": edges}, None
    if options.resume and options.checkpoint is not None and options.checkpoint.exists():
        kept = torch.load(options.checkpoint, weights_only=True)
        if kept["settings"] != settings:
            sys.exit(f"{options.checkpoint} is of a run with {kept['settings']}, and this one has {settings}")

    make_graph(folder, options.nodes, edges, options.features, options.seed)
    data = dqconvert.DegreeProtection(p_min=0.0, p_max=0.1)(open_graph(folder))
    train_nodes = data.train_mask.nonzero()[:, 0]
    sample, how = loader_of(data, options.neighbors, torch.arange(options.nodes), options.batch_size)
    print(how, flush=True)

    torch.manual_seed(options.seed)
    model = GraphSAGE(options.features, options.hidden, num_layers=len(options.neighbors), out_channels=CLASSES)
    module, _ = dqconvert.prepare(model, options.preset, inputs_of(sample(train_nodes[: options.batch_size])))
    if options.measure:
        module.train()
        print(measure(model.train(), module, sample, train_nodes, options), peak_memory(), sep="\n", flush=True)
        return

    step, optimizer = stepper(module.train(), options.lr)
    done = 0
    if kept is not None:
        module.load_state_dict(kept["module"])
        optimizer.load_state_dict(kept["optimizer"])
        done = kept["steps"]
        print(f"goes on after {done} steps", flush=True)

    def checkpoint() -> None:
        if options.checkpoint is not None:
            contents = {"module": module.state_dict(), "optimizer": optimizer.state_dict()}
            save(options.checkpoint, {**contents, "steps": done, "settings": settings})

    in_epoch = -(-len(train_nodes) // options.batch_size)
    for number in range(done, options.epochs * in_epoch):
        epoch, place = divmod(number, in_epoch)
        if place == 0 or number == done:
            draw = torch.Generator().manual_seed(1_000_003 * options.seed + epoch)
            batches = train_nodes[torch.randperm(len(train_nodes), generator=draw)].split(options.batch_size)
        torch.manual_seed(1_000_003 * options.seed + 1009 * number)  # neighbours and protected nodes follow from it
        loss = step(sample(batches[place]))
        done = number + 1
        if done % options.log_every == 0 or place + 1 == in_epoch:
            print(f"epoch {epoch + 1}/{options.epochs} step {place + 1}/{in_epoch} loss {loss:.4f}", flush=True)
        if done % options.save_every == 0 or place + 1 == in_epoch or done == options.stop_after:
            checkpoint()
        if done == options.stop_after:
            return

    torch.manual_seed(options.seed)
    test_nodes = (~data.train_mask).nonzero()[: options.test_nodes, 0]
    found = accuracy(module.eval(), sample, test_nodes, options.batch_size)
    torch.manual_seed(options.seed)
    integers = accuracy(dqconvert.convert(module), sample, test_nodes, options.batch_size)
    print(f"{options.preset}: {found:.2f} % of {len(test_nodes)} test nodes, integers: {integers:.2f} %")
    if options.infer is not None:
        classes = of_all_nodes(model, module, sample(test_nodes[: options.batch_size]), data, options)
        right = (classes == data.y)[~data.train_mask].double().mean()
        print(f"by all neighbours, integers: {100 * right:.2f} % of all test nodes")
    print(peak_memory(), flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the graph's files, made there if missing")
    parser.add_argument("--checkpoint", type=Path, help="file, written every so many steps and after each epoch")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint, if there is one")
    parser.add_argument("--nodes", type=int, default=20_000)
    parser.add_argument("--edges", type=int, help="default: ten for each node")
    parser.add_argument("--features", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=512, help="nodes that a step trains on")
    parser.add_argument(
        "--neighbors", type=int, nargs="+", default=[10, 5], help="sampled per node, one for each layer"
    )
    parser.add_argument("--preset", default="int8-dq")
    parser.add_argument("--lr", type=float, default=0.005)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=5, metavar="STEPS")
    parser.add_argument("--save-every", type=int, default=100, metavar="STEPS")
    parser.add_argument("--stop-after", type=int, metavar="STEPS", help="stop there, with a checkpoint")
    parser.add_argument("--test-nodes", type=int, default=10_000, help="how many to test on")
    parser.add_argument("--infer", type=Path, metavar="DIR", help="classify all nodes in the end, with files there")
    parser.add_argument("--memory", default="6GiB", help="what the process may hold while it does (default: 6GiB)")
    parser.add_argument("--measure", type=int, default=0, metavar="STEPS", help="time so many steps, and train no more")
    options = parser.parse_args(arguments)
    if options.checkpoint is not None and options.checkpoint.exists() and not options.resume:
        sys.exit(f"{options.checkpoint} exists: go on from it with --resume, or remove it")
    if options.data is not None:
        run(options, options.data)
        return
    with tempfile.TemporaryDirectory() as folder:
        run(options, Path(folder))


if __name__ == "__main__":
    main()
