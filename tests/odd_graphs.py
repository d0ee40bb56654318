"""Graphs as nobody should pass them, into float, prepared and integer modules: an error of ours, the float model's, or
the right result; and nothing that failed leaves a trace.

    python -m tests.odd_graphs --count 2000 --seed 1 [--guard]

With `--guard` inputs, parameters and results lie between pages that must not be touched.
"""

from __future__ import annotations

import argparse
import copy
import faulthandler
import random
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import GAT, GCN, GIN, GCNConv, GraphSAGE, SAGEConv, global_mean_pool

import dqconvert
from dqconvert.errors import DQConvertError
from tests.guarded import guard_module, guard_results, guarded

WIDTH, CLASSES = 16, 5


class Weighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = GCNConv(WIDTH, 8), GCNConv(8, CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
        return self.second(self.first(x, edge_index, edge_weight).relu(), edge_index, edge_weight)


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.lin = SAGEConv(WIDTH, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        return self.lin(global_mean_pool(self.norm(self.conv(x, edge_index)).relu(), batch))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "GCN": lambda: GCN(WIDTH, 8, 2, CLASSES),
    "GIN": lambda: GIN(WIDTH, 8, 2, CLASSES, norm="batch_norm", dropout=0.3),
    "SAGE max": lambda: GraphSAGE(WIDTH, 8, 2, CLASSES, aggr="max"),
    "GAT": lambda: GAT(WIDTH, 8, 2, CLASSES, heads=2),
    "Weighted": Weighted,
    "Pooled": Pooled,
}


def graph(random: random.Random, kind: str) -> dict[str, Any]:
    """A graph that is one, of some odd size."""
    nodes, edges = random.choice([1, 2, 7, 40, 40, 40, 300]), random.choice([0, 1, 5, 160, 160, 2000])
    given = {"x": torch.randn(nodes, WIDTH), "edge_index": torch.randint(nodes, (2, edges))}
    if kind == "Weighted":
        given["edge_weight"] = torch.rand(edges)
    if kind == "Pooled":
        given["batch"] = torch.arange(nodes) * random.choice([1, 3]) // max(nodes, 1)
    return given


def wide(x: Tensor, random: random.Random) -> Tensor:
    return torch.randn(x.size(0), random.choice([0, 1, 8, WIDTH - 1, WIDTH + 1, 24, 100, 20_000]))


ODD: dict[str, Callable[[Tensor, random.Random], Any]] = {
    "as it is": lambda t, r: t,
    "wide": lambda t, r: wide(t, r) if t.dim() == 2 and t.is_floating_point() else t,
    "moved": lambda t, r: t + r.choice([1, -1, 40, 1 << 40]) if not t.is_floating_point() else t * 1e30,
    "one out": lambda t, r: one_out(t, r),
    "type": lambda t, r: t.to(r.choice(TYPES)),
    "columns": lambda t, r: t.t().contiguous().t() if t.dim() == 2 else torch.stack([t, t], 1)[:, 0],
    "backwards": lambda t, r: t.flip(0),
    "transposed": lambda t, r: t.t() if t.dim() < 3 else t,
    "shorter": lambda t, r: t[..., : t.size(-1) - r.choice([1, 2])] if t.dim() and t.size(-1) > 2 else t,
    "longer": lambda t, r: torch.cat([t, t[..., :1]], -1),
    "fewer": lambda t, r: t[: t.size(0) // 2],
    "vector": lambda t, r: t.reshape(-1),
    "matrices": lambda t, r: t[None],
    "a column": lambda t, r: t[..., None],
    "scalar": lambda t, r: torch.zeros((), dtype=t.dtype),
    "NaN": lambda t, r: some(t, r, float("nan")),
    "infinite": lambda t, r: some(t, r, r.choice([float("inf"), -float("inf"), 3e38])),
    "expanded": lambda t, r: t[..., :1].expand_as(t),
    "list": lambda t, r: t.tolist(),
    "numpy": lambda t, r: t.detach().numpy(),
    "none": lambda t, r: None,
    "sparse": lambda t, r: t.to_sparse(),
    "meta": lambda t, r: t.to("meta"),
    "asks for gradients": lambda t, r: t.clone().requires_grad_() if t.is_floating_point() else t,
    "negated": lambda t, r: torch.imag(torch.complex(t, t).conj()) if t.dtype == torch.float32 else t,
}
"""What becomes of a tensor."""

TYPES = (
    *(torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
)


def some(t: Tensor, random: random.Random, value: float) -> Tensor:
    if not t.is_floating_point() or t.numel() == 0:
        return t
    t = t.clone()
    t.view(-1)[random.randrange(t.numel())] = value
    return t


def one_out(t: Tensor, random: random.Random) -> Tensor:
    return some(t, random, 1e38) if t.is_floating_point() else _one(t, random.choice([-1, 300, 1 << 31, -(1 << 62)]))


def _one(t: Tensor, value: int) -> Tensor:
    if t.numel() == 0:
        return t
    t = t.clone()
    t.view(-1)[t.numel() // 2] = value
    return t


class Case:
    """A model in all modes, and how it is on a graph that it knows."""

    def __init__(self, kind: str, guard: bool) -> None:
        torch.manual_seed(0)
        self.kind, self.float = kind, MODELS[kind]().eval()
        given = {"x": torch.randn(40, WIDTH), "edge_index": torch.randint(40, (2, 160))}
        given |= {"Weighted": {"edge_weight": torch.rand(160)}, "Pooled": {"batch": torch.arange(40) // 10}}.get(
            kind, {}
        )
        fused, _ = dqconvert.prepare(self.float, "int8-dq", given)
        for _ in range(2):
            fused.train()(**given).sum().backward()
        plain = copy.deepcopy(fused)
        plain.fuse = False
        plain.recompile()
        self.modules = {"fused": fused, "plain": plain}
        self.integer = dqconvert.convert(copy.deepcopy(fused).eval())
        if guard:
            for module in (fused, plain, self.integer):
                guard_module(module)
        self.known = given

    def run(self, given: dict[str, Any]) -> Iterator[str]:
        """What happened, by mode.

        Raises:
            AssertionError: If it should not have.
        """
        # Integers of 32 bits name nodes, too, with which the float model fails in some layers.
        wide = {k: t.long() if isinstance(t, Tensor) and t.dtype == torch.int32 else t for k, t in given.items()}
        known, found = outcome(self.float, wide), {}
        in_training = outcome(copy.deepcopy(self.float).train(), wide)
        for name, module in self.modules.items():
            before = {key: value.clone() for key, value in module.state_dict().items()}
            state = torch.get_rng_state()
            trained = outcome(module.train(), given)
            if isinstance(trained, Exception):
                assert all(torch.equal(before[key], value) for key, value in module.state_dict().items()), name
                assert torch.equal(state, torch.get_rng_state()), f"{name}: random numbers were drawn"
            else:
                try:
                    trained.sum().backward()
                except RuntimeError as error:
                    assert "does not require grad" in str(error) or "not implemented for" in str(error), error  # noqa: PT017
            module.load_state_dict(before)
            found[name] = outcome(module.eval(), given)
            yield self.judged(f"{name}, training", trained, in_training)
            yield self.judged(name, found[name], known)
        found["integer"] = outcome(self.integer, given)
        yield self.judged("integer", found["integer"], known)
        right = found["plain"]
        for name in ("fused", "integer"):
            if isinstance(right, Tensor) and isinstance(found[name], Tensor):
                assert alike(found[name], right), f"{name}: {found[name]} where {right}"

    @staticmethod
    def judged(name: str, found: Any, known: Any) -> str:
        if not isinstance(found, Exception):
            return f"{name}: a result"
        if isinstance(found, DQConvertError):
            return f"{name}: our error"
        if isinstance(known, Exception) and type(found) is type(known):
            return f"{name}: float's error"
        raise AssertionError(f"{name}: {type(found).__name__}: {found}\nwhere float has {known!r:.300}") from found


def outcome(module: nn.Module, given: dict[str, Any]) -> Any:
    try:
        return module(**given)
    except Exception as error:
        return error


def alike(found: Tensor, right: Tensor) -> bool:
    """Whether two results are: rounding may go either way, and once is a step of the whole model."""
    if found.shape != right.shape:
        return False
    if not right.isfinite().all():
        return True
    scale = right.abs().max() if right.numel() else 0
    far = (found.double() - right.double()).abs() > 0.2 * scale + 1e-4
    return bool(far.double().mean() <= 0.05) if right.numel() else True


def main(count: int, seed: int, guard: bool, kinds: list[str]) -> Counter[str]:
    """Runs so many graphs."""
    warnings.simplefilter("ignore")
    chance, tally = random.Random(seed), Counter[str]()
    cases = [Case(kind, guard) for kind in kinds]
    if guard:
        guard_results()
    torch.manual_seed(seed)
    for number in range(count):
        case = cases[number % len(cases)]
        given = graph(chance, case.kind)
        done = {}
        for _ in range(chance.choice([1, 1, 2])):
            name, how = chance.choice(list(given)), chance.choice(list(ODD))
            try:
                given[name] = ODD[how](given[name], chance)
            except (RuntimeError, TypeError, AttributeError, IndexError, ValueError):
                continue  # torch itself does not make such a tensor
            done[name] = f"{done[name]}, {how}" if name in done else how
        given = {k: leaf(t) if isinstance(t, Tensor) else t for k, t in given.items()}
        if guard:
            given = {k: guarded(t, before=chance.random() < 0.3) if plain(t) else t for k, t in given.items()}
        try:
            tally.update(case.run(given))
        except Exception:
            shapes = {k: (tuple(t.shape), t.dtype) if isinstance(t, Tensor) else type(t) for k, t in given.items()}
            print(f"graph {number} of seed {seed}, {case.kind}, {done}: {shapes}", file=sys.stderr)
            traceback.print_exc()
            tally["FAILED"] += 1
            with torch.random.fork_rng():
                cases[number % len(cases)] = Case(case.kind, guard)  # who knows what was left behind
    return tally


def leaf(t: Tensor) -> Tensor:
    """The same without a history: backward passes of several modes end in it."""
    return t if t.is_leaf else t.detach().requires_grad_()


def plain(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_contiguous() and not value.is_neg() and not value.requires_grad


if __name__ == "__main__":
    faulthandler.enable()
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guard", action="store_true")
    parser.add_argument("--kinds", nargs="*", default=list(MODELS))
    options = parser.parse_args()
    torch.set_num_threads(2)
    found = main(options.count, options.seed, options.guard, options.kinds)
    for line, times in sorted(found.items()):
        print(times, line)
    sys.exit(found["FAILED"] > 0)
