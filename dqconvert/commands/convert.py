"""``dqconvert convert``: a float checkpoint on disk becomes a prepared file, or an integer file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import Progress
from torch import nn

from dqconvert.calibrate import calibrate as calibrate_on
from dqconvert.checkpoint import holds_integer, load, save
from dqconvert.checkpoint.container import is_prepared
from dqconvert.commands.agreement import agreement_lines, agreement_of
from dqconvert.commands.options import Changes, Output, Source
from dqconvert.commands.overrides import qconfig_from
from dqconvert.commands.sizes import size_in_words, sizes_of
from dqconvert.compare import compare
from dqconvert.convert import convert as to_integer
from dqconvert.errors import CommandError, ConfigError, UsageError
from dqconvert.files import check_target
from dqconvert.lower import IntegerModule
from dqconvert.prepare import prepare
from dqconvert.prepared import PreparedModule
from dqconvert.qconfig import QConfig
from dqconvert.user.factory import build_model, parse_kwargs, search_here
from dqconvert.user.inputs import SavedInputs, read_example
from dqconvert.weights import Weights, check_finite, fill, read_weights
from dqconvert.words import article, count, listed


def float_model(source: Source) -> tuple[nn.Module, str]:
    """Returns the float model with its checkpoint's weights, and a note on how these were found.

    Raises:
        CheckpointError: If the checkpoint cannot be read or does not fit.
        CommandError: If the factory fails.
    """
    kwargs = parse_kwargs(source.kwargs)
    if source.trust_pickle:
        search_here()
    weights = read_weights(source.checkpoint, key=source.key, trust_pickle=source.trust_pickle)
    notes = [f"under {weights.found!r}"] if weights.found else []
    notes += [f"--key {other} fits, too" for other in weights.others]
    if source.factory is None:
        return _pickled(source, weights), ", ".join(notes)
    model = build_model(source.factory, kwargs)
    prefix = fill(model, weights.state, source.checkpoint)
    notes += [f"without the prefix {prefix!r}"] if prefix else []
    return model, ", ".join(notes)


def _pickled(source: Source, weights: Weights) -> nn.Module:
    if weights.module is None:
        raise UsageError(
            f"{source.checkpoint}: holds weights without their model: say what builds it, with --model pkg.mod:name "
            f"and --kwargs JSON."
        )
    check_finite(weights.module, weights.state, source.checkpoint)
    return weights.module


def convert(
    source: Source,
    out: Path,
    output: Output,
    *,
    qconfig: str | None,
    changes: Changes,
    example: Path | None = None,
    calibrate: Path | None = None,
    integer: bool = False,
    fold: bool = True,
) -> None:
    """Prepares the model of a float checkpoint, calibrates it where data is given, and saves it.

    With ``integer`` it is converted to an integer module before; then the checkpoint may be a prepared file, too.

    Nothing is written unless all of it succeeds.

    Args:
        source: The float model.
        out: Where to write.
        output: Whether to replace a file, and what to print.
        qconfig: A preset or a config file; ``None``: ``"int8-dq"``, or ``"int8-ptq+"`` where it calibrates.
        changes: Fields to override and rules to add.
        example: A file of inputs to trace on; ``None``: made up.
        calibrate: Data to set the ranges from; ``None``: training sets them.
        integer: Save an integer module.
        fold: Let it compute one row for nodes that a layer cannot tell apart, see :func:`dqconvert.convert`.

    Raises:
        DQConvertError: If anything is wrong; its class says what.
    """
    check_target(out, overwrite=output.force)
    if qconfig is None:
        qconfig = "int8-dq" if calibrate is None else "int8-ptq+"
    with usage():
        config = qconfig_from(qconfig, changes.sets, changes.rules)
    if not fold and not integer:
        raise UsageError("--no-fold is about integer files: pass --integer, too.")
    given = is_prepared(source.checkpoint)
    if given and holds_integer(source.checkpoint):
        raise CommandError(f"{source.checkpoint}: is an integer file already: run it with `dqconvert run`.")
    if integer and not given and calibrate is None:
        raise UsageError(
            f"--integer needs ranges, and {source.checkpoint} is a float checkpoint, which has none: pass --calibrate "
            f"DATA, or convert without --integer, train the result, and convert that."
        )
    data = None if calibrate is None else SavedInputs(calibrate, "--calibrate")
    example_inputs = None if example is None else read_example(example)
    if integer and given:
        module, found = prepared_model(source), "prepared"
        if data is None and not any(quantizer.is_observed() for _, quantizer in module.quantizers()):
            raise CommandError(f"{source.checkpoint}: was neither trained nor calibrated: pass --calibrate DATA.")
    else:
        model, found = float_model(source)
        with usage():
            module = prepare(model, config, example_inputs).module
    agreement, advice = None, list[str]()
    if data is not None:
        agreement = _run_calibration(module, data, silent=output.quiet or output.as_json)
        advice = [f"advice: {finding}" for finding in module.report.advice()]
    check_target(out, overwrite=output.force)
    if integer:
        converted = to_integer(module, fold=fold)
        save(converted, out)
        summary = _integer_summary(source, out, module, found, converted)
        summary |= {"agreement": agreement, "advice": advice}
    else:
        save(module, out, factory=source.factory, kwargs=parse_kwargs(source.kwargs))
        summary = _summary(source, out, qconfig, config, module, found, calibrated=data is not None)
        summary |= {"agreement": agreement, "advice": advice}
    if output.as_json:
        typer.echo(json.dumps(summary, indent=2))
    elif not output.quiet:
        _show_integer(summary) if integer else _show(summary)


def prepared_model(source: Source) -> PreparedModule:
    """Returns the prepared module in a prepared file."""
    return load(source.checkpoint, unfilled(source))


def unfilled(source: Source) -> nn.Module:
    """Returns the float model that a prepared file is rebuilt on, with any weights."""
    if source.factory is None:
        raise UsageError(
            f"{source.checkpoint}: is a prepared file: say what builds its float model, with --model pkg.mod:name and "
            f"--kwargs JSON."
        )
    return build_model(source.factory, parse_kwargs(source.kwargs))


@contextmanager
def usage() -> Iterator[None]:
    """Turns a :class:`ConfigError` into a :class:`UsageError`: a config that was typed wrong exits with 2."""
    try:
        yield
    except ConfigError as error:
        raise UsageError(str(error)) from error


def _run_calibration(module: PreparedModule, data: SavedInputs, *, silent: bool) -> dict[str, Any]:
    """Sets the ranges from data, and returns how the result compares with the float model on it."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=silent or not console.is_terminal) as progress:
        task = progress.add_task("calibrating", total=1.0)
        for done, _, _ in data.each(module, lambda call: calibrate_on(module, [call])):
            progress.update(task, completed=done)
    with data.fitting():
        return agreement_of(compare(module, module, data.calls(module)))


