"""Charts of what quantization does to a model, one call each (the extra ``plot``).

Each writes a file that ends in ``.png``, ``.svg`` or ``.pdf``, and raises :class:`dqconvert.CommandError` where
matplotlib is missing (``pip install 'dqconvert[plot]'``). Of comparisons and evaluations, ``.plot(path)`` draws one.
"""

from __future__ import annotations

import math
import os
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.utils import degree

from dqconvert.drawing import PALETTE, chart, check_drawing, log_axis
from dqconvert.errors import ConfigError
from dqconvert.expect import expect_prepared
from dqconvert.kernels import protection_probability
from dqconvert.node_errors import errors_of_nodes
from dqconvert.prepared import PreparedModule
from dqconvert.quant import Protection
from dqconvert.report import ROLE_COLORS
from dqconvert.tally import Tally, tallies
from dqconvert.words import did_you_mean, listed, shortened

_COLUMNS, _MOST_TICKS = 3, 17

Path = str | os.PathLike[str]


def histograms(
    module: PreparedModule, data: Any, path: Path, *, only: str | None = None, batches: int | None = None
) -> None:
    """Writes a panel per quantizer: a histogram of the values it is given in evaluation, and its grid.

    The grid is shaded; up to 17 codes have a line each. Counts are on a logarithmic scale. Values beyond the grid are
    clipped, and the title says how many are; those far beyond it are in the outermost bars. Where channels or groups of
    in-degrees have grids of their own, values are drawn in units of the code.

    Args:
        module: A prepared module with ranges.
        data: As :func:`dqconvert.calibrate` takes it.
        path: The file to write.
        only: A regular expression for the paths of quantizers, by ``re.search``: ``"convs.0"``, ``"message"``.
        batches: How many calls to look at at most; ``None``: all.

    Raises:
        ConfigError: If no quantizer is left, or data reaches none.
        ObserverError: If one that data reaches has no range yet.
    """
    expect_prepared(module, "plot.histograms")
    check_drawing(path)
    try:
        wanted = re.compile(only or "")
    except re.error as error:
        raise ConfigError(f"plot.histograms: only={only!r} is no regular expression: {error}") from error
    if batches is not None and (not isinstance(batches, int) or isinstance(batches, bool) or batches < 1):
        raise ConfigError(f"plot.histograms takes as batches a whole number from 1 on, or None, got {batches!r}.")
    entries = {entry.path: entry for entry in module.report.entries}
    found = {name: one for name, one in tallies(module, data, batches).items() if wanted.search(name)}
    if not found:
        which = f"with {shortened(only)} in its path (of {listed(entries, most=4)})" if only else "at all"
        raise ConfigError(f"plot.histograms: data reaches no quantizer {which}")
    columns = min(_COLUMNS, len(found))
    with chart(path, math.ceil(len(found) / columns), columns, size=(4.6, 2.7)) as (_, panels):
        for axes in panels[len(found) :]:
            axes.remove()
        for axes, (name, tally) in zip(panels, found.items(), strict=False):
            entry = entries[name]
            code = f"{'s' if entry.signed else 'u'}{entry.bits}"
            where = name.removesuffix(f"quant.{name.rpartition('.')[2]}").rstrip(".")
            axes.set_title(f"{where} {name.rpartition('.')[2]}, {code}\n{100 * tally.share:.2g} % clipped", fontsize=12)
            _histogram(axes, tally, ROLE_COLORS[entry.role])


def _histogram(axes: Any, tally: Tally, color: str) -> None:
    quantizer = tally.quantizer
    single = quantizer.min_val.dim() == 0
    scale, zero = (float(quantizer.scale), float(quantizer.zero_point)) if single else (1.0, 0.0)
    edges = torch.linspace(*tally.span, len(tally.bins) + 1, dtype=torch.float64)
    values = ((edges - zero) * scale).tolist()
    axes.stairs(tally.bins.tolist(), values, fill=True, color=color)
    low, high = quantizer.quant_min, quantizer.quant_max
    ends = [(code - zero) * scale for code in (low - 0.5, high + 0.5)]
    axes.axvspan(*ends, color=color, alpha=0.15, linewidth=0)
    ticks = range(low, high + 1) if high - low < _MOST_TICKS else (low, high)
    axes.vlines([(code - zero) * scale for code in ticks], 0, 0.06, color="black", transform=axes.get_xaxis_transform())
    axes.set_xlim(values[0], values[-1])
    axes.set_yscale("log")  # or what lies at 0 would hide the rest
    axes.set_ylim(0.5, 2 * max(int(tally.bins.max()), 1))
    axes.set_yticks([])
    axes.minorticks_off()
    axes.spines["left"].set_visible(False)
    if not single:
        axes.set_xlabel("code", fontsize=11)


