"""What the experiments of this folder share: their options, runs that survive being killed, tables, TensorBoard."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch_geometric
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn

import dqconvert
from dqconvert import QConfig, QSpec
from dqconvert.qconfig import KINDS, as_qconfig

Row: TypeAlias = dict[str, Any]
Log: TypeAlias = Callable[..., None]
"""Called as ``log(epoch, loss=..., val=...)`` after each epoch."""


# -- what to run ---------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser, where: str | None = None) -> None:
    """Adds the options that all experiments have; ``where`` says which folder of the data they read, if they do."""
    if where is not None:
        help = f"folder of the data, which lies in {where} (default: $DQCONVERT_DATA)"
        parser.add_argument("--root", default=os.environ.get("DQCONVERT_DATA"), metavar="DIR", help=help)
    help = "a preset's name or a .toml or .json file; repeatable (default: int8-dq)"
    parser.add_argument("--preset", action="append", metavar="NAME|FILE", help=help)
    help = "run each preset with all its values in this many bits; repeatable (default: those of the preset)"
    parser.add_argument("--bits", action="append", type=int, metavar="N", help=help)
    help = "keep runs.jsonl and states here, and go on from there; the same options are the same runs"
    parser.add_argument("--out", type=Path, metavar="DIR", help=help)
    parser.add_argument("--tensorboard", type=Path, metavar="DIR", help="write losses and scores of all epochs there")
    parser.add_argument("--threads", type=int, metavar="N", help="of torch (default: its own)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print every run and the summary as JSON")
    form.add_argument("--markdown", action="store_true", help="print the table as in RESULTS.md")


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options, checked; ``configs`` maps the names of rows to configs."""
    args = parser.parse_args(argv)
    if getattr(args, "root", "") is None:
        parser.error("say where the data is, or is to be downloaded to: --root DIR, or set DQCONVERT_DATA")
    args.command = " ".join(["python", f"examples/{Path(parser.prog).name}", *(sys.argv[1:] if argv is None else argv)])
    args.configs = {}
    for preset in args.preset or ["int8-dq"]:
        for bits in args.bits or [None]:
            name = Path(preset).stem if preset.endswith((".toml", ".json")) else preset
            try:
                config = as_qconfig(preset)
                args.configs[name if bits is None else f"{name}, {bits} bits"] = with_bits(config, bits)
            except dqconvert.ConfigError as error:
                parser.error(f"--preset {preset}: {error}")
    if args.threads:
        torch.set_num_threads(args.threads)
    return args


def with_bits(config: QConfig, bits: int | None) -> QConfig:
    """Returns a config with all its values in so many bits; ``None``: the config itself.

    Example:
        >>> with_bits(dqconvert.presets["int8-dq"], 3).message.bits
        3
    """
    if bits is None:
        return config
    rules = [replace(r, spec=replace(r.spec, bits=bits)) if isinstance(r.spec, QSpec) else r for r in config.rules]
    kinds = {kind: replace(spec, bits=bits) for kind in KINDS if (spec := getattr(config, kind)) is not None}
    return replace(config, **kinds, graph_bits=None, rules=tuple(rules))


# -- running it ----------------------------------------------------------------------------------------------------


class Journal:
    """Runs that are done, one JSON line each: what was run, and what came out.

    Args:
        path: The file; ``None``: nothing is kept. A process that was killed may leave half a line: it is cut off.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.rows: list[Row] = []
        if path is None or not path.exists():
            return
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        self.rows = [json.loads(line) for line in whole.splitlines()]
        if whole != text:
            path.write_text(whole, encoding="utf-8")

    def find(self, key: Mapping[str, Any]) -> Row | None:
        """Returns the run of this key, if it is done."""
        return next((row for row in self.rows if all(row.get(name) == value for name, value in key.items())), None)

    def add(self, row: Row) -> Row:
        """Writes a run."""
        self.rows.append(row)
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        return row


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        key: All that makes it this run, as JSON knows it.
        run: Called with a function to log epochs with; returns what came out.
        epochs: How many it has.
    """

    key: Row
    run: Callable[[Log], Row]
    epochs: int

    @property
    def title(self) -> str:
        return _title(self.key)

    @property
    def name(self) -> str:
        return name_of(self.key)


def _title(key: Row) -> str:
    return " ".join(str(value) for name, value in key.items() if name not in ("recipe", "config"))


def name_of(key: Row) -> str:
    """Returns a name for a run's files: readable, and another for each key."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:8]
    return re.sub(r"[^\w+.-]+", "_", f"{_title(key)} {digest}")


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Writes what `torch.load(path, weights_only=True)` reads, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def parameters_of(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Returns the parameters of a float or a prepared model, as optimizers take them; learned steps do not decay."""
    if hasattr(model, "report"):
        return dqconvert.parameter_groups(model, weight_decay=weight_decay)
    return [{"params": list(model.parameters()), "weight_decay": weight_decay}]


