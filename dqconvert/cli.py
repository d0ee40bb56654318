"""The command line. Each command is one function here, which imports what it needs only when it runs.

To add a command: a function under ``@app.command()``; its docstring is its help, and ends with an example. The commands
of ``dqconvert bench``, a group of their own, are in :mod:`dqconvert.commands.bench`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dqconvert import __version__
from dqconvert.commands.bench import bench
from dqconvert.errors import DQConvertError, UsageError


class _Commands(TyperGroup):
    """The group of all commands. Every :class:`DQConvertError` ends here: one line on stderr, exit code 1 or 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except DQConvertError as error:
            if ctx.params["debug"]:
                raise
            typer.echo(f"dqconvert: {'; '.join(str(error).splitlines())}", err=True)
            raise typer.Exit(2 if isinstance(error, UsageError) else 1) from error


app = typer.Typer(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dqconvert {__version__}")
        raise typer.Exit


@app.callback()
def _dqconvert(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Turn a float PyTorch Geometric model into a trainable Degree-Quant model, and that into an integer model.

    Exit codes: 0 done, 1 failed, 2 wrong usage (a name, an option or its value).

    Example: dqconvert demo
    """


@app.command()
def demo(
    seed: Annotated[int, typer.Option(min=0, help="Seed of the graph, the weights and the training.")] = 0,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of the float training and of each fine-tuning.")] = 50,
    out: Annotated[Path | None, typer.Option(help="Folder to keep the float checkpoint in.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON only.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the table of results only.")] = False,
) -> None:
    """Quantize a GCN on a generated graph: train in float, prepare, fine-tune, compare. Needs no download.

    Example: dqconvert demo --seed 1 --epochs 50
    """
    import json

    from rich.console import Console
    from rich.progress import Progress

    from dqconvert.demo import run, show

    stdout, stderr = Console(), Console(stderr=True)
    silent = quiet or as_json or not (stdout.is_terminal and stderr.is_terminal)
    with Progress(console=stderr, transient=True, disable=silent) as progress:
        result = run(seed=seed, epochs=epochs, out=out, progress=progress)
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2))
    else:
        show(result, stdout, report=not quiet)


def _complete_qconfig(incomplete: str) -> list[str]:
    from dqconvert.qconfig import presets

    return [name for name in presets if name.startswith(incomplete)]


# Options that several commands share.
_Model = Annotated[
    str | None,
    typer.Option("--model", metavar="PKG.MOD:NAME", help="A class or function that builds the float model."),
]
_Kwargs = Annotated[
    str | None, typer.Option("--kwargs", metavar="JSON", help="The arguments of --model, as a JSON object.")
]
_QConfig = Annotated[
    str,
    typer.Option(
        "--qconfig", metavar="NAME|FILE", help="A preset, or a .toml or .json file.", autocompletion=_complete_qconfig
    ),
]
_ConvertQConfig = Annotated[
    str | None,
    typer.Option(
        "--qconfig",
        metavar="NAME|FILE",
        help="A preset, or a .toml or .json file. Default: int8-dq, with --calibrate int8-ptq+.",
        autocompletion=_complete_qconfig,
    ),
]
_Key = Annotated[str | None, typer.Option("--key", help="Dotted path of the weights in the checkpoint.")]
_TrustPickle = Annotated[
    bool, typer.Option("--trust-pickle", help="Load pickled objects. This runs code that the file brings along.")
]
_Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Override a field, such as activation.bits=4."),
]
_Rules = Annotated[
    list[str] | None,
    typer.Option("--rule", metavar="MODULE[@ROLE]=SPEC", help="An exception, such as 'conv1.*=float'."),
]
_Example = Annotated[
    Path | None, typer.Option("--example", metavar="FILE", help="Inputs to trace on: a saved Data, tuple or dict.")
]
_Force = Annotated[bool, typer.Option("--force", "-f", help="Replace a file that exists.")]


@app.command()
def convert(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CKPT", help="The float model's checkpoint; with --integer, or a prepared file.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="The file to write.")],
    model: _Model = None,
    kwargs: _Kwargs = None,
    qconfig: _ConvertQConfig = None,
    sets: _Sets = None,
    rules: _Rules = None,
    example: _Example = None,
    calibrate: Annotated[
        Path | None, typer.Option("--calibrate", metavar="FILE|FOLDER", help="Inputs to set the ranges from.")
    ] = None,
    integer: Annotated[bool, typer.Option("--integer", help="Write an integer file, for inference.")] = False,
    no_fold: Annotated[
        bool, typer.Option("--no-fold", help="Compute the rows of all nodes, also of those that are alike.")
    ] = False,
    key: _Key = None,
    trust_pickle: _TrustPickle = False,
    force: _Force = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing.")] = False,
) -> None:
    """Convert a float checkpoint to a prepared file: quantizers inserted, ready to train on. Or to an integer file.

    CKPT is a state_dict saved by torch.save or as safetensors, a training
    checkpoint that holds one, or a pickled module (with --trust-pickle;
    --model is then not needed). With --calibrate the result can be
    evaluated at once, and the command says how far it is from the float
    model on that data; without, it is for training on.

    With --integer the result is for inference: a prepared file that was
    trained, or a checkpoint that is prepared and calibrated on the way,
    becomes a file that `dqconvert run` and dqconvert.load need no model for.

    \b
    --set changes a field of the config for all values of a kind (weight,
    activation, message, aggregate), of the protection or of all; repeat it:
      --set activation.bits=4            4 bits for activations
      --set weight.symmetric=true        --set message.range=minmax
      --set protect.p_max=0.2            --set aggregate=float
      --set norm=nodes                   --set 'protect.roles=["message"]'

    \b
    --rule makes an exception for a part of the model. MODULE is a regular
    expression for the whole path of a module, as `dqconvert inspect` shows
    it; ROLE is weight, input, feature, edge_weight, message, aggregate,
    update, or a kind; SPEC is float, or fields with commas. The first rule
    that matches a value wins; quote it for the shell:
      --rule 'convs\\.0.*=float'          all of the first layer
      --rule '@edge_weight=float'        all attention coefficients
      --rule 'convs\\.1@message=bits=5,range=minmax'

    Example: dqconvert convert gcn.pt -o gcn.dq --model torch_geometric.nn:GCN
    --kwargs '{"in_channels": 16, "hidden_channels": 32, "num_layers": 2}'
    """
    from dqconvert.commands.convert import Source
    from dqconvert.commands.convert import convert as run

    source = Source(checkpoint=checkpoint, factory=model, kwargs=kwargs, key=key, trust_pickle=trust_pickle)
    run(
        source,
        out,
        qconfig=qconfig,
        sets=sets or (),
        rules=rules or (),
        example=example,
        calibrate=calibrate,
        integer=integer,
        fold=not no_fold,
        force=force,
        as_json=as_json,
        quiet=quiet,
    )


@app.command()
def finetune(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="The trained float model's checkpoint.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="The file to write.")],
    data: Annotated[Path, typer.Option("--data", metavar="FILE|FOLDER", help="What to train on: saved inputs.")],
    model: _Model = None,
    kwargs: _Kwargs = None,
    qconfig: _QConfig = "int8-dq+",
    sets: _Sets = None,
    rules: _Rules = None,
    epochs: Annotated[int, typer.Option(min=1, help="How often to go through the data.")] = 150,
    lr: Annotated[float, typer.Option(help="The learning rate at the start; it falls by a cosine.")] = 0.01,
    labels: Annotated[
        str | None, typer.Option("--labels", metavar="FIELD", help="Labels in the data, such as y.")
    ] = None,
    mask: Annotated[
        str | None, typer.Option("--mask", metavar="FIELD", help="Rows whose labels count, such as train_mask.")
    ] = None,
    validation: Annotated[
        str | None, typer.Option("--validation", metavar="FIELD", help="Rows that choose the epoch, such as val_mask.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Graphs per step, of a list of graphs.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of shuffling, dropout and protection.")] = 0,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="FILE", help="State after each epoch; goes on from it if it exists."),
    ] = None,
    example: _Example = None,
    integer: Annotated[bool, typer.Option("--integer", help="Write an integer file, for inference.")] = False,
    key: _Key = None,
    trust_pickle: _TrustPickle = False,
    force: _Force = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing.")] = False,
) -> None:
    """Quantize a trained float checkpoint and train it to predict as it did: no labels needed, no code to write.

    The model is prepared, calibrated on the data, and trained to give the
    float model's predictions on it; with --labels, the labels too. The best
    epoch is kept: by accuracy on the rows of --validation, else by agreement
    with the float model. --data holds Data objects, or a tuple or dict of
    forward's arguments; a list of graphs is gone through one by one, or in
    shuffled batches of --batch-size.

    Example: dqconvert finetune gcn.pt --data cora.pt -o gcn.int --integer
    --model torch_geometric.nn:GCN --kwargs '{"in_channels": 16, ...}'
    --qconfig int4-dq+ --labels y --mask train_mask --validation val_mask
    """
    from dqconvert.commands.convert import Source
    from dqconvert.commands.finetune import Training
    from dqconvert.commands.finetune import finetune as run

    run(
        Source(checkpoint=checkpoint, factory=model, kwargs=kwargs, key=key, trust_pickle=trust_pickle),
        out,
        data,
        Training(
            epochs=epochs,
            lr=lr,
            labels=labels,
            mask=mask,
            validation=validation,
            batch_size=batch_size,
            seed=seed,
            resume=resume,
        ),
        qconfig=qconfig,
        sets=sets or [],
        rules=rules or [],
        example=example,
        integer=integer,
        force=force,
        as_json=as_json,
        quiet=quiet,
    )


@app.command("search-bits")
def search_bits(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="The trained float model's checkpoint.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="The config to write: .toml or .json.")],
    data: Annotated[Path, typer.Option("--data", metavar="FILE|FOLDER", help="What to measure on: saved inputs.")],
    budget: Annotated[float, typer.Option(help="The most average bits of activations, and of weights.")],
    model: _Model = None,
    kwargs: _Kwargs = None,
    weights: Annotated[float | None, typer.Option(help="The most average bits of weights, if another.")] = None,
    count: Annotated[
        str, typer.Option(help="What averages count: elements, hidden (no model inputs), quantizers.")
    ] = "elements",
    bits: Annotated[str, typer.Option(metavar="LIST", help="The widths to choose from, 2 to 8.")] = "2,3,4,8",
    qconfig: _QConfig = "int4-dq+",
    sets: _Sets = None,
    rules: _Rules = None,
    numbers: Annotated[bool, typer.Option("--numbers", help="Outputs are numbers, not scores of classes.")] = False,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Graphs per call, of a list of graphs.")
    ] = None,
    batches: Annotated[int | None, typer.Option(min=1, help="How many calls to measure on at most.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of what the model draws.")] = 0,
    example: _Example = None,
    key: _Key = None,
    trust_pickle: _TrustPickle = False,
    force: _Force = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing.")] = False,
) -> None:
    """Choose a width for each value of a trained model, within a budget of average bits, and write a config.

    Each value is rounded alone at each width, and the distance of the outputs
    to the float model's is measured on the data; the widths of the least sum
    within the budget are written. The config is for --qconfig of `dqconvert
    finetune` and `dqconvert convert`.

    Example: dqconvert search-bits gcn.pt --data cora.pt --budget 4.0 -o bits.toml
    --model torch_geometric.nn:GCN --kwargs '{"in_channels": 16, ...}'
    """
    from dqconvert.commands.convert import Source
    from dqconvert.commands.search_bits import Search
    from dqconvert.commands.search_bits import search_bits as run

    run(
        Source(checkpoint=checkpoint, factory=model, kwargs=kwargs, key=key, trust_pickle=trust_pickle),
        out,
        data,
        Search(
            budget=budget,
            weights=weights,
            count=count,
            bits=bits,
            numbers=numbers,
            batch_size=batch_size,
            batches=batches,
            seed=seed,
        ),
        qconfig=qconfig,
        sets=sets or [],
        rules=rules or [],
        example=example,
        force=force,
        as_json=as_json,
        quiet=quiet,
    )


@app.command()
def inspect(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A prepared or integer file, or a float checkpoint (with --model).")
    ],
    graph: Annotated[bool, typer.Option("--graph", help="The rewritten graph as a tree (the default).")] = False,
    code: Annotated[bool, typer.Option("--code", help="The generated forward.")] = False,
    report: Annotated[bool, typer.Option("--report", help="The quantizers, and what stayed in float and why.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Float graph and rewritten graph side by side.")] = False,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write the graph as a web page.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    model: _Model = None,
    kwargs: _Kwargs = None,
    qconfig: _QConfig = "int8-dq",
    key: _Key = None,
    trust_pickle: _TrustPickle = False,
    force: _Force = False,
) -> None:
    """Show what is in a prepared or an integer file. Of a float checkpoint it shows what convert would make of it.

    Nothing that a file names is imported or run.

    Example: dqconvert inspect gin.dq --report
    """
    chosen = [name for name, wanted in (("graph", graph), ("code", code), ("report", report), ("diff", diff)) if wanted]
    if len(chosen) + (html is not None) + as_json > 1:
        raise typer.BadParameter("choose one of --graph, --code, --report, --diff, --html and --json.")

    from dqconvert.commands.convert import Source
    from dqconvert.commands.inspect import inspect as run

    source = Source(checkpoint=file, factory=model, kwargs=kwargs, key=key, trust_pickle=trust_pickle)
    run(source, qconfig=qconfig, form=[*chosen, "graph"][0], html=html, force=force, as_json=as_json)


_Data = Annotated[
    Path,
    typer.Option(
        "--data", metavar="FILE|FOLDER", help="Saved inputs: a .pt or .safetensors file, or a folder of such."
    ),
]


@app.command()
def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An integer file.")],
    data: _Data,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="PRED", help="Safetensors file to write.")] = None,
    force: _Force = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing.")] = False,
) -> None:
    """Run an integer file on saved inputs. Needs no code of the model.

    Example: dqconvert run gcn.int8 --data graph.pt -o predictions.safetensors
    """
    from dqconvert.commands.run import run as run_file

    run_file(file, data, out=out, force=force, as_json=as_json, quiet=quiet)


@app.command()
def compare(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CKPT", help="The float model's checkpoint, or a prepared file.")
    ],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The integer or prepared file that was made of it.")],
    data: _Data,
    model: _Model = None,
    kwargs: _Kwargs = None,
    plot: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw a chart (extra: plot).")] = None,
    key: _Key = None,
    trust_pickle: _TrustPickle = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Compare a float model with its integer file, value by value: signal-to-noise ratios, worst first.

    Example: dqconvert compare gcn.pt gcn.int8 --data graph.pt --model torch_geometric.nn:GCN
    --kwargs '{"in_channels": 16, "hidden_channels": 32, "num_layers": 2}'
    """
    from dqconvert.commands.compare import compare as compare_files
    from dqconvert.commands.convert import Source

    source = Source(checkpoint=checkpoint, factory=model, kwargs=kwargs, key=key, trust_pickle=trust_pickle)
    compare_files(source, file, data, plot=plot, as_json=as_json)


@app.command()
def evaluate(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CKPT", help="The float model's checkpoint; or a file, which others are held to.")
    ],
    data: _Data,
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE...", help="Prepared and integer files that were made of it.")
    ] = None,
    model: _Model = None,
    kwargs: _Kwargs = None,
    labels: Annotated[
        str | None, typer.Option("--labels", metavar="FIELD", help="Labels in the data. Default: y, if there is one.")
    ] = None,
    mask: Annotated[
        str | None, typer.Option("--mask", metavar="FIELD", help="Rows whose labels count, such as test_mask.")
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            metavar="NAME|PKG.MOD:NAME",
            help="accuracy, mae, rmse, a function of predictions and labels, or a class of torchmetrics; repeatable.",
        ),
    ] = None,
    metric_kwargs: Annotated[
        str | None, typer.Option("--metric-kwargs", metavar="JSON", help="The arguments of a --metric that is a class.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Graphs per call, of a list of graphs.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Forwards that are timed of each model.")] = 5,
    no_costs: Annotated[bool, typer.Option("--no-costs", help="Measure no times, memory and file sizes.")] = False,
    plot: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw a chart (extra: plot).")] = None,
    key: _Key = None,
    trust_pickle: _TrustPickle = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Evaluate a float checkpoint, and files made of it, side by side: accuracy, agreement, times, memory, sizes.

    Example: dqconvert evaluate gcn.pt gcn.dq gcn.int8 --data graph.pt --mask test_mask
    --model torch_geometric.nn:GCN --kwargs '{"in_channels": 16, "hidden_channels": 32, "num_layers": 2}'
    """
    from dqconvert.commands.convert import Source
    from dqconvert.commands.evaluate import Scoring
    from dqconvert.commands.evaluate import evaluate as evaluate_files

    scoring = Scoring(
        metrics=metrics or (),
        kwargs=metric_kwargs,
        labels=labels,
        mask=mask,
        batch_size=batch_size,
        repeats=repeats,
        costs=not no_costs,
    )
    source = Source(checkpoint=checkpoint, factory=model, kwargs=kwargs, key=key, trust_pickle=trust_pickle)
    evaluate_files(source, files or (), data, scoring, plot=plot, as_json=as_json)


app.add_typer(bench, name="bench")


def main() -> None:
    """Runs the console script ``dqconvert``."""
    app(prog_name="dqconvert")
