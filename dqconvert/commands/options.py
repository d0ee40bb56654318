"""Options that several commands share: each is said once, here, with its help. Imports no torch.

A dataclass is a group: :func:`dqconvert.cli.groups.flat` gives a command one option for each of its fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer


def _complete_qconfig(incomplete: str) -> list[str]:
    from dqconvert.qconfig import presets

    return [name for name in presets if name.startswith(incomplete)]


def qconfig_option(help: str = "A preset, or a .toml or .json file.") -> typer.models.OptionInfo:
    """Returns the option ``--qconfig``."""
    option: typer.models.OptionInfo = typer.Option(
        "--qconfig", metavar="NAME|FILE", help=help, autocompletion=_complete_qconfig
    )
    return option


Checkpoint = Annotated[Path, typer.Argument(metavar="CKPT", help="The trained float model's checkpoint.")]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="The file to write.")]
Data = Annotated[
    Path,
    typer.Option(
        "--data", metavar="FILE|FOLDER", help="Saved inputs: a .pt or .safetensors file, or a folder of such."
    ),
]
QConfigName = Annotated[str, qconfig_option()]
Example = Annotated[
    Path | None, typer.Option("--example", metavar="FILE", help="Inputs to trace on: a saved Data, tuple or dict.")
]
Integer = Annotated[bool, typer.Option("--integer", help="Write an integer file, for inference.")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", min=1, help="Graphs per call, of a list of graphs.")]
Plot = Annotated[Path | None, typer.Option("--plot", metavar="PNG", help="Draw a chart (extra: plot).")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace a file that exists.")]
Json = Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")]
JsonOfAll = Annotated[bool, typer.Option("--json", help="Print everything as JSON.")]


@dataclass(frozen=True, kw_only=True)
class Model:
    """What builds a float model, and where in its checkpoint the weights are.

    Attributes:
        factory: ``"pkg.mod:name"``; ``None`` for a pickled module.
        kwargs: The factory's arguments as JSON.
        key: Where in the checkpoint the weights are.
        trust_pickle: If true, the checkpoint's own code may run.
    """

    factory: Annotated[
        str | None,
        typer.Option("--model", metavar="PKG.MOD:NAME", help="A class or function that builds the float model."),
    ] = None
    kwargs: Annotated[
        str | None, typer.Option("--kwargs", metavar="JSON", help="The arguments of --model, as a JSON object.")
    ] = None
    key: Annotated[str | None, typer.Option("--key", help="Dotted path of the weights in the checkpoint.")] = None
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Load pickled objects. This runs code that the file brings along.")
    ] = False

    def of(self, checkpoint: Path) -> Source:
        """Returns the model together with its checkpoint."""
        return Source(checkpoint=checkpoint, **vars(self))


@dataclass(frozen=True, kw_only=True)
class Source(Model):
    """The source of a float model.

    Attributes:
        checkpoint: The float checkpoint, or a prepared file that was made of it.
    """

    checkpoint: Path


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Changes to a config; see :func:`dqconvert.commands.overrides.qconfig_from`.

    Attributes:
        sets: Fields to override.
        rules: Rules to add.
    """

    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Override a field, such as activation.bits=4."),
    ] = None
    rules: Annotated[
        list[str] | None,
        typer.Option("--rule", metavar="MODULE[@ROLE]=SPEC", help="An exception, such as 'conv1.*=float'."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Output:
    """What to do where the result stands already, and what to print of it.

    Attributes:
        force: Replace a file that exists.
        as_json: Print a summary as JSON.
        quiet: Print nothing.
    """

    force: Force = False
    as_json: Json = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing.")] = False


@dataclass(frozen=True, kw_only=True)
class Training:
    """How to train; see :func:`dqconvert.finetune`.

    Attributes:
        epochs: How often to go through the data.
        lr: The rate at the start.
        labels: The field of the data objects that holds labels; ``None``: none are used.
        mask: The field that says which rows' labels count.
        validation: The field that says which rows choose the best epoch.
        batch_size: Graphs per step, where the data is a list of graphs; ``None``: one after the other.
        seed: Of shuffling, dropout and protection.
        resume: A file that holds the state after each epoch, and from which an interrupted training goes on.
    """

    epochs: Annotated[int, typer.Option(min=1, help="How often to go through the data.")] = 150
    lr: Annotated[float, typer.Option(help="The learning rate at the start; it falls by a cosine.")] = 0.01
    labels: Annotated[str | None, typer.Option(metavar="FIELD", help="Labels in the data, such as y.")] = None
    mask: Annotated[str | None, typer.Option(metavar="FIELD", help="Rows whose labels count, such as train_mask.")] = (
        None
    )
    validation: Annotated[
        str | None, typer.Option(metavar="FIELD", help="Rows that choose the epoch, such as val_mask.")
    ] = None
    batch_size: BatchSize = None
    seed: Annotated[int, typer.Option(min=0, help="Seed of shuffling, dropout and protection.")] = 0
    resume: Annotated[
        Path | None, typer.Option(metavar="FILE", help="State after each epoch; goes on from it if it exists.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class Search:
    """How to search; see :func:`dqconvert.search_bits`.

    Attributes:
        budget: The most average bits of activations, and of weights.
        weights: Of weights, if it is another.
        count: What averages count.
        bits: The widths to choose from, with commas.
        numbers: Whether outputs are numbers; otherwise those of two columns or more are scores.
        batch_size: Graphs per call, where the data is a list of graphs; ``None``: one by one.
        batches: How many calls to measure on at most.
        seed: Of what the model draws.
    """

    budget: Annotated[float, typer.Option(help="The most average bits of activations, and of weights.")]
    weights: Annotated[float | None, typer.Option(help="The most average bits of weights, if another.")] = None
    count: Annotated[str, typer.Option(help="What averages count: elements, hidden (no model inputs), quantizers.")] = (
        "elements"
    )
    bits: Annotated[str, typer.Option(metavar="LIST", help="The widths to choose from, 2 to 8.")] = "2,3,4,8"
    numbers: Annotated[bool, typer.Option("--numbers", help="Outputs are numbers, not scores of classes.")] = False
    batch_size: BatchSize = None
    batches: Annotated[int | None, typer.Option(min=1, help="How many calls to measure on at most.")] = None
    seed: Annotated[int, typer.Option(min=0, help="Seed of what the model draws.")] = 0


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How to score, and what to measure besides; see :func:`dqconvert.evaluate`.

    Attributes:
        metrics: Names of :data:`dqconvert.metrics.NAMED`, or ``"pkg.mod:name"`` of functions and classes.
        metric_kwargs: The arguments of metrics that are classes, as JSON.
        labels: The field of the data objects that holds labels.
        mask: The field that says which rows' labels count.
        batch_size: Graphs per call, where the data is a list of graphs.
        repeats: How many forwards are timed of each model.
        no_costs: Measure no times, memory and file sizes.
    """

    labels: Annotated[
        str | None, typer.Option(metavar="FIELD", help="Labels in the data. Default: y, if there is one.")
    ] = None
    mask: Annotated[str | None, typer.Option(metavar="FIELD", help="Rows whose labels count, such as test_mask.")] = (
        None
    )
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            metavar="NAME|PKG.MOD:NAME",
            help="accuracy, mae, rmse, a function of predictions and labels, or a class of torchmetrics; repeatable.",
        ),
    ] = None
    metric_kwargs: Annotated[
        str | None, typer.Option(metavar="JSON", help="The arguments of a --metric that is a class.")
    ] = None
    batch_size: BatchSize = None
    repeats: Annotated[int, typer.Option(min=1, help="Forwards that are timed of each model.")] = 5
    no_costs: Annotated[bool, typer.Option("--no-costs", help="Measure no times, memory and file sizes.")] = False
