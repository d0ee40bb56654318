"""``compare``: what rounding does to each value of a model, and to its predictions."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from dqconvert import notebook
from dqconvert.calibrate import callee_of
from dqconvert.drawing import chart, check_drawing
from dqconvert.errors import ConfigError
from dqconvert.expect import expect_float, expect_quantized
from dqconvert.lower import IntegerModule
from dqconvert.lower.replay import FloatRun, QuantizedRun, by_name
from dqconvert.prepare import prepare
from dqconvert.prepared import PreparedModule
from dqconvert.prepared.base import note_agreement
from dqconvert.qconfig import QConfig
from dqconvert.qconfig.specs import Norm
from dqconvert.report import ROLE_COLORS, role_of
from dqconvert.rewrite.protect import ARGUMENT
from dqconvert.trace.given import calls_of
from dqconvert.trace.inputs import map_tensors
from dqconvert.words import count


@dataclass(frozen=True, kw_only=True)
class Layer:
    """The error of one value of a model against the float model's.

    Attributes:
        path: Of its quantizer: module path and role, such as ``"convs.0.quant.aggregate"``.
        sqnr_db: Signal-to-quantization-noise ratio, ``10 log10(sum f^2 / sum (f - q)^2)``; infinite where nothing
            differs.
        max_error: The largest ``|f - q|``.
        values: How many numbers were compared.
    """

    path: str
    sqnr_db: float
    max_error: float
    values: int


@dataclass(frozen=True, kw_only=True, repr=False)
class Comparison:
    """The result of :func:`compare`. ``print`` shows it as a table.

    Attributes:
        layers: Worst first.
        output: Of the model's outputs; its ``path`` is ``"output"``.
        agreement: The share of predictions that are those of the model without rounding: of rows, the column with the
            largest number; of single numbers, their sign.
        predictions: How many there were.
        rounded_agreement: Where an integer module was compared with a prepared one: the share of predictions that are
            those of the prepared module in evaluation, which rounds as the integers do; else ``None``.
        unmatched: Quantizers whose values the float model does not have, or not in this shape.
        batches: How many calls were compared.
        scores: True if outputs look like scores of classes: rows of two or more numbers.
    """

    layers: tuple[Layer, ...]
    output: Layer
    agreement: float
    predictions: int
    rounded_agreement: float | None = None
    unmatched: tuple[str, ...]
    batches: int
    scores: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as plain data for JSON; a ratio that is not finite is None."""
        plain = asdict(self)
        for layer in (*plain["layers"], plain["output"]):
            layer["sqnr_db"] = layer["sqnr_db"] if math.isfinite(layer["sqnr_db"]) else None
        return plain

    def __str__(self) -> str:
        rows = [("", "SQNR, dB", "max error", "values")]
        for layer in (*self.layers, self.output):
            rows.append((layer.path, f"{layer.sqnr_db:.1f}", f"{layer.max_error:.3g}", f"{layer.values:,}"))
        wide = [max(len(row[k]) for row in rows) for k in range(4)]
        lines = [f"{row[0]:<{wide[0]}}  " + "  ".join(f"{row[k]:>{wide[k]}}" for k in (1, 2, 3)) for row in rows]
        lines += self.verdict()
        lines += [f"not compared, as the float model has no such value: {path}" for path in self.unmatched]
        if not self.layers and not self.unmatched:
            lines.append(
                "no value in between has one grid for all rows: compare the prepared module to see what each loses"
            )
        return "\n".join(lines)

    def __repr__(self) -> str:
        batches = count(self.batches, "batch", "batches")
        same = f"{100 * self.agreement:.2f} % of {count(self.predictions, 'prediction')} equal"
        return f"<Comparison over {batches}: output {self.output.sqnr_db:.1f} dB, {same}; print it>"

    def _repr_html_(self) -> str:
        found = [
            (e.path, f"{e.sqnr_db:.1f}", f"{e.max_error:.3g}", f"{e.values:,}") for e in (*self.layers, self.output)
        ]
        table = notebook.table("", ["value", "SQNR, dB", "max error", "values"], found)
        return notebook.lines(self.verdict()) + notebook.folded("value by value, the worst first", table)

    def verdict(self) -> list[str]:
        """Returns the summary in words: a line for each model that predictions are compared with."""
        of = f"of {count(self.predictions, 'prediction')}"
        lines = [f"as the model without rounding predicts: {100 * self.agreement:.2f} % {of} (what rounding changes)"]
        if self.rounded_agreement is not None:
            share = f"{100 * self.rounded_agreement:.2f} % {of}"
            lines.append(f"as the prepared module predicts in evaluation: {share} (what integers change beyond that)")
        return lines

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Writes a chart of the ratios, worst first, in the colors of roles.

        Args:
            path: Of a ``.png``, ``.svg`` or ``.pdf`` file.

        Raises:
            CommandError: If matplotlib is missing (``pip install 'dqconvert[plot]'``), or does not write such files.
            CheckpointError: If the file cannot be written.
        """
        check_drawing(path)
        layers = [layer for layer in (*self.layers, self.output) if math.isfinite(layer.sqnr_db)]
        with chart(path, 1, size=(10, 1.6 + 0.34 * len(layers))) as (_, (axes,)):
            for place, layer in enumerate(layers):
                role = role_of(layer.path)
                first = role not in [role_of(earlier.path) for earlier in layers[:place]]
                label = {"label": role.replace("_", " ")} if first and role else {}
                axes.barh(place, layer.sqnr_db, color=ROLE_COLORS.get(role, "#444444"), height=0.75, **label)
                text = {"ha": "left" if layer.sqnr_db >= 0 else "right", "va": "center", "fontsize": "small"}
                axes.text(layer.sqnr_db, place, f" {layer.sqnr_db:.1f} ", **text)
            axes.set_yticks(range(len(layers)), [layer.path.replace(".quant.", " ") for layer in layers])
            axes.invert_yaxis()
            axes.axvline(0, color="black", linewidth=0.8)
            axes.margins(x=0.12, y=0.02)
            axes.set_xlabel("signal to quantization noise, dB")
            axes.set_title(f"{100 * self.agreement:.2f} % of {count(self.predictions, 'prediction')} agree")
            if len(axes.get_legend_handles_labels()[0]) > 1:
                axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def compare(float_model: nn.Module, integer: nn.Module, data: Any) -> Comparison:
    """Compares a quantized model with the float model on the same data, value by value.

    The float model is traced on the first inputs. Compared is every value that the integer module holds as codes, by
    what they stand for, and the outputs. Of a prepared module, it is every value that is rounded, and every weight.

    Args:
        float_model: The float model, of which ``integer`` was made. A prepared module counts as float: it is compared
            as it is without rounding.
        integer: What :func:`dqconvert.convert` returned; or a prepared module, for what it does in evaluation mode.
        data: One call's worth of inputs or an iterable of them, as :func:`dqconvert.calibrate` takes.

    Raises:
        ConfigError: If there is no data, or the two modules do not belong together.
        TraceError: If the float model cannot be traced.
        ObserverError: If a prepared module has no ranges yet.

    Example:
        >>> import torch, dqconvert
        >>> from torch_geometric.nn import GCN
        >>> model = GCN(16, 32, num_layers=2, out_channels=7)
        >>> x, edge_index = torch.randn(200, 16), torch.randint(200, (2, 1000))
        >>> module, report = dqconvert.prepare(model, "int8-ptq")
        >>> dqconvert.calibrate(module, (x, edge_index))
        >>> found = dqconvert.compare(model, dqconvert.convert(module), (x, edge_index))
        >>> sorted(layer.path for layer in found.layers)
        ['convs.0.lin.quant.feature', 'convs.1.lin.quant.feature', 'convs.1.lin.quant.input']
        >>> found.output.sqnr_db > 10
        True
    """
    if isinstance(float_model, IntegerModule):
        raise ConfigError("compare takes the float model first and the integer module second.")
    expect_float(float_model, "compare, as its first argument,", prepared=True)
    checked = expect_quantized(integer, "compare, as its second argument,")
    sums, predictions, rounded, batches = Sums(), Predictions(), Predictions(), 0
    prepared = _evaluated(float_model) if isinstance(integer, IntegerModule) else None
    quantized, reference = QuantizedRun(checked, sums.add), None
    config = checked.qconfig if isinstance(checked, PreparedModule) else None
    for call in calls_of(callee_of(checked), data):
        given = by_name(call)
        reference = reference or _reference(float_model, call, quantized, config)
        with torch.no_grad():
            values, expected = reference.values(given)
            actual = quantized.against(values, given)
        for one, other in pairs_of(expected, actual):
            sums.add(_OUTPUT, one, other)
            predictions.add(one, other)
        if prepared is not None:
            with torch.no_grad():
                alike = prepared(*call.args, **call.kwargs)
            for one, other in pairs_of(alike, actual):
                rounded.add(one, other)
        batches += 1
    if not batches:
        raise ConfigError("compare: there was no data to compare on; pass at least one batch.")
    layers = sums.layers()
    output = layers.pop(_OUTPUT)
    worst = sorted(layers.values(), key=lambda layer: (not math.isnan(layer.sqnr_db), layer.sqnr_db))
    found = Comparison(
        layers=tuple(worst),
        output=output,
        agreement=predictions.equal / max(predictions.count, 1),
        predictions=predictions.count,
        rounded_agreement=None if prepared is None else rounded.equal / max(rounded.count, 1),
        unmatched=tuple(place.path for place in quantized.places if place.path not in layers),
        batches=batches,
        scores=predictions.classes,
    )
    if isinstance(checked, PreparedModule):
        same = f"{100 * found.agreement:.2f} % of {count(found.predictions, 'prediction')} as without rounding"
        on = count(batches, "batch", "batches")
        note_agreement(checked, f"when compared on {on}, outputs at {output.sqnr_db:.1f} dB signal to noise, {same}")
    return found


_OUTPUT = "output"


def _evaluated(model: nn.Module) -> nn.Module | None:
    """Returns a prepared module as it evaluates; None for a float model, and for one that has no ranges yet."""
    if not isinstance(model, PreparedModule) or not all(quantizer.is_observed() for _, quantizer in model.quantizers()):
        return None
    return model.for_one_run().eval()


def _reference(
    model: nn.Module, call: inspect.BoundArguments, quantized: QuantizedRun, config: QConfig | None
) -> FloatRun:
    """Returns the run to compare with; ``config``: what the quantized module was prepared with, if that is known."""
    wanted = {place.value for place in quantized.places}
    if isinstance(model, PreparedModule):
        return FloatRun(model, wanted)
    call.arguments.pop(ARGUMENT, None)
    names = {name.lstrip("*"): value for name, value in by_name(call).items() if not name.startswith("*")}
    inputs = {**names, **call.kwargs} if len(names) == len(call.arguments) else call.args
    runs: list[FloatRun] = []
    for norm in get_args(Norm) if config is None else (config.norm,):  # which says what is computed on the way
        runs.append(FloatRun(prepare(model, QConfig(norm=norm), inputs).module, wanted))
        if not runs[-1].missing:
            break
    return min(runs, key=lambda run: len(run.missing))


def pairs_of(expected: Any, found: Any, door: str = "compare") -> Iterator[tuple[Tensor, Tensor]]:
    """Returns the floating-point tensors of two outputs in pairs.

    Raises:
        ConfigError: If they differ in shapes; it begins with ``door``.
    """
    tensors: tuple[list[Tensor], list[Tensor]] = [], []
    for output, into in zip((expected, found), tensors, strict=True):
        map_tensors(output, into.append)
    shapes = [[tuple(tensor.shape) for tensor in some] for some in tensors]
    if shapes[0] != shapes[1]:
        raise ConfigError(
            f"{door}: the float model returns {shapes[0]}, the other {shapes[1]}: it was not made of this model."
        )
    return ((one, other) for one, other in zip(*tensors, strict=True) if one.is_floating_point())


class Sums:
    """Sums of signal and noise, by path."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[float, float, float, int]] = {}

    def add(self, path: str, expected: Tensor, found: Tensor) -> None:
        """Adds what a model without rounding has, and what another one has there."""
        noise = expected.double() - found
        signal, squares, worst, values = self._found.get(path, (0.0, 0.0, 0.0, 0))
        largest = float(noise.abs().max()) if noise.numel() else 0.0
        self._found[path] = (
            signal + float(expected.double().square().sum()),
            squares + float(noise.square().sum()),
            largest if math.isnan(largest) else max(worst, largest),
            values + noise.numel(),
        )

    def layers(self) -> dict[str, Layer]:
        """Returns the ratios of all that was added, by path."""
        return {
            path: Layer(path=path, sqnr_db=_decibels(signal, noise), max_error=worst, values=values)
            for path, (signal, noise, worst, values) in self._found.items()
        }


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf if signal == 0 else math.nan


class Predictions:
    """Counts of predictions, and of those that were equal."""

    def __init__(self) -> None:
        self.equal = 0
        self.count = 0
        self.classes = False

    def add(self, expected: Tensor, found: Tensor) -> None:
        classes = expected.dim() > 1 and expected.size(-1) > 1
        self.classes = self.classes or classes
        both = [out.argmax(-1) if classes else out.sign() for out in (expected, found)]
        self.equal += int((both[0] == both[1]).sum())
        self.count += both[0].numel()
