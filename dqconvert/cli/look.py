"""Commands that read files and show or run what is in them: ``inspect``, ``run``, ``compare``, ``evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dqconvert.commands.options import Data, Force, JsonOfAll, Model, Output, Plot, QConfigName, Scoring


def inspect(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A prepared or integer file, or a float checkpoint (with --model).")
    ],
    model: Model,
    graph: Annotated[bool, typer.Option("--graph", help="The rewritten graph as a tree (the default).")] = False,
    code: Annotated[bool, typer.Option("--code", help="The generated forward.")] = False,
    report: Annotated[bool, typer.Option("--report", help="The quantizers, and what stayed in float and why.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Float graph and rewritten graph side by side.")] = False,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write the graph as a web page.")] = None,
    comparison: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Color the page's layers by what `dqconvert compare --json` printed."),
    ] = None,
    as_json: JsonOfAll = False,
    qconfig: QConfigName = "int8-dq",
    force: Force = False,
) -> None:
    """Show what is in a prepared or an integer file. Of a float checkpoint it shows what convert would make of it.

    Nothing that a file names is imported or run.

    Example: dqconvert inspect gin.dq --report
    """
    chosen = [name for name, wanted in (("graph", graph), ("code", code), ("report", report), ("diff", diff)) if wanted]
    if len(chosen) + (html is not None) + as_json > 1:
        raise typer.BadParameter("choose one of --graph, --code, --report, --diff, --html and --json.")

    from dqconvert.commands.inspect import inspect as run

    form = [*chosen, "graph"][0]
    run(model.of(file), qconfig=qconfig, form=form, html=html, comparison=comparison, force=force, as_json=as_json)


def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An integer file, or an exported .onnx file.")],
    data: Data,
    output: Output,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="PRED", help="Safetensors file to write.")] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="The most to hold, 2GiB say: the graph is run in chunks.")
    ] = None,
    store: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With --memory: a folder on disk for what does not fit.")
    ] = None,
) -> None:
    """Run an integer file, or an ONNX file, on saved inputs. Needs no code of the model.

    With --memory one graph of any size is run, with the same result. If it
    is stopped, the same command goes on where it was. Inputs that are not
    to be read into memory are in a .safetensors file.

    Example: dqconvert run gcn.int8 --data graph.pt -o predictions.safetensors
    """
    from dqconvert.commands.run import run as run_file

    if (memory is None) != (store is None):
        raise typer.BadParameter("--memory and --store go together.")
    run_file(file, data, output, out=out, within=None if memory is None or store is None else (memory, store))


def compare(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CKPT", help="The float model's checkpoint, or a prepared file.")
    ],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The integer or prepared file that was made of it.")],
    data: Data,
    model: Model,
    plot: Plot = None,
    as_json: JsonOfAll = False,
) -> None:
    """Compare a float model with its integer file, value by value: signal-to-noise ratios, worst first.

    Example: dqconvert compare gcn.pt gcn.int8 --data graph.pt --model torch_geometric.nn:GCN
    --kwargs '{"in_channels": 16, "hidden_channels": 32, "num_layers": 2}'
    """
    from dqconvert.commands.compare import compare as compare_files

    compare_files(model.of(checkpoint), file, data, plot=plot, as_json=as_json)


def evaluate(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CKPT", help="The float model's checkpoint; or a file, which others are held to.")
    ],
    data: Data,
    model: Model,
    scoring: Scoring,
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE...", help="Prepared, integer, .pt2 and .onnx files of it.")
    ] = None,
    plot: Plot = None,
    as_json: JsonOfAll = False,
) -> None:
    """Evaluate a float checkpoint, and files made of it, side by side: accuracy, agreement, times, memory, sizes.

    Example: dqconvert evaluate gcn.pt gcn.dq gcn.int8 --data graph.pt --mask test_mask
    --model torch_geometric.nn:GCN --kwargs '{"in_channels": 16, "hidden_channels": 32, "num_layers": 2}'
    """
    from dqconvert.commands.evaluate import evaluate as evaluate_files

    evaluate_files(model.of(checkpoint), files or (), data, scoring, plot=plot, as_json=as_json)