def protection(module: PreparedModule, data: Any, path: Path) -> None:
    """Writes how likely a node is protected in a training step, against its in-degree, and how many nodes there are.

    Args:
        module: A prepared module whose config has protection.
        data: A ``Data``, ``HeteroData`` or batch of such with an ``edge_index``; or an ``edge_index``.
        path: The file to write.

    Raises:
        ConfigError: If the module protects nothing, or the data has no edges.

    Source:
        Tailor, Fernandez-Marques and Lane, *Degree-Quant*, ICLR 2021, section 3.
    """
    expect_prepared(module, "plot.protection")
    check_drawing(path)
    drawing = next((child for child in module.modules() if isinstance(child, Protection)), None)
    if drawing is None:
        raise ConfigError("plot.protection: the module has no protection to draw (protect of its config)")
    bounds = drawing.protect.p_min, drawing.protect.p_max
    kinds = list(_edges_of(data))
    if not kinds:
        raise ConfigError(f"plot.protection: {shortened(data)} has no edges")
    with chart(path, 2, size=(9, 2.9)) as (_, (above, below)):
        for place, (name, targets, nodes, batch) in enumerate(kinds):
            degrees = sum(degree(target, nodes, dtype=torch.long) for target in targets)
            probability = protection_probability(targets, nodes, *bounds, batch)
            found, counts = torch.unique(degrees, return_counts=True)
            means = torch.stack([probability[degrees == one].mean() for one in found])
            style: dict[str, Any] = {"color": PALETTE[place % len(PALETTE)], **({"label": name} if name else {})}
            above.plot((found + 1).tolist(), means.tolist(), "o-", markersize=5, **style)
            below.vlines((found + 1).tolist(), 0.7, counts.tolist(), linewidth=2.5, color=style["color"])
        for axes in (above, below):
            _degree_axis(axes)
        above.set_ylim(0, 1.08 * max(bounds[1], 1e-6))
        above.set_ylabel("probability")
        above.set_title("protected in a training step")
        above.grid(visible=True)
        log_axis(below, "y")
        below.set_ylabel("nodes")
        below.set_xlabel("in-degree")
        if len(kinds) > 1:
            above.legend()


def _degree_axis(axes: Any) -> None:
    """Draws x, in-degrees plus 1, on a logarithmic scale."""
    log_axis(axes, "x")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value - 1:,.12g}")
    axes.set_xticks([1, 2, 3, 6, 11, 21, 51, 101, 201, 501, 1001, 2001, 5001, 10001])
    axes.set_xlim(0.9, 1.15 * max(float(axes.dataLim.x1), 2))


class _Edges(NamedTuple):
    name: str
    targets: list[Tensor]
    nodes: int
    batch: Tensor | None


def _edges_of(data: Any) -> Iterator[_Edges]:
    """Yields, by type of node, which node each edge ends at."""
    if isinstance(data, HeteroData):
        for kind in data.node_types:
            given = [data[edge].get("edge_index") for edge in data.edge_types if edge[2] == kind]
            targets = [_checked(one, data)[1] for one in given if one is not None]
            if sum(map(len, targets)):
                yield _Edges(kind, targets, data[kind].num_nodes, data[kind].get("batch"))
        return
    edges = _checked(data if isinstance(data, Tensor) else getattr(data, "edge_index", None), data)
    if not edges.numel():
        return
    nodes = int(edges.max()) + 1 if isinstance(data, Tensor) else data.num_nodes
    yield _Edges("", [edges[1]], nodes, None if isinstance(data, Tensor) else getattr(data, "batch", None))


def _checked(edges: Any, data: Any) -> Tensor:
    fits = isinstance(edges, Tensor) and edges.dim() == 2 and edges.size(0) == 2 and edges.dtype == torch.int64
    if not fits or (edges.numel() and int(edges.min()) < 0):
        raise ConfigError(
            "plot.protection takes a Data with an edge_index, or an edge_index, int64 [2, edges] of nodes from 0 on, "
            f"got {shortened(data)}"
        )
    return edges