def _summary(
    source: Source, out: Path, qconfig: str, config: QConfig, module: PreparedModule, found: str, *, calibrated: bool
) -> dict[str, Any]:
    report = module.report
    unobserved = [path for path, quantizer in module.quantizers() if not quantizer.is_observed()]
    return {
        "checkpoint": str(source.checkpoint),
        "found": found,
        "model": report.model,
        "qconfig": qconfig,
        "rules": len(config.rules),
        "quantizers": len(report.entries),
        "totals": report.totals,
        "left_float": len(report.left_float),
        "remarks": list(report.remarks),
        "calibrated": calibrated,
        "unobserved": unobserved if calibrated else [],
        "out": str(out),
        **sizes_of(out, module),
    }


def _integer_summary(
    source: Source, out: Path, module: PreparedModule, found: str, converted: IntegerModule
) -> dict[str, Any]:
    return {
        "checkpoint": str(source.checkpoint),
        "found": found,
        "model": module.report.model,
        "operations": dict(converted.report.ops),
        "floats": [asdict(left) for left in converted.report.floats],
        "out": str(out),
        **sizes_of(out, module),
        "checkpoint_bytes": os.path.getsize(source.checkpoint),
    }


def _show_integer(summary: dict[str, Any]) -> None:
    where = f" ({summary['found']})" if summary["found"] else ""
    typer.echo(f"{summary['checkpoint']}: {article(summary['model'])}{where}")
    for left in summary["floats"]:
        typer.echo(f"in float: {left['op']} ({left['source']}): {left['reason']}")
    _echo_end(summary)


def _show(summary: dict[str, Any]) -> None:
    where = f" ({summary['found']})" if summary["found"] else ""
    by_role = ", ".join(f"{number} {role}" for role, number in summary["totals"]["role"].items())
    typer.echo(f"{summary['checkpoint']}: the weights of {article(summary['model'])}{where}")
    typer.echo(f"{summary['qconfig']}: {count(summary['quantizers'], 'quantizer')} ({by_role})")
    if summary["left_float"]:
        stay = f"{count(summary['left_float'], 'value')} {'stays' if summary['left_float'] == 1 else 'stay'}"
        typer.echo(f"{stay} in float: `dqconvert inspect {summary['out']} --report`")
    for remark in summary["remarks"]:
        typer.echo(f"note: {remark}")
    if not summary["calibrated"]:
        typer.echo("not calibrated: train it before evaluating it, or pass --calibrate")
    elif summary["unobserved"]:
        unreached = count(len(summary["unobserved"]), "quantizer")
        typer.echo(f"the data did not reach {unreached}: {listed(summary['unobserved'], most=3)}")
    _echo_end(summary)


def _echo_end(summary: dict[str, Any]) -> None:
    """Prints how far it is from the float model on the data, and the size of the file."""
    for line in (*agreement_lines(summary["agreement"]), *summary["advice"]):
        typer.echo(line)
    typer.echo(f"{summary['out']}: {size_in_words(summary)}")
