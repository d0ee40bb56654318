"""Several ranks: ranges are those of the union of their values, on every rank, bit for bit."""

import copy
import functools
import itertools
import warnings
from dataclasses import replace

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch_geometric.nn import GAT, GCN, GIN, GraphSAGE

import dqconvert
from dqconvert.bench.case import Case, build
from dqconvert.bench.collectives import collectives_of
from dqconvert.bench.timing import interleave
from dqconvert.bench.variants import step_of, variants_of
from dqconvert.distributed import ranks_of
from dqconvert.errors import DistributedError
from dqconvert.kernels.cpu.beyond import percentiles_among
from dqconvert.kernels.cpu.select import Rows, percentiles
from dqconvert.kernels.of_ranks import pair_of_ranks
from dqconvert.qconfig import QSpec
from dqconvert.quant import FakeQuantize, fused
from ranks import on_ranks

MODELS = {"GCN": GCN, "GIN": GIN, "SAGE": GraphSAGE, "GAT": GAT}
CONFIGS = {name: name for name in ("int8-dq", "int4-dq", "int8-qat", "int8-lsq", "int4-dq+")}
CONFIGS["channel"] = {"activation": {"granularity": "channel"}}
RELATIVE = {"range": "relative"}
CONFIGS["relative"] = dict.fromkeys(("weight", "activation", "message", "aggregate"), RELATIVE)
AVERAGED = {"range": "percentile", "percentile": 0.01, "momentum": 0.1}
CONFIGS["averaged percentiles"] = {"activation": AVERAGED, "message": AVERAGED, "aggregate": AVERAGED}
SIZES = (40, 23)


@functools.cache
def prepared(model, config, fuse, **changes):
    torch.manual_seed(0)
    given = CONFIGS[config]
    qconfig = replace(dqconvert.presets[given], **changes) if isinstance(given, str) else {**given, **changes}
    return dqconvert.prepare(MODELS[model](8, 16, 2, 5), qconfig, fuse=fuse)[0]


def made(*args, **kwargs):
    return copy.deepcopy(prepared(*args, **kwargs))


def graph(rank, step, nodes):
    draw = torch.Generator().manual_seed(100 * step + rank)
    x = torch.randn(nodes, 8, generator=draw) * (1 + rank)
    return x, torch.randint(max(nodes, 1), (2, 4 * nodes), generator=draw), torch.randint(5, (nodes,), generator=draw)


def joined(graphs):
    """One graph of several."""
    starts = itertools.accumulate((len(x) for x, _, _ in graphs), initial=0)
    edges = [edge_index + start for (_, edge_index, _), start in zip(graphs, starts, strict=False)]
    return torch.cat([g[0] for g in graphs]), torch.cat(edges, dim=1), torch.cat([g[2] for g in graphs])


def loss_of(module, x, edge_index, y):
    return torch.nn.functional.cross_entropy(module(x, edge_index), y, reduction="sum")


def ranges(module):
    return {path: [end.tolist() for end in (q.min_val, q.max_val)] for path, q in module.quantizers()}


def state(module):
    return {name: value.flatten().tolist() for name, value in module.state_dict().items()}