def carry_out(jobs: Iterable[Job], args: argparse.Namespace) -> list[Row]:
    """Runs all jobs that are not in the journal yet, with a progress bar for each, and returns the rows of all."""
    journal = Journal(args.out and args.out / "runs.jsonl")
    console = Console(stderr=True)
    rows = []
    with Progress(console=console, disable=args.json or not console.is_terminal) as progress:
        for job in jobs:
            row = journal.find(job.key)
            if row is None:
                with _logging(job, args.tensorboard, progress) as log:
                    start = time.perf_counter()
                    row = journal.add({**job.key, **job.run(log), "seconds": round(time.perf_counter() - start, 1)})
            rows.append(row)
    return rows


@contextmanager
def _logging(job: Job, folder: Path | None, progress: Progress) -> Iterator[Log]:
    """A progress bar of a job's epochs, and its TensorBoard run where that is asked for."""
    task = progress.add_task(job.title, total=max(job.epochs, 1))
    writer = None if folder is None else _tensorboard(folder / job.name)

    def log(epoch: int, **values: float) -> None:
        progress.update(task, completed=epoch)
        for name, value in values.items() if writer is not None else ():
            writer.add_scalar(name, value, epoch)

    try:
        yield log
    finally:
        progress.remove_task(task)
        if writer is not None:
            writer.close()


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        sys.exit("--tensorboard needs the package tensorboard: pip install 'dqconvert[examples]'")
    return SummaryWriter(str(folder))


# -- showing it ----------------------------------------------------------------------------------------------------


def summary(rows: Sequence[Row], by: Sequence[str], values: Sequence[str], unit: str = "seed") -> list[Row]:
    """Returns means and standard deviations over the rows that are equal in ``by``, in the order of the rows.

    ``<value>_mean`` and ``<value>_std`` of each value; ``change``, the mean difference of the last value to that of
    the run with the preset ``float`` of the same unit; ``integer_gap``, the largest difference of ``integer`` to it.

    Example:
        >>> rows = [{"preset": "float", "seed": 0, "test": 80.0}, {"preset": "int8-dq", "seed": 0, "test": 79.0}]
        >>> summary(rows, ["preset"], ["test"])[1]
        {'preset': 'int8-dq', 'seeds': 1, 'test_mean': 79.0, 'test_std': 0.0, 'change': -1.0}
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in by), []).append(row)
    where = [name for name in by if name != "preset"]
    floats = {tuple(row[n] for n in [*where, unit]): row[values[-1]] for row in rows if row["preset"] == "float"}
    found = []
    for key, group in groups.items():
        line: Row = {**dict(zip(by, key, strict=True)), f"{unit}s": len(group)}
        for name in values:
            numbers = [row[name] for row in group]
            line[f"{name}_mean"] = statistics.fmean(numbers)
            line[f"{name}_std"] = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
        pairs = [(row[values[-1]], floats.get(tuple(row[n] for n in [*where, unit]))) for row in group]
        if line["preset"] != "float" and all(other is not None for _, other in pairs):
            line["change"] = statistics.fmean(number - other for number, other in pairs if other is not None)
        integers = [row for row in group if row.get("integer") is not None]
        if integers:
            line["integer_mean"] = statistics.fmean(row["integer"] for row in integers)
            line["integer_gap"] = max(abs(row["integer"] - row[values[-1]]) for row in integers)
        found.append(line)
    return found


def show(rows: Sequence[Row], lines: Sequence[Row], args: argparse.Namespace, title: str, places: int = 1) -> None:
    """Prints a summary: as a table, as Markdown with command and date, or with all runs as JSON."""
    if args.json:
        print(json.dumps({"runs": list(rows), "summary": list(lines)}, indent=2))
        return
    keys = [name for name in lines[0] if not name.endswith(("_mean", "_std", "_gap")) and name != "change"]
    values = [name[: -len("_std")] for name in lines[0] if name.endswith("_std")]
    header = [*keys, *values, "to float", "integer", "largest gap"]
    table = []
    for line in lines:
        cells = [str(line[name]) for name in keys]
        cells += [f"{line[f'{name}_mean']:.{places}f} ± {line[f'{name}_std']:.{places}f}" for name in values]
        cells.append(f"{line['change']:+.{places}f}" if "change" in line else "")
        cells.append(f"{line['integer_mean']:.{places}f}" if "integer_mean" in line else "")
        cells.append(f"{line['integer_gap']:.{places + 1}f}" if "integer_gap" in line else "")
        table.append(cells)
    if args.markdown:
        print("\n".join(f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *table]))
        versions = f"torch {torch.__version__}, torch_geometric {torch_geometric.__version__}, {platform.machine()}"
        print(f"\n```\n{args.command}\n```\n\n{title}. {date.today()}, dqconvert {dqconvert.__version__}, {versions}.")
        return
    shown = Table(*header, title=title, title_justify="left")
    for cells in table:
        shown.add_row(*cells)
    Console().print(shown)
