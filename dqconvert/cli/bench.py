"""``dqconvert bench``: its commands' options and help; what they measure is in :mod:`dqconvert.bench`.

Like :mod:`dqconvert.cli`, it imports what it needs only when a command runs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from dqconvert.cli.bench_runs import begin, cases_of, check_names, end, once, own_model, progress_bar, workloads

bench = typer.Typer(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})


@bench.callback()
def _bench() -> None:
    """Measure on this machine how fast dqconvert is.

    Example: dqconvert bench train --workload W1
    """


_Threads = Annotated[int, typer.Option(min=1, help="Threads of torch and of the kernels.")]
_Chart = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write a chart: .png, .svg or .pdf. Needs the extra 'plot'.")
]
_Json = Annotated[bool, typer.Option("--json", help="Print the results as JSON only.")]
_Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]


@bench.command()
def train(
    workload: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="W1 to W5, repeatable. Default: all, unless --model is given."),
    ] = None,
    preset: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Preset, repeatable. Default: int8-dq.")
    ] = None,
    variant: Annotated[
        list[str] | None, typer.Option(metavar="FORM", help="fused or unfused kernels, repeatable. Default: fused.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps of each variant.")] = 9,
    warmup: Annotated[
        int, typer.Option(min=1, help="Untimed steps before: while ranges grow, a step takes longer.")
    ] = 10,
    threads: _Threads = 2,
    scale: Annotated[
        float, typer.Option(min=0.0001, max=100, help="Scales the workload's graph, which is then generated.")
    ] = 1.0,
    edges: Annotated[
        list[int] | None, typer.Option(min=1, help="Edges of W2, W3 or W4, repeatable, to see growth.")
    ] = None,
    features: Annotated[
        list[int] | None, typer.Option(min=1, help="Features of a node and width of the hidden layer, likewise.")
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", envvar="DQCONVERT_DATA", help="PyG's datasets, for W1 and W5; downloaded there if missing."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="PKG.MOD:NAME", help="Your own model instead: a class or function.")
    ] = None,
    kwargs: Annotated[
        str | None, typer.Option(metavar="JSON", help="The arguments of --model, as a JSON object.")
    ] = None,
    example: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The inputs of --model: a saved Data, tuple or dict.")
    ] = None,
    memory: Annotated[bool, typer.Option(help="Measure memory, in a process per variant.")] = True,
    phases: Annotated[bool, typer.Option(help="Profile where the time goes.")] = True,
    chart: _Chart = None,
    as_json: _Json = False,
    quiet: _Quiet = False,
) -> None:
    """Time a training step of prepared models against the float model's.

    The float model runs with an edge_index and, where its layers take
    one, with a CSR adjacency. Steps alternate, ratios are of medians.

    Example: dqconvert bench train --workload W1 --workload W2 --preset int8-dq
    """
    if (model is None) != (example is None):
        raise typer.BadParameter("--model and --example go together.")
    if model is not None and (workload or edges or features or scale != 1):
        raise typer.BadParameter("--workload, --edges, --features and --scale do not apply to a --model of your own.")
    if kwargs is not None and model is None:
        raise typer.BadParameter("--kwargs are the arguments of a --model.")
    chosen = list(preset or ["int8-dq"])
    forms = list(variant or ["fused"])

    # torch's profiler reads it when torch is imported, and would write notes of its own to stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    from dqconvert.bench.train import TrainSettings, run
    from dqconvert.bench.variants import FORMS, variants_of
    from dqconvert.qconfig import presets

    check_names("--preset", chosen, list(presets))
    check_names("--variant", forms, FORMS)
    if model is None:
        where = None if root is None else str(root)
        cases = workloads(workload, edges, features, scale=scale, root=where)
    else:
        cases = own_model(model, kwargs, str(example))
    settings = TrainSettings(steps=steps, warmup=warmup, threads=threads, memory=memory, phases=phases)
    begin(chart)
    with progress_bar(silent=quiet or as_json) as progress:
        result = run(cases, variants_of(once(chosen), once(forms)), settings, progress)

    from dqconvert.bench.charts import draw_train
    from dqconvert.bench.tables import show_train

    end(result, show_train, draw_train, chart=chart, as_json=as_json)


@bench.command()
def infer(
    workload: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="V1 to V6, repeatable. Default: all.")
    ] = None,
    preset: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Preset, repeatable. Default: int8-dq and int4-dq.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed forwards of each engine; more where they are short.")] = 5,
    threads: _Threads = 2,
    scale: Annotated[
        float, typer.Option(min=0.0001, max=100, help="Scales the workload's graph, which is then generated.")
    ] = 1.0,
    root: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", envvar="DQCONVERT_DATA", help="PyG's datasets, for V5 and V6; downloaded there if missing."
        ),
    ] = None,
    cold: Annotated[bool, typer.Option(help="Also measure graphs that were not seen before.")] = True,
    bf16: Annotated[bool, typer.Option(help="Also measure the float model in bfloat16.")] = True,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Also measure it through torch.compile, which takes a minute to compile.")
    ] = False,
    memory: Annotated[bool, typer.Option(help="Measure memory, in a process per engine.")] = True,
    phases: Annotated[bool, typer.Option(help="Count the time of each operation of the integer modules.")] = True,
    chart: _Chart = None,
    as_json: _Json = False,
    quiet: _Quiet = False,
) -> None:
    """Time a forward of integer modules against the float model's.

    The float model runs with an edge_index, with a CSR adjacency where its
    layers take one, and in bfloat16. Forwards alternate, ratios are of medians.

    Example: dqconvert bench infer --workload V1 --workload V6
    """
    chosen = list(preset or ["int8-dq", "int4-dq"])

    from dqconvert.bench.engines import engines_of
    from dqconvert.bench.infer import InferSettings, run
    from dqconvert.bench.workloads import INFERENCE
    from dqconvert.qconfig import presets

    check_names("--preset", chosen, list(presets))
    cases = cases_of(workload, list(INFERENCE), scale=scale, root=root)
    settings = InferSettings(rounds=rounds, threads=threads, cold=cold, memory=memory, phases=phases)
    begin(chart)
    with progress_bar(silent=quiet or as_json) as progress:
        result = run(cases, engines_of(once(chosen), bfloat16=bf16, compiled=compiled), settings, progress)

    from dqconvert.bench.charts import draw_infer
    from dqconvert.bench.tables import show_infer

    end(result, show_infer, draw_infer, chart=chart, as_json=as_json)


@bench.command()
def prepare(
    layers: Annotated[
        list[int] | None, typer.Option(min=1, help="Number of layers, repeatable. Default: 2 to 64.")
    ] = None,
    width: Annotated[
        list[int] | None, typer.Option(min=1, help="Width of the layers, repeatable. Default: 32 to 1024.")
    ] = None,
    preset: Annotated[str, typer.Option(metavar="NAME", help="Preset to prepare with.")] = "int8-dq",
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions of each.")] = 3,
    threads: _Threads = 2,
    chart: _Chart = None,
    as_json: _Json = False,
    quiet: _Quiet = False,
) -> None:
    """Time dqconvert.prepare against the number of layers, and of parameters.

    Example: dqconvert bench prepare --layers 2 --layers 4 --layers 8
    """
    from dqconvert.bench.prepare import LAYERS, WIDTHS, run
    from dqconvert.qconfig import presets

    check_names("--preset", [preset], list(presets))
    begin(chart)
    with progress_bar(silent=quiet or as_json) as progress:
        result = run(
            layers=once(layers or LAYERS),
            widths=once(width or WIDTHS),
            preset=preset,
            repeats=repeats,
            num_threads=threads,
            progress=progress,
        )

    from dqconvert.bench.charts import draw_prepare
    from dqconvert.bench.tables import show_prepare

    end(result, show_prepare, draw_prepare, chart=chart, as_json=as_json)


@bench.command()
def sweep(
    seconds: Annotated[float, typer.Option(min=0, help="Time after which no other shape is begun.")] = 600,
    quick: Annotated[bool, typer.Option("--quick", help="Half a minute of small shapes.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the sample.")] = 0,
    threads: _Threads = 2,
    as_json: _Json = False,
    quiet: _Quiet = False,
) -> None:
    """Look for shapes at which something is slower than what it replaces.

    Layers, presets, nodes and widths, a random sample of their grid: a training
    step fused over one that is not, a forward in integers over one in float.
    With --threads 1 the processor's time counts, whatever else the machine does.

    Example: dqconvert bench sweep --quick --threads 1
    """
    from dqconvert.bench.sweep import SweepSettings, run

    wanted = SweepSettings(seconds=seconds, seed=seed, threads=threads)
    if quick:
        wanted = SweepSettings(seconds=min(seconds, 30), largest=1 << 20, seed=seed, threads=threads)
    begin(None)
    with progress_bar(silent=quiet or as_json) as progress:
        result = run(wanted, progress)

    from dqconvert.bench.tables import show_sweep

    end(result, show_sweep, None, chart=None, as_json=as_json)


@bench.command()
def plan(
    nodes: Annotated[int, typer.Option(min=1, help="Nodes of the graph.")],
    edges: Annotated[int, typer.Option(min=1, help="Edges, each direction counted.")],
    features: Annotated[int, typer.Option(min=1, help="Features of a node.")] = 128,
    hidden: Annotated[int, typer.Option(min=1, help="Width of the hidden layers.")] = 128,
    classes: Annotated[int, typer.Option(min=1, help="Width of the output.")] = 40,
    model: Annotated[str, typer.Option(metavar="NAME", help="GCN, GIN, SAGE or GAT.")] = "GCN",
    layers: Annotated[int, typer.Option(min=1, help="Number of layers.")] = 2,
    qconfig: Annotated[str, typer.Option(metavar="NAME", help="Preset, or path to a config.")] = "int8-dq",
    ranks: Annotated[int, typer.Option(min=1, help="Processes that train together.")] = 1,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Train on sampled neighbourhoods of that many nodes.")
    ] = None,
    fanout: Annotated[
        list[int] | None, typer.Option(help="Neighbours sampled per node, repeatable: one for each layer; -1: all.")
    ] = None,
    train_nodes: Annotated[
        int | None, typer.Option(min=1, help="Nodes that train, with --batch. Default: all.")
    ] = None,
    network: Annotated[
        float | None, typer.Option(min=0.001, metavar="GBIT", help="Gbit/s between ranks. Default: measured here.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Measure three larger sizes, too, and compare.")] = False,
    threads: _Threads = 2,
    as_json: _Json = False,
    quiet: _Quiet = False,
) -> None:
    """Plan memory, traffic and time on a graph that is not here.

    Measures the model on small graphs of this machine, and counts up: a
    training epoch and an inference, in float and with the config.
    With --threads 1 the processor's time counts, whatever else the machine does.

    Example: dqconvert bench plan --nodes 111000000 --edges 1600000000
    """
    from dqconvert.bench.plan import Wanted
    from dqconvert.bench.probes import run
    from dqconvert.bench.sweep import LAYERS
    from dqconvert.bench.workloads import Size

    check_names("--model", [model], list(LAYERS))
    wanted = Wanted(
        size=Size(nodes=nodes, edges=edges, features=features, hidden=hidden, classes=classes),
        layer=model,
        layers=layers,
        qconfig=qconfig,
        ranks=ranks,
        batch=batch,
        fanout=tuple(fanout or ()),
        train_nodes=train_nodes,
        threads=threads,
    )
    begin(None)
    with progress_bar(silent=quiet or as_json) as progress:
        result = run(wanted, link=None if network is None else network * 1e9 / 8, check=check, progress=progress)

    from dqconvert.bench.plan_table import show_plan

    end(result, show_plan, None, chart=None, as_json=as_json)
