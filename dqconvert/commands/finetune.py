"""``dqconvert finetune``: a float checkpoint and data become a trained prepared file, or an integer file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import typer
from torch import nn
from torch_geometric.data.data import BaseData
from torch_geometric.loader import DataLoader

from dqconvert.checkpoint import save
from dqconvert.commands.agreement import agreement_lines, agreement_of
from dqconvert.commands.convert import float_model, usage
from dqconvert.commands.options import Changes, Output, Source, Training
from dqconvert.commands.overrides import qconfig_from
from dqconvert.commands.sizes import size_in_words, sizes_of
from dqconvert.compare import Comparison, compare
from dqconvert.convert import convert
from dqconvert.errors import CommandError, UsageError
from dqconvert.files import check_target
from dqconvert.finetune import Epoch
from dqconvert.finetune import finetune as train
from dqconvert.prepared import PreparedModule
from dqconvert.user.factory import parse_kwargs
from dqconvert.user.inputs import SavedInputs, read_example, read_inputs
from dqconvert.words import article, count


def finetune(
    source: Source,
    out: Path,
    data: Path,
    training: Training,
    output: Output,
    *,
    qconfig: str,
    changes: Changes,
    example: Path | None = None,
    integer: bool = False,
) -> None:
    """Fine-tunes the model of a float checkpoint on data, and saves it.

    Nothing but the state of ``resume`` is written unless all of it succeeds.

    Args:
        source: The float model.
        out: Where to write.
        data: Inputs to train on: a file, or a folder of files.
        training: How to train.
        output: Whether to replace a file, and what to print.
        qconfig: A preset or a config file.
        changes: Fields to override and rules to add.
        example: A file of inputs to trace on; ``None``: the first of the data.
        integer: Save an integer module.

    Raises:
        DQConvertError: Of one kind or another, if anything is wrong.
    """
    check_target(out, overwrite=output.force)
    with usage():
        config = qconfig_from(qconfig, changes.sets, changes.rules)
    if training.labels is None and (training.mask or training.validation):
        raise UsageError("--mask and --validation say which labels to use: pass --labels FIELD, or neither.")
    model, found = float_model(source)
    inputs = saved_batches(data, training.batch_size, shuffle=True)
    torch.manual_seed(training.seed)
    epochs: list[Epoch] = []
    with usage():
        module, _ = train(
            model,
            inputs,
            config,
            epochs=training.epochs,
            lr=training.lr,
            labels=training.labels,
            mask=training.mask,
            validation=training.validation,
            example_inputs=None if example is None else read_example(example),
            resume=training.resume,
            on_epoch=epochs.append,
            progress=not (output.quiet or output.as_json),
        )
    agreement = agreement_of(_compared(module, model, data))
    check_target(out, overwrite=output.force)
    if integer:
        save(convert(module), out)
    else:
        save(module, out, factory=source.factory, kwargs=parse_kwargs(source.kwargs))
    summary = {
        "checkpoint": str(source.checkpoint),
        "found": found,
        "model": module.report.model,
        "qconfig": qconfig,
        "quantizers": len(module.report.entries),
        "epochs": [epoch._asdict() for epoch in epochs],
        "best": epochs[-1].best if epochs else None,
        "chosen_by": "validation" if training.validation else "agreement",
        "agreement": agreement,
        "out": str(out),
        **sizes_of(out, module),
    }
    if output.as_json:
        typer.echo(json.dumps(summary, indent=2))
    elif not output.quiet:
        _show(summary)


def saved_batches(path: Path, batch_size: int | None, *, shuffle: bool) -> Any:
    """Returns what ``--data`` holds, as ``finetune`` takes it; ``batch_size``: a list of graphs in batches."""
    saved = SavedInputs(path, "--data")
    if len(saved.files) == 1:
        held = saved.first
        items = held if isinstance(held, list) else None
    else:
        each = [saved.first, *map(read_inputs, saved.files[1:])]
        items = [item for held in each for item in (held if isinstance(held, list) else [held])]
    if batch_size is None:
        return saved.first if items is None else items
    if items is None or not all(isinstance(item, BaseData) for item in items):
        raise CommandError("--batch-size needs --data with a list of graphs (Data objects), to make batches of them.")
    return DataLoader(items, batch_size=batch_size, shuffle=shuffle)


def _compared(module: PreparedModule, model: nn.Module, data: Path) -> Comparison:
    saved = SavedInputs(data, "--data")
    with saved.fitting():
        return compare(model, module, saved.calls(module))


def _show(summary: dict[str, Any]) -> None:
    where = f" ({summary['found']})" if summary["found"] else ""
    typer.echo(f"{summary['checkpoint']}: the weights of {article(summary['model'])}{where}")
    for epoch in summary["epochs"][-1:]:
        by = "of the validation rows right" if summary["chosen_by"] == "validation" else "as the float model predicts"
        score = f"{100 * epoch['best']:.2f} %" if epoch["best"] >= 0 else f"squared error {-epoch['best']:.4g}"
        epochs = count(epoch["number"], "epoch")
        typer.echo(f"{summary['qconfig']}: {epochs}, loss {epoch['loss']:.4g}; best: {score} {by}")
    for line in agreement_lines({**summary["agreement"], "low": False}):  # its advice is to train
        typer.echo(line)
    typer.echo(f"{summary['out']}: {size_in_words(summary)}")