def trained(rank, model, config, fuse, steps=3):
    """Some steps of DistributedDataParallel; at the last but one, rank 1 has no data."""
    ddp = DistributedDataParallel(made(model, config, fuse))
    optimizer = torch.optim.Adam(ddp.parameters(), 1e-2)
    torch.manual_seed(rank)
    for step in range(steps):
        nodes = 0 if rank == 1 and step == steps - 2 else 30 + 7 * rank + step
        loss_of(ddp, *graph(rank, step, nodes)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return state(ddp.module)


def first_step(rank, model, config, fuse, number=2):
    """Ranges and the loss of one step, and those of one process that has all data."""
    graphs = [graph(other, 0, SIZES[other % 2]) for other in range(number)]
    module, alone = (made(model, config, fuse, protect=None) for _ in range(2))
    loss = loss_of(module, *graphs[rank])
    with dqconvert.sync_ranges(False):
        wanted = loss_of(alone, *joined(graphs))
    return ranges(module), ranges(alone), loss.item(), wanted.item()


QUICK = (("GCN", "int8-dq", True), ("GAT", "int4-dq", True), ("SAGE", "int8-qat", False), ("GIN", "int8-lsq", True))
LONG = (
    *itertools.product(("GIN", "SAGE", "GAT"), ("int8-dq",), (True,)),
    *(("GCN", "int8-dq", False), ("GIN", "int8-qat", True), ("GCN", "int8-lsq", True), ("SAGE", "int4-dq+", True)),
    *(("GIN", "channel", False), ("GCN", "averaged percentiles", True), ("SAGE", "relative", True)),
)
CASES = [*QUICK, *(pytest.param(*case, marks=pytest.mark.study) for case in LONG)]


def all_of(rank, cases):
    found = {case: (trained(rank, *case), first_step(rank, *case)) for case in cases}
    return found | ({check: check(rank) for check in CHECKS} if cases is QUICK else {})


@functools.cache
def on_two(cases):
    for case in cases:  # models are prepared and loops compiled once, before there are two processes
        loss_of(made(*case, protect=None), *graph(0, 0, 30)).backward()
        prepared(*case)
    return on_ranks(2, all_of, cases)


def found(*case):
    return [one[case] for one in on_two(QUICK if case in QUICK else LONG)]


@pytest.mark.study
@pytest.mark.parametrize(("model", "config", "fuse"), CASES)
def test_every_rank_has_the_same_state(model, config, fuse):
    (one, _), (two, _) = found(model, config, fuse)
    assert [name for name in one if one[name] != two[name]] == []


@pytest.mark.parametrize(("model", "config", "fuse"), CASES)
def test_ranges_are_those_of_one_process_that_has_all_data(model, config, fuse):
    both = found(model, config, fuse)
    for _, (got, wanted, _, _) in both:
        assert [path for path in wanted if got[path] != wanted[path]] == []
    (_, _, one, wanted), (_, _, two, _) = (first for _, first in both)
    assert one + two == pytest.approx(wanted, rel=1e-5)


# -- what runs on the ranks, once for all tests -----------------------------------------------------------------


def values_of(kind):
    """Of both ranks; more than are simply all looked at."""
    draw = torch.Generator().manual_seed(7)
    parts = [torch.randn(rows, 40, generator=draw) * scale for rows, scale in ((700, 1.0), (500, 3.0))]
    if kind == "zeros":
        parts = [part.relu() for part in parts]
    if kind == "one rank has none":
        parts[0] = parts[0][:0]
    if kind == "odd":
        parts[0][0], parts[1][3, 3] = torch.nan, torch.inf
    return parts


KINDS = ("any", "zeros", "one rank has none", "odd")
BOUNDS = (None, (-3.0, 4.0), (-1e-3, 1e-3), (-50.0, 50.0))


def percentiles_agree(rank):
    """By compiled loops, and by torch's operations: what is not that of all values together."""
    wrong = []
    for kind, p, bounds in itertools.product(KINDS, (0.0, 0.001, 0.2), BOUNDS):
        parts, ranks = values_of(kind), ranks_of("any")
        every = torch.cat(parts)
        wanted = percentiles(Rows(every.numpy(), None), p)
        got = percentiles_among(Rows(parts[rank].numpy(), None), p, bounds, ranks)
        low, high = pair_of_ranks(parts[rank], p, ranks)
        within = [end if end is None or bounds is None or not inside(end, bounds) else None for end in wanted[:2]]
        ends = [end if end is None or bounds is None or not inside(end, bounds) else None for end in got[:2]]
        if ends != within or got[2:] != wanted[2:] or (low.item(), high.item()) != wanted[:2]:
            wrong.append((kind, p, bounds, got, wanted, low.item(), high.item()))
    return wrong


def inside(end, bounds):
    return bounds[0] <= end <= bounds[1]


def each_by_itself(rank):
    module = made("GCN", "int8-dq", True)
    with dqconvert.sync_ranges(False):
        loss_of(module, *graph(rank, 0, 30))
    return ranges(module)


def elsewhere(rank):
    """One rank goes on to the next layer, which the other has not reached."""
    x = torch.randn(5, 3)
    quantizers = [FakeQuantize(QSpec(), name=f"convs.{number}.quant.input", signed=True) for number in range(2)]
    with pytest.raises(DistributedError, match=r"dqconvert\.sync_ranges"):
        quantizers[rank](x)
    return True


def batches(rank):
    """One rank has fewer batches to calibrate on."""
    module = made("GCN", "int8-dq", True)
    data = [graph(rank, step, 20)[:2] for step in range(2 - rank)]
    with pytest.raises(DistributedError, match="after 1 batches 1 of 2 ranks"):
        dqconvert.calibrate(module, data)
    dqconvert.calibrate(module, data, batches=1)
    return ranges(module)


def resumed(rank):
    """Losses of two steps, and the same again by what was kept before them: of another module, in DDP again."""

    def parts():
        ddp = DistributedDataParallel(made("GCN", "int8-dq", True))
        return ddp, torch.optim.Adam(ddp.parameters(), 1e-2)

    def step(ddp, optimizer, number):
        loss = loss_of(ddp, *graph(rank, number, 30 + rank))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    ddp, optimizer = parts()
    torch.manual_seed(rank)
    step(ddp, optimizer, 0)
    kept = copy.deepcopy((ddp.module.state_dict(), optimizer.state_dict())), torch.get_rng_state()
    wanted = [step(ddp, optimizer, number) for number in (1, 2)]
    ddp, optimizer = parts()
    for one, state_dict in zip((ddp.module, optimizer), kept[0], strict=True):
        one.load_state_dict(state_dict)
    torch.set_rng_state(kept[1])
    return wanted, [step(ddp, optimizer, number) for number in (1, 2)]


def sharded(rank, model, config, fuse):
    """Some steps of FSDP2, and an evaluation: ranges, and whether all of it is finite."""
    module = made(model, config, fuse)
    fully_shard(module, mesh=init_device_mesh("cpu", (distributed.get_world_size(),)))
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    torch.manual_seed(rank)
    for step in range(2):
        loss_of(module, *graph(rank, step, 30 + 7 * rank)).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        out = module.eval()(*graph(rank, 5, 20)[:2])
    return ranges(module), bool(out.isfinite().all())


def of_shards(rank, models=("GCN",)):
    return [sharded(rank, model, "int8-dq", fuse) for model in models for fuse in (True, False)]


def learned_of_shards(rank):
    """Learned steps that FSDP2 ignores: refused, unless a hook averages their gradients; then they agree."""

    def sharded_with(steps):
        module = made("GIN", "int8-lsq", True)
        ignored = steps(module)
        fully_shard(module, mesh=init_device_mesh("cpu", (distributed.get_world_size(),)), ignored_params=ignored)
        return module

    module = sharded_with(lambda module: set(learned(module).values()))
    with pytest.raises(DistributedError, match="nobody averages their gradients"):
        module(*graph(rank, 0, 30)[:2])
    module, ddp = sharded_with(dqconvert.average_learned_steps), DistributedDataParallel(made("GIN", "int8-lsq", True))
    for one in (module, ddp):
        optimizer = torch.optim.SGD(one.parameters(), 1e-4)
        torch.manual_seed(rank)
        for step in range(3):
            loss_of(one, *graph(rank, step, 30 + 7 * rank)).backward()
            optimizer.step()
            optimizer.zero_grad()
    return [{name: step.tolist() for name, step in learned(one).items()} for one in (module, ddp.module)]


def learned(module):
    return {name: one for name, one in module.named_parameters() if name.endswith(("log_scale", "offset"))}


class Widest(torch.nn.Module):
    """A user's quantizer, whose range is its own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("top", torch.tensor(0.0))

    def forward(self, x, protected=None):
        if self.training:
            self.top.copy_(torch.maximum(self.top, x.detach().abs().amax()))
        return x


class Halves(torch.nn.Module):
    def forward(self, x, protected=None):
        return (x * 2).round() / 2


def own_quantizers(rank):
    """How often ranks are warned of a user's quantizer, by kind."""

    def warned(factory, **changes):
        rules = [{"module": "convs.0", "role": "message", "spec": factory}]
        module = dqconvert.prepare(GCN(8, 16, 2, 5), {"preset": "int8-qat", "rules": rules})[0]
        for child in module.modules():
            if isinstance(child, factory):
                vars(child).update(changes)
        with warnings.catch_warnings(record=True) as met:
            warnings.simplefilter("always")
            for step in range(2):
                module(*graph(rank, step, 30)[:2])
            with dqconvert.sync_ranges(False):
                module(*graph(rank, 3, 30)[:2])
        return [str(one.message) for one in met if "synchronized = True" in str(one.message)]

    return warned(Widest), warned(Widest, synchronized=True), warned(Halves)


def norm_of_all(rank):
    """What becomes of a SyncBatchNorm on CPUs, which torch has none for: of many values, too, its own error."""
    norm = torch.nn.SyncBatchNorm(64)
    quantizer = FakeQuantize(QSpec(), name="norm.quant.feature", signed=True)
    with pytest.raises(ValueError, match="SyncBatchNorm"):
        fused.batch_norm(torch.randn(600, 64), norm, fused.FusedChain(second=quantizer))
    return True


def settled_calls(rank):
    """By model: collectives of a training step whose ranges do not move; those without sharing; and how many may be."""
    found = {}
    for model, config, fuse in QUICK[:2]:
        module = made(model, config, fuse, protect=None)
        ddp = DistributedDataParallel(module)
        data = graph(rank, 0, 30 + rank)

        def step(ddp=ddp, data=data):
            loss_of(ddp, *data).backward()

        for _ in range(3):
            step()
        on = collectives_of(step)
        with dqconvert.sync_ranges(False):
            found[model] = on, collectives_of(step), levels(module)
    return found


def levels(module):
    """How many ranges follow one from the other in the graph that runs: the ranks cannot say less often."""
    depth = {}
    for node in module._runs(module.graph).nodes:
        depth[node] = max((depth[one] for one in node.all_input_nodes), default=0) + ranges_of(module, node)
    return max(depth.values())


def ranges_of(module, node):
    """The ranges that an operator moves, of a chain all at once; those of weights are the same on every rank."""

    def observes(one):
        path = str(getattr(one, "target", ""))
        quantizer = path in quantizers and not path.endswith(".weight")
        return quantizer or (isinstance(one, fused.FusedChain) and any(map(observes, one.quantizers)))

    quantizers = dict(module.quantizers())
    if node.op == "get_attr":
        return 0
    return sum(map(observes, (node, *node.args, *node.kwargs.values())))


CHECKS = (norm_of_all, percentiles_agree, each_by_itself, elsewhere, batches, resumed, of_shards)
CHECKS += (learned_of_shards, own_quantizers, settled_calls)


def test_percentiles_are_those_of_all_ranks_values():
    assert [one[percentiles_agree] for one in on_two(QUICK)] == [[], []]


def test_settled_steps_say_so_once_per_level():
    """And two more calls a step: that of the gradients, and one of DistributedDataParallel's buffers."""
    for found in (one[settled_calls] for one in on_two(QUICK)):
        for on, off, most in found.values():
            assert 1 <= off <= 2 < on <= most + 2


def test_switched_off_ranks_observe_by_themselves():
    one, two = (one[each_by_itself] for one in on_two(QUICK))
    weights = [path for path in one if path.rpartition(".")[2] == "weight"]
    assert weights
    assert all((one[path] == two[path]) == (path in weights) for path in one)


def test_ranks_that_are_not_at_the_same_place_are_told():
    assert [one[elsewhere] for one in on_two(QUICK)] == [True, True]


def test_ranks_calibrate_together():
    one, two = (one[batches] for one in on_two(QUICK))
    assert one == two


def test_a_norm_over_all_ranks_is_none_of_one():
    assert [one[norm_of_all] for one in on_two(QUICK)] == [True, True]


def test_learned_steps_of_shards_are_refused_or_averaged():
    (one, wanted), (two, _) = (one[learned_of_shards] for one in on_two(QUICK))
    assert one == two == wanted
    assert sum(value != 0 for value in one.values()) > len(one) / 2


def test_ranks_are_told_once_of_quantizers_that_may_differ():
    for told, *quiet in (one[own_quantizers] for one in on_two(QUICK)):
        assert len(told) == 1
        assert "convs.0.quant.message" in told[0]
        assert quiet == [[], []]


def test_a_resumed_training_goes_on_as_it_would_have():
    for wanted, got in (one[resumed] for one in on_two(QUICK)):
        assert got == wanted


def fits(both):
    for (one, fine), (two, _) in zip(*both, strict=True):
        assert fine
        assert one == two


def test_shards_train_and_evaluate():
    fits([one[of_shards] for one in on_two(QUICK)])


@pytest.mark.study
def test_shards_of_more_models_train_and_evaluate():
    fits(on_ranks(2, of_shards, ("GIN", "SAGE", "GAT")))


FOUR = list(itertools.product(MODELS, ("int8-dq", "int4-dq", "int8-qat", "int8-lsq"), (True, False)))[::3]
"""Of 32 every third, in which each model, preset and way to train occurs: a case takes ten seconds."""


def fifty(rank, case):
    return trained(rank, *case, steps=50), first_step(rank, *case, number=4)


@pytest.mark.study
@pytest.mark.parametrize("case", FOUR, ids=str)
def test_four_ranks_have_the_same_state_after_fifty_steps(case):
    made(*case)(*graph(0, 0, 30)[:2])  # compiles
    ranks = on_ranks(4, fifty, case)
    states, firsts = zip(*ranks, strict=True)
    assert [name for name in states[0] if any(one[name] != states[0][name] for one in states)] == []
    for got, wanted, *_ in firsts:
        assert got == wanted
    assert sum(one[2] for one in firsts) == pytest.approx(firsts[0][3], rel=1e-5)


def together_and_alone(rank):
    """Times of settled steps on half of W1 each, observing together and not, in turns."""
    step = step_of(variants_of(["int8-dq"])[0], build(Case(workload="W1", scale=0.5), seed=rank))
    ddp = DistributedDataParallel(step.module)

    def one(enabled):
        with dqconvert.sync_ranges(enabled):
            args, kwargs = step.inputs.call()
            torch.nn.functional.cross_entropy(ddp(*args, **kwargs), step.target).backward()

    for _ in range(30):
        one(True)
    times = interleave({name: functools.partial(one, name) for name in (True, False)}, rounds=15)
    return times[True].median / times[False].median


@pytest.mark.idle
def test_observing_together_costs_little_time():
    step_of(variants_of(["int8-dq"])[0], build(Case(workload="W1", scale=0.05)))()  # compiles
    ratios = on_ranks(2, together_and_alone)
    print("step observing together / alone, by rank:", *(f"{ratio:.3f}" for ratio in ratios))
    assert max(ratios) < 1.25  # 1.10 on an idle machine