def errors_by_degree(module: PreparedModule, data: Any, path: Path, *, role: str = "aggregate") -> None:
    """Writes how far rounding moves the values of nodes, against their in-degree: a line per layer.

    The error of a node is the root of the mean square of ``float - quantized`` over its features, divided by that of
    all float values of the layer; a point is the mean over the nodes of in-degrees from 2^k to 2^(k+1) - 1, and the
    band holds half of them. In-degrees are those that protection goes by: over all types of edges that reach a node.

    Args:
        module: A prepared module with ranges, which is compared with itself without rounding.
        data: Inputs, as :func:`dqconvert.calibrate` takes them.
        path: The file to write.
        role: Which values: ``"aggregate"`` (the default), ``"update"``, ``"feature"`` or ``"input"``.

    Raises:
        ConfigError: If there are no such values, or no data, or no edges reach the nodes of one.
        ObserverError: If a quantizer has no range yet.

    Source:
        Tailor, Fernandez-Marques and Lane, *Degree-Quant*, ICLR 2021, section 3.1: errors of aggregation grow with
        the in-degree.
    """
    expect_prepared(module, "plot.errors_by_degree")
    check_drawing(path)
    wanted = [entry.path for entry in module.report.entries if entry.role == role and entry.level == "node"]
    if not wanted:
        roles = {entry.role for entry in module.report.entries if entry.level == "node"}
        raise ConfigError(
            f"plot.errors_by_degree: no value of nodes has the role {role!r}{did_you_mean(role, roles)} "
            f"(there are: {listed(sorted(roles))})"
        )
    errors = errors_of_nodes(module, data, set(wanted))
    with chart(path, 1, size=(9, 5)) as (_, (axes,)):
        for place, name in enumerate(one for one in wanted if one in errors):
            degrees, values = errors[name]
            group = torch.where(degrees > 0, degrees.clamp(min=1).double().log2().floor() + 1, 0.0)
            at, rows = [], []
            for one in group.unique():
                part = values[group == one]
                at.append(float(degrees[group == one].double().mean()) if one else 0.0)
                rows.append([float(part.mean()), *part.quantile(torch.tensor([0.25, 0.75]).double()).tolist()])
            x, (mean, low, high) = [1 + one for one in at], zip(*rows, strict=True)
            color = PALETTE[place % len(PALETTE)]
            axes.plot(x, mean, "o-", color=color, label=name.rpartition(".quant.")[0] or "the layer", linewidth=2)
            axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
        _degree_axis(axes)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("in-degree")
        axes.set_ylabel(f"error of {role}s, relative")
        axes.grid(visible=True)
        axes.legend()


def accuracy_by_bits(
    results: Mapping[str, Mapping[float, float | Sequence[float]]],
    path: Path,
    *,
    reference: float | None = None,
    label: str = "accuracy, %",
) -> None:
    """Writes accuracy against bits: a line per method, with a band of one standard deviation where there are seeds.

    Args:
        results: By the name of a method, and then by its bits (also average bits), an accuracy, or one of each seed.
        path: The file to write.
        reference: The float model's accuracy, drawn as a dashed line; ``None``: there is none.
        label: Of the axis.

    Raises:
        ConfigError: If there is nothing to draw.

    Example:
        >>> import tempfile
        >>> found = {"int4-dq": {4: [21.0, 25.5], 8: [82.0, 82.6]}, "int4-dq+": {4: 82.0}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     accuracy_by_bits(found, f"{folder}/bits.svg", reference=81.7)
    """
    check_drawing(path)
    wrong = ConfigError(
        f"plot.accuracy_by_bits takes, by method and bits, accuracies: {{'int8-dq': {{8: [81.9, 82.4]}}}}, got "
        f"{shortened(results)}"
    )
    try:
        found = {
            name: {
                float(bits): [float(seeds)] if isinstance(seeds, int | float) else [float(one) for one in seeds]
                for bits, seeds in by_bits.items()
            }
            for name, by_bits in results.items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise wrong from error
    if not found or not all(by_bits and all(by_bits.values()) for by_bits in found.values()):
        raise wrong
    with chart(path, 1, size=(9, 5)) as (_, (axes,)):
        for place, (name, by_bits) in enumerate(found.items()):
            color, bits = PALETTE[place % len(PALETTE)], sorted(by_bits)
            each = [by_bits[one] for one in bits]
            mean = [statistics.fmean(seeds) for seeds in each]
            spread = [statistics.stdev(seeds) if len(seeds) > 1 else 0.0 for seeds in each]
            axes.errorbar(bits, mean, spread, color=color, label=name, marker="o", linewidth=2, capsize=4, markersize=7)
        if reference is not None:
            axes.axhline(reference, color="black", linestyle="--", linewidth=1.2, label="float")
        every = sorted({one for by_bits in found.values() for one in by_bits})
        axes.set_xticks(every, [f"{one:g}" for one in every])
        axes.set_xlabel("bits")
        axes.set_ylabel(label)
        axes.grid(visible=True)
        axes.legend()
