"""``evaluate``: float, prepared and integer models side by side on data: what they score, and what they cost."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import BoundArguments
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch_geometric.data.data import BaseData

from dqconvert.advice import Advice
from dqconvert.bench.costs import file_bytes, peak_of, why_not_measurable
from dqconvert.bench.timing import interleave
from dqconvert.calibrate import callee_of
from dqconvert.compare import Predictions, Sums, pairs_of
from dqconvert.errors import CheckpointError, ConfigError
from dqconvert.evaluation import Evaluated, Evaluation
from dqconvert.expect import expect_float
from dqconvert.exported import open_exported, run_program
from dqconvert.labels import Rows, chosen, holders_of, outputs_of, rows_of
from dqconvert.lower import IntegerModule
from dqconvert.metrics import Gauge, default_metric, metrics_of, of_users
from dqconvert.prepared import PreparedModule
from dqconvert.prepared.switches import rounding
from dqconvert.samples import enough, looking, seen_as, watching
from dqconvert.trace.callee import Callee, callee_of_method
from dqconvert.trace.copies import clear_caches, working_copy
from dqconvert.trace.inputs import map_tensors, method_of, shallow
from dqconvert.words import kind_of

Model: TypeAlias = nn.Module | ExportedProgram | str | os.PathLike[str]


def evaluate(
    models: Model | Sequence[Model] | Mapping[str, Model],
    data: Any,
    metric: Any = None,
    *,
    labels: Rows = None,
    mask: Rows = None,
    repeats: int = 5,
    costs: bool = True,
) -> Evaluation:
    """Runs models on the same data, and returns what each scores, how far it is from the first, and what it costs.

    Works on copies in evaluation mode: the models are as before. Times are medians of interleaved forwards on the first
    batch, by as many threads as torch has.

    Args:
        models: One or several, the float model first: the others are compared with it. A dict names them. Float models,
            prepared and integer modules, programs of ``torch.export``, paths of exported files (``.pt2``, ``.onnx``).
        data: One call's worth of inputs, or several, as for :func:`dqconvert.calibrate`.
        metric: ``"accuracy"``, ``"mae"``, ``"rmse"``; a function of the outputs' rows and their labels that returns a
            number; an object with ``update`` and ``compute``, as those of torchmetrics are; or a dict of such.
            ``None``: accuracy for labels that are classes, the mean absolute error for numbers.
        labels: The name of a field of the data objects, or for a single call a tensor with a row for each row of the
            output. ``None``: ``y``, where the data objects have it and it fits.
        mask: The rows whose labels count: the name of a field (``"test_mask"``), or a bool tensor. ``None``: all.
        repeats: How many forwards are timed of each.
        costs: Measure times, memory and file sizes, too.

    Returns:
        The table; without labels it has no metrics, and says so. Of prepared modules it has the advice, too, see
        :meth:`dqconvert.Report.advice`.

    Raises:
        ConfigError: If there is no model or no data, labels, mask or metric do not fit, or a model's or metric's own
            code raises: the message names it, and what it raised.
        ObserverError: If a prepared module has no ranges yet.

    Example:
        >>> import torch, dqconvert
        >>> from torch_geometric.nn import GCN
        >>> model = GCN(16, 32, num_layers=2, out_channels=7)
        >>> x, edge_index, y = torch.randn(50, 16), torch.randint(50, (2, 200)), torch.randint(7, (50,))
        >>> module, report = dqconvert.prepare(model, "int8-ptq")
        >>> dqconvert.calibrate(module, (x, edge_index))
        >>> found = dqconvert.evaluate([model, module, dqconvert.convert(module)], (x, edge_index), labels=y)
        >>> [one.name for one in found.models], found.rows
        (['float', 'prepared', 'integer'], 50)
        >>> found.models[2].agreement > 0.8
        True
    """
    if not isinstance(repeats, int) or isinstance(repeats, bool) or repeats < 1:
        raise ConfigError(f"evaluate takes as repeats a whole number from 1 on, got {repeats!r}.")
    runs = _runs(models)
    scores = _Scores(metric, labels, mask)
    first, sums, predictions = None, [Sums() for _ in runs], [Predictions() for _ in runs]
    batches = 0
    for call, holder in holders_of(_callee(runs), data):
        reference: Any = None
        for place, run in enumerate(runs):
            result = run(call)
            reference = result if place == 0 else reference
            scores.add(place, outputs_of(result, "evaluate")[0], holder)
            for one, other in pairs_of(reference, result, "evaluate"):
                sums[place].add("output", one, other)
                predictions[place].add(one, other)
        first = call if first is None else first
        batches += 1
        for run in runs:
            run.look(call)
    if first is None:
        raise ConfigError("evaluate: there was no data to evaluate on; pass at least one batch.")
    notes, advice = list(scores.notes), {run.name: some for run in runs if (some := run.advice())}
    spent = _costs(runs, first, repeats, notes) if costs else [{} for _ in runs]
    found = [
        Evaluated(
            name=run.name,
            form=run.form,
            metrics={gauge.name: gauge.value() for gauge in scores.gauges.get(place, ())},
            agreement=predictions[place].equal / max(predictions[place].count, 1),
            sqnr_db=sums[place].layers()["output"].sqnr_db,
            **spent[place],
        )
        for place, run in enumerate(runs)
    ]
    return Evaluation(
        models=tuple(found),
        units={gauge.name: gauge.unit for gauge in scores.gauges.get(0, ())},
        labels=scores.words,
        rows=scores.rows,
        predictions=predictions[0].count,
        batches=batches,
        threads=torch.get_num_threads(),
        notes=tuple(dict.fromkeys(notes)),
        advice=advice,
    )


# -- the models --------------------------------------------------------------------------------------------------


class _Run:
    """A copy of a model that can be run again and again.

    Args:
        name: As results call it.
        model: The model; it stays as it is.

    Attributes:
        form: ``"float"``, ``"prepared"``, ``"integer"`` or ``"exported"``.
        file: Of an exported model.
    """

    def __init__(self, name: str, model: Any) -> None:
        self.name = name
        self.file = Path(model) if isinstance(model, str | os.PathLike) else None
        self._exported = self._see = None
        if self.file is not None or isinstance(model, ExportedProgram):
            self.form, self.module = "exported", nn.Module()
            self._exported = run_program(model) if self.file is None else open_exported(self.file)
            return
        quantized = isinstance(model, PreparedModule | IntegerModule)
        if not quantized:
            expect_float(model, f"evaluate, as {name!r},")
        self.form = type(model)._form if quantized else "float"
        self.module = (
            copy.deepcopy(model) if quantized else working_copy(model, caller="evaluate()", error=ConfigError)
        ).eval()
        self._given = model
        if isinstance(model, PreparedModule):
            self._see = looking(self.module)

    @torch.no_grad()
    def __call__(self, call: BoundArguments) -> Any:
        with of_users(f"the model {self.name!r}, called on the data,"):
            if self._exported is not None:
                return self._exported(call)
            return self.module(*map(shallow, call.args), **{key: shallow(value) for key, value in call.kwargs.items()})

    def look(self, call: BoundArguments) -> None:
        """Looks at the values of a prepared module as they are before they are rounded, of the first few calls."""
        module = self.module
        if self._see is not None and isinstance(module, PreparedModule) and not enough(module):
            with rounding(module), watching(module.quantizers(), self._see):
                self(call)

    def advice(self) -> Advice | None:
        """Returns what there is to mend in a prepared module; ``None``: nothing, or it is another model."""
        if self._see is None:
            return None
        seen_as(self._given, self.module)
        return self._given.report.advice() or None

    def forget(self) -> None:
        """Forgets the graphs that it has seen."""
        if isinstance(self.module, PreparedModule | IntegerModule):
            self.module.graph_memory.clear()
        clear_caches(self.module)


def _runs(models: Any) -> list[_Run]:
    if isinstance(models, nn.Module | ExportedProgram | str | os.PathLike):
        models = [models]
    if isinstance(models, Mapping):
        return [_Run(str(name), model) for name, model in models.items()]
    if not isinstance(models, list | tuple) or not models:
        raise ConfigError(f"evaluate takes a model, a list or a dict of models, got {kind_of(models)}.")
    runs = [_Run("", model) for model in models]
    for place, run in enumerate(runs):
        same = sum(other.form == run.form for other in runs[:place])
        run.name = f"{run.form} {same + 1}" if same else run.form
    return runs


def _callee(runs: Sequence[_Run]) -> Callee:
    """Returns what the data is for: of a quantized model, it is known which arguments are tensors, and absent."""
    for run in runs:
        if isinstance(run.module, PreparedModule | IntegerModule):
            return callee_of(run.module)
    if runs[0].form == "exported":
        raise ConfigError("evaluate: an exported model does not say what its data is for: name the float model first.")
    forward, name = method_of(runs[0].module, "forward"), f"{type(runs[0].module).__name__}.forward"
    return callee_of_method(forward, name, subject="the data does not fit", error=ConfigError)


# -- the labels --------------------------------------------------------------------------------------------------


class _Scores:
    """The metrics of all models, on the labels that there are.

    Attributes:
        gauges: By the place of the model.
        words: What they are of.
        rows: How many labels count.
        notes: Why there are none, and what else there is to say of them.
    """

    def __init__(self, metric: Any, labels: Rows, mask: Rows) -> None:
        self._metrics = None if metric is None else metrics_of(metric)
        self._labels, self._mask = labels, mask
        self._asked = metric is not None or labels is not None or mask is not None
        self._looked = False
        self.gauges: dict[int, list[Gauge]] = {}
        self.words, self.rows, self.notes = "", 0, list[str]()

    def add(self, place: int, output: Tensor, holder: Any) -> None:
        """Takes the output of one model for one batch."""
        if not self._looked:
            self._looked = True
            self._find(output, holder)
        if not self.words:
            return
        labels = rows_of(holder, "labels", self._labels, output, "evaluate")
        mask = rows_of(holder, "mask", self._mask, output, "evaluate")
        assert labels is not None
        output, labels = chosen(output, _as_vector(labels, output), mask)
        for gauge in self.gauges.setdefault(place, [Gauge(name, one) for name, one in (self._metrics or {}).items()]):
            gauge.add(output, labels)
        self.rows += len(labels) if place == 0 else 0

    def _find(self, output: Tensor, holder: Any) -> None:
        """Decides what the labels and the metrics are, by the first output of the first model."""
        if self._labels is None:
            there = isinstance(holder, BaseData) and "y" in holder
            if not there and self._asked:
                raise ConfigError(
                    "evaluate: a metric or a mask needs labels: pass labels=, a tensor or the name of a field of the "
                    "data objects."
                )
            if not there:
                self.notes.append("the data has no labels (no field y): there is nothing to score; pass labels=")
                return
            self._labels = "y"
        try:
            labels = rows_of(holder, "labels", self._labels, output, "evaluate")
        except ConfigError as error:
            if self._asked:
                raise
            self.notes.append(f"the field y is not used: {error}")
            return
        assert labels is not None
        labels = _as_vector(labels, output)
        if self._metrics is None:
            name = default_metric(output, labels)
            if name is None:
                self.notes.append(
                    f"labels of {str(labels.dtype)[6:]} {list(labels.shape)} for an output of {list(output.shape)} "
                    f"name no metric by themselves: pass metric="
                )
                return
            self._metrics = {name: name}
        where = self._mask if isinstance(self._mask, str) else "mask"
        what = self._labels if isinstance(self._labels, str) else "labels"
        self.words = what if self._mask is None else f"{what} at {where}"
        if self._mask is None and isinstance(holder, BaseData) and "test_mask" in holder:
            self.notes.append(
                "all labels count, those of training rows, too; mask='test_mask' takes the test rows alone"
            )


def _as_vector(labels: Tensor, output: Tensor) -> Tensor:
    """Returns a column of classes as a vector, as for an output with a column for each class."""
    column = not labels.is_floating_point() and labels.dim() == 2 and labels.size(1) == 1
    return labels[:, 0] if column and output.dim() == 2 and output.size(1) > 1 else labels


# -- the costs ---------------------------------------------------------------------------------------------------


def _costs(runs: Sequence[_Run], call: BoundArguments, repeats: int, notes: list[str]) -> list[dict[str, Any]]:
    """Returns times, memory and file size of each model, by the names that :class:`Evaluated` has for them."""
    by_name: dict[str, _Run] = {str(place): run for place, run in enumerate(runs)}
    new: dict[str, BoundArguments] = {}

    def renew(name: str) -> None:
        by_name[name].forget()
        new[name] = _cloned(call)  # equal values, which nobody has seen

    def on_new(name: str) -> Callable[[], Any]:
        return lambda: by_name[name](new[name])

    warm = interleave({name: partial(run, call) for name, run in by_name.items()}, repeats)
    cold = interleave({name: on_new(name) for name in by_name}, repeats, warmup=0, before=renew)
    found: list[dict[str, Any]] = []
    reason = why_not_measurable()
    notes += [f"memory: {reason}"] if reason is not None else []
    for name, run in by_name.items():
        run(call)
        spent = {"warm_ms": 1e3 * warm[name].median, "new_ms": 1e3 * cold[name].median}
        spent |= {"peak_mib": peak_of(partial(run, call), repeats=1).rise} if reason is None else {}
        try:
            if run.form != "exported":
                spent["bytes"] = file_bytes(run.module)
            elif run.file is not None:
                spent["bytes"] = run.file.stat().st_size
        except (CheckpointError, RuntimeError) as error:
            notes.append(f"{run.name} has no file: {error}")
        found.append(spent)
    return found


def _cloned(call: BoundArguments) -> BoundArguments:
    arguments = {name: map_tensors(value, torch.clone) for name, value in call.arguments.items()}
    return BoundArguments(call.signature, arguments)
