"""The table of ``dqconvert bench plan``."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from dqconvert.bench.plan import Checked, Plan
from dqconvert.bench.tables import new_table, print_notes


def show_plan(plan: Plan, console: Console) -> None:
    """Prints a row per way to train and to infer, how the plan compares with measurements, and what it rests on."""
    wanted, size, here = plan.wanted, plan.wanted.size, plan.machine
    widths = [size.features, *[size.hidden] * (wanted.layers - 1), size.classes]
    model = f"{wanted.layer} {'-'.join(map(str, widths))}, {wanted.qconfig}"
    console.print(f"{model}: {size.nodes:,} nodes, {size.edges:,} edges", style="bold", highlight=False)
    batch = f"batches of {wanted.batch:,} nodes, neighbours {list(wanted.fanout)}: " if wanted.batch is not None else ""
    nodes, edges = wanted.step_size
    console.print(
        f"{wanted.steps:,} steps an epoch on {wanted.ranks} ranks, {batch}{nodes:,} nodes and {edges:,} edges each; "
        f"the whole graph's data: {_bytes(wanted.data_bytes)}",
        highlight=False,
    )
    times = new_table("step or\nforward", "waits for\nranks", "epoch", "traffic\nalone")
    sizes = new_table("data", "above it,\nat most", "traffic")
    for row in plan.rows:
        waits = _time(row.between_seconds) if row.between_seconds else ""
        epoch = "" if row.epoch_seconds is None else _time(row.epoch_seconds)
        times.add_row(row.name, _time(row.seconds), waits, epoch, _time(row.floor_seconds))
        above = "" if row.memory_bytes is None else _bytes(row.memory_bytes)
        sizes.add_row(row.name, _bytes(row.data_bytes), above, _bytes(row.traffic_bytes))
    console.print(times, sizes)
    too_large = [row.name for row in plan.rows if row.data_bytes + (row.memory_bytes or 0) > here.memory]
    if plan.checked:
        console.print(_checked(plan.checked))
    notes = ["Of one rank. Memory: data as float32 and int64, and what rises above that."]
    notes.append(
        "Traffic: every tensor that an operation takes or makes once; alone: as fast as a copy here, "
        f"{here.bandwidth / (1 << 30):.1f} GiB/s."
    )
    if too_large:
        notes.append(f"More than this machine's {_bytes(here.memory)}: {'; '.join(too_large)}.")
    if wanted.batch is not None:
        notes.append("Sampling and reading features are not in it. Hubs make batches smaller than counted.")
    elif wanted.ranks > 1:
        notes.append("Each rank trains on its part of the nodes; edges between parts are left out.")
    if (between := plan.between) is not None:
        calls = ", ".join(f"{number} ({name})" for name, number in between.calls.items())
        notes.append(
            f"Collectives of a settled step: {calls}; {_time(between.latency)} each and "
            f"{between.bandwidth / (1 << 30):.2f} GiB/s, as between two processes here. Inference is one process's."
        )
    print_notes(console, plan, *notes)


def _checked(checked: Sequence[Checked]) -> Table:
    title = "Planned / measured"
    columns = ("nodes,\n1000s", "edges,\n1000s", "time", "planned\n/ it", "peak,\nMiB", "planned\n/ it")
    table = new_table(*columns, title=title)
    for one in checked:
        planned, measured = one.seconds
        memory = ("", "") if one.memory is None else (f"{one.memory[1] / (1 << 20):.0f}", _over(*one.memory))
        table.add_row(
            one.name,
            f"{one.nodes / 1e3:,.0f}",
            f"{one.edges / 1e3:,.0f}",
            _time(measured),
            _over(planned, measured),
            *memory,
        )
    return table


def _over(planned: float, measured: float) -> str:
    return f"{planned / measured:.2f}" if measured else ""


def _time(seconds: float) -> str:
    """Formats a time.

    Example:
        >>> _time(0.0123), _time(12.3), _time(4000), _time(1e6)
        ('12.3 ms', '12.3 s', '1.1 h', '11.6 d')
    """
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= size * (2 if unit == "min" else 1):
            return f"{seconds / size:.1f} {unit}"
    return f"{1e3 * seconds:.1f} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.0f} us"


def _bytes(number: float) -> str:
    """Formats a number of bytes.

    Example:
        >>> _bytes(5e5), _bytes(3 << 30), _bytes(2e12)
        ('0.5 MiB', '3.0 GiB', '1.8 TiB')
    """
    for unit, power in (("TiB", 40), ("GiB", 30)):
        if number >= 1 << power:
            return f"{number / (1 << power):.1f} {unit}"
    return f"{number / (1 << 20):.1f} MiB"
